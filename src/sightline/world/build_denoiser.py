"""Builds the world's denoiser: a small `SD3Transformer2DModel` on the latents of the world's VAE.

Stable Diffusion 3 was trained on captions; this one is trained on what the world's CLIP sees, of the low view and of
the four quarters of the high one, through a linear layer that is kept beside it. So it knows how to draw what a prompt
tells in detail, and an Epigone has something to aim at from the first step.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel

from ..models.diffusion import Latents, build_part, predicted
from ..objectives.flow import TIMESTEPS, draw_noise_levels, flow_losses, noised
from . import backbone_path
from .build_clip import encode_pixels, patch_size
from .cards import Build, finish, load
from .clip_data import picture_values, pictures_of
from .draw import FINE, SIDE
from .measure_clip import before_last
from .scene import Scene, sample_scene
from .training import Descent, Progress, descend, one_thread

CONDITION = "condition.safetensors"
"""The layers that make prompts of what CLIP sees, beside the denoiser's own weights."""


@dataclass(frozen=True)
class DenoiserRecipe:
    """How the denoiser is built."""

    steps: int = 4000
    seed: int = 0
    pictures: int = 4000
    """Pictures that it sees, again and again."""
    width: int = 128
    layers: int = 4
    heads: int = 4
    patch: int = 4
    batch: int = 32
    blank: float = 0.1
    """Share of prompts that are blank, so that it can draw without one."""
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 100


@dataclass(frozen=True)
class Seen:
    """What a CLIP makes of pictures."""

    tokens: Float[Tensor, "pictures tokens d"]
    """Of each patch of the low view: its feature, then those of the patches of the high view that it covers."""
    whole: Float[Tensor, "pictures d_whole"]


class Condition(nn.Module):
    """What a CLIP sees, as prompt and pooled prompt."""

    def __init__(self, tokens: int, whole: int, width: int) -> None:
        super().__init__()
        self.prompt, self.pooled = nn.Linear(tokens, width), nn.Linear(whole, width)

    def forward(self, seen: Seen) -> tuple[Tensor, Tensor]:
        return self.prompt(seen.tokens), self.pooled(seen.whole)


@torch.no_grad()
def look(clip: CLIPModel, scenes: list[Scene]) -> Seen:
    """What a CLIP makes of scenes: of the small view, and of the quarters of the high one."""
    low, high = picture_values(scenes, "low"), picture_values(scenes, "high")
    side, grid = SIDE["low"], SIDE["low"] // patch_size(clip)
    quarters = high.unflatten(3, (FINE, side)).unflatten(2, (FINE, side)).permute(0, 2, 4, 1, 3, 5)
    fine = before_last(clip, quarters.flatten(0, 2)).unflatten(1, (grid, grid)).unflatten(0, (-1, FINE, FINE))
    whole = fine.transpose(2, 3).flatten(3, 4).flatten(1, 2)  # all patches of the high view: [n, rows, columns, d]
    cells = whole.unflatten(2, (grid, FINE)).unflatten(1, (grid, FINE)).transpose(2, 3).flatten(1, 2)
    coarse = before_last(clip, low)
    positions = torch.arange(grid**2 + 1)
    pooled = torch.cat([encode_pixels(clip, some, positions)[0] for some in low.split(128)])
    return Seen(torch.cat([coarse, cells.flatten(2)], dim=-1), pooled)


def denoiser_config(recipe: DenoiserRecipe, channels: int, side: int) -> dict[str, Any]:
    """The sizes of the denoiser, as diffusers names them."""
    return {
        "sample_size": side,
        "patch_size": recipe.patch,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": recipe.layers,
        "attention_head_dim": recipe.width // recipe.heads,
        "num_attention_heads": recipe.heads,
        "joint_attention_dim": recipe.width,
        "caption_projection_dim": recipe.width,
        "pooled_projection_dim": recipe.width,
        "pos_embed_max_size": side // recipe.patch,
    }


def build_denoiser(
    out: Path,
    recipe: DenoiserRecipe | None = None,
    progress: Progress | None = None,
    *,
    vae: str = "world:vae",
    measured: int = 64,
) -> None:
    """Train the denoiser on the latents of a VAE, save it to the folder `out`, measure it, and write its card.

    A build that was stopped goes on when it is run again.

    Args:
        measured: pictures that the card's scores are of.

    Raises:
        SightlineError: if `out` holds files already, or a build of other settings is under way there.
    """
    from .measure_ldm import measure_denoiser

    recipe = recipe or DenoiserRecipe()
    build, latents = Build(out, recipe), Latents(vae)
    clip = load(CLIPModel, backbone_path("clip"))
    with one_thread(recipe.seed):
        scenes = [sample_scene(recipe.seed, "train", index) for index in range(recipe.pictures)]
        seen = look(clip, scenes)
        clean = torch.cat([latents.encode(pictures_of(scenes[i : i + 16], "high")) for i in range(0, len(scenes), 16)])
        model = nn.ModuleDict(
            {
                "denoiser": build_part("transformer", denoiser_config(recipe, clean.shape[1], clean.shape[2])),
                "condition": Condition(seen.tokens.shape[-1], seen.whole.shape[-1], recipe.width),
            }
        )

        def loss_of(step: int) -> Tensor:
            draw = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            rows = torch.randint(len(clean), (recipe.batch,), generator=draw)
            noise = torch.randn(clean[rows].shape, generator=draw)
            levels = draw_noise_levels(torch.randn(recipe.batch, generator=draw))
            told = (torch.rand(recipe.batch, generator=draw) >= recipe.blank).float()
            prompt, pooled = model["condition"](Seen(seen.tokens[rows], seen.whole[rows]))
            mixed, told = noised(clean[rows], noise, levels), told[:, None]
            velocity = predicted(
                model["denoiser"], mixed, levels * TIMESTEPS, prompt * told.unsqueeze(-1), pooled * told
            )
            return flow_losses(velocity, clean[rows], noise, levels, "velocity").mean()

        seconds = descend(
            model,
            loss_of,
            Descent.cosine(recipe),
            state=build.state,
            recipe=recipe,
            progress=progress,
        )
        condition = model["condition"]
        assert isinstance(condition, Condition)
        finish(
            build,
            "denoiser",
            model["denoiser"],
            None,
            beside={CONDITION: condition.half().state_dict()},
            measure=lambda folder, split: measure_denoiser(folder, split, latents, clip, pictures=measured),
            seconds=seconds,
            data="pictures of the world's train split as latents of its VAE, and what its CLIP sees of them",
            objective="velocity of a rectified flow; one prompt in ten is blank",
        )
