"""`sightline report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..compare.claims import Claims

SHIPPED = "shipped"


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders; others are compared with the first.", metavar="RUN...")
    ],
    twin: Annotated[Path | None, typer.Option(help="The run folder of the first one's blind twin.")] = None,
    first: Annotated[
        str | None,
        typer.Option(help="The evaluation that the headline is of; by default the first by name that all runs have."),
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=0, max=12, help="Evaluated pictures to look at with the models; 0 loads none.")
    ] = 3,
    comparison: Annotated[
        list[str] | None,
        typer.Option(
            help="The folder of a comparison whose claims to show; `shipped` for those of the small world. Can be "
            "given again."
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Where the evaluated images are, if they have moved since.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page.", show_default="report.html in the first run folder")
    ] = None,
    device: Annotated[str, typer.Option(help="For the models: auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Write a run, or several side by side, as one self-contained HTML page that works from disk.

    On it, as far as the run folders have it: scores with intervals, benchmarks, learning curves, what models make of a
    few pictures (the word of each visual token, captions by level, the gate by type of question, reconstructions,
    painted windows), answers right and wrong, where the recipes differ, versions.

        sightline report runs/mine --twin runs/blind

        sightline report runs/baseline runs/mine --comparison comparisons/mine

    The pictures are looked at once, and what is seen stays in `RUN/looks`; where a model cannot run, `--pictures 0`
    writes the page of what is there.
    """
    from ..train.processes import pick_device
    from .page import write_page
    from .series import series_of

    claims = [one for place in comparison or () for one in claims_of(place)]
    if pictures:
        from .looking import look_where_missing

        series = series_of(runs, twin, first)  # what is wrong with a folder is said before a model is loaded
        look_where_missing(series, pictures, images_root=images, device=pick_device(device))
    typer.echo(str(write_page(*runs, out=out, twin=twin, first=first, images_root=images, comparisons=claims)))


def claims_of(place: str) -> "list[Claims]":
    """The claims of a comparison's folder, or those that ship."""
    from ..compare.claims import read_claims, read_shipped

    return read_shipped() if place == SHIPPED else [read_claims(Path(place))]
