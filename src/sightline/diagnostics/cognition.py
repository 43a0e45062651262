"""Whether a model knows what an image is made of: the codes and colours that VLSA's cognition taught it to say.

For each image a window, and for each task two controls: what is to be had without the image (codes by how often they
occur, the mean colour of other images), and the same question about another image. A model whose codes are no better
than these has learned how codes are written, and nothing of images.

Source: VLSA, section 3.2.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image

from ..data.windows import UNREAD
from ..errors import SightlineError
from ..evaluation.metrics import Estimate, bootstrap_interval
from ..methods.abilities import Task, Tells
from ..progress import watched
from .kept import mean_interval
from .subject import Subject
from .telling import Cells, asked, believed, cells_of, taught

GREY = 128
"""What stands for a colour that could not be read."""


@dataclass(frozen=True)
class Told:
    """How well codes are told, each given the true ones before it."""

    accuracy: Estimate
    perplexity: Estimate
    """Of a code: as uncertain as among so many that are equally likely."""


@dataclass(frozen=True)
class ToldCodes:
    """Codes of windows."""

    own: Told
    wrong: Told
    """Asked of another image."""
    marginal: Told
    """By how often codes occur in the other images; the accuracy is that of the commonest."""


@dataclass(frozen=True)
class ToldPixels:
    """Colours of windows: mean absolute error of a channel, of 0 to 255."""

    own: Estimate
    wrong: Estimate
    """Asked of another image."""
    mean: Estimate
    """Of the mean colour of the other images."""
    unread: Estimate
    """The share of values that were not told in a form that can be read; grey stands for them."""


def measure_cognition(
    subject: Subject,
    images: Sequence[Image.Image],
    method: Tells | None = None,
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> dict[Task, ToldCodes | ToldPixels]:
    """How well each task is done.

    Args:
        method: by default that of the recipe of the run that the model is of.

    Raises:
        SightlineError: if that has none; for fewer than two images, which have no other.
    """
    method = method or taught(subject)
    if method is None:
        raise SightlineError(
            "the model is of no run whose recipe has the method `cognition`, so it was never asked for codes or "
            "colours. Give the run's folder, or leave `cognition` out."
        )
    if len(images) < 2:
        raise SightlineError("what is told of an image is held against another, and there is one. Give more images.")
    cells = cells_of(subject, method, images, seed)
    found: dict[Task, ToldCodes | ToldPixels] = {}
    if "vq" in method.tasks:
        rows = {shift: [] for shift in (0, 1)}
        for shift, told in rows.items():
            shown = [images[(n + shift) % len(images)] for n in range(len(images))]
            name = "codes" if shift == 0 else "codes of another image"
            for some in watched(list(zip(shown, cells, strict=True)), name, batch_size=batch_size, progress=progress):
                told += _told(subject, method, some)
        found["vq"] = ToldCodes(_summed(rows[0]), _summed(rows[1]), _summed(marginal(cells, method.codes)))
    if "pixels" in method.tasks:
        found["pixels"] = _pixels(subject, method, images, cells, batch_size, progress)
    return found


def _told(subject: Subject, method: Tells, some: Sequence[tuple[Image.Image, Cells]]) -> list[tuple[float, ...]]:
    """Of each image: codes that are right, their loss in nats, and how many there are."""
    true = [cells.true("vq").tolist() for _, cells in some]
    prompt = asked(subject, method, "vq", [image for image, _ in some], [cells.window for _, cells in some])
    answers = [method.write("vq", values) for values in true]
    ids, places = subject.answer_ids(answers), subject.answer_places(answers)
    logits, padded, _ = subject.told(prompt, ids)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), padded.flatten(), reduction="none")
    losses, hits = losses.view_as(padded).cpu(), (logits.argmax(-1) == padded).cpu()
    found = []
    for row, values in enumerate(true):
        ends = np.cumsum([len(method.write("vq", [value])) for value in values])
        right = _right(hits[row, : len(ids[row])].tolist(), places[row], ends)
        found.append((float(right), float(losses[row, : len(ids[row])].sum()), float(len(values))))
    return found


def _right(hits: Sequence[bool], places: Sequence[tuple[int, int]], ends: Int[np.ndarray, " codes"]) -> int:
    """How many codes are right in every token that holds some of them; where codes end is in characters, as `places`
    is."""
    wrong: set[int] = set()
    for hit, (start, end) in zip(hits, places, strict=True):
        if not hit and end > 0:  # a space before the first is none
            first, last = np.searchsorted(ends, (max(start, 0), end - 1), side="right")
            wrong.update(range(first, last + 1))
    return len(ends) - len(wrong)


def marginal(cells: Sequence[Cells], codes: int) -> list[tuple[float, ...]]:
    """The same by how often codes occur in the windows of the other images; one is added to each count."""
    counts = torch.stack([torch.bincount(each.true("vq"), minlength=codes) for each in cells])
    found = []
    for own, each in zip(counts, cells, strict=True):
        others = (counts.sum(0) - own + 1).double()
        true = each.true("vq")
        loss = -(others / others.sum()).log()[true].sum()
        found.append((float((true == others.argmax()).sum()), float(loss), float(len(true))))
    return found


def _summed(rows: Sequence[tuple[float, ...]]) -> Told:
    """Intervals resample images."""
    columns, images = np.asarray(rows, dtype=np.float64), [str(number) for number in range(len(rows))]
    accuracy = bootstrap_interval(columns, lambda sums: sums[:, 0] / sums[:, 2], images, bounds=(0.0, 1.0))
    perplexity = bootstrap_interval(
        columns, lambda sums: np.exp(sums[:, 1] / sums[:, 2]), images, bounds=(1.0, math.inf)
    )
    return Told(accuracy, perplexity)


def _pixels(
    subject: Subject,
    method: Tells,
    images: Sequence[Image.Image],
    cells: Sequence[Cells],
    batch_size: int,
    progress: bool,
) -> ToldPixels:
    errors: Mapping[str, list[float]] = {"own": [], "wrong": [], "mean": []}
    unread: list[float] = []
    numbers = list(range(len(images)))
    colours = torch.stack([each.pixels.float().mean((0, 1)) for each in cells])
    for some in watched(numbers, "colours", batch_size=batch_size, progress=progress):
        windows = [cells[number].window for number in some]
        for name, shift in (("own", 0), ("wrong", 1)):
            shown = [images[(number + shift) % len(images)] for number in some]
            for number, said in zip(some, believed(subject, method, "pixels", shown, windows), strict=True):
                true, blank = cells[number].true("pixels"), said == UNREAD
                errors[name].append(float((said.masked_fill(blank, GREY) - true).abs().float().mean()))
                if name == "own":
                    unread.append(float(blank.float().mean()))
        for number in some:
            others = (colours.sum(0) - colours[number]) / (len(images) - 1)
            true = cells[number].true("pixels").view(-1, 3)
            errors["mean"].append(float((others - true).abs().mean()))
    told = {name: mean_interval(values) for name, values in errors.items()}
    return ToldPixels(**told, unread=mean_interval(unread))
