"""Rectified flow: clean latents on a straight line to noise, and the loss of telling them from a point between.

    z_t = (1 - s) z_0 + s e        v = e - z_0        z_0' = z_t - s v'

Source: Stable Diffusion 3 (Esser et al. 2024); VLSA's equation 3 is on z_0.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Target = Literal["clean", "velocity"]
"""What the loss is of: the clean latents that a prediction amounts to (VLSA), or the velocity (Stable Diffusion 3). The
first is the second times s squared."""

TIMESTEPS = 1000
"""What a denoiser calls s = 1."""


def draw_noise_levels(normal: Float[Tensor, " images"], shift: float = 1.0) -> Float[Tensor, " images"]:
    """Noise levels s between 0 and 1 from standard normals: sigmoid, then Stable Diffusion 3's shift to more noise."""
    levels = torch.sigmoid(normal)
    return shift * levels / (1 + (shift - 1) * levels)


def noised(
    clean: Float[Tensor, "images ..."], noise: Float[Tensor, "images ..."], levels: Float[Tensor, " images"]
) -> Float[Tensor, "images ..."]:
    """z_t."""
    s = _beside(levels, clean)
    return (1 - s) * clean + s * noise


def clean_of(
    mixed: Float[Tensor, "images ..."], velocity: Float[Tensor, "images ..."], levels: Float[Tensor, " images"]
) -> Float[Tensor, "images ..."]:
    """The clean latents that a velocity amounts to."""
    return mixed - _beside(levels, mixed) * velocity


def flow_losses(
    velocity: Float[Tensor, "images ..."],
    clean: Float[Tensor, "images ..."],
    noise: Float[Tensor, "images ..."],
    levels: Float[Tensor, " images"],
    target: Target = "clean",
) -> Float[Tensor, " images"]:
    """The mean squared error of each image's prediction, in the latents' own unit squared; in fp32 or better."""
    dtype = torch.promote_types(velocity.dtype, torch.float32)
    with torch.autocast(velocity.device.type, enabled=False):
        velocity, clean, noise, levels = (x.to(dtype) for x in (velocity, clean, noise, levels))
        if target == "velocity":
            return (noise - clean - velocity).square().flatten(1).mean(1)
        mixed = noised(clean, noise, levels)
        return (clean - clean_of(mixed, velocity, levels)).square().flatten(1).mean(1)


def _beside(levels: Float[Tensor, " images"], x: Tensor) -> Tensor:
    """`levels` with as many dimensions as `x`."""
    return levels.view(-1, *[1] * (x.ndim - 1))
