"""`sightline world`: makes the small world, shows it, checks the shipped backbones, and rebuilds them."""

from pathlib import Path
from typing import Annotated

import typer

from . import Backbone, Split, View, shipped

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="The small world: pictures, captions, questions with known truth, and tiny backbones.",
)


@app.command()
def make(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DIR")],
    seed: Annotated[int, typer.Option(help="Same seed, same files, on every machine.")] = 0,
    view: Annotated[View, typer.Option(help="96 px, or 192 px where the letters of cards can be read.")] = "low",
    train: Annotated[int, typer.Option(help="Training pictures.")] = 2000,
    validation: Annotated[int, typer.Option(help="Pictures for choosing settings.")] = 300,
    test: Annotated[int, typer.Option(help="Pictures for final tables only.")] = 300,
    novel: Annotated[int, typer.Option(help="Pictures of colour-shape pairs that training never shows.")] = 300,
) -> None:
    """Draw a world into DIR: pictures with LLaVA JSON and question files.

    Each picture shows one to four things on a background, half of them a sign with a letter too. DIR then holds

    - `pretrain.json` and `instruct.json`: captions and questions of the training pictures, in LLaVA's format;
    `pretrain.noisy.json`: captions of which it is known how much is true;

    - `validation.questions.jsonl`, `test.questions.jsonl`, `novel.questions.jsonl`: questions on colour, shape, size,
    count, background, relation, reading and existence, each with its one-word answer; `*.text.jsonl`: without images;

    - `truth/`: the scene behind each picture, and what each patch of it shows; `words.txt`: words for labels.

    No scene is in two splits, whatever the seed. Example: `sightline world make data/world`
    """
    from rich.progress import Progress

    from .make import make_world

    with Progress(transient=True) as bar:
        tasks = {}

        def advance(split: str, done: int, total: int) -> None:
            if split not in tasks:
                tasks[split] = bar.add_task(f"drawing {split}", total=total)
            bar.update(tasks[split], completed=done)

        sizes = {"train": train, "validation": validation, "test": test, "novel": novel}
        make_world(folder, seed=seed, view=view, **sizes, progress=advance)
    typer.echo(f"{sum(sizes.values())} pictures in {folder}; see {folder / 'world.json'}")


@app.command()
def sheet(
    out: Annotated[Path, typer.Argument(help="The PNG to write.", metavar="FILE")],
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the scenes.")] = 0,
    split: Annotated[Split, typer.Option(help="Which scenes.")] = "train",
    first: Annotated[int, typer.Option(min=0, help="Number of the first scene.")] = 0,
    count: Annotated[int, typer.Option(min=1, max=40, help="How many scenes.")] = 6,
) -> None:
    """Draw a contact sheet: scenes in both views, captions of every grade of noise, questions with their answers.

    Example: `sightline world sheet sheet.png --split novel`
    """
    from .sheet import draw_sheet

    draw_sheet(out, seed=seed, split=split, first=first, count=count)
    typer.echo(f"{count} scenes of {split} in {out}")


@app.command()
def check(
    backbone: Annotated[
        list[Backbone] | None, typer.Argument(help="Which to check.", show_default="all of them")
    ] = None,
    split: Annotated[Split, typer.Option(help="The scenes measured on; thresholds are for validation.")] = "validation",
    sample: Annotated[int, typer.Option(min=8, help="How many pictures, and how many described scenes.")] = 300,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line instead of the table.")] = False,
) -> None:
    """Measure the shipped backbones and print every score with its 95% interval beside its threshold.

    Ends with code 1 if one misses its threshold: then a result in the world says nothing about a method. Example:
    `sightline world check clip`
    """
    import json

    from rich.console import Console

    from .check import check as measure

    names = [item.value for item in backbone or shipped()]
    console, missed = Console(stderr=True), 0
    with console.status("measuring") as status:
        for name in names:
            status.update(f"measuring {name} on {sample} scenes of {split}")
            for finding in measure([name], split=split, sample=sample):
                missed += not finding.passes
                row = {"backbone": name, "score": finding.name} | finding.as_row()
                typer.echo(json.dumps(row) if as_json else finding.line())
    if missed:
        typer.echo(f"{missed} below the threshold")
        raise typer.Exit(1)


LINE_EVERY = 30.0
"""Seconds between lines about a build where there is no terminal for a bar."""


@app.command()
def build(
    backbone: Annotated[
        Backbone, typer.Argument(help="CLIPs, language models, a VAE, a denoiser, a VQ model; see `docs/world.md`.")
    ],
    out: Annotated[Path | None, typer.Option(help="A new or empty folder.", show_default="backbones/NAME")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the initial weights and the training data.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps.", show_default="those of the one shipped")
    ] = None,
) -> None:
    """Train a tiny backbone of the world again, on one CPU thread with another that draws its data.

    What ships need not be built to be used. The folder holds a standard model of transformers or diffusers, and
    `card.json` with its recipe, its time, and what it measures beside its thresholds. Stopped or killed, the same
    command goes on where it was, to the same weights. Example: `sightline world build clip --steps 200`
    """
    import time
    from dataclasses import replace

    from rich.console import Console
    from rich.progress import Progress

    out, console = out or Path("backbones") / backbone.value, Console(stderr=True)
    began = said = time.monotonic()
    first: int | None = None
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"training {backbone.value}")

        def advance(done: int, total: int, loss: float) -> None:
            nonlocal first, said
            first = done if first is None else first
            if done == total:
                bar.update(task, completed=0, total=None, description=f"measuring {backbone.value}")
            else:
                bar.update(task, completed=done, total=total, description=f"training {backbone.value}, loss {loss:.3f}")
            now = time.monotonic()
            if not console.is_terminal and now - said > LINE_EVERY and done > first:
                left = (now - began) / (done - first) * (total - done) / 60
                typer.echo(f"step {done} of {total}  loss {loss:.3f}  {left:.0f} min left", err=True)
                said = now

        if backbone.value.startswith("clip"):
            from .build_clip import CONTRAST_ONLY, ClipRecipe, build_clip

            recipe = CONTRAST_ONLY if backbone is Backbone.clip_contrast else ClipRecipe()
            build_clip(out, replace(recipe, seed=seed, steps=steps or recipe.steps), advance)
        elif backbone is Backbone.vae:
            from .build_vae import VaeRecipe, build_vae

            recipe = VaeRecipe()
            build_vae(out, replace(recipe, seed=seed, steps=steps or recipe.steps), advance)
        elif backbone is Backbone.denoiser:
            from .build_denoiser import DenoiserRecipe, build_denoiser

            recipe = DenoiserRecipe()
            build_denoiser(out, replace(recipe, seed=seed, steps=steps or recipe.steps), advance)
        elif backbone is Backbone.vq:
            from .build_vq import VqRecipe, build_vq

            recipe = VqRecipe()
            build_vq(out, replace(recipe, seed=seed, steps=steps or recipe.steps), advance)
        else:
            from .build_lm import SMALL, LmRecipe, build_lm

            recipe = SMALL if backbone is Backbone.lm_small else LmRecipe()
            build_lm(out, replace(recipe, seed=seed, steps=steps or recipe.steps), advance)
    typer.echo(f"{backbone.value} in {out}; see {out / 'card.json'}")
