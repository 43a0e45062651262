"""What the world's VAE and denoiser keep of a picture, measured on pictures that they have not seen."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel

from ..diagnostics.kept import mean_interval
from ..evaluation.metrics import Estimate, proportion_interval
from ..models.codes import Codes
from ..models.diffusion import Latents, load_denoiser
from ..models.sampling import psnr, sample
from . import Split
from .build_denoiser import CONDITION, Condition, look
from .clip_data import pictures_of
from .draw import CELL, render
from .scene import GRID, LETTERS, Scene, sample_scene


def measure_vae(folder: Path, split: Split = "validation", *, pictures: int = 64, seed: int = 0) -> dict[str, Estimate]:
    """Of high views through the VAE and back: their `psnr` in dB, and `letter`, how often a card's fine letter is still
    nearest to itself among all letters."""
    latents = Latents(str(folder))
    scenes = [sample_scene(seed, split, index) for index in range(pictures)]
    pixels = pictures_of(scenes, "high")
    back = torch.cat([latents.decode(latents.encode(some)) for some in pixels.split(8)])
    return {"psnr": mean_interval(psnr(back, pixels).tolist()), "letter": letters_kept(scenes, back)}


def letters_kept(scenes: Sequence[Scene], pictures: UInt8[Tensor, "scenes 3 side side"]) -> Estimate:
    """The share of cards whose letter in `pictures` is nearer to the true one than to any other, pixel by pixel."""
    right = []
    for scene, picture in zip(scenes, pictures, strict=True):
        if scene.card is None:
            continue
        top, left = (CELL * place for place in divmod(scene.card.cell, GRID))
        others = [replace(scene, card=replace(scene.card, letter=letter)) for letter in LETTERS]
        drawn = np.stack([np.asarray(render(other, "high"))[top : top + CELL, left : left + CELL] for other in others])
        cell = picture[:, top : top + CELL, left : left + CELL].permute(1, 2, 0).numpy().astype(np.float32)
        nearest = ((drawn - cell) ** 2).mean((1, 2, 3)).argmin()
        right.append(LETTERS[int(nearest)] == scene.card.letter)
    return proportion_interval(right)


def measure_vq(folder: Path, split: Split = "validation", *, pictures: int = 300, seed: int = 0) -> dict[str, Estimate]:
    """Of low views as codes and back: their `psnr` in dB, and the share of the codebook that is `used`."""
    codes = Codes(str(folder))
    pixels = pictures_of([sample_scene(seed, split, index) for index in range(pictures)])
    told = torch.cat([codes.encode(some) for some in pixels.split(16)])
    back = torch.cat([codes.decode(some) for some in told.split(16)])
    used = torch.bincount(told.flatten(), minlength=codes.vq.config.num_vq_embeddings) > 0
    return {"psnr": mean_interval(psnr(back, pixels).tolist()), "used": proportion_interval(used.tolist())}


@torch.no_grad()
def measure_denoiser(
    folder: Path,
    split: Split,
    latents: Latents,
    clip: CLIPModel,
    *,
    pictures: int = 64,
    steps: int = 20,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Pictures drawn from noise: `psnr` with what CLIP sees of them as the prompt, `psnr_blank` with none, both in dB,
    and the `gain`, the mean difference."""
    denoiser: Any = load_denoiser(str(folder)).eval()
    scenes = [sample_scene(seed, split, index) for index in range(pictures)]
    seen, pixels = look(clip, scenes), pictures_of(scenes, "high")
    condition = Condition(seen.tokens.shape[-1], seen.whole.shape[-1], denoiser.config.joint_attention_dim)
    condition.load_state_dict({key: value.float() for key, value in load_file(folder / CONDITION).items()})
    prompt, pooled = condition(seen)
    noise = torch.randn(latents.encode(pixels[:1]).expand(pictures, -1, -1, -1).shape, generator=_draw(seed))
    found = {}
    for name, told in (("psnr", 1.0), ("psnr_blank", 0.0)):
        drawn = sample(denoiser, noise, told * prompt, told * pooled, steps=steps)
        found[name] = psnr(torch.cat([latents.decode(some) for some in drawn.split(8)]), pixels)
    found["gain"] = found["psnr"] - found["psnr_blank"]
    return {name: mean_interval(values.tolist()) for name, values in found.items()}


def _draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
