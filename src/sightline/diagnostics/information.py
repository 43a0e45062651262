"""Information kept: how well a picture can be drawn again from its visual tokens, by a reader new to every model.

A fresh decoder, the same for every model and with the same budget, is fitted on the frozen tokens of some images and
draws others: whole images, squeezed into a square, whatever the model crops or pads. What it draws is held against them
(PSNR, SSIM) and against what a frozen encoder sees of them. The control draws from the tokens of another image: what
there is to be had without reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from ..annotate.pairs import pooled_images
from ..data.images import to_rgb
from ..errors import SightlineError
from ..evaluation.metrics import Estimate
from ..models.joint import load_joint
from ..models.sampling import psnr
from ..progress import watched
from .kept import mean_interval
from .subject import Subject

SIDE = 192
"""Pixels along a picture that is drawn: enough for what a small view loses."""
CELL = 16
"""Pixels along what one query of the decoder draws."""
WINDOW, DEVIATION = 11, 1.5
"""Of SSIM's Gaussian (Wang et al. 2004)."""


@dataclass(frozen=True)
class Budget:
    """How the decoder is fitted; the same for every model."""

    steps: int = 600
    batch: int = 32
    width: int = 128
    layers: int = 2
    heads: int = 4
    lr: float = 3e-3
    seed: int = 0


@dataclass(frozen=True)
class Fidelity:
    """How near drawn pictures are to theirs."""

    psnr: Estimate
    """Peak signal-to-noise ratio, in dB."""
    ssim: Estimate
    """Structural similarity: 1 where both are the same."""
    features: Estimate
    """Cosine distance of what a frozen encoder makes of both."""


@dataclass(frozen=True)
class Information:
    """What visual tokens keep of images."""

    own: Fidelity
    """From each image's own tokens."""
    wrong: Fidelity
    """From those of another image."""


