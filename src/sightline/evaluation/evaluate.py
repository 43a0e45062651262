"""Ask a model every question of a file, score its answers, and leave files that anyone can score again."""

import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from PIL import Image
from rich.table import Table

from ..data.images import blank_like, load_image
from ..errors import SightlineError
from ..progress import watched
from .metrics import Estimate, is_correct
from .questions import Question
from .scores import Comparison, Prediction, Scores, score, write_scores

T = TypeVar("T")
PACKAGES = ("sightline", "torch", "transformers", "numpy", "pillow")


@runtime_checkable
class Answerer(Protocol):
    """Whatever can be asked: for each question its RGB images, in order. Decoding is greedy."""

    def answers(
        self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], *, max_new_tokens: int
    ) -> list[str]: ...


def evaluate(
    answerer: Answerer,
    questions: Sequence[Question],
    *,
    out: Path,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    blank_images: bool = False,
    progress: bool = True,
) -> Scores:
    """Answer `questions`, score the answers, and write `predictions.jsonl` and `scores.json` into `out`.

    Images are opened batch by batch. Both files appear whole at the end, or not at all.

    Args:
        answerer: greedy, so that the same questions get the same answers.
        settings: what the scores depend on (the model, the question file), recorded beside these arguments.
        max_new_tokens: where an answer is cut off, in tokens.
        blank_images: show grey images of the same size instead, to see what the words alone give.
        progress: a bar on stderr once two seconds have passed.

    Raises:
        SightlineError: for no questions, a batch size below 1, an image that cannot be decoded, or an
            answerer that gives another number of answers than it was asked for.
    """
    if not questions:
        raise SightlineError(
            "there are no questions to ask, so there is nothing to score. Give a question file with rows."
        )
    if batch_size < 1:
        raise SightlineError(f"a batch of {batch_size} questions cannot be asked. Set the batch size to 1 or more.")
    root = _common_folder(questions)
    predictions: list[Prediction] = []
    for batch in watched(questions, "asking", batch_size=batch_size, progress=progress):
        images = [[_open(path, blank_images) for path in question.images] for question in batch]
        given = answerer.answers(images, [question.text for question in batch], max_new_tokens=max_new_tokens)
        if len(given) != len(batch):
            raise SightlineError(
                f"the model gave {len(given)} answers to {len(batch)} questions, from '{batch[0].id}' on, "
                "and which belongs to which is lost. `answers` must give one for each."
            )
        predictions += [_prediction(question, text, root) for question, text in zip(batch, given, strict=True)]
    recorded = {
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "blank_images": blank_images,
        "decoding": "greedy",
    }
    scores = score(
        predictions,
        settings={**(settings or {}), **recorded},
        versions=versions(),
        images_root=root.as_posix(),
    )
    write_scores(out, predictions, scores)
    return scores


def scores_table(scores: Scores, comparison: Comparison | None = None, *, against: str = "twin") -> Table:
    """The scores for a terminal: a line for each ability, its interval, and the difference to a twin."""
    table = Table(title=f"{scores.n} questions, 95% intervals", title_justify="left", box=None, pad_edge=False)
    table.add_column("ability")
    table.add_column("right", justify="right")
    table.add_column("interval")
    table.add_column("n", justify="right")
    table.add_column("commonest answer", justify="right")
    if comparison is not None:
        table.add_column(f"minus {against}", justify="right")
        table.add_column("paired interval")

    def add(name: str, estimate: Estimate, baseline: float, difference: Estimate | None, style: str) -> None:
        cells = [name, f"{estimate.value:.1%}", f"{estimate.low:.1%} to {estimate.high:.1%}", str(estimate.n)]
        cells.append(f"{baseline:.1%}")
        if difference is not None:
            cells += [
                f"{100 * difference.value:+z.1f}",
                f"{100 * difference.low:+z.1f} to {100 * difference.high:+z.1f}",
            ]
        table.add_row(*cells, style=style)

    add("overall", scores.overall, scores.baseline, comparison and comparison.overall, "bold")
    if len(scores.by_ability) > 1:
        for name, estimate in scores.by_ability.items():
            difference = comparison and comparison.by_ability[name]
            add(name, estimate, scores.baseline_by_ability[name], difference, "")
    if (block := scores.yes_no) is not None:
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
            estimate = getattr(block, name)
            interval = f"{estimate.low:.1%} to {estimate.high:.1%}"
            table.add_row(f"yes/no {name.replace('_', '-')}", f"{estimate.value:.1%}", interval, str(estimate.n))
        if block.unread:
            table.add_row("yes/no: said neither", str(block.unread), "read as yes, as POPE does", str(block.accuracy.n))
    return table


def _prediction(question: Question, text: str, root: Path) -> Prediction:
    return Prediction(
        id=question.id,
        images=tuple(Path(os.path.relpath(path.absolute(), root)).as_posix() for path in question.images),
        question=question.text,
        answers=question.answers,
        prediction=text,
        correct=is_correct(text, question.answers),
        ability=question.ability,
    )


def _open(path: Path, blank: bool) -> Image.Image:
    image = load_image(path)
    return blank_like(image) if blank else image


def _common_folder(questions: Sequence[Question]) -> Path:
    """The deepest folder that holds every image: below it, images have the same names on every machine."""
    folders = {str(path.absolute().parent) for question in questions for path in question.images}
    return Path(os.path.commonpath(folders)) if folders else Path()


def versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
