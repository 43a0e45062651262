"""One batch overfitted: a few rows of a stage, some thirty steps. A model that cannot learn these learns nothing.

The weights in memory are put back afterwards; nothing is written.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from ..config import Stage
from ..models.adapters import prepare_stage
from ..models.assemble import Assembly
from ..models.parts import named_parts
from ..train.objective import Objective
from ..train.setup import build_optimizer, set_modes, set_trainable
from ..train.step import autocast
from ..types import Batch
from .findings import Finding

STEPS = 30
LARGEST_ON_CPU = 200_000_000
"""Parameters of a model that a CPU can train a few steps of in a minute or so."""
SECONDS = 60.0
FALL = 0.9
"""The loss must end below this share of where it began."""


@dataclass(frozen=True)
class Overfit:
    """What came of it."""

    stage: str
    status: Literal["learned", "stuck", "skipped"]
    reason: str = ""
    rows: int = 0
    steps: int = 0
    first: float | None = None
    last: float | None = None

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.status == "skipped":
            return f"skipped: {self.reason}"
        course = f"{self.first:.3f} -> {self.last:.3f}" if self.first is not None and self.last is not None else ""
        return f"{self.rows} rows, {self.steps} steps: loss {course}" + (f" ({self.reason})" if self.reason else "")


def too_large(assembly: Assembly, device: torch.device) -> str:
    """Why a model cannot be overfitted here; empty if it can."""
    size = sum(parameter.numel() for parameter in assembly.model.parameters())
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return "" if 16 * size < 0.6 * free else f"{size:,} parameters take more memory than {device} has free"
    if size <= LARGEST_ON_CPU:
        return ""
    return f"{size:,} parameters are too many to train on {device.type} here (up to {LARGEST_ON_CPU:,})"


def overfit(
    assembly: Assembly,
    stage: Stage,
    batch: Batch,
    *,
    seed: int,
    device: torch.device,
    tick: Callable[[int], None],
) -> tuple[Overfit, list[Finding]]:
    """Train on one batch at the stage's own learning rates, and at ten times those where that does nothing."""
    where = f"stage '{stage.name}'"
    prepare_stage(assembly, stage, device, seed=seed)
    assembly.to(device)
    objective = Objective(assembly.model, stage.weights, packing=stage.packing)
    trial = _Trial(objective, stage, batch.to(device), seed, tick)
    first, last, steps = trial.run(1.0)
    found: list[Finding] = [
        Finding(
            "error",
            "overfit/gradient",
            f"{where}, part '{part}'",
            "no gradient reaches it from a batch of its stage's rows: it would not train.",
            "Check that its stage has rows with images, and that the weight of its loss is not 0.",
        )
        for part in trial.without_gradient
    ]
    result = Overfit(stage.name, "learned", "", len(batch), steps, _finite(first), _finite(last))
    rates = ", ".join(f"{row.part} {row.lr:g}" for row in trial.table if row.trainable)
    if not (math.isfinite(first) and math.isfinite(last)):
        message = f"the loss of one batch is {last if math.isfinite(first) else first} after {steps} steps ({rates})."
        fix = "Lower the learning rate, use precision=fp32, or look at the model's weights."
        found.append(Finding("error", "overfit/not-finite", where, message, fix))
        return Overfit(**{**result.record(), "status": "stuck", "reason": "not finite"}), found
    if last <= FALL * first or last < 0.05:
        return result, found
    _, hotter, _ = trial.run(10.0)
    course = f"{first:.3f} -> {last:.3f} in {steps} steps ({rates})"
    if hotter <= FALL * first:
        reason = "too slow"
        message = f"one batch is hardly learned, loss {course}, and at ten times that it falls to {hotter:.3f}."
        found.append(Finding("warning", "overfit/slow", where, message, "Raise the learning rate."))
    else:
        reason = "does not fall"
        message = f"one batch cannot be learned: loss {course}. Training would change little or nothing."
        fix = "Check lr and lr_by_part, and that what is in trainable can change the answers."
        if last > 1.1 * first:
            message = f"one batch cannot be learned: the loss grows, {course}."
            fix = "Lower the learning rate."
        found.append(Finding("error", "overfit/stuck", where, message, fix))
    return Overfit(**{**result.record(), "status": "stuck", "reason": reason}), found


class _Trial:
    """Some steps on one batch, from the same weights each time."""

    def __init__(
        self, objective: Objective, stage: Stage, batch: Batch, seed: int, tick: Callable[[int], None]
    ) -> None:
        self.objective, self.stage, self.batch, self.seed, self.tick = objective, stage, batch, seed, tick
        self.table = set_trainable(objective.model, stage)
        self.without_gradient: list[str] = []

    def run(self, scale: float) -> tuple[float, float, int]:
        """(first loss, last loss, steps) with the stage's learning rates times `scale`; the weights are put back."""
        model = self.objective.model
        kept = [(p, p.detach().clone()) for p in model.parameters() if p.requires_grad]
        torch.manual_seed(self.seed)
        try:
            return self._steps(scale)
        finally:
            with torch.no_grad():
                for parameter, value in kept:
                    parameter.copy_(value)
                    parameter.grad = None
            model.eval()

    def _steps(self, scale: float) -> tuple[float, float, int]:
        model, began = self.objective.model, time.monotonic()
        optimizer = build_optimizer(model, self.table, self.stage)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * scale
        first, done = self._loss(), 0
        for done in range(1, STEPS + 1):
            set_modes(model, self.stage)
            optimizer.zero_grad(set_to_none=True)
            with autocast(self.stage, self.batch.input_ids.device):
                loss = self._total()
            if loss.requires_grad:
                loss.backward()
            if done == 1:
                self._look_for_gradients()
            trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            clip_grad_norm_(trained, self.stage.clip_norm if self.stage.clip_norm is not None else math.inf)
            optimizer.step()
            self.tick(1)
            if not math.isfinite(float(loss.detach())) or time.monotonic() - began > SECONDS:
                break
        return first, self._loss(), done

    def _total(self) -> Tensor:
        return self.objective.total(self.objective(self.batch), self.objective.counts(self.batch))

    @torch.no_grad()
    def _loss(self) -> float:
        self.objective.model.eval()
        with autocast(self.stage, self.batch.input_ids.device):
            return float(self._total())

    def _look_for_gradients(self) -> None:
        reached = {
            part
            for part, _, parameter in named_parts(self.objective.model)
            if parameter.grad is not None and bool(parameter.grad.ne(0).any())
        }
        trains = [row.part for row in self.table if row.trainable and row.parameters]
        self.without_gradient = [part for part in trains if part not in reached]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
