"""What an evaluation leaves: `predictions.jsonl`, one row a question, and `scores.json`, computed from them.

Everything in `scores.json` can be computed again from the predictions, so two runs are compared by their
predictions.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import SightlineError
from ..files import write_text
from .metrics import (
    Estimate,
    YesNo,
    YesNoScores,
    majority_baseline,
    paired_difference,
    proportion_interval,
    yes_no_scores,
    yes_no_truth,
)

T = TypeVar("T")
PREDICTIONS, SCORES = "predictions.jsonl", "scores.json"


@dataclass(frozen=True)
class Prediction:
    """One answered question, a row of `predictions.jsonl`."""

    id: str
    images: tuple[str, ...]
    """Image names, relative to `images_root` of the scores."""
    question: str
    answers: tuple[str, ...]
    prediction: str
    correct: bool
    ability: str

    @property
    def cluster(self) -> str:
        """What intervals resample: the images of the question, or the question itself where it has none."""
        return "\n".join(self.images) or f"question {self.id}"


@dataclass(frozen=True)
class Scores:
    """The scores of one evaluation, and what it takes to make them again."""

    n: int
    overall: Estimate
    by_ability: Mapping[str, Estimate]
    baseline: float
    """Accuracy of giving each ability its most common answer."""
    baseline_by_ability: Mapping[str, float]
    yes_no: YesNoScores | None
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    images_root: str


@dataclass(frozen=True)
class Comparison:
    """Accuracy of a minus accuracy of b on the same questions, with paired intervals."""

    overall: Estimate
    by_ability: Mapping[str, Estimate]


def score(
    predictions: Sequence[Prediction],
    *,
    settings: Mapping[str, Any],
    versions: Mapping[str, str],
    images_root: str = "",
) -> Scores:
    """The scores of `predictions`, of which there must be one at least."""
    groups = by_ability(predictions)
    baseline = {ability: majority_baseline([row.answers for row in rows]) for ability, rows in groups.items()}
    weighted = sum(baseline[ability] * len(rows) for ability, rows in groups.items()) / len(predictions)
    return Scores(
        n=len(predictions),
        overall=_accuracy(predictions),
        by_ability={ability: _accuracy(rows) for ability, rows in groups.items()},
        baseline=weighted,
        baseline_by_ability=baseline,
        yes_no=_yes_no(predictions),
        settings=dict(settings),
        versions=dict(versions),
        images_root=images_root,
    )


def compare(predictions_a: Path, predictions_b: Path) -> Comparison:
    """Paired differences, a minus b, overall and by ability, drawn by image.

    Args:
        predictions_a: a `predictions.jsonl`.
        predictions_b: another, of the same questions in any order.

    Raises:
        SightlineError: if the files do not hold the same questions, or cannot be read.
    """
    a, b = read_predictions(predictions_a), read_predictions(predictions_b)
    others = {row.id: row for row in b}
    alone = [row.id for row in a if row.id not in others] + sorted(others.keys() - {row.id for row in a})
    if alone:
        raise SightlineError(
            f"{predictions_a} and {predictions_b} do not hold the same questions: {len(alone)} stand in one "
            f"of them only (the first is '{alone[0]}'), so they have no paired difference. "
            "Evaluate both on one file."
        )
    for row in a:
        other = others[row.id]
        if (row.question, row.answers, row.ability) != (other.question, other.answers, other.ability):
            raise SightlineError(
                f"question '{row.id}' is not the same in {predictions_a} and {predictions_b}: "
                f"'{row.question}' and '{other.question}', or other answers. Evaluate both on one file."
            )
    groups = by_ability(a)
    return Comparison(_difference(a, others), {ability: _difference(rows, others) for ability, rows in groups.items()})


def by_ability(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    """The predictions of each ability, abilities in alphabetical order."""
    groups: dict[str, list[Prediction]] = {name: [] for name in sorted({row.ability for row in predictions})}
    for row in predictions:
        groups[row.ability].append(row)
    return groups


def write_scores(out: Path, predictions: Sequence[Prediction], scores: Scores) -> None:
    """Both files into the folder `out`, each whole or not at all."""
    rows = (json.dumps(asdict(row), ensure_ascii=False) for row in predictions)
    write_text(out / PREDICTIONS, "".join(f"{row}\n" for row in rows))
    write_text(out / SCORES, json.dumps(asdict(scores), ensure_ascii=False, indent=2, default=str) + "\n")


def read_predictions(path: Path) -> list[Prediction]:
    """The rows of a `predictions.jsonl`.

    Raises:
        SightlineError: if the file is missing or a row is not what `evaluate` writes, with its line.
    """
    lines = enumerate(_read(path).split("\n"), start=1)
    rows = [_load(Prediction, line, f"{path} line {number}") for number, line in lines if line.strip()]
    if not rows:
        raise SightlineError(f"{path} holds no predictions. Run `sightline eval` again.")
    return rows


def read_scores(path: Path) -> Scores:
    """The contents of a `scores.json`.

    Raises:
        SightlineError: if the file is missing or is not what `evaluate` writes.
    """
    return _load(Scores, _read(path), str(path))


def _accuracy(rows: Sequence[Prediction]) -> Estimate:
    return proportion_interval([row.correct for row in rows], [row.cluster for row in rows])


def _difference(rows: Sequence[Prediction], others: Mapping[str, Prediction]) -> Estimate:
    return paired_difference(
        [row.correct for row in rows], [others[row.id].correct for row in rows], [row.cluster for row in rows]
    )


def _yes_no(predictions: Sequence[Prediction]) -> YesNoScores | None:
    rows: list[tuple[Prediction, YesNo]] = [
        (row, truth) for row in predictions if (truth := yes_no_truth(row.answers)) is not None
    ]
    if not rows:
        return None
    said, clusters = [row.prediction for row, _ in rows], [row.cluster for row, _ in rows]
    return yes_no_scores(said, [truth for _, truth in rows], clusters)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SightlineError(f"cannot read {path}: {error}. Run `sightline eval` again.") from None


def _load(kind: type[T], text: str, where: str) -> T:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the text"
        raise SightlineError(
            f"{where} is not what `sightline eval` writes: {place}: {first['msg']}. Run it again."
        ) from None
