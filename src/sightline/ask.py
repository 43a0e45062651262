"""What `sightline ask` does: one answer as it comes, or an answer at each level of a model that has levels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .checkpoints.model import model_folder, read_config, template_of
from .data.images import load_image
from .data.templates import get_template
from .errors import SightlineError
from .generation import Assistant
from .train.processes import pick_device

EVERY_LEVEL: Literal["all"] = "all"


def ask(
    model: str, arguments: Sequence[str], *, level: str | None, max_new_tokens: int, device: str, dtype: torch.dtype
) -> None:
    """Ask a model, and print what it says.

    Args:
        arguments: image files, then the question, which a model of captions needs none of.
        level: a number, `all`, or None for what the model does by itself.

    Raises:
        SightlineError: for an image, a model or a level that there is not, or nothing to ask.
    """
    paths, question = split_arguments(arguments)
    images = [load_image(Path(path)) for path in paths]
    try:
        (question or "").encode("utf-8")
    except UnicodeEncodeError:
        raise SightlineError("the question is not UTF-8 text. Check the terminal's encoding.") from None
    forced = read_level(level, images)
    place = pick_device(device)
    template = template_of(read_config(model_folder(model)))
    captions = template is not None and not get_template(template).user_text
    if question is None and not captions:
        raise SightlineError(
            f"'{paths[-1]}' is a file, and there is no question. Add one: sightline ask MODEL IMAGE QUESTION"
        )
    if captions and not images:
        raise SightlineError(
            f"'{model}' was trained on captions alone, so without an image there is nothing to ask it. Add an image: "
            "sightline ask MODEL IMAGE"
        )
    if captions and question:
        typer.echo(
            "the model was trained on captions alone: it is not shown the question, and gives a caption", err=True
        )
    assistant = Assistant(model, device=place, dtype=dtype)
    if forced == EVERY_LEVEL:
        Console().print(levels_table(assistant, images, question or "", max_new_tokens=max_new_tokens))
    else:
        assistant.stream(images, question or "", max_new_tokens=max_new_tokens, level=forced)


def split_arguments(arguments: Sequence[str]) -> tuple[Sequence[str], str | None]:
    """Images and the question; None where the last argument is a file as well."""
    *paths, question = arguments
    return (arguments, None) if is_file(question) else (paths, question)


def read_level(text: str | None, images: Sequence[Image.Image]) -> int | Literal["all"] | None:
    """What `--level` says: a level, or `all`.

    Raises:
        SightlineError: if it says neither, or there is no image that a level could stand before.
    """
    if text is None:
        return None
    if text != EVERY_LEVEL and not (text.isascii() and text.isdecimal()):
        raise SightlineError(f"--level {text} is no level. Give a number from 1 on, or `{EVERY_LEVEL}`.")
    if not images:
        raise SightlineError(
            "a level stands before an image, and there is none, so every level would answer alike. Add an image, or "
            "leave --level out."
        )
    return EVERY_LEVEL if text == EVERY_LEVEL else int(text)


def levels_table(assistant: Assistant, images: Sequence[Image.Image], question: str, *, max_new_tokens: int) -> Table:
    """The answers to a question at every level, side by side."""
    table = Table("level", "answer", box=None, pad_edge=False)
    for level in assistant.levels:
        (answer,) = assistant.answers([images], [question], max_new_tokens=max_new_tokens, level=level)
        table.add_row(str(level), Text(answer))
    return table


def is_file(text: str) -> bool:
    """Whether a word of the command line names a file; a long question is too long a name to ask for."""
    try:
        return Path(text).is_file()
    except OSError:
        return False
