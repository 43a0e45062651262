"""`sightline diagnose`: what a model's alignment is, in numbers."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import Part


def diagnose(
    model: Annotated[str, typer.Argument(help="A run folder, a model folder or a hub id.", metavar="MODEL")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A world folder, or captions in LLaVA's JSON.", show_default="a world drawn for the occasion"
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Where the images of a file are.", show_default="images beside it, else its folder"),
    ] = None,
    split: Annotated[Literal["validation", "test", "novel"], typer.Option(help="Of a world folder.")] = "validation",
    most: Annotated[int, typer.Option(min=2, help="Images to look at.")] = 200,
    questions: Annotated[
        Path | None,
        typer.Option(help="A question file, as `eval` reads it, to ask instead of the material's own questions."),
    ] = None,
    only: Annotated[list[Part] | None, typer.Option(help="Measure this part alone; can be given again.")] = None,
    untouched: Annotated[
        str | None, typer.Option(help="The language model before alignment, to see what was forgotten.")
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help="How questions become text: vicuna_v1, llama-3, ...", show_default="as it was trained last"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write all numbers to this JSON.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Measure the alignment of a model: any that Sightline trained, and any stock LLaVA.

    - *words*: is the nearest word of a visual token true; are a caption's words found (SEA's Figure 1, TACS)

    - *geometry*: how far visual tokens lie from words, their norms, spread and rank, and alignment by layer

    - *sight*, *attention*: what becomes of answers with swapped, blank and shuffled images; who looks at the image

    - *cause*: does a wrong word on a patch go with a wrong answer, and does correcting it correct the answer

    - *probe*: how much of the truth a linear probe reads from the tokens

    - *kept*: what the language model still knows

    - *captions*: how many things captions name that are there, and that are not; at each level, with AlignGPT

    - *information*: how well a picture can be drawn again from its visual tokens, by a decoder that is fitted now; it
    takes minutes, and is measured where `--only information` asks for it

    - *levels*, *gate*: with AlignGPT, how far apart the levels are, and how the gate weighs them by type of question

    - *cognition*: with VLSA's cognition, by a run's folder, how well codes and colours of windows are told

    Each score comes with its 95% interval and, for the small world, beside those of models known to be good, untrained
    and broken. What the data does not allow is said; the exit status is 1 if that was asked for by name.

    Example: `sightline diagnose runs/world --data data/world`

    A model that saw captions alone is asked as the next stage will: `--template vicuna_v1`
    """
    import tempfile

    from rich.console import Console

    from ..data.images import image_folder
    from ..train.processes import pick_device
    from .diagnose import diagnose as measure
    from .diagnose import references
    from .material import KNOWN, Material, read_captions, read_world, with_questions
    from .subject import Subject
    from .tables import tables

    console = Console(stderr=True)
    subject = Subject(model, device=pick_device(device), template=template)
    with tempfile.TemporaryDirectory() as folder:
        if data is None and questions is None and set(only or Part) - {Part.levels}:
            from ..world.make import make_world

            console.print("drawing a world to look at (--data takes your own)", style="dim")
            data = Path(folder) / "world"
            few = {"validation": 1, "test": 1, "novel": 1} | {split: most}
            make_world(
                data,
                train=KNOWN if Part.information in (only or ()) else 1,
                validation=few["validation"],
                test=few["test"],
                novel=few["novel"],
            )
        if data is None:
            material = Material("", ())
        elif data.is_dir():
            material = read_world(data, split=split, most=most)
        else:
            material = read_captions(data, image_folder(data, images), most=most)
        if questions is not None:
            material = with_questions(material, questions, image_folder(questions, images))
        parts = [part for part in Part if part in only] if only else None
        diagnosis = measure(subject, material, name=model, parts=parts, untouched=untouched)
    for table in tables(diagnosis, references()):
        Console().print(table)
    for part, why in diagnosis.missing.items():
        console.print(f"{part} was not measured: {why}")
    if out:
        diagnosis.write(out)
        typer.echo(f"all {len(diagnosis.scores)} numbers in {out}")
    wanted = {*(only or ()), *([Part.kept] if untouched and not only else ())}
    if not diagnosis.scores or wanted & diagnosis.missing.keys():
        raise typer.Exit(1)
