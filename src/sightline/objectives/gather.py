"""Rows of all processes in one tensor, with gradients: what a contrastive loss of scope `gathered` is taken over."""

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

from ..types import Batch


def gather_rows(rows: Shaped[Tensor, "rows ..."], batch: Batch) -> Shaped[Tensor, "all_rows ..."]:
    """`rows` of this batch and of the batches that the other processes have at hand, in the order of the ranks.

    The processes may have different numbers of rows. Gradients flow to the rows of every process, so each process may
    take the whole loss of all rows. Rows of a batch that does not count (a process that has nothing left in a step)
    are left out. With one process these are `rows` themselves.
    """
    rows = rows if batch.counted else rows[:0]
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return rows
    sizes = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor(len(rows), device=rows.device))
    longest = max(int(size) for size in sizes)
    padding = rows.new_zeros(longest - len(rows), *rows.shape[1:])
    gathered = _Gather.apply(torch.cat([rows, padding]))
    return torch.cat([part[: int(size)] for part, size in zip(gathered, sizes, strict=True)])


class _Gather(torch.autograd.Function):
    """All processes' tensors stacked; backward, each process gets the sum of what all of them ask of its own."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, mine.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]
