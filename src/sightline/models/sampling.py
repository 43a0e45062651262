"""Pictures from noise: a denoiser's velocities followed from s = 1 to s = 0, by diffusers' Euler steps."""

from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor

from .diffusion import diffusers, predicted


@torch.no_grad()
def sample(
    denoiser: Any,
    noise: Float[Tensor, "images channels height width"],
    prompt: Float[Tensor, "images tokens d"],
    pooled: Float[Tensor, "images d_pooled"],
    *,
    steps: int = 20,
    shift: float = 1.0,
) -> Float[Tensor, "images channels height width"]:
    """The latents that a denoiser draws of a prompt, beginning at `noise`.

    Args:
        shift: of noise levels, as in training.
    """
    scheduler = diffusers().FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    latents = noise
    for timestep in scheduler.timesteps:
        velocity = predicted(denoiser, latents, timestep.expand(len(latents)).to(latents), prompt, pooled)
        latents = scheduler.step(velocity, timestep, latents).prev_sample
    return latents


def psnr(
    ours: Real[Tensor, "images 3 side side"], theirs: Real[Tensor, "images 3 side side"], *, peak: float = 255.0
) -> Float[Tensor, " images"]:
    """Peak signal-to-noise ratio of each picture, in dB; 120 where both are the same.

    Args:
        peak: the largest value of a pixel.
    """
    error = ((ours.float() - theirs.float()) / peak).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=1e-12))
