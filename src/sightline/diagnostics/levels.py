"""The levels of a model that has some (AlignGPT): how far apart their vectors are, and how its gate weighs them.

A vector that is told from its neighbours stands for something that its pairs have in common; vectors that point the
same way do not. A gate that gives every type of question the same weights, or all levels the same weight (entropy near
its most, ln of their number), adds one vector whatever is asked.

Source: Zhao et al. 2024, AlignGPT, equations 2 and 3.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.images import load_image
from ..errors import SightlineError
from ..evaluation.metrics import Estimate, bootstrap_interval
from ..evaluation.questions import Question
from ..progress import watched
from .subject import Subject

OVERALL = "overall"


@dataclass(frozen=True)
class Levels:
    """The vectors of levels, by their numbers, from 1 on."""

    norm: Mapping[str, float]
    cosine_distance: Mapping[str, Mapping[str, float]]
    """1 less the cosine of two levels, the smaller number first: 0 for one direction, 1 for a right angle."""
    distance: Mapping[str, Mapping[str, float]]
    """Euclidean."""


@dataclass(frozen=True)
class Weighing:
    """How the gate weighs levels for some questions: means over them."""

    weights: Mapping[str, Estimate]
    """By level."""
    entropy: Estimate
    """Of a question's weights, in nats."""
    entropy_share: Estimate | None
    """Of the most that it can be, the log of the number of levels that are weighed; None for one level."""


def measure_levels(subject: Subject) -> Levels:
    """The vectors of a model's levels, two by two.

    Raises:
        SightlineError: if it has none.
    """
    if subject.levelled is None:
        raise SightlineError(
            "the model has no levels, so none can be compared: it has no AlignGPT. Leave `levels` out."
        )
    return compare_levels(subject.levelled.vectors_of_levels.detach())


def measure_gate(
    subject: Subject, questions: Sequence[Question], *, batch_size: int = 16, progress: bool = True
) -> dict[str, Weighing]:
    """The gate's weights for questions about images: all of them (`overall`), then those of each ability.

    Raises:
        SightlineError: if the model has no gate.
    """
    if subject.levelled is None or not subject.levelled.has_gate:
        raise SightlineError("the model has no gate over levels, so it weighs none. Leave `gate` out.")
    found = []
    for batch in watched(questions, "gate", batch_size=batch_size, progress=progress):
        images = [[load_image(path) for path in question.images] for question in batch]
        found.append(subject.gate_weights(images, [question.text for question in batch]).float().cpu())
    weights, clusters = torch.cat(found), [question.cluster for question in questions]
    abilities = dict.fromkeys(question.ability for question in questions)
    rows = {OVERALL: list(range(len(questions)))}
    for ability in abilities:
        rows.setdefault(ability, [n for n, question in enumerate(questions) if question.ability == ability])
    return {name: weighing(weights[some], [clusters[n] for n in some]) for name, some in rows.items()}


def compare_levels(vectors: Float[Tensor, "levels d_llm"]) -> Levels:
    """Norms of vectors, and distances of each two."""
    vectors = vectors.double().cpu()
    unit = torch.nn.functional.normalize(vectors, dim=1)
    angles, straight = 1 - unit @ unit.T, torch.cdist(vectors, vectors)

    def pairs(matrix: Tensor) -> dict[str, dict[str, float]]:
        count = len(matrix)
        return {f"{a + 1}": {f"{b + 1}": float(matrix[a, b]) for b in range(a + 1, count)} for a in range(count - 1)}

    norms = {f"{number}": float(norm) for number, norm in enumerate(vectors.norm(dim=1), start=1)}
    return Levels(norms, pairs(angles), pairs(straight))


def weighing(weights: Float[Tensor, "questions weighed"], clusters: Sequence[str]) -> Weighing:
    """Mean weights and their mean entropy.

    Args:
        weights: each row sums to 1.
        clusters: the image of each question; intervals resample images.
    """
    most = math.log(weights.shape[1])
    entropy = _mean(torch.special.entr(weights.double()).sum(1), clusters, most)
    by_level = {f"{n}": _mean(column, clusters, 1.0) for n, column in enumerate(weights.T, start=1)}
    share = Estimate(entropy.value / most, entropy.low / most, entropy.high / most, entropy.n) if most else None
    return Weighing(by_level, entropy, share)


def _mean(values: Tensor, clusters: Sequence[str], most: float) -> Estimate:
    columns = np.stack([values.double().numpy(), np.ones(len(values))], axis=1)
    return bootstrap_interval(columns, lambda sums: sums[:, 0] / sums[:, 1], clusters, bounds=(0.0, most))
