"""What a CLIP of the world knows, measured on pictures it has not seen: the numbers of its card."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPModel, PreTrainedTokenizerFast

from ..diagnostics.material import TokenTruth
from ..diagnostics.probe import linear_probe, token_labels
from ..evaluation.metrics import Estimate, proportion_interval
from .build_clip import encode_pixels, encode_texts, patch_size
from .claims import ATTRIBUTES, Attribute, full_claim, swap, swappable
from .clip_data import picture_values, to_pixel_values
from .draw import HIGH, SIDE, View, patch_truth, render
from .scene import BACKGROUNDS, COLOURS, GRID, LETTERS, SHAPES, SIZES, Scene, Split, sample_scene, stream

GROUPS: dict[Attribute, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "letter": LETTERS,
    "background": BACKGROUNDS,
}
"""The words that a patch is to be told from, by attribute."""
AMONG = 64
"""Captions that a picture's own is to be found among."""


@torch.no_grad()
def measure_clip(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    split: Split = "validation",
    pictures: int = 300,
    probe_pictures: int | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Accuracies, each with its interval.

    - `retrieval`: a picture finds its caption among 64.
    - `clean_over_<attribute>`: a full caption scores above the same one with that attribute of one item wrong.
    - `probe_*`: a linear probe on the patches of the layer before the last (`hidden_states[-2]`, which LLaVA
    reads), fitted on `probe_pictures` training pictures (three times `pictures` by default).
    - `word_*`: a patch of the last layer is nearest to the text feature of its word, among the words of its
    group.
    - `fine_high`, `fine_low`: such a probe on the mean of a card's patches, in the high view's quarter and in the low
    view, as many cards of both; what the low view gives is chance, one in sixteen.

    Args:
        split: the pictures measured on; probes are always fitted on `train`.
    """
    probe_pictures = probe_pictures or 3 * pictures
    scenes = [sample_scene(seed, split, i) for i in range(pictures)]
    scores = _captions(model, tokenizer, scenes, split, seed)
    scores |= _patches(model, tokenizer, [sample_scene(seed, "train", i) for i in range(probe_pictures)], scenes)
    known, asked = _with_cards(seed, "train", probe_pictures), _with_cards(seed, split, pictures)
    for view in ("high", "low"):
        features, labels = zip(*(_cards(model, some, view) for some in (known, asked)), strict=True)
        guess = linear_probe(features[0], labels[0], features[1], len(LETTERS))
        scores[f"fine_{view}"] = proportion_interval((guess == labels[1]).tolist())
    return scores


def _captions(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, scenes: Sequence[Scene], split: Split, seed: int
) -> dict[str, Estimate]:
    images = torch.cat([pooled for pooled, _ in _encoded(model, scenes)])
    clean = [full_claim(scene, stream(seed, split, i, "caption")).text for i, scene in enumerate(scenes)]
    texts = encode_texts(model, tokenizer, tuple(clean))
    own = (images * texts).sum(1)
    found: list[bool] = []
    for start in range(0, len(scenes) - min(AMONG, len(scenes)) + 1, AMONG):
        block = slice(start, start + AMONG)
        nearest = (images[block] @ texts[block].T).argmax(1)
        found += (nearest == torch.arange(len(nearest))).tolist()
    scores = {"retrieval": proportion_interval(found)}
    for attribute in ATTRIBUTES:
        rows = [i for i, scene in enumerate(scenes) if attribute in swappable(scene)]
        wrong = [
            full_claim(swap(scenes[i], attribute, stream(seed, split, i, "noise")), stream(seed, split, i, "caption"))
            for i in rows
        ]
        other = (images[rows] * encode_texts(model, tokenizer, tuple(claim.text for claim in wrong))).sum(1)
        scores[f"clean_over_{attribute}"] = proportion_interval((own[rows] > other).tolist())
    return scores


def _patches(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, known: Sequence[Scene], asked: Sequence[Scene]
) -> dict[str, Estimate]:
    truth = [[_truth(scene, patch_size(model)) for scene in some] for some in (known, asked)]
    dense = torch.cat([dense for _, dense in _encoded(model, asked)]).flatten(0, 1)
    layers = [before_last(model, picture_values(some)).flatten(0, 1) for some in (known, asked)]
    picture = np.repeat(np.arange(len(asked)), len(dense) // len(asked))
    scores: dict[str, Estimate] = {}
    for group, words in GROUPS.items():
        train_labels, labels = (torch.cat([token_labels(group, words, t) for t in some]) for some in truth)
        fit, here = train_labels >= 0, labels >= 0
        clusters = [str(number) for number in picture[here.numpy()]]
        guess = linear_probe(layers[0][fit], train_labels[fit], layers[1][here], len(words))
        scores[f"probe_{group}"] = proportion_interval((guess == labels[here]).tolist(), clusters)
        nearest = (dense[here] @ encode_texts(model, tokenizer, words).T).argmax(1)
        scores[f"word_{group}"] = proportion_interval((nearest == labels[here]).tolist(), clusters)
    return scores


def _with_cards(seed: int, split: Split, count: int) -> list[Scene]:
    """As many scenes with a card."""
    scenes: list[Scene] = []
    for index in range(100 * count):
        scene = sample_scene(seed, split, index)
        scenes += [scene] if scene.card else []
        if len(scenes) == count:
            return scenes
    raise AssertionError("a scene in two has a card")


def _cards(
    model: CLIPModel, scenes: Sequence[Scene], view: View
) -> tuple[Float[Tensor, "scenes d_vision"], Int[Tensor, " scenes"]]:
    """The mean feature of each scene's card, weighted by how much of a patch it covers, and its letter."""
    patch, side = patch_size(model), SIDE["low"] // patch_size(model)
    pixels, weights = [], []
    for scene in scenes:
        truth = patch_truth(scene, patch, view)
        covered = np.where(truth.item == len(scene.items) - 1, truth.coverage, 0)
        picture = np.asarray(render(scene, view))
        if view == "high":
            assert scene.card
            top, left = (place // (GRID - 1) for place in divmod(scene.card.cell, GRID))
            half = HIGH // 2
            picture = picture[top * half : (top + 1) * half, left * half : (left + 1) * half]
            grid = covered.reshape(2 * side, 2 * side)
            covered = grid[top * side : (top + 1) * side, left * side : (left + 1) * side].flatten()
        pixels.append(picture)
        weights.append(covered / covered.sum())
    values = to_pixel_values(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    features = before_last(model, values)
    labels = torch.tensor([LETTERS.index(scene.card.letter) for scene in scenes if scene.card])
    return (features * torch.from_numpy(np.stack(weights)).float()[:, :, None]).sum(1), labels


def before_last(
    model: CLIPModel, pixels: Float[Tensor, "pictures 3 height width"], batch: int = 128
) -> Float[Tensor, "pictures patches d_vision"]:
    """Patch features of `hidden_states[-2]`."""
    parts = []
    for some in pixels.split(batch):
        hidden = model.vision_model(some, output_hidden_states=True).hidden_states
        assert hidden is not None
        parts.append(hidden[-2][:, 1:])
    return torch.cat(parts)


def _truth(scene: Scene, patch: int) -> list[TokenTruth]:
    """What each patch of the low view shows."""
    truth = patch_truth(scene, patch)
    shown = zip(truth.words, truth.item.tolist(), truth.coverage.tolist(), strict=True)
    return [TokenTruth(words, item, coverage) for words, item, coverage in shown]


def _encoded(
    model: CLIPModel, scenes: Sequence[Scene], batch: int = 128
) -> Iterator[tuple[Float[Tensor, "pictures d_joint"], Float[Tensor, "pictures patches d_joint"]]]:
    positions = torch.arange((SIDE["low"] // patch_size(model)) ** 2 + 1)
    for start in range(0, len(scenes), batch):
        yield encode_pixels(model, picture_values(list(scenes[start : start + batch])), positions)
