"""A recipe in, its plan out: parts, tokens, steps, operations, and memory by number of GPUs. Nothing is loaded."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .. import __version__
from ..config import Recipe, Stage
from ..errors import SightlineError
from ..methods.base import Size
from ..models.adapters import check_layers
from ..models.modeling import SightlineForConditionalGeneration
from ..models.parts import is_among, value_of
from ..train.loop import num_steps
from ..train.objective import Objective
from ..train.setup import PartRow, set_trainable
from .build import stage_models
from .flops import Flops, Rows, Training, adapter_weights, prefill_flops, step_flops
from .memory import Memory, Setting, step_memory
from .rows import StageRows, stage_rows
from .shapes import Shapes, shapes

PROMPT = 50
"""Tokens of text in the prompt whose prefill is planned."""


@dataclass(frozen=True)
class Part:
    """A part of the model in a stage."""

    name: str
    parameters: int
    trained: int
    """How many of them train; adapters count here alone."""
    held: str
    """How its weights are kept."""
    lr: float
    """0 where it is frozen."""


@dataclass(frozen=True)
class OnGpus:
    """A stage on a number of GPUs, one process each."""

    gpus: int
    passes: int
    """Forward passes of a step in the process that has most of them; 0 if there are more processes than passes."""
    flops: int
    """Operations of a step in that process."""
    mean: Memory | None
    """With rows of mean length."""
    longest: Memory | None
    """With rows of `max_length`."""


@dataclass(frozen=True)
class StagePlan:
    """What a stage is, takes and costs."""

    name: str
    parallel: str
    parts: tuple[Part, ...]
    image: Size
    """Width and height of the image that is planned for."""
    tokens_per_image: int
    prefill: int
    """Operations from one such image and `PROMPT` tokens of text to the first token of an answer."""
    scales: tuple[int, ...]
    """Multiples of the tower's size at which it sees an image; a tile of that size for each part of each."""
    tile: int
    """Pixels along a side of what the tower sees at once."""
    rows: StageRows
    sequence: int
    """Tokens of the mean row."""
    batch_size: int
    accumulate: int
    steps: int
    samples: int
    step: Flops
    """Of a step on all processes together."""
    gpus: tuple[OnGpus, ...]

    @property
    def flops(self) -> int:
        """Of the whole stage."""
        return self.step.total * self.samples // (self.batch_size * self.accumulate)


@dataclass(frozen=True)
class Plan:
    """What a recipe would do."""

    recipe: str
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """All of it, for JSON: sizes in numbers, memory in bytes, operations in FLOPs."""
        stages = []
        for stage in self.stages:
            record = asdict(stage)
            record["step"]["total"], record["flops"] = stage.step.total, stage.flops
            for place, on in zip(record["gpus"], stage.gpus, strict=True):
                for name, memory in (("mean", on.mean), ("longest", on.longest)):
                    if memory is not None:
                        place[name]["total"] = memory.total
            stages.append(record)
        return {"sightline": __version__, "recipe": self.recipe, "stages": stages, "notes": list(self.notes)}


def plan(
    recipe: Recipe,
    gpus: Sequence[int] = (1, 2, 4, 8),
    *,
    text_tokens: int | None = None,
    image: Size | None = None,
) -> Plan:
    """What a recipe would build and cost, from sizes alone.

    Args:
        gpus: numbers of GPUs to plan for.
        text_tokens: text tokens of a row; by default counted where the data is, else assumed.
        image: width and height of images; see `shapes`.

    Raises:
        SightlineError: for parts whose sizes cannot be read, rows that cannot be counted, or a recipe that cannot run.
    """
    stages = []
    notes = {
        "parameters are exact, but for the rows that `<image>` and a pad token add to the word table; FLOPs are those "
        "of matrix products and attention; memory is an estimate (docs/dry-run.md)": None
    }
    for stage, model in stage_models(recipe):
        of_stage = plan_stage(recipe, stage, model, gpus, text_tokens, image)
        stages.append(of_stage)
        if not of_stage.rows.counted:
            notes[f"{stage.name}: its data is not all here; rows are the recipe's, one image in each is assumed"] = None
        for method in model.model.methods.all:
            acts = method.needs.edits or method.weighed(stage)
            if acts and not any(method.operations(of_stage.image, model.config.pixels_side, stage)):
                notes[f"method '{method.name}': parameters and tokens are counted, its operations are not"] = None
            if more := method.added_tokens(stage):
                notes[f"{stage.name}: '{method.name}' adds about {more:.0f} tokens to the mean row with an image"] = (
                    None
                )
        if stage.validation:
            notes["validation is not counted"] = None
    return Plan(recipe.name, tuple(stages), tuple(notes))


