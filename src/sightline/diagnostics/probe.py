"""Linear recovery: how much of the truth can be read from visual tokens by the simplest reader there is.

A linear probe (Alain and Bengio 2017) is fitted on the tokens of half of the images, drawn at random, and asked about
those of the others. Beside it stand the same probe on the tower's own patches, which says what the connector loses, and
a probe that was fitted on shuffled labels, which says what there is to be had without reading (Hewitt and Liang 2019).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from ..data.images import load_image
from ..errors import SightlineError
from ..evaluation.metrics import Estimate, paired_difference, proportion_interval
from ..progress import watched
from .material import COVERED, Case, Material, TokenTruth
from .subject import Subject

GROUND = "background"
"""The attribute that is asked of tokens without an item."""


@dataclass(frozen=True)
class Recovery:
    """What a probe reads of one attribute, as a share of the tokens it is asked about."""

    visual: Estimate
    """From visual tokens."""
    shuffled: Estimate
    """From visual tokens, fitted on labels in a random order."""
    patches: Estimate | None
    """From the tower's patches; None where they are not one grid an image."""
    lost: Estimate | None
    """Patches less visual tokens, paired by token; None where the connector gives another number of tokens."""
    classes: int
    known: int
    """Tokens that the probe was fitted on."""


def measure_probe(
    subject: Subject, material: Material, *, batch_size: int = 32, seed: int = 0, progress: bool = True
) -> dict[str, Recovery]:
    """What linear probes read of each attribute in `material.groups`, fitted on a random half of the images and
    asked about the others.

    Attributes of which fewer than two words are seen, or that no token is asked about, are not in the result.

    Raises:
        SightlineError: if the material has no truth, or the tokens are not a grid that it fits.
    """
    visual: list[_Seen] = []
    patches: list[_Seen] | None = []
    for batch in watched(material.cases, "probe", batch_size=batch_size, progress=progress):
        images = [load_image(case.image) for case in batch]
        visual += _seen(subject, batch, images, subject.visual(images, batch_size=batch_size))
        given = subject.patches(images, batch_size=batch_size)
        patches = None if patches is None or given is None else patches + _seen(subject, batch, images, given)
    if not material.groups or not any(image.truth for image in visual):
        number = len(visual[0].tokens) if visual else 0
        raise SightlineError(
            f"what the {number} visual tokens of an image of {material.name} show is not known, so nothing "
            "can be read from them. Use a world folder, and a model that sees whole images, with visual tokens in a "
            "grid that divides the patches of its `truth/`."
        )
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(visual), generator=draw).tolist()  # the small world goes through its scenes in turn
    visual = [visual[number] for number in order]
    patches = [patches[number] for number in order] if patches is not None else None
    found = {}
    for name, words in material.groups.items():
        from_visual = _read(name, words, visual, seed)
        if from_visual is None:
            continue
        from_patches = _read(name, words, patches, seed) if patches is not None else None
        same = from_patches is not None and from_patches.clusters == from_visual.clusters
        found[name] = Recovery(
            visual=proportion_interval(from_visual.right, from_visual.clusters),
            shuffled=proportion_interval(from_visual.shuffled, from_visual.clusters),
            patches=proportion_interval(from_patches.right, from_patches.clusters) if from_patches else None,
            lost=paired_difference(from_patches.right, from_visual.right, from_visual.clusters)
            if from_patches and same
            else None,
            classes=len(words),
            known=from_visual.known,
        )
    return found


def linear_probe(
    features: Float[Tensor, "known d_vision"],
    labels: Int[Tensor, " known"],
    asked: Float[Tensor, "asked d_vision"],
    classes: int,
    *,
    ridge: float = 1e-2,
) -> Int[Tensor, " asked"]:
    """The classes that a ridge regression on one-hot labels gives to the features asked about; closed form.

    Features are brought to mean 0 and deviation 1 first, by those that are known.
    """
    mean, std = features.mean(0), features.std(0) + 1e-6
    known = torch.cat([(features - mean) / std, torch.ones(len(features), 1)], dim=1).double()
    targets = F.one_hot(labels, classes).double()
    gram = known.T @ known + ridge * len(known) * torch.eye(known.shape[1], dtype=torch.double)
    weights = torch.linalg.solve(gram, known.T @ targets)
    return (torch.cat([(asked - mean) / std, torch.ones(len(asked), 1)], dim=1).double() @ weights).argmax(1)


def token_labels(name: str, words: Sequence[str], truth: Sequence[TokenTruth]) -> Int[Tensor, " tokens"]:
    """The number of each token's word for an attribute; -1 for tokens that it is not asked of.

    The background is asked of tokens without an item, all else of tokens that an item covers by `COVERED`.
    """
    labels = []
    for token in truth:
        asked = token.item < 0 if name == GROUND else token.item >= 0 and token.coverage >= COVERED
        mine = [words.index(word) for word in token.words if word in words] if asked else []
        labels.append(mine[0] if mine else -1)
    return torch.tensor(labels, dtype=torch.long)


@dataclass(frozen=True)
class _Seen:
    """The grid of an image's tokens, and what each of them shows; nothing where that is not known."""

    id: str
    tokens: Float[Tensor, "tokens d_vision"]
    truth: tuple[TokenTruth, ...]


def _seen(
    subject: Subject, cases: Sequence[Case], images: Sequence[Image.Image], tokens: Sequence[Tensor]
) -> list[_Seen]:
    found = []
    for case, image, mine in zip(cases, images, tokens, strict=True):
        found.append(_Seen(case.id, subject.grid(mine).float().cpu(), subject.truth(case, image, mine)))
    return found


@dataclass(frozen=True)
class _Answers:
    """A probe's answers, right or wrong, token by token."""

    right: list[bool]
    shuffled: list[bool]
    clusters: list[str]
    known: int


def _read(name: str, words: Sequence[str], images: Sequence[_Seen], seed: int) -> _Answers | None:
    """Fit on every second image, ask on the others; None where there is nothing to fit or to ask."""
    labels = [token_labels(name, words, image.truth) for image in images]
    if any(len(mine) == 0 for mine in labels):
        return None
    sides = []
    for side in (0, 1):
        here = torch.cat(labels[side::2]) if labels[side::2] else torch.zeros(0, dtype=torch.long)
        if not bool((here >= 0).any()):
            return None
        sides.append((torch.cat([image.tokens for image in images[side::2]])[here >= 0], here[here >= 0]))
    (known, known_labels), (asked, truth) = sides
    if len(known_labels.unique()) < 2:
        return None
    order = torch.randperm(len(known_labels), generator=torch.Generator().manual_seed(seed))
    said = linear_probe(known, known_labels, asked, len(words))
    by_chance = linear_probe(known, known_labels[order], asked, len(words))
    asked_of = zip(images[1::2], labels[1::2], strict=True)
    clusters = [image.id for image, mine in asked_of for _ in range(int((mine >= 0).sum()))]
    return _Answers((said == truth).tolist(), (by_chance == truth).tolist(), clusters, len(known))
