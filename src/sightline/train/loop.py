"""The loop of one stage. What happens at a step depends on (seed, step) and the state alone."""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ..config import Stage
from ..data.dataset import Dropped, Fetched, Mixture, training_batches, validation_batches
from ..data.order import Order
from ..errors import SightlineError
from ..types import Batch
from .objective import Objective, add_up
from .progress import Reporter
from .setup import build_optimizer, schedule, set_modes, set_trainable


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured."""

    losses: dict[str, float]
    grad_norm: float
    samples: int
    tokens: int


def num_steps(stage: Stage, order: Order) -> int:
    """Optimizer steps of a stage."""
    return stage.steps if stage.steps is not None else max(1, round(stage.epochs * order.steps_per_epoch))


def train_stage(
    objective: Objective,
    stage: Stage,
    rows: Mixture,
    validation: Mixture | None,
    reporter: Reporter,
    *,
    device: torch.device,
) -> None:
    """Train one stage to its end.

    Raises:
        SightlineError: for a row that cannot be laid out and that no policy lets go, or a loss that is not finite.
    """
    model = objective.model
    table = set_trainable(model, stage)
    optimizer = build_optimizer(model, table, stage)
    order = rows.order(batch_size=stage.batch_size, accumulate=stage.accumulate, group_by_length=stage.group_by_length)
    total = num_steps(stage, order)
    rate = schedule(stage, total)
    validate_every = stage.validate_every or max(1, math.ceil(total / 10))
    reporter.start_stage(stage, table, total=total, num_rows=sum(order.shares))

    fetched = iter(training_batches(rows, order, num_steps=total, workers=stage.workers))
    for step in range(total):
        began = time.monotonic()
        batches, dropped = _kept(islice(fetched, order.micro_batches_of(step)), device)
        reporter.dropped(step + 1, dropped)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step)
        torch.manual_seed(step_seed(rows.seed, step))
        set_modes(model, stage)
        if batches:
            result = take_step(objective, batches, optimizer, stage, step=step + 1)
            rates = {f"lr/{group['part']}": group["lr"] for group in optimizer.param_groups}
            epoch, seconds = (step + 1) / order.steps_per_epoch, time.monotonic() - began
            reporter.step(step + 1, epoch=epoch, result=result, rates=rates, seconds=seconds)

        if validation is not None and ((step + 1) % validate_every == 0 or step + 1 == total):
            reporter.validation(step + 1, validate(objective, validation, stage, device=device))
    reporter.end_stage()


def take_step(
    objective: Objective, batches: list[Batch], optimizer: torch.optim.Optimizer, stage: Stage, *, step: int
) -> StepResult:
    """One optimizer step over its micro-batches, with the losses that it saw.

    Raises:
        SightlineError: if the loss is not finite; nothing is updated then.
    """
    optimizer.zero_grad(set_to_none=True)
    each = [objective.counts(batch) for batch in batches]
    counts = add_up(each)
    seen = []
    for batch in batches:
        with autocast(stage, batch.input_ids.device):
            sums = objective(batch)
            loss = objective.total(sums, counts)
        seen.append(sums)
        if loss.requires_grad:
            loss.backward()
    losses = means(objective, add_up(seen), counts)
    if not math.isfinite(losses["loss"]):
        rows = ", ".join(name for batch in batches for name in batch.ids)
        raise SightlineError(
            f"the loss of stage '{stage.name}' is {losses['loss']} at step {step}, in rows {rows}. The model was not "
            f"updated with it. Lower the learning rate ({stage.lr}), use precision=fp32, or look at those rows."
        )
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = clip_grad_norm_(trained, stage.clip_norm if stage.clip_norm is not None else math.inf)
    optimizer.step()
    return StepResult(
        losses=losses,
        grad_norm=float(norm),
        samples=sum(len(batch) for batch in batches),
        tokens=sum(int(batch.attention_mask.sum()) for batch in batches),
    )


@torch.no_grad()
def validate(objective: Objective, rows: Mixture, stage: Stage, *, device: torch.device) -> dict[str, float]:
    """The same losses over all validation rows, with the model in evaluation mode.

    Raises:
        SightlineError: if the policies leave no row.
    """
    objective.model.eval()
    sums: list[Mapping[str, Tensor]] = []
    counts: list[Mapping[str, Tensor]] = []
    for fetched in validation_batches(rows, batch_size=stage.batch_size, workers=stage.workers):
        batches, _ = _kept([fetched], device)
        for batch in batches:
            with autocast(stage, device):
                sums.append(objective(batch))
            counts.append(objective.counts(batch))
    if not sums:
        raise SightlineError(f"no validation row of stage '{stage.name}' can be used. Run: sightline doctor RECIPE")
    return means(objective, add_up(sums), add_up(counts))


def means(objective: Objective, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> dict[str, float]:
    """The total as `loss`, and each part that occurred as `loss/<name>`."""
    parts = {f"loss/{name}": float(sums[name] / counts[name]) for name in sums if float(counts[name]) > 0}
    return {"loss": float(objective.total(sums, counts)), **parts}


def autocast(stage: Stage, device: torch.device) -> torch.autocast:
    """The stage's precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=stage.precision == "bf16")


def step_seed(seed: int, step: int) -> int:
    """The seed of what is random in a step (dropout), so that resuming needs no generator state."""
    return (seed * 1_000_003 + step + 1) % 2**63


def _kept(fetched: Iterable[Fetched | SightlineError], device: torch.device) -> tuple[list[Batch], list[Dropped]]:
    """The micro-batches that have rows, on the device, and what the policies left out of them."""
    batches: list[Batch] = []
    dropped: list[Dropped] = []
    for item in fetched:
        if isinstance(item, SightlineError):
            raise item
        dropped += item.dropped
        batches += [item.batch.to(device)] if item.batch is not None else []
    return batches, dropped
