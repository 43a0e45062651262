"""Where visual tokens lie beside words: how far apart, how long, how narrow, and how alike inside the language model.

Images are what the intervals resample: their tokens go together. The words are a list that stays as it is, so what is
said of words alone has no interval.

Sources: Liang et al. 2022, "Mind the Gap" (the modality gap); Ethayarajh 2019 (anisotropy); Roy and Vetterli 2007
(effective rank); Shukor and Cord 2024, "Implicit Multimodal Alignment", and `compute_sim.py` beside it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.images import load_image
from ..data.words import inside_a_sentence
from ..errors import SightlineError
from ..evaluation.metrics import Estimate, bootstrap_interval
from ..progress import watched
from .decoding import pad_left
from .material import Case, Material
from .subject import Prompted, Subject

Array = np.ndarray
Tokens = Float[Tensor, "_ d_llm"]
"""Of one image, or of a list of words: as many as there are."""
MOST_TOKENS = 2048
"""Tokens, drawn evenly from all images, that an effective rank is of: it takes the eigenvalues of as wide a matrix."""
GROUPS = 10
"""Parts of the images, each left out once, behind the interval of an effective rank."""
T95 = 2.2621571627409915
"""Student's t that leaves 2.5% above it, with `GROUPS` - 1 degrees of freedom."""


@dataclass(frozen=True)
class Geometry:
    """Visual tokens beside the embeddings of words."""

    gap: Estimate
    """Norm of the difference of the two means."""
    unit_gap: Estimate
    """The same after every vector was given length 1: 0 to 2."""
    visual_norm: Estimate
    word_norm: float
    norm_ratio: Estimate
    """Of a visual token's mean norm to a word's."""
    visual_anisotropy: Estimate
    word_anisotropy: float
    visual_rank: Estimate
    word_rank: float
    alignment: tuple[Estimate, ...]
    """Implicit alignment score of the language model's input, then of each of its layers."""
    matching: tuple[Estimate, ...]
    """How much of it is more for an image's own caption than for those of other images."""


def measure_geometry(subject: Subject, material: Material, *, batch_size: int = 16, progress: bool = True) -> Geometry:
    """All of this module for a model. Words are `material.words`; layers are seen on the images and their captions.

    Raises:
        SightlineError: if an image has no caption, or there is but one.
    """
    if len(material.cases) < 2:
        raise SightlineError(
            f"{material.name} has {len(material.cases)} image, and images are compared with others. Give two or more."
        )
    if silent := [case.id for case in material.cases if not case.caption.strip()]:
        raise SightlineError(
            f"image '{silent[0]}' of {material.name} has no caption, and the alignment of images with text is measured "
            "on captions. Give each image one, or leave it out."
        )
    visual: list[Tokens] = []
    seen: list[tuple[Tensor, Tensor]] = []
    for batch in watched(material.cases, "geometry", batch_size=batch_size, progress=progress):
        shown = subject.prompted([[load_image(case.image)] for case in batch], [" "] * len(batch))
        visual += [shown.visual_of(row).float().cpu() for row in range(len(batch))]
        told = caption_prompt(subject, batch)
        of_images = unit_means(subject.see(shown).hidden, shown.is_visual)
        seen += zip(of_images, unit_means(subject.see(told).hidden, _after_first(told)), strict=True)
    words = subject.words(material.words).float().cpu()
    layers = range(seen[0][0].shape[0])
    states = [[torch.stack([pair[side][layer] for pair in seen]) for side in (0, 1)] for layer in layers]
    return Geometry(
        gap=modality_gap(visual, words),
        unit_gap=modality_gap([unit(tokens) for tokens in visual], unit(words)),
        visual_norm=mean_norm(visual),
        word_norm=float(words.norm(dim=1).mean()),
        norm_ratio=norm_ratio(visual, words),
        visual_anisotropy=anisotropy(visual),
        word_anisotropy=anisotropy(list(words.split(1))).value,
        visual_rank=rank_interval(visual),
        word_rank=effective_rank(words),
        alignment=tuple(alignment_score(images, captions) for images, captions in states),
        matching=tuple(matching_score(images, captions) for images, captions in states),
    )


