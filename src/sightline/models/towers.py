"""Vision towers: how many tokens each family puts before its patches, and which of its states are taken.

CLIP and DINOv2 put a class token first, DINOv2 with registers adds those, SigLIP has none. transformers' LLaVA can say
"drop the first token" (`default`) or "keep all" (`full`); registers need more, so such a model is saved as ours.
"""

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedConfig

from ..errors import SightlineError

PatchSelect = Literal["patch", "full"]

TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2", "dinov2_with_registers")
"""The `model_type`s that a tower can have."""


@dataclass(frozen=True)
class TowerSpec:
    """What the trunk must know of a tower: its width, its grid, and the tokens before the grid."""

    width: int
    image_size: int
    patch_size: int
    prefix: int

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    def num_patches(self, select: PatchSelect) -> int:
        """Tokens taken of one view: the grid, and with `full` what stands before it."""
        return self.grid**2 + (self.prefix if select == "full" else 0)


def tower_spec(config: PreTrainedConfig) -> TowerSpec:
    """The spec of a vision config.

    Raises:
        SightlineError: for a family that is not known.
    """
    kind = config.model_type
    if kind not in TOWERS:
        raise SightlineError(f"vision tower of type '{kind}' is not supported. Supported: {', '.join(TOWERS)}.")
    prefix = 0 if kind.startswith("siglip") else 1
    if kind == "dinov2_with_registers":
        prefix += config.num_register_tokens
    return TowerSpec(config.hidden_size, config.image_size, config.patch_size, prefix)
