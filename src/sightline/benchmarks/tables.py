"""Scores of a benchmark for a terminal."""

from rich.table import Table

from .items import OWN_SCALE, Benchmark, Scores


def scores_table(benchmark: Benchmark, scores: Scores) -> Table:
    """Each score with its interval; the one that papers quote in bold."""
    shares = benchmark.name not in OWN_SCALE
    table = Table(title=benchmark.title, title_justify="left", caption=benchmark.note, box=None, pad_edge=False)
    for heading in ("", "score", "95% interval", "n"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, score in scores.items():
        value, low, high = (
            f"{number:.1%}" if shares else f"{number:.1f}" for number in (score.value, score.low, score.high)
        )
        table.add_row(name, value, f"{low} to {high}", str(score.n), style="bold" if name == benchmark.primary else "")
    return table
