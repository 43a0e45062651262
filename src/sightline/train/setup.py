"""What a stage sets up before its first step: which parameters train, at what rate, on what schedule."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel

from ..config import Stage
from ..errors import SightlineError, did_you_mean
from ..models.adapters import is_trained
from ..models.modeling import SightlineForConditionalGeneration
from ..models.parts import is_among, named_parts, part_names, value_of
from ..models.precision import num_weights


@dataclass(frozen=True)
class PartRow:
    """One line of the table of parts."""

    part: str
    parameters: int
    trainable: bool
    lr: float
    weight_decay: float
    trained: int
    """How many of its parameters train."""
    unused: tuple[str, ...] = ()
    """Tensors of a part that trains which the forward pass does not use: they are left out."""


def set_trainable(model: SightlineForConditionalGeneration, stage: Stage) -> list[PartRow]:
    """Freeze everything but the stage's parts, and say what became of each part.

    Raises:
        SightlineError: if the stage names a part that the model does not have.
    """
    sizes = dict.fromkeys(part_names(model), 0)
    for part in stage.trainable:
        if part not in sizes and part not in model.model.methods:
            raise SightlineError(
                f"stage '{stage.name}' trains '{part}', which the model does not have"
                f"{did_you_mean(part, sizes) or '.'} "
                f"It has: {', '.join(sizes)}."
            )
    unused = frozenset(unused_by_tower(model) if "vision" in stage.trainable else ())
    unused |= unused_by_losses(model, stage)
    trained = dict.fromkeys(sizes, 0)
    left_out: dict[str, list[str]] = {part: [] for part in sizes}
    for part, name, parameter in named_parts(model):
        trains = is_trained(part, name, stage) and name not in unused
        parameter.requires_grad_(trains)
        sizes[part] += num_weights(parameter)
        trained[part] += parameter.numel() * trains
        left_out[part] += [name] if name in unused else []
    return [
        PartRow(
            part,
            size,
            trains := is_among(part, stage.trainable),
            lr=value_of(part, stage.lr_by_part, stage.lr) if trains else 0.0,
            weight_decay=stage.weight_decay if trains else 0.0,
            trained=trained[part],
            unused=tuple(sorted(left_out[part])),
        )
        for part, size in sizes.items()
    ]


def unused_by_tower(model: SightlineForConditionalGeneration) -> list[str]:
    """Names of the tower's parameters that the selected layers do not depend on: they could never have a gradient.

    Found by a forward and a backward pass of the tower without weights, on the meta device.
    """
    inner = model.model
    layers = inner.config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else list(layers)
    side = inner.config.tower.image_size
    with torch.device("meta"), torch.enable_grad():
        tower = AutoModel.from_config(inner.vision_tower.config)
        states = tower(torch.zeros(1, 3, side, side), output_hidden_states=layers).hidden_states
        torch.stack([states[layer].sum() for layer in layers]).sum().backward()
    prefix = "model.vision_tower."
    have = {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    return [prefix + name for name, p in tower.named_parameters() if p.grad is None and prefix + name in have]


def unused_by_losses(model: SightlineForConditionalGeneration, stage: Stage) -> set[str]:
    """Names of the parameters of methods that edit nothing, and whose losses the stage gives no weight."""
    idle = [method for method in model.model.methods.all if not method.needs.edits and not method.weighed(stage)]
    trained = {part.partition(".")[0] for part in stage.trainable}
    ours = {id(parameter) for method in idle if method.name in trained for parameter in method.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ours}


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
        method, _, own = part.partition(".")
        for module in modules[method]:
            (submodule(module, own) if own else module).train()


def submodule(method: nn.Module, part: str) -> nn.Module:
    """A part of a method, wherever it keeps it."""
    inside = dict(method.named_modules())
    return inside[part] if part in inside else inside[f"train_only.{part}"]


def build_optimizer(model: SightlineForConditionalGeneration, table: list[PartRow], stage: Stage) -> torch.optim.AdamW:
    """AdamW with a group for each part, split by whether weight decay applies (matrices yes, vectors no); torch's fused
    one where all parameters are on a GPU."""
    groups = []
    for row in (row for row in table if row.trainable):
        parameters = [p for part, _, p in named_parts(model) if part == row.part and p.requires_grad]
        for decays in (True, False):
            chosen = [p for p in parameters if (p.ndim >= 2) == decays]
            if chosen:
                decay = row.weight_decay if decays else 0.0
                groups.append({"params": chosen, "part": row.part, "peak": row.lr, "lr": row.lr, "weight_decay": decay})
    if not groups:
        raise SightlineError(f"stage '{stage.name}' trains nothing: its parts {stage.trainable} have no parameters.")
    fused = all(p.is_cuda for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, betas=stage.betas, fused=fused)


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
