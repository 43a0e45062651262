"""One optimizer step: micro-batches in, the model updated, and what was measured on the way."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ..config import Stage
from ..errors import SightlineError
from ..types import Batch
from .engine import Engine, whole
from .objective import Objective, add_up
from .processes import Processes
from .visual import EVERY, VisualGradients


class NotFinite(SightlineError):
    """A step's loss or gradient is infinite or no number; the model was not updated."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured, over all processes."""

    losses: dict[str, float]
    grad_norm: float
    samples: int
    tokens: int
    kinds: Mapping[str, int] = field(default_factory=dict)
    """Supervised tokens of each kind, where there are others than answers'."""
    skipped: bool = False
    """Whether the policy for what is not finite left the model as it was."""
    visual: Mapping[str, float] = field(default_factory=dict)
    """How losses pull at the visual tokens, in steps that were looked at."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """What methods measure beside their losses, in the same steps."""


def take_step(
    engine: Engine,
    batches: list[Batch],
    optimizer: torch.optim.Optimizer,
    stage: Stage,
    *,
    step: int,
) -> StepResult:
    """One optimizer step over the micro-batches of this process, with the losses of all processes.

    Raises:
        NotFinite: if the loss or the gradient is not finite and the stage's policy is `raise`; nothing is updated then.
    """
    objective, processes = engine.objective, engine.processes
    optimizer.zero_grad(set_to_none=True)
    counts = processes.add(add_up([objective.counts(batch) for batch in batches]))
    objective.measuring = step % EVERY == 1
    objective.watched = objective.measuring and bool(objective.method_losses) and not engine.sharded
    pulls = VisualGradients(engine, counts) if objective.watched else None
    seen, measured = [], []
    for number, batch in enumerate(batches):
        last = number + 1 == len(batches)
        with nullcontext() if last else engine.accumulating():
            with autocast(stage, batch.input_ids.device):
                sums = engine.forward(batch)
                loss = objective.total(sums, counts) * engine.scale
            if pulls is not None:
                pulls.before(sums)
            if loss.requires_grad:
                loss.backward()
            if pulls is not None:
                pulls.after()
        seen.append(sums)
        measured += [objective.measured] if objective.measuring else []
    objective.watched = objective.measuring = False
    losses = means(objective, processes.add(add_up(seen)), counts)
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = float(whole(clip_grad_norm_(trained, stage.clip_norm if stage.clip_norm is not None else math.inf)))
    finite = math.isfinite(losses["loss"]) and math.isfinite(norm)
    if finite:
        optimizer.step()
    elif stage.non_finite == "raise":
        rows = ", ".join(
            name for part in processes.gather([b.ids for b in batches if b.counted]) for ids in part for name in ids
        )
        what = f"the loss of stage '{stage.name}' is {losses['loss']}"
        if math.isfinite(losses["loss"]):
            what = f"the gradient of stage '{stage.name}' has the norm {norm}"
        raise NotFinite(
            f"{what} at step {step}, in rows {rows}. The model was not updated with it. Lower the learning rate "
            f"({stage.lr}), use precision=fp32, look at those rows, or say non_finite=skip."
        )
    mine = [batch for batch in batches if batch.counted]
    sizes = {"samples": sum(len(b) for b in mine), "tokens": sum(int(b.attention_mask.sum()) for b in mine)}
    sizes = processes.add({name: torch.tensor(float(size), dtype=torch.float64) for name, size in sizes.items()})
    visual = pulls.told() if pulls is not None else {}
    return StepResult(
        losses,
        norm,
        int(sizes["samples"]),
        int(sizes["tokens"]),
        {kind: int(counts[kind]) for kind in objective.kinds} if len(objective.kinds) > 1 else {},
        skipped=not finite,
        visual=visual,
        measures=mean_measures(measured, processes),
    )


def means(objective: Objective, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> dict[str, float]:
    """The total as `loss`, and each part that occurred as `loss/<name>`."""
    parts = {f"loss/{name}": float(sums[name] / counts[name]) for name in sums if float(counts[name]) > 0}
    return {"loss": float(objective.total(sums, counts)), **parts}


def mean_measures(measured: Sequence[Mapping[str, Tensor]], processes: Processes) -> dict[str, float]:
    """The mean of each measure over the micro-batches of all processes; nothing of one that had no value.

    Args:
        measured: the values of each micro-batch, by name; the same names in every one.
    """
    if not measured or not measured[0]:
        return {}
    values = {name: torch.cat([one[name].flatten() for one in measured]).cpu().double() for name in measured[0]}
    sums = processes.add({name: of_name.sum() for name, of_name in values.items()})
    counts = processes.add({name: torch.tensor(float(len(of_name))) for name, of_name in values.items()})
    return {name: float(sums[name] / counts[name]) for name in values if float(counts[name])}


def autocast(stage: Stage, device: torch.device) -> torch.autocast:
    """The stage's precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=stage.precision == "bf16")
