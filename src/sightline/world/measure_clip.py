"""What the world's CLIP knows, measured on pictures it has not seen: the numbers of its card."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPModel, PreTrainedTokenizerFast

from .build_clip import encode_pixels, encode_texts, patch_size
from .clip_data import draw_scenes, swap_one, to_pixel_values
from .draw import patch_truth
from .language import caption
from .scene import BACKGROUNDS, COLOURS, SHAPES, Geometry, Scene, Split, stream

GROUPS = {"colour": COLOURS, "shape": SHAPES, "background": BACKGROUNDS}
LEAST_COVERED = 0.2
"""Fraction of a patch that a thing must cover to be asked about; a small ring covers little more."""


@torch.no_grad()
def measure_clip(
    model: CLIPModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    split: Split = "validation",
    pictures: int = 300,
    probe_pictures: int | None = None,
    seed: int = 0,
    geometry: Geometry | None = None,
) -> dict[str, float]:
    """Accuracies, each between 0 and 1.

    - `retrieval`: a picture finds its caption among 64.
    - `clean_over_wrong`: a full caption scores above the same one with one word wrong.
    - `probe_*`: a linear probe on the patches of the layer before the last (`hidden_states[-2]`, which
    LLaVA reads), fitted on `probe_pictures` training pictures (three times `pictures` by default).
    - `word_*`: a patch of the last layer is nearest to the text feature of its word, among the words of its
    group.

    Args:
        split: the pictures measured on; the probe is always fitted on `train`.
    """
    geometry = geometry or Geometry()
    model = model.float().eval()
    patch, probe_pictures = patch_size(model), probe_pictures or 3 * pictures
    scenes, pixels = draw_scenes(seed, split, pictures, geometry)
    values = to_pixel_values(pixels)
    images, dense = encode_pixels(model, values, torch.arange((geometry.image // patch) ** 2 + 1))

    clean, wrong = [], []
    for i, scene in enumerate(scenes):
        clean.append(caption(scene, stream(seed, split, i, "caption")))
        rng = stream(seed, split, i, "questions")
        wrong.append(caption(swap_one(scene, rng), stream(seed, split, i, "caption")))
    right_side, wrong_side = encode_texts(model, tokenizer, (*clean, *wrong)).split(pictures)
    among = min(64, pictures)
    found = [
        (images[i : i + among] @ right_side[i : i + among].T).argmax(1) == torch.arange(among)
        for i in range(0, pictures - among + 1, among)
    ]
    above = (images * right_side).sum(1) > (images * wrong_side).sum(1)
    scores = {
        "retrieval": torch.cat(found).float().mean().item(),
        "clean_over_wrong": above.float().mean().item(),
    }

    train_scenes, train_pixels = draw_scenes(seed, "train", probe_pictures, geometry)
    layers = [
        model.vision_model(x, output_hidden_states=True).hidden_states[-2][:, 1:].flatten(0, 1)
        for x in (to_pixel_values(train_pixels), values)
    ]
    for group, words in GROUPS.items():
        train_labels, labels = (
            torch.cat([patch_labels(group, scene, patch, geometry) for scene in some])
            for some in (train_scenes, scenes)
        )
        known, asked = train_labels >= 0, labels >= 0
        guess = linear_probe(layers[0][known], train_labels[known], layers[1][asked], len(words))
        scores[f"probe_{group}"] = (guess == labels[asked]).float().mean().item()
        nearest = (dense.flatten(0, 1)[asked] @ encode_texts(model, tokenizer, words).T).argmax(1)
        scores[f"word_{group}"] = (nearest == labels[asked]).float().mean().item()
    return {name: round(score, 4) for name, score in scores.items()}


def patch_labels(group: str, scene: Scene, patch: int, geometry: Geometry) -> Int[Tensor, " patches"]:
    """The number of each patch's word in a group; -1 for patches that the group is not asked of."""
    truth = patch_truth(scene, patch, geometry)
    labels = np.full(len(truth.thing), -1)
    for i, (thing, coverage) in enumerate(zip(truth.thing, truth.coverage, strict=True)):
        if group == "background":
            labels[i] = BACKGROUNDS.index(scene.background) if thing < 0 else -1
        elif coverage >= LEAST_COVERED:
            labels[i] = GROUPS[group].index(getattr(scene.things[thing], group))
    return torch.from_numpy(labels)


def linear_probe(
    features: Float[Tensor, "known d_vision"],
    labels: Int[Tensor, " known"],
    asked: Float[Tensor, "asked d_vision"],
    classes: int,
    *,
    ridge: float = 1e-2,
) -> Int[Tensor, " asked"]:
    """The classes that a ridge regression on one-hot labels gives to the features asked about; closed form."""
    mean, std = features.mean(0), features.std(0) + 1e-6
    known = torch.cat([(features - mean) / std, torch.ones(len(features), 1)], dim=1).double()
    targets = torch.nn.functional.one_hot(labels, classes).double()
    gram = known.T @ known + ridge * len(known) * torch.eye(known.shape[1], dtype=torch.double)
    weights = torch.linalg.solve(gram, known.T @ targets)
    return (torch.cat([(asked - mean) / std, torch.ones(len(asked), 1)], dim=1).double() @ weights).argmax(1)
