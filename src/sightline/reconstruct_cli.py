"""`sightline reconstruct`."""

from pathlib import Path
from typing import Annotated

import typer


def reconstruct(
    run: Annotated[
        Path, typer.Argument(help="A run that trained with the method `reconstruct`, or a stage of it.", metavar="RUN")
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE...")],
    out: Annotated[
        Path | None, typer.Option(help="Where to.", show_default="the first IMAGE's name with -reconstructed, here")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of denoising.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise that pictures begin as.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Draw images again from a model's visual tokens alone (VLSA's Figure 3): what they keep is seen.

    The picture has each image as the model was shown it, and beside it what the run's denoiser makes of noise and the
    image's visual tokens. The denoiser is of the training: it lives in the run folder, and no saved model has it.

    Example: `sightline reconstruct runs/mine photo.jpg`
    """
    from .data.images import load_image
    from .files import check_png, write_png
    from .reconstruct import reconstruct as draw
    from .train.processes import pick_device

    path = out or Path(f"{images[0].stem}-reconstructed.png")
    check_png(path)
    drawn = draw(run, [load_image(image) for image in images], steps=steps, seed=seed, device=pick_device(device))
    write_png(path, drawn.sheet())
    typer.echo(str(path))
    for image, decibels in zip(images, drawn.psnr, strict=True):
        typer.echo(f"{image}: {decibels:.1f} dB", err=True)
