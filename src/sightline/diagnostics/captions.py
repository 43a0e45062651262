"""What a model's captions say: how many of a picture's things they name, and how many that are not there.

AlignGPT's levels are about this: a caption that leaves things out, or says wrong ones, agrees less with its picture,
and the vector of its level stands for that. So a model is asked for captions as it is, and at each of its levels.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.images import load_image
from ..evaluation.metrics import Estimate, bootstrap_interval
from ..progress import watched
from .material import PLATES, Case, Material, words_of
from .subject import Subject

REQUEST = "describe the picture."
"""What a model that answers questions is asked; one that only saw captions is shown the picture alone."""
LONGEST = 64
"""Tokens of a caption."""

Counted = tuple[int, int, int]
"""Things named that are there, named that are not, and there."""


@dataclass(frozen=True)
class Said:
    """What captions name, over images."""

    right: Estimate
    """Things named that are there, for each caption."""
    wrong: Estimate
    """Things named that are not."""
    recall: Estimate
    """Of the things that are there, the share that is named."""
    precision: Estimate | None
    """Of the things named, the share that is there; None where nothing was named."""


@dataclass(frozen=True)
class CaptionScores:
    """Captions of some images."""

    images: int
    own: Said
    """As the model is."""
    level: Mapping[int, Said] = field(default_factory=dict)
    """At each level, for a model that has them."""


def measure_captions(
    subject: Subject, material: Material, *, batch_size: int = 32, progress: bool = True
) -> CaptionScores:
    """Have a model describe pictures, and count the things in what it says.

    Args:
        batch_size: pictures at a time.
        progress: a bar on stderr once two seconds have passed.

    Raises:
        SightlineError: if an image cannot be read, or the model cannot be asked.
    """
    assistant = subject.assistant
    plain, before = assistant.saved_template == "plain", assistant.template
    levels = [None, *(assistant.levels if assistant.levelled is not None else ())]
    found: dict[int | None, list[Counted]] = {level: [] for level in levels}
    if plain:
        assistant.speak("plain")
    try:
        for batch in watched(material.cases, "captions", batch_size=batch_size, progress=progress):
            images = [[load_image(case.image)] for case in batch]
            for level in levels:
                asked = ["" if plain else REQUEST] * len(batch)
                said = assistant.answers(images, asked, max_new_tokens=LONGEST, level=level)
                found[level] += [count(text, case, material) for text, case in zip(said, batch, strict=True)]
    finally:
        if plain and before is not None:
            assistant.speak(before)
    by_level = {level: summed(counted) for level, counted in found.items() if level is not None}
    return CaptionScores(len(material.cases), summed(found[None]), by_level)


def count(text: str, case: Case, material: Material) -> Counted:
    """What a caption names of a picture; a thing named twice counts twice."""
    there = Counter(case.things)
    left, right, wrong = there.copy(), 0, 0
    named = things_named(text, material.groups)
    for name in sorted(named, key=lambda name: " " not in name):  # "red ring" before "ring", which any ring answers
        match = next((thing for thing in left if left[thing] and (thing == name or thing.endswith(f" {name}"))), None)
        if match is None:
            wrong += 1
        else:
            left[match] -= 1
            right += 1
    return right, wrong, there.total()


def things_named(text: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The things of the small world that a text names: "red ring", also from "ring in red"; "ring" alone; "sign"."""
    words = [*words_of(text), "", ""]
    colours, shapes = groups["colour"], groups["shape"]
    named = []
    for place, word in enumerate(words):
        if word in PLATES:
            named.append(word)
        elif word in shapes:
            before, after = words[place - 1] if place else "", words[place + 2] if words[place + 1] == "in" else ""
            colour = next((each for each in (before, after) if each in colours), None)
            named.append(f"{colour} {word}" if colour else word)
    return named


def summed(counted: Sequence[Counted]) -> Said:
    """Counts of captions as means and shares, with intervals from drawing whole captions."""
    table = np.asarray([(right, wrong, there, right + wrong, 1) for right, wrong, there in counted], dtype=np.float64)

    def ratio(above: int, below: int) -> Estimate:
        most = 1.0 if below != 4 else float(table[:, above].max(initial=0))
        return bootstrap_interval(
            table, lambda total: total[:, above] / np.maximum(total[:, below], 1), bounds=(0.0, most)
        )

    precision = ratio(0, 3) if table[:, 3].any() else None
    return Said(right=ratio(0, 4), wrong=ratio(1, 4), recall=ratio(0, 2), precision=precision)
