"""Read a run folder for its page. What is missing or broken becomes a note in words; the rest is still shown."""

import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..benchmarks.run import ANSWERS
from ..benchmarks.run import read_scores as read_benchmark
from ..errors import SightlineError, did_you_mean
from ..evaluation.metrics import Estimate
from ..evaluation.scores import PREDICTIONS, SCORES, Prediction, Scores, read_predictions, read_scores
from .looks import FOLDER, Looks, can_be_read, read_looks

PIECES = ("recipe.yaml", "run.json", "metrics.jsonl", "eval", "model")
NAMED = "loss of "
"""What the loss of a validation set with a name is called, before that name."""


@dataclass(frozen=True)
class Curve:
    """One quantity of one stage over its steps, ascending; `(step, value)` pairs."""

    stage: str
    quantity: str
    train: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Evaluation:
    """One folder below `eval/`."""

    name: str
    path: Path
    scores: Scores
    predictions: tuple[Prediction, ...]

    @property
    def is_blank(self) -> bool:
        """Whether the model was shown blank images."""
        return bool(self.scores.settings.get("blank_images"))


@dataclass(frozen=True)
class Benchmarked:
    """The scores of a benchmark, from a folder below `eval/`."""

    name: str
    title: str
    primary: str
    """The score that papers quote."""
    note: str
    scores: Mapping[str, Estimate]


@dataclass(frozen=True)
class Run:
    """All that a page can say about a run."""

    path: Path
    name: str
    info: Mapping[str, Any]
    """The contents of `run.json`; every key is optional."""
    recipe: str
    curves: tuple[Curve, ...]
    evaluations: tuple[Evaluation, ...]
    """By name, those on blank images last; the first one makes the headline."""
    benchmarks: tuple[Benchmarked, ...]
    """By name."""
    looks: Looks | None
    """What its model makes of a few pictures, where that was looked at."""
    has_model: bool
    notes: tuple[str, ...]
    """What could not be read, in words for the page."""


def read_run(path: Path) -> Run:
    """The run in the folder `path`.

    Raises:
        SightlineError: if there is no such folder, or if it holds nothing that a run leaves.
    """
    if not path.is_dir():
        raise SightlineError(f"run folder not found: {path}. Give the folder that a training run wrote.")
    if not any((path / piece).exists() for piece in PIECES):
        raise SightlineError(
            f"{path} holds no run: none of {', '.join(PIECES)} is in it. Give the folder that a training run wrote."
        )
    notes: list[str] = []
    info = _info(path / "run.json", notes)
    return Run(
        path=path,
        name=str(info.get("name") or path.resolve().name),
        info=info,
        recipe=_text(path / "recipe.yaml", notes),
        curves=_curves(path / "metrics.jsonl", notes),
        evaluations=_evaluations(path / "eval", notes),
        benchmarks=_benchmarks(path / "eval", notes),
        looks=_looks(path, notes),
        has_model=(path / "model").is_dir(),
        notes=tuple(notes),
    )


def with_first(run: Run, name: str) -> Run:
    """The run with another evaluation as its first.

    Raises:
        SightlineError: if it has none of that name.
    """
    names = [evaluation.name for evaluation in run.evaluations]
    if name not in names:
        raise SightlineError(
            f"the run has no evaluation '{name}'{did_you_mean(name, names) or '.'} "
            f"It has: {', '.join(names) or 'none'}."
        )
    return replace(run, evaluations=tuple(sorted(run.evaluations, key=lambda evaluation: evaluation.name != name)))


def _looks(path: Path, notes: list[str]) -> Looks | None:
    try:
        looks = read_looks(path)
    except SightlineError as error:
        notes.append(str(error))
        return None
    if looks is not None:
        gone = [file for file in looks.files if not can_be_read(path / FOLDER / Path(file).name)]
        notes += looks.notes
        notes += [f"Left out, since they cannot be read: {', '.join(gone)} in {path / FOLDER}."] if gone else []
    return looks


