"""What a part of a method costs: counted on torch's meta device, nothing is computed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Counted:
    """Of one call."""

    operations: int
    """Floating-point operations, by torch's counter."""
    kept: int
    """Bytes that the backward pass needs, besides weights."""


def counted(work: Callable[[], object], *modules: nn.Module) -> Counted:
    """Count one call of modules."""
    weights = {weight.untyped_storage()._cdata for module in modules for weight in module.parameters()}
    alive: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        alive.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        out = work()
    kept = sum(tensor.untyped_storage().nbytes() for key, tensor in alive.items() if key not in weights)
    del out
    return Counted(counter.get_total_flops(), kept)