def modality_gap(visual: Sequence[Tokens], words: Tokens) -> Estimate:
    """Liang et al. 2022, section 4.1: the norm of the difference between the means of the two modalities.

    A norm is never below 0 and sampling only lengthens it: of two samples of one distribution the gap is above 0 too,
    about as far as the tokens are few.

    Args:
        visual: the tokens of each image.
        words: as they are; they are not resampled.
    """
    totals = np.stack([_numbers(tokens.sum(0)) for tokens in visual])
    sizes = np.array([[len(tokens)] for tokens in visual])
    middle = _numbers(words.mean(0))

    def gaps(sums: Array) -> Array:
        return np.linalg.norm(sums[:, :-1] / sums[:, -1:] - middle, axis=1)

    return bootstrap_interval(np.concatenate([totals, sizes], axis=1), gaps, bounds=(0.0, math.inf))


def mean_norm(visual: Sequence[Tokens]) -> Estimate:
    """The mean length of a token."""
    return bootstrap_interval(_norms(visual), lambda sums: sums[:, 0] / sums[:, 1], bounds=(0.0, math.inf))


def norm_ratio(visual: Sequence[Tokens], words: Tokens) -> Estimate:
    """The mean length of a visual token over that of a word."""
    scale = float(words.norm(dim=1).mean())
    return bootstrap_interval(_norms(visual), lambda sums: sums[:, 0] / sums[:, 1] / scale, bounds=(0.0, math.inf))


def anisotropy(visual: Sequence[Tokens]) -> Estimate:
    """The mean cosine of two tokens of different images (Ethayarajh 2019, section 3.3): 0 where directions are spread
    evenly, 1 where there is but one. Over all such pairs rather than a random sample of them.

    Tokens of one image are not paired: they share what is in it. A list of words is one "image" a word.
    """
    sums = _numbers(torch.stack([unit(tokens).sum(0) for tokens in visual]))
    sizes = np.array([float(len(tokens)) for tokens in visual])
    return over_images(len(visual), lambda weights: _between(weights, sums @ sums.T, sizes, sizes), (-1.0, 1.0))


def effective_rank(tokens: Tokens) -> float:
    """Roy and Vetterli 2007, equation 4: the exponential of the entropy of the singular values, scaled to sum to 1.

    Of the tokens about their mean, which the gap has measured already. It lies between 1 and the smaller side of the
    matrix; 0 where all tokens are the same.
    """
    centred = tokens.double() - tokens.double().mean(0)
    square = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    values = torch.linalg.eigvalsh(square).clamp(min=0).sqrt()
    if float(values.max()) <= 1e-6 * float(tokens.double().norm()):
        return 0.0
    values = values.where(values > 1e-7 * values.max(), 0)  # the square root of what rounding leaves
    shares = values / values.sum()
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


