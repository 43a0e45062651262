"""How cognition asks for a window of an image, in its versions, and where in a conversation it may."""

from ...data.templates import IMAGE
from ...data.windows import Window
from ...types import Sample
from ..abilities import Task

TEMPLATES: dict[int, dict[Task, tuple[str, ...]]] = {
    1: {
        "vq": (
            "Divide {image} into {grid} rows and {grid} columns of cells. Give the codes of the {size} by {size} cells "
            "from row {row} and column {column} on.",
            "Which codes stand for {image}, from row {row} to row {last_row} and from column {column} to column "
            "{last_column}, on a grid of {grid} by {grid}?",
            "Write down what {image} is made of between the cells ({row}, {column}) and ({last_row}, {last_column}) of "
            "a {grid} by {grid} grid, as codes.",
        ),
        "pixels": (
            "Divide {image} into {grid} rows and {grid} columns of cells. Give the colours of the {size} by {size} "
            "cells from row {row} and column {column} on, as red, green and blue.",
            "Which red, green and blue does {image} have, from row {row} to row {last_row} and from column {column} to "
            "column {last_column}, on a grid of {grid} by {grid}?",
            "Write down the colours of {image} between the cells ({row}, {column}) and ({last_row}, {last_column}) of "
            "a {grid} by {grid} grid, as red, green and blue.",
        ),
    }
}
"""The questions of each task, by version. A version never changes; better words are a new one."""


def asking(template: str, window: Window, grid: int, image: str = "the image") -> str:
    """The question of a window of an image with `grid` cells along it."""
    last_row, last_column = window.row + window.size - 1, window.column + window.size - 1
    places = {"row": window.row, "column": window.column, "last_row": last_row, "last_column": last_column}
    return template.format(image=image, grid=grid, size=window.size, **places)


def exchanges(sample: Sample, number: int) -> tuple[int, int]:
    """After how many exchanges an image has been shown, and how many there are."""
    turns = [turn for turn in sample.turns if turn.role != "system"]
    shown, first = 0, len(turns)
    for place, turn in enumerate(turns):
        shown += turn.text.count(IMAGE)
        if shown > number:
            first = place
            break
    return first // 2 + 1, len(turns) // 2