class Decoder(nn.Module):
    """Queries, one for each cell of a picture, that read tokens and draw."""

    def __init__(self, tokens: int, width: int, budget: Budget) -> None:
        super().__init__()
        cells = (SIDE // CELL) ** 2
        self.queries = nn.Parameter(torch.randn(cells, budget.width) * 0.2)
        layer = nn.TransformerDecoderLayer(
            budget.width, budget.heads, 4 * budget.width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, budget.layers, norm=nn.LayerNorm(budget.width))
        self.draw = nn.Linear(budget.width, 3 * CELL**2)
        self.read = nn.Linear(width, budget.width)  # last: what is before is the same for every model
        self.place = nn.Parameter(torch.randn(tokens, budget.width) * 0.2)

    def forward(self, tokens: Float[Tensor, "images tokens d"]) -> Float[Tensor, "images 3 side side"]:
        """Pictures, from 0 to 1."""
        memory = self.read(tokens) + self.place
        cells = self.draw(self.layers(self.queries.expand(len(tokens), -1, -1), memory))
        return F.pixel_shuffle(cells.transpose(1, 2).unflatten(2, (SIDE // CELL, SIDE // CELL)), CELL).sigmoid()


def measure_information(
    subject: Subject,
    known: Sequence[Image.Image],
    asked: Sequence[Image.Image],
    *,
    encoder: str = "world:clip",
    budget: Budget | None = None,
    progress: bool = True,
) -> Information:
    """Fit a decoder on the visual tokens of `known` images, and have it draw `asked` ones.

    Args:
        encoder: the CLIP or SigLIP whose features are compared.

    Raises:
        SightlineError: if images have different numbers of visual tokens, or there are too few of them.
    """
    budget = budget or Budget()
    if len(known) < budget.batch or len(asked) < 2:
        raise SightlineError(
            f"{len(known)} images to fit a decoder on and {len(asked)} to draw are too few: it needs {budget.batch} "
            "and 2. Give more."
        )
    parts = [_tokens(subject, images) for images in (known, asked)]
    mean, spread = parts[0].mean((0, 1)), parts[0].std((0, 1)).clamp(min=1e-6)
    fit, here = ((part - mean) / spread for part in parts)
    pictures = [pictures_of(images) for images in (known, asked)]
    decoder = fitted(fit, pictures[0], budget, progress=progress)
    seen = Seer(encoder)
    with torch.no_grad():
        own, wrong = decoder(here), decoder(here.roll(1, 0))
    return Information(own=fidelity(own, pictures[1], seen), wrong=fidelity(wrong, pictures[1], seen))


def fitted(
    tokens: Float[Tensor, "images tokens d"],
    pictures: Float[Tensor, "images 3 side side"],
    budget: Budget,
    *,
    progress: bool,
) -> Decoder:
    """A decoder after its budget."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(budget.seed)
        decoder = Decoder(tokens.shape[1], tokens.shape[2], budget)
        optimizer = torch.optim.AdamW(decoder.parameters(), lr=budget.lr, weight_decay=0.0)
        order = torch.Generator().manual_seed(budget.seed)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, budget.steps)
        for _ in watched(range(budget.steps), "information", batch_size=1, progress=progress):
            rows = torch.randint(len(tokens), (budget.batch,), generator=order)
            optimizer.zero_grad()
            F.mse_loss(decoder(tokens[rows]), pictures[rows]).backward()
            optimizer.step()
            rate.step()
    return decoder.eval()


def fidelity(
    ours: Float[Tensor, "images 3 side side"], theirs: Float[Tensor, "images 3 side side"], seen: "Seer"
) -> Fidelity:
    """How near pictures are to theirs, each with what other images would give."""
    distance = 1 - F.cosine_similarity(seen(ours), seen(theirs))
    values = (psnr(ours, theirs, peak=1.0), ssim(ours, theirs), distance)
    return Fidelity(*(mean_interval(each.tolist()) for each in values))


def ssim(
    ours: Float[Tensor, "images 3 side side"], theirs: Float[Tensor, "images 3 side side"]
) -> Float[Tensor, " images"]:
    """Structural similarity of pictures between 0 and 1: the mean over channels and windows that lie inside.

    Source: Wang et al. 2004, with its Gaussian window and constants.
    """
    places = torch.arange(WINDOW, dtype=ours.dtype) - WINDOW // 2
    line = torch.exp(-(places**2) / (2 * DEVIATION**2))
    kernel = (line[:, None] * line[None, :] / line.sum() ** 2).expand(3, 1, -1, -1)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, groups=3)

    a, b = mean(ours), mean(theirs)
    aa, bb, ab = mean(ours**2) - a**2, mean(theirs**2) - b**2, mean(ours * theirs) - a * b
    low, high = 0.01**2, 0.03**2
    found = (2 * a * b + low) * (2 * ab + high) / ((a**2 + b**2 + low) * (aa + bb + high))
    return found.flatten(1).mean(1)


class Seer:
    """What a frozen encoder makes of pictures: its pooled feature."""

    def __init__(self, encoder: str) -> None:
        self.joint = load_joint(encoder, "last")
        processor = self.joint.image_processor
        self.mean, self.std = (torch.tensor(x).view(3, 1, 1) for x in (processor.image_mean, processor.image_std))

    @torch.no_grad()
    def __call__(self, pictures: Float[Tensor, "images 3 side side"]) -> Float[Tensor, "images d"]:
        side = self.joint.image_size
        if pictures.shape[-1] != side:
            pictures = F.interpolate(pictures, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return pooled_images(self.joint, (pictures - self.mean) / self.std)


def _tokens(subject: Subject, images: Sequence[Image.Image]) -> Float[Tensor, "images tokens d"]:
    visual = subject.visual(images)
    counts = {len(tokens) for tokens in visual}
    if len(counts) > 1:
        raise SightlineError(
            f"images have {min(counts)} to {max(counts)} visual tokens, and one decoder reads as many of each. Use "
            "images of one shape."
        )
    return torch.stack(visual).float().cpu()


def pictures_of(images: Sequence[Image.Image]) -> Float[Tensor, "images 3 side side"]:
    """What is to be drawn of images, from 0 to 1: the same for every model."""
    squares = [to_rgb(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for image in images]
    return torch.stack([torch.from_numpy(np.array(square)) for square in squares]).permute(0, 3, 1, 2).float() / 255
