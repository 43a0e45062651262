"""A plan as tables on the terminal, and as the line at the head of a recipe that is made for one GPU."""

import json

from rich.console import Console
from rich.table import Table

from ..config import Recipe
from .run import PROMPT, OnGpus, Plan, StagePlan
from .run import plan as plan_recipe

GIB = 2**30
WIDTH = 120
"""Columns of the tables where there is no terminal to fit."""


def show(plan: Plan, console: Console) -> None:
    """Print a plan."""
    console.print(f"{plan.recipe}: dry run; nothing was loaded, nothing is written", highlight=False)
    for stage in plan.stages:
        console.print()
        console.print(_parts(stage))
        for line in _lines(stage):
            console.print(f"  {line}", highlight=False, soft_wrap=True)
        console.print(_gpus(stage))
    console.print()
    for note in plan.notes:
        console.print(f"* {note}", highlight=False, markup=False)


def print_plan(
    recipe: Recipe, *, as_json: bool = False, text_tokens: int | None = None, image: tuple[int, int] | None = None
) -> None:
    """Plan a recipe and print it, as tables or as JSON on standard output."""
    planned = plan_recipe(recipe, text_tokens=text_tokens, image=image)
    if as_json:
        print(json.dumps(planned.record(), indent=2, ensure_ascii=False))
    else:
        show(planned, Console() if Console().is_terminal else Console(width=WIDTH))


def head(plan: Plan) -> list[str]:
    """What a plan says of one GPU, as comment lines for the recipe."""
    lines = [
        "# Estimate of `sightline train RECIPE --dry-run` for one GPU, with mean rows and with rows of max_length:"
    ]
    for stage in plan.stages:
        one = next((on for on in stage.gpus if on.gpus == 1), None)
        if one is not None and one.mean is not None and one.longest is not None:
            memory = f"{gib(one.mean.total)} and {gib(one.longest.total)} GiB"
            lines.append(f"#   {stage.name}: {memory}, {flops(stage.step.total)} a step, {stage.steps:,} steps")
    return lines


def gib(size: int) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:,.1f}"


def flops(count: int) -> str:
    """Operations with a unit that leaves three digits or so."""
    for unit, size in (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9)):
        if count >= size:
            return f"{count / size:,.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
    return f"{count / 1e6:,.3g} MFLOP"


def _parts(stage: StagePlan) -> Table:
    table = Table(title=f"stage {stage.name}", title_justify="left")
    for heading in ("part", "parameters", "train", "held in", "lr"):
        table.add_column(heading, justify="left" if heading in ("part", "held in") else "right")
    for part in stage.parts:
        trains = (f"{part.trained:,}", f"{part.lr:g}") if part.lr or part.trained else ("frozen", "")
        table.add_row(part.name, f"{part.parameters:,}", trains[0], part.held, trains[1])
    return table


def _lines(stage: StagePlan) -> list[str]:
    rows, per_step = stage.rows, stage.batch_size * stage.accumulate
    origin = "counted" if rows.counted else "roughly, by the recipe" if rows.roughly else "by the recipe"
    step = stage.step
    vision = step.vision + step.vision_backward
    connector = step.connector + step.connector_backward
    tiles = ""
    if len(stage.scales) > 1:
        squares = [scale**2 for scale in stage.scales]
        tiles = f", of {' + '.join(map(str, squares))} = {sum(squares)} tiles of {stage.tile} pixels"
    methods = step.methods + step.methods_backward
    wide, high = stage.image
    return [
        f"{sum(rows.sizes):,} rows ({origin}); {stage.steps:,} steps of {stage.batch_size} x {stage.accumulate} = "
        f"{per_step:,} rows; {stage.samples:,} samples",
        f"{stage.tokens_per_image:,} tokens for each image{tiles}; a row: {rows.images:.3g} images, {rows.text:,.0f} "
        f"text tokens ({rows.text_from}), {stage.sequence:,} in all",
        f"{flops(step.total)} a step, {flops(stage.flops)} in all: vision {flops(vision)}, "
        f"connector {flops(connector)}, decoder {flops(step.decoder)} forward, "
        f"{flops(step.decoder_backward + step.recomputed)} backward, head {flops(step.head + step.head_backward)}"
        + (f", methods {flops(methods)}" if methods else ""),
        f"the first token of an answer to an image of {wide} x {high} and {PROMPT} text tokens: {flops(stage.prefill)}",
    ]


def _gpus(stage: StagePlan) -> Table:
    table = Table(title=f"GiB in each process ({stage.parallel})", title_justify="left")
    columns = ("GPUs", "passes", "FLOP a step", "weights", "gradients", "AdamW", "activations", "working")
    for heading in (*columns, "in all", "longest rows"):
        table.add_column(heading, justify="right")
    for on in stage.gpus:
        table.add_row(*_cells(on, stage))
    return table


def _cells(on: OnGpus, stage: StagePlan) -> list[str]:
    if on.mean is None or on.longest is None:
        return [str(on.gpus), "none", f"more processes than accumulate ({stage.accumulate})"]
    m = on.mean
    memory = (m.weights, m.gradients, m.optimizer, m.activations, m.working, m.total, on.longest.total)
    return [str(on.gpus), str(on.passes), flops(on.flops), *(gib(size) for size in memory)]
