"""How a step's objective runs: alone, in DDP (a whole model in each process), or in FSDP2 (its parameters shared out).

Gradients of several processes are averaged by both engines, and a loss is a sum over the counts of the whole step, so
`scale` undoes the average: the gradient is that of one process with all the rows.
"""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from ..config import Stage
from ..types import Batch
from .objective import Objective
from .processes import Processes

Parallel = Literal["ddp", "fsdp"]


class Engine:
    """The objective, wrapped for the processes of a run."""

    def __init__(
        self, objective: Objective, stage: Stage, processes: Processes | None = None, parallel: Parallel = "ddp"
    ) -> None:
        processes = processes if processes is not None else Processes()
        self.objective = objective
        self.processes = processes
        self.scale = processes.world
        self.sharded = processes.several and parallel == "fsdp"
        self._module: nn.Module = objective
        if self.sharded:
            shard(objective, stage, processes.device)
        elif processes.several:
            # The trunk uses all that trains on any rows; a method may leave parts out, and finding those never hangs.
            methods = bool(objective.model.model.methods.all)
            self._module = DistributedDataParallel(
                objective, find_unused_parameters=methods, gradient_as_bucket_view=True
            )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The sums of a batch, in training: gradients are exchanged in its backward pass."""
        return self._module(batch)

    def accumulating(self) -> AbstractContextManager[None]:
        """Within it, backward passes keep their gradients at home. FSDP exchanges at once, since that saves memory."""
        return self._module.no_sync() if isinstance(self._module, DistributedDataParallel) else nullcontext()


def shard(objective: Objective, stage: Stage, device: torch.device) -> None:
    """FSDP2 over each layer of the decoder, each layer of a tower that trains, and the rest as one group.

    A frozen tower stays whole: text-only rows do not run it, and a process must never wait for a gather that others
    do not take part in.
    """
    model = objective.model.model
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    policy = policy if stage.precision == "bf16" else MixedPrecisionPolicy()
    tower_trains = any(p.requires_grad for p in model.vision_tower.parameters())
    left = set() if tower_trains else set(model.vision_tower.parameters())
    for part in [model.language_model, *([model.vision_tower] if tower_trains else [])]:
        for layer in layers_of(part):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(objective, mesh=mesh, mp_policy=policy, ignored_params=left)
    nn.Module.to(objective, device)


def layers_of(part: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a transformer: the members of its outermost lists."""
    for child in part.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from layers_of(child)


def whole(tensor: Tensor) -> Tensor:
    """A tensor as it is, or put together from its shards; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process' shard of a tensor, or all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def outline(model: nn.Module) -> nn.Module:
    """A copy of a model without its weights (on the meta device), to put together again what FSDP shares out."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, memo)


def put_together(model: nn.Module, plain: nn.Module) -> Any:
    """`plain`, an `outline`, with the weights of a model that was shared out; every process must ask.

    All of it is held in each process' memory: what FSDP spares in training, it does not spare here.
    """
    values = {name: whole(parameter.detach()).cpu() for name, parameter in model.named_parameters()}
    made = {id(p): nn.Parameter(values[name], p.requires_grad) for name, p in plain.named_parameters()}
    for name, parameter in list(plain.named_parameters(remove_duplicate=False)):
        owner, _, leaf = name.rpartition(".")
        setattr(plain.get_submodule(owner), leaf, made[id(parameter)])
    for name, buffer in plain.named_buffers():  # whole in each process; a method may write to one as it trains
        buffer.copy_(model.get_buffer(name))
    return plain
