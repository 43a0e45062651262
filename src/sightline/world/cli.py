"""`sightline world`: makes the small world, and rebuilds the backbones that ship with the package."""

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
    novel: Annotated[
        int, typer.Option(help="Pictures of colour-shape pairs that training never shows.")
    ] = 300,
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

        make_world(
            folder, seed=seed, train=train, validation=validation, test=test, novel=novel, progress=advance
        )
    typer.echo(f"{train + validation + test + novel} pictures in {folder}; see {folder / 'world.json'}")
