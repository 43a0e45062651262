"""What a stage sets up before its first step: which parameters train, at what rate, on what schedule."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ..config import Stage
from ..errors import SightlineError, did_you_mean
from ..models.modeling import SightlineForConditionalGeneration
from ..models.parts import named_parts


@dataclass(frozen=True)
class PartRow:
    """One line of the table of parts."""

    part: str
    parameters: int
    trainable: bool
    lr: float
    weight_decay: float


def set_trainable(model: SightlineForConditionalGeneration, stage: Stage) -> list[PartRow]:
    """Freeze everything but the stage's parts, and say what became of each part.

    Raises:
        SightlineError: if the stage names a part that the model does not have.
    """
    sizes: dict[str, int] = {"vision": 0, "connector": 0, "language": 0}
    sizes |= dict.fromkeys(model.model.methods, 0)
    for part in stage.trainable:
        if part not in sizes:
            raise SightlineError(
                f"stage '{stage.name}' trains '{part}', which the model does not have"
                f"{did_you_mean(part, sizes) or '.'} "
                f"It has: {', '.join(sizes)}."
            )
    for part, _, parameter in named_parts(model):
        parameter.requires_grad_(part in stage.trainable)
        sizes[part] += parameter.numel()
    return [
        PartRow(
            part,
            size,
            trains := part in stage.trainable,
            lr=stage.lr_by_part.get(part, stage.lr) if trains else 0.0,
            weight_decay=stage.weight_decay if trains else 0.0,
        )
        for part, size in sizes.items()
    ]


def set_modes(model: SightlineForConditionalGeneration, stage: Stage) -> None:
    """Training mode for the parts that train; frozen parts keep their dropout off."""
    model.eval()
    inner = model.model
    modules: dict[str, list[nn.Module]] = {
        "vision": [inner.vision_tower],
        "connector": [inner.multi_modal_projector],
        "language": [inner.language_model, model.lm_head],
        **{name: [method] for name, method in inner.methods.items()},
    }
    for part in stage.trainable:
        for module in modules[part]:
            module.train()


def build_optimizer(model: SightlineForConditionalGeneration, table: list[PartRow], stage: Stage) -> torch.optim.AdamW:
    """AdamW with a group for each part, split by whether weight decay applies (matrices yes, vectors no)."""
    groups = []
    for row in (row for row in table if row.trainable):
        parameters = [p for part, _, p in named_parts(model) if part == row.part]
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim >= 2) == decays]
            if chosen:
                decay = row.weight_decay if decays else 0.0
                groups.append({"params": chosen, "part": row.part, "peak": row.lr, "lr": row.lr, "weight_decay": decay})
    if not groups:
        raise SightlineError(f"stage '{stage.name}' trains nothing: its parts {stage.trainable} have no parameters.")
    return torch.optim.AdamW(groups, betas=stage.betas)


def schedule(stage: Stage, num_steps: int) -> Callable[[int], float]:
    """The share of the peak learning rate at a step (from 0): a warm-up, then cosine, linear or constant."""
    warmup = math.ceil(stage.warmup * num_steps)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / max(num_steps - warmup, 1)
        if stage.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0 - progress if stage.schedule == "linear" else 1.0

    return factor
