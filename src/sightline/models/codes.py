"""What VLSA's cognition takes of diffusers: a frozen VQ model, whose codes tell what an image is made of."""

from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from .diffusion import in_bytes, load_part


class Codes:
    """A frozen VQ model: pixels to codes, the entries of its codebook that are nearest, and back."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """
        Raises:
            SightlineError: if it cannot be found, or weights are missing.
        """
        self.vq: Any = load_part(name, "vqvae").requires_grad_(False).eval().to(device)

    @torch.no_grad()
    def encode(self, pixels: UInt8[Tensor, "images 3 side side"]) -> Int[Tensor, "images rows columns"]:
        """The code of each cell (equation 5, the nearest in Euclidean distance)."""
        with torch.autocast(pixels.device.type, enabled=False):
            latents = self.vq.encode(pixels.float() / 127.5 - 1).latents
            return nearest(latents, self.vq.quantize.embedding.weight)

    @torch.no_grad()
    def decode(self, codes: Int[Tensor, "images rows columns"]) -> UInt8[Tensor, "images 3 height width"]:
        """Pixels of codes."""
        with torch.autocast(codes.device.type, enabled=False):
            latents = self.vq.quantize.embedding(codes).permute(0, 3, 1, 2)
            pixels = self.vq.decode(latents, force_not_quantize=True).sample
        return in_bytes(pixels)


def nearest(
    latents: Float[Tensor, "images d rows columns"], codebook: Float[Tensor, "codes d"]
) -> Int[Tensor, "images rows columns"]:
    """The entry of a codebook that is nearest to each latent; the first of several that are."""
    return torch.cdist(latents.permute(0, 2, 3, 1), codebook.expand(len(latents), 1, -1, -1)).argmin(-1)
