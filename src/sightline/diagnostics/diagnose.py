"""Everything that can be measured of a model's alignment on some material, in one go, and as one flat table of
scores."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.images import load_image
from ..errors import ImageError, SightlineError, did_you_mean
from ..evaluation.metrics import Estimate
from ..files import write_json
from . import Part
from .captions import measure_captions
from .cause import measure_cause
from .cognition import measure_cognition
from .geometry import measure_geometry
from .information import Budget, measure_information
from .kept import measure_kept
from .levels import measure_gate, measure_levels
from .material import Material, take
from .measure_words import measure_words
from .probe import measure_probe
from .sight import measure_attention, measure_sight
from .subject import Subject
from .telling import tells

ASKING = (Part.sight, Part.attention, Part.cause, Part.kept, Part.cognition, Part.gate)
"""The parts that ask questions."""
CAPTIONS = 100
"""Most images to have described, or told in codes and colours."""
REFERENCES = Path(__file__).parent / "references.json"
"""Scores of models whose alignment is known, in the small world; `benchmarks/diagnostics.py` writes it."""


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a model."""

    model: str
    material: str
    scores: Mapping[str, Estimate]
    """By a path such as `words/things/share`."""
    missing: Mapping[str, str]
    """Why a part was not measured."""

    def write(self, out: Path) -> None:
        """Write it as JSON, whole or not at all; a bound that there is not is null."""
        scores = {
            name: {key: number if math.isfinite(number) else None for key, number in asdict(estimate).items()}
            for name, estimate in self.scores.items()
        }
        about = {"model": self.model, "material": self.material, "missing": dict(self.missing)}
        write_json(out, about | {"scores": scores})


def diagnose(
    subject: Subject,
    material: Material,
    *,
    name: str,
    parts: Sequence[str] | None = None,
    untouched: str | None = None,
    questions: int = 400,
    seed: int = 0,
    progress: bool = True,
) -> Diagnosis:
    """Measure every part that the material allows; the others say what they lack.

    Args:
        name: what the model is called in the result.
        parts: names of `Part`; by default all that the model has.
        untouched: the language model before any alignment, for `kept`.
        questions: most questions to ask for each part but `cause`, which needs those about one item; drawn
            from all with a fixed seed.

    Raises:
        SightlineError: for a part that there is not, or an image that cannot be read.
    """
    parts = parts_of(subject) if parts is None else parts
    if strange := [part for part in parts if part not in list(Part)]:
        near = did_you_mean(strange[0], list(Part)) or "."
        raise SightlineError(f"there is no part '{strange[0]}' to measure{near} There are {', '.join(Part)}.")
    asked = take(material.questions, questions)
    mute = subject.assistant.template == "plain"
    measures: dict[Part, tuple[str, Callable[[], Any]]] = {
        Part.words: (
            "" if material.words else "no list of words",
            lambda: measure_words(subject, material, progress=progress),
        ),
        Part.geometry: (
            "" if any(case.caption.strip() for case in material.cases) else "no captions",
            lambda: measure_geometry(subject, material, progress=progress),
        ),
        Part.sight: (
            "" if asked else "no questions about images",
            lambda: measure_sight(subject, asked, seed=seed, progress=progress),
        ),
        Part.attention: (
            "" if asked else "no questions about images",
            lambda: measure_attention(subject, take(material.questions, 100), progress=progress),
        ),
        Part.cause: (
            "" if material.asked else "no questions whose item is known",
            lambda: measure_cause(subject, material, seed=seed, progress=progress),
        ),
        Part.probe: (
            "" if material.has_truth else "no truth by patch",
            lambda: measure_probe(subject, material, seed=seed, progress=progress),
        ),
        Part.kept: (
            "" if material.text_questions else "no questions without images",
            lambda: measure_kept(
                subject, take(material.text_questions, questions), untouched=untouched, progress=progress
            ),
        ),
        Part.captions: (
            "" if material.has_things else "no truth about the things in its pictures",
            lambda: measure_captions(subject, replace(material, cases=material.cases[:CAPTIONS]), progress=progress),
        ),
        Part.information: ("", lambda: measure_information(subject, *fitted_and_asked(material), progress=progress)),
        Part.cognition: (
            "",
            lambda: measure_cognition(
                subject, [load_image(case.image) for case in material.cases[:CAPTIONS]], seed=seed, progress=progress
            ),
        ),
        Part.levels: ("", lambda: measure_levels(subject)),
        Part.gate: (
            "" if asked else "no questions about images",
            lambda: measure_gate(subject, asked, progress=progress),
        ),
    }
    scores: dict[str, Estimate] = {}
    missing: dict[str, str] = {}
    for part in map(Part, parts):
        lack, measure = measures[part]
        if mute and part in ASKING:
            missing[part] = (
                "the model's last stage had template `plain`, captions, so it was never asked a question. Say how to "
                "ask it: --template vicuna_v1"
            )
            continue
        if lack:
            missing[part] = f"{material.name} has {lack}"
            continue
        try:
            scores |= dict(flat(measure(), part))
        except ImageError:
            raise
        except SightlineError as error:
            missing[part] = str(error)
    return Diagnosis(name, material.name, scores, missing)


def fitted_and_asked(material: Material) -> tuple[list[Image.Image], list[Image.Image]]:
    """Images to fit a decoder on, and those that it draws: every second one where the material has too few others."""
    cases = [case.image for case in material.cases]
    enough = len(material.known) >= Budget.batch
    known, asked = (material.known, cases) if enough else (cases[::2], cases[1::2])
    return [load_image(path) for path in known], [load_image(path) for path in asked]


def parts_of(subject: Subject) -> tuple[Part, ...]:
    """What is measured of a model unless parts are named: levels, a gate and cognition only of one that has them."""
    levelled = subject.levelled
    has = {
        Part.levels: levelled is not None,
        Part.gate: levelled is not None and levelled.has_gate,
        Part.cognition: tells(subject.recipe),
        Part.information: False,
    }
    return tuple(part for part in Part if has.get(part, True))


def flat(result: Any, path: str) -> Iterator[tuple[str, Estimate]]:
    """Every number of a result by its path; one without an interval is its own interval."""
    if isinstance(result, Estimate):
        yield path, result
    elif isinstance(result, bool) or result is None:
        return
    elif isinstance(result, int | float):
        yield path, Estimate(float(result), float(result), float(result), 1)
    elif is_dataclass(result):
        for field in fields(result):
            yield from flat(getattr(result, field.name), f"{path}/{field.name}")
    elif isinstance(result, Mapping):
        for key, value in result.items():
            yield from flat(value, f"{path}/{key}")
    elif isinstance(result, Sequence) and not isinstance(result, str):
        for number, value in enumerate(result):
            yield from flat(value, f"{path}/{number}")


def references() -> dict[str, dict[str, dict[str, float]]]:
    """By score, by kind of model (`true words`, `trained`, `untrained`, ...): the lowest and highest value seen."""
    return json.loads(REFERENCES.read_text("utf-8"))["scores"] if REFERENCES.exists() else {}