def plan_stage(
    recipe: Recipe,
    stage: Stage,
    model: SightlineForConditionalGeneration,
    gpus: Sequence[int],
    text_tokens: int | None,
    image: Size | None = None,
) -> StagePlan:
    """The plan of one stage."""
    table = set_trainable(model, stage)
    Objective(model, stage.weights)
    if stage.lora is not None:
        check_layers(model, stage.lora, stage.name)
    sizes, rows = shapes(model, image), stage_rows(stage, text_tokens=text_tokens)
    training = training_of(stage, model, sizes.image)
    if sizes.tokens + sizes.slots >= recipe.max_length:
        raise SightlineError(
            f"an image has {sizes.tokens} tokens and max_length is {recipe.max_length}, so no row with an image would "
            "fit. Raise max_length."
        )
    visual = rows.images * (sizes.tokens + sizes.slots)
    added = min(1.0, rows.images) * sum(method.added_tokens(stage) for method in model.model.methods.all)
    sequence = min(max(1, round(visual + rows.text + added)), recipe.max_length)
    order = rows.order(stage)
    steps = num_steps(stage, order)
    epochs, within = divmod(steps, order.steps_per_epoch)
    per_epoch, per_step = sum(order.shares), order.rows_per_step

    def batch(count: int, length: int) -> Rows:
        text = max(0, length - math.floor(visual))
        return Rows(count, length, views=math.ceil(rows.images * count) * sizes.views, supervised=count * text)

    step = step_flops(sizes, batch(per_step, sequence), training)
    each = step_flops(sizes, batch(stage.batch_size, sequence), training)
    trained = trained_of(table, sizes, training)

    def on(count: int) -> OnGpus:
        if count > stage.accumulate:
            return OnGpus(count, 0, 0, None, None)
        setting = Setting(stage.precision, stage.frozen, recipe.parallel, count)
        passes = math.ceil(stage.accumulate / count)
        mean, longest = (
            step_memory(sizes, batch(stage.batch_size, length), trained, training, setting)
            for length in (sequence, recipe.max_length)
        )
        return OnGpus(count, passes, passes * each.total, mean, longest)

    return StagePlan(
        name=stage.name,
        parallel=recipe.parallel,
        parts=parts_of(stage, sizes, trained),
        image=sizes.image,
        tokens_per_image=sizes.tokens,
        prefill=prefill_flops(sizes, PROMPT, operations(model, sizes.image)[0]),
        scales=sizes.scales,
        tile=sizes.image_size,
        rows=rows,
        sequence=sequence,
        batch_size=stage.batch_size,
        accumulate=stage.accumulate,
        steps=steps,
        samples=epochs * per_epoch + min(within * per_step, per_epoch),
        step=step,
        gpus=tuple(on(count) for count in gpus),
    )


def operations(model: SightlineForConditionalGeneration, image: Size, stage: Stage | None = None) -> tuple[int, int]:
    """Operations of a model's methods for an image, forward and backward; with `stage`, those of a step of it."""
    each = [method.operations(image, model.config.pixels_side, stage) for method in model.model.methods.all]
    return sum(forward for forward, _ in each), sum(backward for _, backward in each)


def training_of(stage: Stage, model: SightlineForConditionalGeneration, image: Size | None = None) -> Training:
    """What a stage trains, and where its methods ask for gradients.

    Args:
        image: that methods' operations are counted for; they are not without one.
    """
    forward, backward = operations(model, image, stage) if image is not None else (0, 0)
    side, methods = model.config.pixels_side, model.model.methods.all
    kept = sum(method.kept(image, side, stage) for method in methods) if image is not None else 0
    taps = {
        tap
        for method in model.model.methods.all
        if any(part.partition(".")[0] == method.name for part in stage.trainable)
        and any(True for _ in method.parameters())
        for tap in method.needs.edits
    }
    return Training(
        vision="vision" in stage.trainable,
        connector="connector" in stage.trainable,
        language="language" in stage.trainable,
        lora=stage.lora,
        patches="patches" in taps,
        visual="visual" in taps,
        embeds="embeds" in taps,
        hidden="hidden" in taps,
        checkpointing=stage.activation_checkpointing,
        methods_kept=kept,
        methods=forward,
        methods_backward=backward,
    )


def trained_of(table: Sequence[PartRow], sizes: Shapes, training: Training) -> dict[str, int]:
    """How many numbers of each part train; of a language model with adapters, the adapters'."""
    trained = {row.part: row.trained for row in table}
    if training.language and training.lora is not None:
        stack = sizes.language
        trained["language"] = stack.layers * adapter_weights(stack.adapted(training.lora), training.lora)
    return trained


def parts_of(stage: Stage, sizes: Shapes, trained: Mapping[str, int]) -> tuple[Part, ...]:
    """The table of parts: what trains of each, and how the rest is held."""
    parts = []
    for name, count in sizes.parameters.items():
        held = stage.frozen if name in ("vision", "language") else "fp32"
        held = "bf16" if held == "nf4" and name == "vision" else held
        if is_among(name, stage.trainable):
            held = f"{held}, adapters fp32" if name == "language" and stage.lora is not None else "fp32"
        lr = value_of(name, stage.lr_by_part, stage.lr) if is_among(name, stage.trainable) else 0.0
        parts.append(Part(name, count, trained[name], held, lr))
    return tuple(parts)
