"""A contact sheet of the world: scenes in both views with what is said about them, on one picture to look at."""

import io
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..files import write_bytes
from .claims import GRADES, graded_caption
from .draw import VIEWS, render
from .language import questions
from .scene import Scene, Split, sample_scene, stream

APART = 5
"""Between the numbers of two scenes of a sheet."""
WIDTH = 118
"""Characters in a line of text."""


def draw_sheet(out: Path, *, seed: int = 0, split: Split = "train", first: int = 0, count: int = 6) -> None:
    """Write the sheet as PNG, whole or not at all: a row for each scene, its two views and its sentences.

    Args:
        first: number of the first scene; each fifth one follows, so that numbers of things and kinds of questions vary.
        count: how many scenes.
    """
    figure = Figure(figsize=(15, 3.6 * count))
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.25 / (3.6 * count), bottom=0.01, wspace=0.03, hspace=0.12)
    grid: Any = figure.subplots(count, 3, squeeze=False, width_ratios=[1, 1, 2.6])
    for row, index in zip(grid, range(first, first + APART * count, APART), strict=True):
        scene = sample_scene(seed, split, index)
        for axes, view in zip(row[:2], VIEWS, strict=True):
            picture = render(scene, view)
            axes.imshow(picture, interpolation="nearest")
            axes.set_anchor("N")
            axes.set_title(f"{split} {index}, {view} view, {picture.width} px", fontsize=9)
            axes.axis("off")
        row[2].text(
            0, 1, said_of(scene, seed, split, index), va="top", fontsize=8.5, family="monospace", parse_math=False
        )
        row[2].axis("off")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=75, metadata={"Software": None})
    write_bytes(out, file.getvalue())


def said_of(scene: Scene, seed: int, split: Split, index: int) -> str:
    """A caption of each grade of noise, and the questions with their answers."""
    lines = ["captions"]
    for grade in GRADES:
        said = graded_caption(scene, grade, stream(seed, split, index, "noise"))
        told = f"{grade:<11} {said.true}/{said.stated} true  {said.text}"
        lines += textwrap.wrap(told, WIDTH, initial_indent="  ", subsequent_indent=" " * 24)
    lines += ["", "questions"]
    for question in questions(scene, split, index, stream(seed, split, index, "questions"), view="high"):
        lines.append(f"  {question.ability:<22} {question.text} {question.answer}")
    return "\n".join(lines)