def rank_interval(visual: Sequence[Tokens]) -> Estimate:
    """The effective rank of tokens of all images, with an interval from leaving out a tenth of the images at a time.

    Of `MOST_TOKENS` tokens at most, as many of each image, drawn at random with a fixed seed: a rank grows with the
    number of tokens, so only ranks of as many are to be compared. The interval is a jackknife by groups, not a
    bootstrap: drawing images twice would take away rank, and put the interval below the value (Efron and Tibshirani
    1993, chapter 11).
    """
    draw, each = torch.Generator().manual_seed(0), max(1, MOST_TOKENS // len(visual))
    visual = [tokens[torch.randperm(len(tokens), generator=draw)[:each]] for tokens in visual]
    tokens = torch.cat(visual)
    value = effective_rank(tokens)
    if len(visual) < 2 * GROUPS:  # all that is known is what no matrix of that shape exceeds
        return Estimate(value, 0.0, float(min(len(tokens) - 1, tokens.shape[1])), len(visual))
    without = [
        effective_rank(torch.cat([tokens for i, tokens in enumerate(visual) if i % GROUPS != group]))
        for group in range(GROUPS)
    ]
    half = T95 * math.sqrt((GROUPS - 1) / GROUPS * sum((rank - np.mean(without)) ** 2 for rank in without))
    return Estimate(value, max(0.0, value - half), value + half, len(visual))


def alignment_score(images: Float[Tensor, "images d_llm"], captions: Float[Tensor, "images d_llm"]) -> Estimate:
    """The implicit alignment score of a layer: the mean cosine of visual and textual hidden states (Shukor and Cord
    2024; `compute_sim(..., mode="mean")` in their code), over every visual token of every image and every token of
    every caption.

    Each image and each caption counts the same, however many tokens it has. Cosines are high wherever all states
    share a direction, aligned or not; `matching_score` takes that away.

    Args:
        images: the mean of the unit-length states of each image's visual tokens.
        captions: the same of each caption's tokens, seen without the image.
    """
    cosines = _numbers(images @ captions.T)

    def means(weights: Array) -> Array:
        return ((weights @ cosines) * weights).sum(1) / weights.sum(1) ** 2

    return over_images(len(images), means, (-1.0, 1.0))


def matching_score(images: Float[Tensor, "images d_llm"], captions: Float[Tensor, "images d_llm"]) -> Estimate:
    """The mean cosine with an image's own caption less that with the captions of other images; see `alignment_score`.

    Ours, not the paper's: 0 where states tell nothing of which caption is whose.
    """
    cosines, ones = _numbers(images @ captions.T), np.ones(len(images))

    def differences(weights: Array) -> Array:
        return weights @ np.diag(cosines) / weights.sum(1) - _between(weights, cosines, ones, ones)

    return over_images(len(images), differences, (-2.0, 2.0))


def caption_prompt(subject: Subject, cases: Sequence[Case]) -> Prompted:
    """The captions of images as text alone: the tokenizer's first token, then the caption, padded on the left."""
    tokenizer = subject.tokenizer
    first = next(i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None)
    rows = [[first, *ids] for ids in inside_a_sentence(tokenizer, [case.caption for case in cases])]
    ids, mask = pad_left(rows, first, subject.device)
    return Prompted(subject.embedding[ids], mask, torch.zeros_like(ids, dtype=torch.bool), ids)


def unit_means(hidden: Float[Tensor, "layers batch seq d_llm"], places: Tensor) -> list[Float[Tensor, "layers d_llm"]]:
    """For each row the mean of its unit-length states at its places, by layer; on the CPU."""
    return [unit(hidden[:, row, places[row]].float()).mean(1).cpu() for row in range(len(places))]


def unit(tokens: Float[Tensor, "... d_llm"]) -> Float[Tensor, "... d_llm"]:
    """Every vector with length 1; zeros stay."""
    return torch.nn.functional.normalize(tokens, dim=-1)


def over_images(count: int, statistic: Callable[[Array], Array], bounds: tuple[float, float]) -> Estimate:
    """A statistic of how often each image was drawn, `[draws, images]` to `[draws]`, with its bootstrap interval."""
    return bootstrap_interval(np.eye(count), statistic, bounds=bounds)


def _between(weights: Array, products: Array, left: Array, right: Array) -> Array:
    """The mean of pairs between different images: `products` summed over each pair, `left` times `right` of them."""
    pairs = np.outer(left, right)

    def off_diagonal(matrix: Array) -> Array:
        return ((weights @ matrix) * weights).sum(1) - weights**2 @ np.diag(matrix)

    return off_diagonal(products) / np.maximum(off_diagonal(pairs), 1e-12)


def _norms(visual: Sequence[Tokens]) -> Array:
    return np.array([[float(tokens.norm(dim=1).sum()), len(tokens)] for tokens in visual])


def _after_first(prompt: Prompted) -> Tensor:
    """The text without its first token, whose state is like no other's (Xiao et al. 2024, attention sinks)."""
    return prompt.is_text & (prompt.attention_mask.cumsum(1) > 1)


def _numbers(tensor: Tensor) -> Array:
    return tensor.double().cpu().numpy()