def _text(path: Path, notes: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError):
        notes.append(f"{path.name} could not be read, and is left out.")
        return ""


def _info(path: Path, notes: list[str]) -> Mapping[str, Any]:
    text = _text(path, notes)
    info = _loads(text) if text else {}
    if isinstance(info, dict):
        return info
    notes.append(f"{path.name} is not a JSON object, and is left out.")
    return {}


def _evaluations(folder: Path, notes: list[str]) -> tuple[Evaluation, ...]:
    evaluations: list[Evaluation] = []
    for path in _folders(folder):
        if any((path / file).is_file() for file in (PREDICTIONS, SCORES)) and not (path / ANSWERS).is_file():
            try:
                evaluations.append(_evaluation(path))
            except SightlineError as error:
                notes.append(f"Evaluation '{path.name}' is left out: {error}")
    return tuple(sorted(evaluations, key=lambda evaluation: (evaluation.is_blank, evaluation.name)))


def _benchmarks(folder: Path, notes: list[str]) -> tuple[Benchmarked, ...]:
    """Those that have scores; one that waits for its judge, or was stopped, has none yet, and tries are no scores."""
    found: list[Benchmarked] = []
    for path in _folders(folder):
        if (path / ANSWERS).is_file() and (path / SCORES).is_file():
            try:
                about, scores = read_benchmark(path / SCORES)
                title, primary, note = (str(about[key]) for key in ("title", "primary", "note"))
            except (OSError, ValueError, KeyError, TypeError):
                notes.append(f"Benchmark '{path.name}' is left out: its {SCORES} cannot be read.")
                continue
            found.append(Benchmarked(path.name, title, primary, note, scores))
    return tuple(found)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def _evaluation(path: Path) -> Evaluation:
    predictions, scores = read_predictions(path / PREDICTIONS), read_scores(path / SCORES)
    counts = Counter(row.ability for row in predictions)
    if counts != {ability: estimate.n for ability, estimate in scores.by_ability.items()}:
        raise SightlineError(f"{SCORES} and {PREDICTIONS} do not belong together. Run `sightline eval` again.")
    return Evaluation(path.name, path, scores, tuple(predictions))


def _curves(path: Path, notes: list[str]) -> tuple[Curve, ...]:
    """The losses of each stage, in order of appearance, those of named validation sets last.

    Where a step was logged twice, after a resume, the last counts.
    """
    points: dict[str, dict[str, dict[str, dict[int, float]]]] = defaultdict(dict)
    unread, wild = 0, 0
    for row in _rows(path, notes):
        if not isinstance(row, dict) or not isinstance(row.get("stage"), str) or not _is_number(row.get("step")):
            unread += 1
            continue
        split = "validation" if row.get("split") == "validation" else "train"
        named = str(row["set"]) if row.get("set") else ""
        for key, value in row.items():
            if key == "loss" or (key.startswith("loss/") and not named):
                if _is_number(value):
                    quantity = f"{NAMED}{named}" if named else key
                    series = points[row["stage"]].setdefault(quantity, {"train": {}, "validation": {}})
                    series[split][int(row["step"])] = float(value)
                else:
                    wild += 1
    if unread:
        notes.append(f"Rows of {path.name} that could not be read, and are left out of the curves: {unread}.")
    if wild:
        notes.append(f"Losses in {path.name} that are not finite numbers, and are left out of the curves: {wild}.")
    return tuple(
        Curve(stage, key, *(tuple(sorted(splits[split].items())) for split in ("train", "validation")))
        for stage, quantities in points.items()
        for key, splits in sorted(quantities.items(), key=lambda item: item[0].startswith(NAMED))
    )


def _rows(path: Path, notes: list[str]) -> Iterator[Any]:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (_loads(line) for line in file if line.strip())
    except FileNotFoundError:
        return
    except OSError:
        notes.append(f"{path.name} could not be read, so there are no curves.")


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _is_number(value: Any) -> bool:
    """Whether it is one that a figure can show: finite, as far as a float goes."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
