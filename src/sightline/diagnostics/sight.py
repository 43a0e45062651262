"""Whether answers use the image: with other images, with none to speak of, with their patches out of order; and how
much attention the image gets.

Sources: Lee et al. 2024, "Intriguing Properties of Large Language and Vision Models" (permuted patches); Goyal et al.
2017 (why a score without the image belongs beside every score).
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.images import blank_like, load_image
from ..errors import SightlineError
from ..evaluation.metrics import Estimate, bootstrap_interval, is_correct, paired_difference, proportion_interval
from ..evaluation.questions import Question
from ..progress import watched
from .subject import Prompted, Seen, Subject

T = TypeVar("T")


@dataclass(frozen=True)
class Changed:
    """Scores with images changed in one way."""

    accuracy: Estimate
    difference: Estimate
    """Less the score with the images as they are, paired by question."""
    same_answers: Estimate
    """Share of the answers that are word for word what they were."""


@dataclass(frozen=True)
class Sight:
    """What becomes of a model's answers when the image does not help."""

    accuracy: Estimate
    """With the images as they are."""
    swapped: Changed
    """With the image of another question."""
    blank: Changed
    """With grey images of the same size."""
    permuted: Changed
    """With each image's visual tokens in a random order."""


@dataclass(frozen=True)
class Attention:
    """Who attends to the image where the answer begins."""

    mass: tuple[Estimate, ...]
    """By layer, the share of attention that image tokens get: mean over heads, then over questions."""
    positions: Estimate
    """The share of positions that are image tokens: what they would get if all got the same."""


def measure_sight(
    subject: Subject,
    questions: Sequence[Question],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Sight:
    """Ask every question four times: with its image, with another's, with a blank one, with its patches permuted.

    The other image may happen to give the same answer (every second picture has a sign, say), so the score with swapped
    images is that of a model that looks at the wrong picture, not chance.

    Raises:
        SightlineError: if the questions have fewer than two images between them.
    """
    other = derangement(list(dict.fromkeys(path for question in questions for path in question.images)), seed)
    draw = torch.Generator().manual_seed(seed)
    said: dict[str, list[str]] = {"as it is": [], "swapped": [], "blank": [], "permuted": []}
    for batch in watched(questions, "sight", batch_size=batch_size, progress=progress):
        texts = [question.text for question in batch]
        images = [[load_image(path) for path in question.images] for question in batch]
        prompt = subject.prompted(images, texts)
        swapped = [[load_image(other[path]) for path in question.images] for question in batch]
        blank = [[blank_like(image) for image in mine] for mine in images]
        prompts = {
            "as it is": prompt,
            "swapped": subject.prompted(swapped, texts),
            "blank": subject.prompted(blank, texts),
            "permuted": permute_patches(prompt, draw),
        }
        for name, asked in prompts.items():
            said[name] += subject.answers(asked, max_new_tokens=max_new_tokens)
    clusters = [question.cluster for question in questions]
    right = {
        name: [is_correct(text, question.answers) for text, question in zip(texts, questions, strict=True)]
        for name, texts in said.items()
    }

    def changed(name: str) -> Changed:
        same = [one == two for one, two in zip(said[name], said["as it is"], strict=True)]
        return Changed(
            accuracy=proportion_interval(right[name], clusters),
            difference=paired_difference(right[name], right["as it is"], clusters),
            same_answers=proportion_interval(same, clusters),
        )

    return Sight(
        accuracy=proportion_interval(right["as it is"], clusters),
        swapped=changed("swapped"),
        blank=changed("blank"),
        permuted=changed("permuted"),
    )


def measure_attention(
    subject: Subject, questions: Sequence[Question], *, batch_size: int = 4, progress: bool = True
) -> Attention:
    """How much attention image tokens get from the position that gives the first token of the answer.

    A layer's attention is over all positions that the row has, itself included. Much of it commonly rests on the first
    token, whatever it is (Xiao et al. 2024), so a mass below the share of positions is no failure by itself.
    """
    masses, shares = [], []
    for batch in watched(questions, "attention", batch_size=batch_size, progress=progress):
        images = [[load_image(path) for path in question.images] for question in batch]
        prompt = subject.prompted(images, [question.text for question in batch])
        masses.append(attention_mass(subject.see(prompt, attention=True), prompt).cpu())
        shares += (prompt.is_visual.sum(1) / prompt.attention_mask.sum(1)).tolist()
    clusters = [question.cluster for question in questions]
    by_layer = torch.cat(masses, dim=1).tolist()
    return Attention(tuple(_mean(layer, clusters) for layer in by_layer), _mean(shares, clusters))


def attention_mass(seen: Seen, prompt: Prompted) -> Float[Tensor, "layers batch"]:
    """The attention of each row's last position on its visual tokens, mean over heads."""
    assert seen.attention is not None, "see(prompt, attention=True)"
    last = seen.attention[:, :, :, -1].float()
    return (last * prompt.is_visual[None, :, None]).sum(-1).mean(2)


def derangement(items: Sequence[T], seed: int) -> dict[T, T]:
    """For each of the items another one, at random: no item gets itself, and each is given once.

    Sattolo 1986: all of them in one random cycle.

    Raises:
        SightlineError: for fewer than two items.
    """
    if len(items) < 2:
        raise SightlineError(
            f"{len(items)} image cannot be swapped for another. Give questions about two images or more."
        )
    shuffled, rng = list(items), random.Random(seed)
    for last in range(len(shuffled) - 1, 0, -1):
        place = rng.randrange(last)
        shuffled[place], shuffled[last] = shuffled[last], shuffled[place]
    return dict(zip(items, shuffled, strict=True))


def permute_patches(prompt: Prompted, generator: torch.Generator) -> Prompted:
    """The same prompts with the visual tokens of each image in a random order. An image is a run of visual tokens."""
    rows = []
    for row in range(len(prompt.embeds)):
        parts = prompt.visual_of(row).split(_runs(prompt.is_visual[row].tolist()))
        rows.append(torch.cat([part[torch.randperm(len(part), generator=generator)] for part in parts]))
    return prompt.with_visual(rows)


def _runs(places: Sequence[bool]) -> list[int]:
    return [len(list(run)) for visual, run in groupby(places) if visual]


def _mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    columns = np.stack([np.asarray(values), np.ones(len(values))], axis=1)
    return bootstrap_interval(columns, lambda sums: sums[:, 0] / sums[:, 1], clusters, bounds=(0.0, 1.0))
