"""Scores of benchmarks that a judge marks: requests written, answers read, or asked for."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import SightlineError
from ..progress import reading_bar
from .items import Answered, Benchmark, Scores
from .judge import MARK, PAIR, ask, mark, pair, read_answers, write_requests
from .open import marked, relative

REQUESTS, ANSWERS = "judge-requests.jsonl", "judge-answers.jsonl"
DEFAULT = "gpt-4-0613"
"""Who the papers' judge was, for requests that name none."""


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
        folder: the benchmark's; requests and answers are in it.
        judge: the model that marks.
        endpoint: where it answers; without one, requests are written and answers are read.

    Raises:
        SightlineError: if an answer of the judge cannot be read, or the endpoint gives none.
    """
    requests, answers = folder / REQUESTS, folder / ANSWERS
    prompt = PAIR if benchmark.name == "llava-bench" else MARK
    write_requests(rows, prompt, judge or DEFAULT, requests)
    if endpoint is not None:
        if judge is None:
            raise SightlineError("an endpoint answers as a model: name it with --judge.")
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
    texts = [(said[row.item.id], f"{answers.name}, {row.item.id}") for row in rows]
    if benchmark.name == "llava-bench":
        return relative([pair(text, where) for text, where in texts], rows)
    return marked([mark(text, where) for text, where in texts], rows)
