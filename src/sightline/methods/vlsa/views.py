"""An image as views for the tower: one that shows it small and whole, and crops that show it at full resolution.

The image is laid at the top left of a raster of crops, each of the tower's size, and the rest is padding. The small
view shows the same raster, padding included, so that each of its patches shows what a rectangle of the crops' patches
shows. An image that one crop holds has one view alone: it is its own crop.

Source: VLSA, section 3.1; what the paper leaves open is in docs/papers.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from ...data.view import Frame, crops_of

Low = Literal["padded", "original"]
"""What the small view shows: the padded image, as the crops do, or the image alone, as LLaVA-NeXT's does."""


@dataclass(frozen=True)
class Raster:
    """Where an image lies among crops of `side` x `side` pixels."""

    rows: int
    columns: int
    width: int
    height: int
    """Of the image on the raster, in pixels."""
    side: int

    @property
    def crops(self) -> int:
        return self.rows * self.columns

    @property
    def views(self) -> int:
        """Views that the tower sees: the small one, and the crops where there are several."""
        return 1 + self.crops if self.crops > 1 else 1


def raster_of(size: tuple[int, int], side: int, max_crops: int, pinpoints: Sequence[tuple[int, int]] = ()) -> Raster:
    """The raster of an image of `size` (width, height).

    An image keeps its size where `max_crops` crops hold it, and is scaled down until they do where not. With
    `pinpoints`, it is scaled up or down to fill the raster, of those given, that shows most of it, and of these the one
    with the least padding.
    """
    width, height = size
    if not pinpoints:
        shapes = [(rows, columns) for rows in range(1, max_crops + 1) for columns in range(1, max_crops // rows + 1)]
        scale = max(min(1.0, rows * side / height, columns * side / width) for rows, columns in shapes)
        wide, high = _scaled(size, scale)
        rows, columns = -(-high // side), -(-wide // side)
        return Raster(rows, columns, wide, high, side)

    def fit(shape: tuple[int, int]) -> tuple[int, int]:
        """Pixels of the image that the raster shows, and minus those of its padding."""
        rows, columns = shape
        wide, high = _scaled(size, min(rows * side / height, columns * side / width))
        shown = min(wide * high, width * height)
        return shown, shown - rows * columns * side**2

    rows, columns = max(pinpoints, key=fit)
    wide, high = _scaled(size, min(rows * side / height, columns * side / width))
    return Raster(rows, columns, min(wide, columns * side), min(high, rows * side), side)


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Width and height in whole pixels, at least 1. Rounded down but for errors of the floats: what fits stays so."""
    width, height = (max(1, int(length * scale + 1e-6)) for length in size)
    return width, height


def views_of(image: Image.Image, raster: Raster, frame: Frame, low: Low = "padded") -> list[Image.Image]:
    """The small view, then the crops row by row, each of `side` x `side` pixels."""
    side, size = raster.side, (raster.width, raster.height)
    padded = Image.new("RGB", (raster.columns * side, raster.rows * side), frame.colour)
    padded.paste(image if image.size == size else image.resize(size, frame.resample), (0, 0))
    small = (padded if low == "padded" else image).resize((side, side), frame.resample)  # alone, its own crop
    return [small, *crops_of(padded, side)] if raster.views > 1 else [small]


def shown_in_crops(raster: Raster, grid: int, low: Low = "padded") -> Bool[Tensor, "crops patches"]:
    """Which patches of the crops, `grid` x `grid` each, show some of the image; the others lie wholly in padding."""
    if low == "original" and raster.views == 1:
        return torch.ones(1, grid**2, dtype=torch.bool)
    down = _starts(grid, raster.side, raster.rows) < raster.height
    right = _starts(grid, raster.side, raster.columns) < raster.width
    return by_crop(down[:, None] & right[None, :], raster, grid)


def shown_in_low(raster: Raster, grid: int, low: Low = "padded") -> Bool[Tensor, " patches"]:
    """Which patches of the small view show some of the image."""
    if low == "original":
        return torch.ones(grid**2, dtype=torch.bool)
    down = _starts(grid, raster.side) * raster.rows < raster.height
    right = _starts(grid, raster.side) * raster.columns < raster.width
    return (down[:, None] & right[None, :]).flatten()


def by_crop(whole: Tensor, raster: Raster, grid: int) -> Tensor:
    """Values on all patches of a raster, [rows * grid, columns * grid, ...], as [crops, patches, ...], row by row."""
    split = whole.unflatten(1, (raster.columns, grid)).unflatten(0, (raster.rows, grid))
    return split.transpose(1, 2).flatten(2, 3).flatten(0, 1)


def centres(raster: Raster, grid: int, low: Low = "padded") -> tuple[Tensor, Tensor]:
    """Where patches are on the raster, from 0 to 1: down and right, of the small view's [patches, 2], and of the crops'
    [crops, patches, 2]."""
    small = _mesh(grid, grid).flatten(0, 1) * _part_seen(raster, low)
    return small, by_crop(_mesh(raster.rows * grid, raster.columns * grid), raster, grid)


def covering(raster: Raster, grid: int, low: Low = "padded") -> Bool[Tensor, "patches keys"]:
    """Which patches of the crops each patch of the small view covers: those whose centre is in it."""
    _, high = centres(raster, grid)
    cell = (high.flatten(0, 1) / _part_seen(raster, low) * grid).floor().long()
    inside = (cell < grid).all(1)
    return (torch.arange(grid**2).unsqueeze(1) == cell[:, 0] * grid + cell[:, 1]) & inside


def _part_seen(raster: Raster, low: Low) -> Tensor:
    """How much of the raster the small view shows, down and right."""
    if low == "padded" or raster.views == 1:
        return torch.ones(2)
    side = raster.side
    return torch.tensor([raster.height / (raster.rows * side), raster.width / (raster.columns * side)])


def _mesh(rows: int, columns: int) -> Tensor:
    down, right = ((torch.arange(count) + 0.5) / count for count in (rows, columns))
    return torch.stack(torch.meshgrid(down, right, indexing="ij"), dim=-1)


def _starts(grid: int, side: int, crops: int = 1) -> Tensor:
    """The pixel at which each patch begins, along a line of crops; what is left of a crop behind its last patch, the
    tower does not see."""
    within = torch.arange(grid) * (side // grid)
    return (torch.arange(crops)[:, None] * side + within).flatten()
