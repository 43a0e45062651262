"""`sightline paint`."""

from pathlib import Path
from typing import Annotated

import typer

from .errors import SightlineError


def paint(
    model: Annotated[
        str, typer.Argument(help="A run that trained with the method `cognition`, or a model folder.", metavar="MODEL")
    ],
    image: Annotated[Path, typer.Argument(help="An image file.", metavar="IMAGE")],
    out: Annotated[
        Path | None, typer.Option(help="Where to.", show_default="the IMAGE's name with -painted, here")
    ] = None,
    at: Annotated[
        str | None, typer.Option(help="The window's first row and column.", metavar="ROW,COLUMN", show_default="random")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="One with the method `cognition`.", show_default="that of the run")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="How it is asked.", show_default="as the checkpoint says")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random window.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Draw a window of an image as the model believes it to be, in codes and in colours (VLSA's cognition).

    The picture has the image as the model was shown it, with the window outlined; beside it, above, what is there, and
    below, what the model says: its codes as the VQ model draws them, and its colours. Cells that it did not tell in a
    form that can be read are magenta.

    Example: `sightline paint runs/mine photo.jpg`
    """
    from .config import load_recipe
    from .data.images import load_image
    from .diagnostics.subject import Subject
    from .files import check_png, write_png
    from .paint import paint as draw
    from .train.processes import pick_device

    path = out or Path(f"{image.stem}-painted.png")
    check_png(path)
    place = _place(at) if at is not None else None
    told = load_recipe(recipe) if recipe is not None else None
    loaded = load_image(image)
    subject = Subject(model, device=pick_device(device), template=template)
    painted = draw(subject, loaded, place=place, recipe=told, seed=seed)
    write_png(path, painted.sheet())
    typer.echo(str(path))
    typer.echo(painted.summary, err=True)


def _place(text: str) -> tuple[int, int]:
    row, comma, column = text.partition(",")
    if not (comma and row.strip().isdecimal() and column.strip().isdecimal()):
        raise SightlineError(f"--at {text} is no place: it is two numbers, the row and the column. Say --at 2,5")
    return int(row), int(column)
