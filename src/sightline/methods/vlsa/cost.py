"""What reconstruction costs for an image, counted on torch's meta device: for the dry run."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from ...models.diffusion import build_part, part_config, predicted, shrinks_by
from ..counting import Counted, counted


@dataclass
class Cost:
    """Of the parts of a reconstruction."""

    epigone: Any
    denoiser: Any
    """Both on the meta device."""
    vae: str
    resolution: int
    tokens: int
    width: int
    """Of what the Epigone reads."""
    _found: dict[tuple[str, bool], Counted] = field(default_factory=dict)

    @cached_property
    def of_vae(self) -> int:
        """Operations of encoding the image."""
        with torch.device("meta"):
            vae = build_part("vae", part_config(self.vae, "vae"))
            pixels = torch.zeros(1, 3, self.resolution, self.resolution)
            return counted(lambda: vae.encode(pixels), vae).operations

    def of(self, part: str, *, trains: bool = False) -> Counted:
        """Of the Epigone or the denoiser, both of which pass gradients on to the visual tokens."""
        if (part, trains) not in self._found:
            self._found[part, trains] = self._count(part, trains)
        return self._found[part, trains]

    def _count(self, part: str, trains: bool) -> Counted:
        module, config = getattr(self, part), self.denoiser.config
        module.requires_grad_(trains)
        with torch.device("meta"):
            if part == "epigone":
                read = torch.zeros(1, self.tokens, self.width), torch.zeros(1, self.width)
                return counted(lambda: module(*(x.requires_grad_() for x in read)), module)
            prompt, pooled = config["joint_attention_dim"], config["pooled_projection_dim"]
            told = torch.zeros(1, self.tokens, prompt), torch.zeros(1, pooled)
            side = self.resolution // shrinks_by(part_config(self.vae, "vae"))
            mixed = torch.zeros(1, config["in_channels"], side, side)
            level = torch.zeros(1)
            return counted(lambda: predicted(module, mixed, level, *(x.requires_grad_() for x in told)), module)
