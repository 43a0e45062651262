"""`sightline world`: makes the small world, and rebuilds the backbones that ship with the package."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="The small world: pictures, captions, questions with known truth, and tiny backbones.",
)


@app.command()
def make(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.", metavar="DIR")],
    seed: Annotated[int, typer.Option(help="Same seed, same files, on every machine.")] = 0,
    train: Annotated[int, typer.Option(help="Training pictures.")] = 2000,
    validation: Annotated[int, typer.Option(help="Pictures for choosing settings.")] = 300,
    test: Annotated[int, typer.Option(help="Pictures for final tables only.")] = 300,
    novel: Annotated[int, typer.Option(help="Pictures of colour-shape pairs that training never shows.")] = 300,
) -> None:
    """Draw a world into DIR: pictures with LLaVA JSON and question files.

    Each picture shows one to four things on a background. DIR then holds

    - `pretrain.json` and `instruct.json`: captions and questions of the training pictures, in LLaVA's format;

    - `validation.questions.jsonl`, `test.questions.jsonl`, `novel.questions.jsonl`: questions on colour,
    shape, count, background and existence, each with its one-word answer;

    - `truth/`: the scene behind each picture, and what each patch of it shows.

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

        make_world(folder, seed=seed, train=train, validation=validation, test=test, novel=novel, progress=advance)
    typer.echo(f"{train + validation + test + novel} pictures in {folder}; see {folder / 'world.json'}")


class Backbone(StrEnum):
    """The backbones that can be built."""

    clip = "clip"
    lm = "lm"


@app.command()
def build(
    backbone: Annotated[Backbone, typer.Argument(help="The vision and text towers, or the language model.")],
    out: Annotated[Path | None, typer.Option(help="A new or empty folder.", show_default="backbones/NAME")] = None,
    seed: Annotated[int, typer.Option(help="Of the initial weights and the training data.")] = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps.", show_default="those of the one shipped")
    ] = None,
) -> None:
    """Train a tiny backbone of the world again, on one CPU thread.

    The package ships both, so this is not needed to use them. The folder holds a standard `CLIPModel` or
    `LlamaForCausalLM`, and `card.json` with its recipe, its time and what it measures. Example: `sightline
    world build clip --steps 200`
    """
    from rich.progress import Progress

    out = out or Path("backbones") / backbone.value
    with Progress(transient=True) as bar:
        task = bar.add_task(f"training {backbone.value}")

        def advance(done: int, total: int, loss: float) -> None:
            description = f"training {backbone.value}, loss {loss:.3f}"
            bar.update(task, completed=done, total=total, description=description)

        if backbone is Backbone.clip:
            from .build_clip import ClipRecipe, build_clip

            build_clip(out, ClipRecipe(seed=seed, steps=steps or ClipRecipe.steps), advance)
        else:
            from .build_lm import LmRecipe, build_lm

            build_lm(out, LmRecipe(seed=seed, steps=steps or LmRecipe.steps), advance)
    typer.echo(f"{backbone.value} in {out}; see {out / 'card.json'}")
