"""Scores of benchmarks that a judge marks: requests written, answers read, or asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import SightlineError
from ..progress import reading_bar
from .files import lines
from .items import Answered, Benchmark, Marking, Scores
from .judge import ask, read_answers, write_requests

REQUESTS, ANSWERS = "judge-requests.jsonl", "judge-answers.jsonl"
DEFAULT = "gpt-4-0613"
"""Who the papers' judge was, for requests that name none."""


def judge_of(folder: Path) -> str | None:
    """Whom the requests in a benchmark's folder are for; None where there are none."""
    path = folder / REQUESTS
    return lines(path)[0]["body"]["model"] if path.is_file() else None


def judged(
    benchmark: Benchmark,
    rows: Sequence[Answered],
    folder: Path,
    judge: str | None,
    endpoint: str | None,
    key: str | None,
    say: Callable[[str], None],
) -> Scores | None:
    """The scores, or None where the judge has not answered yet.

    Args:
        benchmark: one that a judge marks.
        folder: the benchmark's; requests and answers are in it.
        judge: the model that marks; by default the one that was named before, or the papers'.
        endpoint: where it answers; without one, requests are written and answers are read.

    Raises:
        SightlineError: if an answer of the judge cannot be read, the endpoint gives none, or another judge's are there.
    """
    marking, requests, answers = benchmark.score, folder / REQUESTS, folder / ANSWERS
    assert isinstance(marking, Marking), f"{benchmark.name} is scored by rule"
    before = judge_of(folder)
    judge = judge or before or DEFAULT
    if answers.is_file() and before not in (None, judge):
        raise SightlineError(
            f"{answers} has marks by '{before}', and those by '{judge}' would be mixed with them. Move that file away, "
            "or give another --out."
        )
    write_requests(rows, marking.prompt, judge, requests)
    if endpoint is not None:
        with reading_bar(f"asking {judge}") as progress:
            ask(requests, answers, endpoint, key, progress)
    said = read_answers(answers) if answers.is_file() else {}
    lacking = [row.item.id for row in rows if row.item.id not in said]
    if lacking:
        say(
            f"{benchmark.name}: {len(lacking)} of {len(rows)} answers wait for a judge. Send {requests}, put what "
            f"comes back in {answers}, and run this again; or --judge NAME --endpoint URL"
        )
        return None
    marks = [marking.read(said[row.item.id], f"{answers}, {row.item.id}") for row in rows]
    return marking.score(marks, rows)
