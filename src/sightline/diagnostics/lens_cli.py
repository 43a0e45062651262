"""`sightline lens`."""

from pathlib import Path
from typing import Annotated

import typer


def lens(
    model: Annotated[str, typer.Argument(help="A model or run folder, or a hub id of a LLaVA model.", metavar="MODEL")],
    image: Annotated[Path, typer.Argument(help="An image file.", metavar="IMAGE")],
    data: Annotated[
        Path | None,
        typer.Option(help="The world folder that the image is of: right words and wrong ones are told apart."),
    ] = None,
    words: Annotated[
        Path | None,
        typer.Option(
            help="Words to choose from, one on a line.", show_default="the world's, or those the tokenizer has"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to, without a suffix.", show_default="IMAGE's name with -lens, here")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Words of each token that the page shows.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Draw the word of each visual token over an image: what the language model is given to read there.

    A token's word is the one whose embedding is nearest to it by cosine. Two files come out:

    - `NAME.png`: the image as the model sees it, padding and all, with a word on every token;

    - `NAME.html`: the same as a page that needs no network, with the nearest words of each token and their cosines, for
    mouse and keyboard.

    For a photograph: `sightline lens runs/demo/model photo.jpg`

    With truth, for an image of the small world:
    `sightline lens runs/demo/model validation/000003.png --data data/world`
    """
    from ..data.images import load_image
    from ..data.words import read_word_list
    from ..train.processes import pick_device
    from .lens import look, vocabulary_words
    from .lens_figure import write_png
    from .lens_page import write_page
    from .material import find_case
    from .subject import Subject

    case = find_case(data, image) if data is not None else None
    file = case.image if case is not None else image
    picture = load_image(file)
    file_of_words = words or (data / "words.txt" if data is not None else None)
    listed = read_word_list(file_of_words) if file_of_words is not None else None
    subject = Subject(model, device=pick_device(device))
    candidates = listed if listed is not None else vocabulary_words(subject.tokenizer)
    seen = look(subject, picture, candidates, case=case, top=top)
    base = out or Path(f"{file.stem}-lens")
    base = base.with_suffix("") if base.suffix.lower() in (".png", ".html") else base
    title = f"{file.name} through {model}"
    for suffix, write in ((".png", write_png), (".html", write_page)):
        path = base.with_name(base.name + suffix)
        write(seen, path, title=title)
        typer.echo(str(path))
    typer.echo(seen.summary(), err=True)
    if case is not None and not seen.judged:
        typer.echo(
            "No word is judged: the truth of the image is of patches that these tokens do not stand for.", err=True
        )
