"""The processes of a run: one, or several that `torchrun` started, with the few words that they say to each other."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import SightlineError

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this one is. With one process every member is the identity."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        return self.world > 1

    def wait(self) -> None:
        """Until every process is here."""
        if self.several:
            dist.barrier()

    def add(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sums of `values` over the processes, in fp64; every process gives the same names."""
        if not self.several:
            return dict(values)
        names = sorted(values)
        packed = torch.stack([values[name].detach().to(self.device, torch.float64) for name in names])
        dist.all_reduce(packed)
        return dict(zip(names, packed, strict=True))

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds in any process."""
        return flag if not self.several else bool(self.add({"flag": torch.tensor(float(flag))})["flag"])

    def agree(self, find: Callable[[], Result]) -> Result:
        """What the main process finds, in all of them: one looks at the disk, none sees another state of it.

        Raises:
            SightlineError: the one that `find` raises, in every process.
        """
        if not self.several:
            return find()
        found: list[Any] = [None, None]
        if self.main:
            try:
                found[0] = find()
            except SightlineError as error:
                found[1] = error
        dist.broadcast_object_list(found)
        if found[1] is not None:
            raise found[1]
        return found[0]

    def gather(self, value: Any) -> list[Any]:
        """The (picklable) values of all processes, by rank, in each of them."""
        if not self.several:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Join the processes that torchrun started, each with its own GPU where there are any; alone without torchrun.

    Raises:
        SightlineError: if the device cannot be used, or a process names one that all would share.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world == 1:
        yield Processes(device=pick_device(device))
        return
    if device in ("auto", "cuda"):
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    place = pick_device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if dist.is_initialized():  # by the caller, whose it stays
        yield Processes(rank, world, place)
        return
    dist.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield Processes(rank, world, place)
    finally:
        dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """The device that a recipe names; `auto` takes the first accelerator, else the CPU.

    Raises:
        SightlineError: if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SightlineError(f"device '{name}' cannot be used: {reason}. Try device=auto or device=cpu.") from None
    return device
