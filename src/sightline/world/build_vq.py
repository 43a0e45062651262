"""Builds the world's VQ model: a standard `VQModel` of diffusers, whose codes are what VLSA's cognition predicts.

A code stands for 16 x 16 pixels of the low view, as a patch of `world:clip` does: six rows of six. Entries of the
codebook that pictures do not use begin again where some picture is, while there is time to learn.

A first one had twelve rows of twelve and 256 codes. All of them were used, 34 for the plain ground of one picture,
since what normalises an encoder's channels looks at the whole of it; no language model learned to tell them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..models.codes import nearest
from ..models.diffusion import diffusers
from .cards import Build, finish
from .clip_data import pictures_of
from .draw import SIDE
from .scene import sample_scene
from .training import Descent, Progress, descend, one_thread


@dataclass(frozen=True)
class VqRecipe:
    """How the VQ model is built."""

    steps: int = 3000
    seed: int = 0
    widths: tuple[int, ...] = (16, 32, 64, 64, 64)
    """Channels at each scale, each half as wide as the one before."""
    codes: int = 64
    width: int = 16
    """Of a code's vector."""
    batch: int = 8
    commitment: float = 1.0
    """Weight of the distance between latents and their codes."""
    renewed: int = 50
    """Steps between two looks at which codes are used, in the first half of the steps."""
    lr: float = 2e-3
    weight_decay: float = 0.0
    warmup: int = 100


def vq_config(recipe: VqRecipe) -> dict[str, object]:
    """The sizes of the VQ model, as diffusers names them."""
    scales = len(recipe.widths)
    return {
        "block_out_channels": list(recipe.widths),
        "down_block_types": ["DownEncoderBlock2D"] * scales,
        "up_block_types": ["UpDecoderBlock2D"] * scales,
        "layers_per_block": 1,
        "latent_channels": recipe.widths[-1],
        "num_vq_embeddings": recipe.codes,
        "vq_embed_dim": recipe.width,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "sample_size": SIDE["low"],
    }


def pictures(recipe: VqRecipe, step: int, count: int) -> Float[Tensor, "count 3 side side"]:
    """What a step sees, from -1 to 1; a pure function of its number."""
    draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    scenes = torch.randint(2**31, (count,), generator=draw).tolist()
    return pictures_of([sample_scene(recipe.seed, "train", index) for index in scenes]).float() / 127.5 - 1


def vq_loss(vq: Any, pixels: Float[Tensor, "batch 3 side side"], recipe: VqRecipe) -> Tensor:
    """The absolute and squared errors of pixels, and the distance between latents and their codes."""
    latents = vq.encode(pixels).latents
    codes, distance, _ = vq.quantize(latents)
    out = vq.decode(codes, force_not_quantize=True).sample
    return F.l1_loss(out, pixels) + F.mse_loss(out, pixels) + recipe.commitment * distance


@torch.no_grad()
def renew(vq: Any, recipe: VqRecipe, step: int) -> None:
    """Put every code that no latent of some pictures is nearest to where a random one of those latents is."""
    latents = vq.encode(pictures(recipe, -1 - step, 4 * recipe.batch)).latents
    book = vq.quantize.embedding.weight
    idle = torch.bincount(nearest(latents, book).flatten(), minlength=len(book)) == 0
    places = latents.permute(0, 2, 3, 1).flatten(0, 2)
    draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    book[idle] = places[torch.randint(len(places), (int(idle.sum()),), generator=draw)]


def build_vq(
    out: Path, recipe: VqRecipe | None = None, progress: Progress | None = None, *, measured: int = 300
) -> None:
    """Train the VQ model, save it to the folder `out`, measure what was saved, and write its card.

    A build that was stopped goes on when it is run again.

    Args:
        measured: pictures that the card's scores are of.

    Raises:
        SightlineError: if `out` holds files already, or a build of other settings is under way there.
    """
    from .measure_ldm import measure_vq

    recipe = recipe or VqRecipe()
    build = Build(out, recipe)

    def loss_of(step: int) -> Tensor:
        if step % recipe.renewed == 0 and step < recipe.steps / 2:
            renew(vq, recipe, step)
        return vq_loss(vq, pictures(recipe, step, recipe.batch), recipe)

    with one_thread(recipe.seed):
        vq = diffusers().VQModel(**vq_config(recipe))
        seconds = descend(
            vq,
            loss_of,
            Descent.cosine(recipe),
            state=build.state,
            recipe=recipe,
            progress=progress,
        )
        finish(
            build,
            "vq",
            vq,
            None,
            measure=lambda folder, split: measure_vq(folder, split, pictures=measured),
            seconds=seconds,
            data="low views of the world's train split",
            objective="absolute and squared error of pixels, and the distance between latents and their codes",
        )
