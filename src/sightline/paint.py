"""Draw what a model believes is in a window of an image, in codes and in colours, beside what is there (VLSA)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from .config import Recipe
from .data.windows import UNREAD, Window
from .diagnostics.subject import Subject
from .diagnostics.telling import believed, cells_of, taught, telling
from .errors import SightlineError
from .methods.abilities import Task, Tells
from .models.codes import Codes

SIDE, GAP = 192, 8
"""Pixels of a picture on the sheet, and between two."""
UNKNOWN = (255, 0, 255)
"""The colour of cells that could not be read."""


@dataclass(frozen=True)
class Painted:
    """A window of an image as it is, and as the model says."""

    picture: UInt8[Tensor, "3 side side"]
    """The image as the model was shown it."""
    grid: int
    window: Window
    codes: Mapping[str, Int[Tensor, "size size"]]
    """`true` and `believed`, where the model was asked for codes."""
    pixels: Mapping[str, Int[Tensor, "size size 3"]]
    """The same of colours. `UNREAD` is what could not be read."""
    drawn: Mapping[str, UInt8[Tensor, "3 height width"]]
    """What the VQ model makes of the codes."""

    @property
    def summary(self) -> str:
        """How near the model comes, in words."""
        told = []
        if self.codes:
            right = int((self.codes["true"] == self.codes["believed"]).sum())
            told.append(f"{right} of {self.codes['true'].numel()} codes right")
        if self.pixels:
            read = self.pixels["believed"] != UNREAD
            error = (self.pixels["true"] - self.pixels["believed"])[read].abs().float().mean()
            told.append(f"colours {error:.0f} of 255 off" if bool(read.any()) else "no colour that can be read")
            told += [f"{int((~read).sum())} of them unread"] if bool((~read).any() and read.any()) else []
        return ", ".join(told)

    def sheet(self) -> Image.Image:
        """The picture with the window outlined; then, for each task, what is there over what is believed."""
        columns: list[tuple[Image.Image, Image.Image]] = []
        if self.drawn:
            pair = (_of_pixels(self.drawn[name].permute(1, 2, 0)) for name in ("true", "believed"))
            columns.append((next(pair), _shaded(next(pair), self.codes["believed"] == UNREAD)))
        if self.pixels:
            true, said = self.pixels["true"], self.pixels["believed"]
            columns.append((_of_pixels(true), _shaded(_of_pixels(said.clamp(min=0)), (said == UNREAD).any(-1))))
        page = Image.new("RGB", ((1 + len(columns)) * (SIDE + GAP) - GAP, 2 * SIDE + GAP), "white")
        page.paste(self._outlined(), (0, 0))
        for place, pair in enumerate(columns, start=1):
            for row, image in enumerate(pair):
                page.paste(image, (place * (SIDE + GAP), row * (SIDE + GAP)))
        return page

    def _outlined(self) -> Image.Image:
        image, cell = _of_pixels(self.picture.permute(1, 2, 0)), SIDE / self.grid
        left, top, size = self.window.column * cell, self.window.row * cell, self.window.size * cell
        ImageDraw.Draw(image).rectangle((left, top, left + size - 1, top + size - 1), outline=UNKNOWN, width=2)
        return image


def paint(
    subject: Subject,
    image: Image.Image,
    *,
    place: tuple[int, int] | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
) -> Painted:
    """Ask a model for a window of an image.

    Args:
        place: the window's first row and column; by default random ones, by the seed.
        recipe: one with the method `cognition`, for a model that is of no run.

    Raises:
        SightlineError: if there is no such method, or the window is not inside the image.
    """
    method = telling(recipe) if recipe is not None else taught(subject)
    if method is None:
        raise SightlineError(
            "nothing says how the model was asked for codes and colours: it is of no run whose recipe has the method "
            "`cognition`. Give the run's folder, or a recipe that has it: --recipe recipe.yaml"
        )
    if subject.assistant.template == "plain":
        raise SightlineError(
            "the model's last stage had template `plain`, captions, so it was never asked for a window. Give a later "
            "stage of the run, or say how to ask it: --template vicuna_v1"
        )
    (cells,) = cells_of(subject, method, [image], seed)
    window = cells.window if place is None else _window_at(place, method)
    told: dict[Task, dict[str, Tensor]] = {}
    for task in method.tasks:
        true = window.of(cells.codes if task == "vq" else cells.pixels)
        (said,) = believed(subject, method, task, [image], [window])
        told[task] = {"true": true, "believed": said.view(true.shape)}
    codes, drawn = told.get("vq", {}), {}
    if codes:
        vq = Codes(method.vq)
        drawn = {name: vq.decode(some.clamp(min=0).unsqueeze(0))[0] for name, some in codes.items()}
    return Painted(method.picture(subject.sight)(image), method.grid, window, codes, told.get("pixels", {}), drawn)


def _window_at(place: tuple[int, int], method: Tells) -> Window:
    last = method.grid - method.window
    if not all(0 <= start <= last for start in place):
        raise SightlineError(
            f"a window at {place[0]},{place[1]} reaches beyond the image: it is {method.window} cells wide, and "
            f"the image {method.grid}. Rows and columns begin at 0 to {last}."
        )
    return Window(*place, method.window)


def _of_pixels(pixels: Tensor) -> Image.Image:
    """[height, width, 3] as a picture of the sheet's size, pixels kept apart."""
    return Image.fromarray(np.ascontiguousarray(pixels.byte().numpy())).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def _shaded(image: Image.Image, unread: Tensor) -> Image.Image:
    """With the cells that could not be read in a colour of their own."""
    mask = Image.fromarray(unread.byte().numpy() * 255).resize(image.size, Image.Resampling.NEAREST)
    image.paste(UNKNOWN, (0, 0), mask)
    return image
