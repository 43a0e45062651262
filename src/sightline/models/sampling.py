"""Pictures from noise: a denoiser's velocities followed from s = 1 to s = 0, by diffusers' Euler steps."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from .diffusion import diffusers

PEAK = 255.0


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
        velocity = denoiser(
            hidden_states=latents,
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            timestep=timestep.expand(len(latents)).to(latents),
        ).sample
        latents = scheduler.step(velocity, timestep, latents).prev_sample
    return latents


def psnr(
    ours: UInt8[Tensor, "images 3 side side"], theirs: UInt8[Tensor, "images 3 side side"]
) -> Float[Tensor, " images"]:
    """Peak signal-to-noise ratio of each picture, in dB; 108 where both are the same."""
    error = (ours.float() - theirs.float()).square().flatten(1).mean(1)
    return 20 * torch.log10(PEAK / error.sqrt().clamp(min=1e-3))
