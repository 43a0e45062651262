"""Guards against training silently on the wrong thing: what must move has a gradient, what is frozen does not move."""

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..errors import SightlineError
from .engine import local
from .processes import Processes

WATCHED = 20
"""Steps within which every trainable parameter must have had a gradient."""


class NoGradient(SightlineError):
    """A parameter that should train never had a gradient."""


class GradientGuard:
    """Watches the first steps of a stage for parameters that are said to train and get no gradient."""

    def __init__(
        self, named: Mapping[str, nn.Parameter], stage: str, *, past: Mapping[str, list[str]] | None = None
    ) -> None:
        """
        Args:
            past: what an earlier process saw of this stage, from `record()`.
        """
        past = past or {"none": list(named), "zero": list(named)}
        self.named = dict(named)
        self.stage = stage
        self.none = {name for name in past["none"] if name in named}
        """No gradient so far."""
        self.zero = {name for name in past["zero"] if name in named}
        """No gradient but zeros so far."""

    def look(self, step: int, total: int, processes: Processes, say: Callable[[str], None]) -> None:
        """After the backward pass of `step`, from 1, of `total`.

        Raises:
            SightlineError: after the last step that is watched, naming the parameters that never had a gradient.
        """
        until = min(WATCHED, total)
        if step > until:
            return
        self.none -= {name for name in self.none if self.named[name].grad is not None}
        alive = [name for name in self.zero if (grad := self.named[name].grad) is not None and bool(local(grad).any())]
        self.zero -= set(alive)
        if step < until:
            return
        self.none = set.intersection(*processes.gather(self.none))
        self.zero = set.intersection(*processes.gather(self.zero)) - self.none
        if self.none:
            raise NoGradient(
                f"{shortened(self.none)} of stage '{self.stage}' had no gradient in {step} steps: no loss depends on "
                "it, so it would stay as it is. Take its part out of `trainable`, or give the loss that uses it a "
                "weight."
            )
        if self.zero:
            say(f"{self.stage}: the gradients of {shortened(self.zero)} were zero throughout the first {step} steps")

    def record(self) -> dict[str, list[str]]:
        """What it saw so far, for a checkpoint."""
        return {"none": sorted(self.none), "zero": sorted(self.zero)}


def shortened(names: Iterable[str]) -> str:
    """The first of some names, and how many more there are."""
    first, *rest = sorted(names)
    return f"'{first}'" + (
        f" and {len(rest)} more ({', '.join(rest[:3])}...)" if len(rest) > 1 else f" and '{rest[0]}'" if rest else ""
    )


Fingerprint = dict[str, list[int]]
"""Of each parameter: the exclusive or of its elements' bits, and of a vector also their sum."""


def fingerprint(named: Iterable[tuple[str, nn.Parameter]], processes: Processes) -> Fingerprint:
    """A hash of the bits of each frozen parameter, the same however many processes share it out."""
    frozen = {name: parameter for name, parameter in named if not parameter.requires_grad}
    mine = {name: hash_bits(local(parameter)) for name, parameter in frozen.items()}
    everyone = processes.gather(mine)
    return {
        name: added_up([shards[name] for shards in everyone]) if isinstance(parameter, DTensor) else mine[name]
        for name, parameter in frozen.items()
    }


def hash_bits(tensor: Tensor) -> list[int]:
    """The exclusive or of its elements' bits, and of a vector their sum.

    Equal bits cancel out of the first: a norm of ones that is scaled would not show. Summing matrices would take long.
    """
    tensor = tensor.detach()
    if not tensor.numel():
        return [0, 0]
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    total = int(tensor.view(integers).sum(dtype=torch.int64)) if tensor.ndim < 2 else 0
    return [int(torch.hash_tensor(tensor).view(torch.int64)), total % 2**64]


def added_up(shards: Sequence[list[int]]) -> list[int]:
    """The hash of a tensor from those of its shards."""
    total = sum(shard[1] for shard in shards) % 2**64
    return [functools.reduce(operator.xor, (shard[0] for shard in shards)), total]


def assert_unmoved(before: Fingerprint, now: Fingerprint, *, stage: str) -> None:
    """That frozen parameters are as they were.

    Raises:
        SightlineError: naming those that moved.
    """
    moved = [name for name, value in now.items() if before.get(name) != value]
    if moved:
        raise SightlineError(
            f"{shortened(moved)} moved in stage '{stage}', which does not train it: the stage did something else than "
            "its recipe says. A method may write to it; please report it with the recipe."
        )
