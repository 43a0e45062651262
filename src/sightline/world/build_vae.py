"""Builds the world's VAE: a standard `AutoencoderKL` of diffusers, whose latents are what VLSA reconstructs.

Latents are a quarter of a picture wide and high, with eight channels. It is trained on windows of pictures in both
views; where a high view has a card, a third of them are around it: its fine letter, in stripes one pixel wide, is the
first thing that a VAE loses.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ..models.diffusion import diffusers
from .cards import Build, finish
from .clip_data import pictures_of
from .draw import CELL, SIDE, render
from .scene import GRID, Scene, sample_scene
from .training import Descent, Progress, descend, one_thread


@dataclass(frozen=True)
class VaeRecipe:
    """How the VAE is built."""

    steps: int = 4000
    seed: int = 0
    widths: tuple[int, ...] = (32, 64, 64)
    """Channels at each scale, each half as wide as the one before."""
    latent_channels: int = 8
    window: int = 64
    """Pixels along a window that it is trained on."""
    batch: int = 16
    prior: float = 1e-4
    """Weight of the divergence of latents from a standard normal, for each value of them."""
    edges: float = 1.0
    """Weight of the error of differences between neighbours: a stripe one pixel wide has no mean error."""
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: int = 100


def vae_config(recipe: VaeRecipe) -> dict[str, object]:
    """The sizes of the VAE, as diffusers names them."""
    scales = len(recipe.widths)
    return {
        "block_out_channels": list(recipe.widths),
        "down_block_types": ["DownEncoderBlock2D"] * scales,
        "up_block_types": ["UpDecoderBlock2D"] * scales,
        "layers_per_block": 1,
        "latent_channels": recipe.latent_channels,
        "norm_num_groups": 8,
        "mid_block_add_attention": False,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "sample_size": SIDE["high"],
    }


def window_of(scene: Scene, size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "size size 3"]:
    """A square of a scene's picture: of the high view, around its card in one of three, or of the low view."""
    view = "low" if rng.random() < 0.25 else "high"
    picture = np.asarray(render(scene, view))
    most = SIDE[view] - size
    top, left = (int(place) for place in rng.integers(most + 1, size=2))
    if scene.card and view == "high" and rng.random() < 1 / 3:
        corner = (CELL * place for place in divmod(scene.card.cell, GRID))
        top, left = (int(np.clip(place + rng.integers(-16, 17), 0, most)) for place in corner)
    return picture[top : top + size, left : left + size]


def windows(recipe: VaeRecipe, step: int) -> Float[Tensor, "batch 3 window window"]:
    """What a step sees, from -1 to 1; a pure function of its number."""
    rng = np.random.Generator(np.random.Philox(key=[recipe.seed, 2], counter=[0, 0, 0, step]))
    scenes = (sample_scene(recipe.seed, "train", int(index)) for index in rng.integers(2**31, size=recipe.batch))
    pixels = np.stack([window_of(scene, recipe.window, rng) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def vae_loss(vae: torch.nn.Module, pixels: Float[Tensor, "batch 3 side side"], recipe: VaeRecipe) -> Tensor:
    """The absolute error of pixels and of their differences, and the latents' divergence from a standard normal."""
    posterior = vae.encode(pixels).latent_dist  # pyright: ignore[reportCallIssue]
    out = vae.decode(posterior.sample()).sample  # pyright: ignore[reportCallIssue]
    edges = sum(F.l1_loss(out.diff(dim=dim), pixels.diff(dim=dim)) for dim in (2, 3))
    prior = posterior.kl().mean() / posterior.mean[0].numel()
    return F.l1_loss(out, pixels) + recipe.edges * edges + recipe.prior * prior


def build_vae(
    out: Path, recipe: VaeRecipe | None = None, progress: Progress | None = None, *, measured: int = 64
) -> None:
    """Train the VAE, save it to the folder `out`, measure what was saved, and write its card.

    A build that was stopped goes on when it is run again.

    Args:
        measured: pictures that the card's scores are of.

    Raises:
        SightlineError: if `out` holds files already, or a build of other settings is under way there.
    """
    from .measure_ldm import measure_vae

    recipe = recipe or VaeRecipe()
    build = Build(out, recipe)

    def loss_of(step: int) -> Tensor:
        torch.manual_seed(recipe.seed * 1_000_003 + step)  # of the latents' noise, so that a build can go on
        return vae_loss(vae, windows(recipe, step), recipe)

    with one_thread(recipe.seed):
        vae = diffusers().AutoencoderKL(**vae_config(recipe))
        seconds = descend(
            vae,
            loss_of,
            Descent.cosine(recipe),
            state=build.state,
            recipe=recipe,
            progress=progress,
        )
        shift, scale = latent_statistics(vae, recipe)
        vae.register_to_config(shift_factor=shift, scaling_factor=scale)
        finish(
            build,
            "vae",
            vae,
            None,
            measure=lambda folder, split: measure_vae(folder, split, pictures=measured),
            seconds=seconds,
            data="windows of pictures of the world's train split, in both views, some of them around a card",
            objective="absolute error of pixels and of their differences, and a small divergence from a normal",
        )


@torch.no_grad()
def latent_statistics(vae: torch.nn.Module, recipe: VaeRecipe, pictures: int = 64) -> tuple[float, float]:
    """What latents of whole pictures are shifted and scaled by, so that they have mean 0 and deviation 1."""
    scenes = [sample_scene(recipe.seed, "train", index) for index in range(pictures)]
    parts = (pictures_of(scenes, "high").float() / 127.5 - 1).split(8)
    latents = torch.cat([vae.encode(some).latent_dist.mode() for some in parts])  # pyright: ignore[reportCallIssue]
    return round(float(latents.mean()), 4), round(float(1 / latents.std()), 4)
