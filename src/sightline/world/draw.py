"""The pixels of a scene in two views, and which item covers which patch.

Everything is drawn once, in whole numbers, so that a picture is the same on every machine. The high view is that
drawing at 192 x 192 pixels; the low view, 96 x 96, is its average over 2 x 2 pixels (Pillow's box filter).

The letter of a sign is dark on light, four pixels of the low view to a stroke. The letter of a card is *fine*: its
strokes are stripes one pixel of the high view wide, light and dark in turn around the card's own colour. Two of them
make one pixel of the low view, where nothing of the letter is left: not little, nothing.
"""

import math
from dataclasses import dataclass
from typing import get_args

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from . import View
from .scene import GRID, Plate, Scene, Thing

VIEWS: tuple[View, ...] = get_args(View)

FINE = 2
"""Pixels of the high view in one of the low view, across."""
CELL = 64
"""Width of a cell in pixels of the high view."""
HIGH = GRID * CELL
SIDE: dict[View, int] = {"low": HIGH // FINE, "high": HIGH}
"""Width and height of a view in pixels."""

SMOOTH = 2
"""Things are drawn this many times larger than the high view and averaged, so that their edges are smooth."""

COLOUR_RGB = {
    "red": (220, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (240, 220, 40),
    "green": (40, 160, 60),
    "cyan": (70, 210, 225),
    "blue": (40, 70, 215),
    "purple": (130, 50, 170),
    "pink": (243, 130, 190),
}
BACKGROUND_RGB = {
    "black": (15, 15, 15),
    "white": (240, 240, 240),
    "grey": (128, 128, 128),
    "brown": (110, 70, 35),
}
SIGN_RGB, INK_RGB = (250, 240, 205), (25, 25, 25)
CARD_RGB, STRIPE = (165, 165, 150), 85
"""A card's colour, and how much lighter and darker its stripes are."""

LETTER_ROWS = {
    "c": ".#### #.... #.... #.... .####",
    "d": "###. #..# #..# #..# ###.",
    "e": "##### #.... ####. #.... #####",
    "h": "#..# #..# #### #..# #..#",
    "k": "#..# #.#. ##.. #.#. #..#",
    "l": "#... #... #... #... ####",
    "m": "#...# ##.## #.#.# #...# #...#",
    "p": "###. #..# ###. #... #...",
    "s": ".### #... .##. ...# ###.",
    "t": "##### ..#.. ..#.. ..#.. ..#..",
    "u": "#..# #..# #..# #..# .##.",
    "v": "#...# #...# #...# .#.#. ..#..",
    "w": "#...# #...# #.#.# ##.## #...#",
    "x": "#...# .#.#. ..#.. .#.#. #...#",
    "y": "#...# #...# .#.#. ..#.. ..#..",
    "z": "##### ...#. ..#.. .#... #####",
}
"""The letters, five strokes high; those of four strokes' width begin at the left."""


def _ray(degrees: float, length: float) -> tuple[float, float]:
    return length * math.sin(math.radians(degrees)), -length * math.cos(math.radians(degrees))


OUTLINES: dict[str, list[tuple[float, float]]] = {
    "square": [(-0.84, -0.84), (0.84, -0.84), (0.84, 0.84), (-0.84, 0.84)],
    "triangle": [(0.0, -0.95), (1.0, 0.85), (-1.0, 0.85)],
    "star": [_ray(36.0 * i, 0.4 if i % 2 else 1.0) for i in range(10)],
    "cross": [
        (x * sx, y * sy)
        for sx, sy, turn in ((1, -1, 1), (1, 1, -1), (-1, 1, 1), (-1, -1, -1))
        for x, y in ((0.3, 1.0), (0.3, 0.3), (1.0, 0.3))[::turn]
    ],
}
"""Vertices to the right and down, in radii, of the shapes with corners."""
RING_HOLE = 0.55
"""Radius of a ring's hole, in radii."""

Mask = UInt8[np.ndarray, "CELL CELL"]


@dataclass(frozen=True)
class PatchTruth:
    """What each patch of a picture shows, patches in reading order."""

    item: Int[np.ndarray, " patches"]
    """Number in `scene.items` of what covers most of the patch; -1 where nothing does."""
    coverage: Float[np.ndarray, " patches"]
    """Fraction of the patch that this item covers, 0 to 1."""
    words: tuple[tuple[str, ...], ...]
    """The words that are true of the item; the background's word where there is none."""


def render(scene: Scene, view: View = "low") -> Image.Image:
    """The picture of a scene, RGB, `SIDE[view]` pixels wide and high."""
    canvas = np.empty((HIGH, HIGH, 3), np.int64)
    canvas[:] = _rgb(BACKGROUND_RGB[scene.background], scene.tint)
    for item in scene.items:
        top, left = (CELL * place for place in divmod(item.cell, GRID))
        _draw_item(canvas[top : top + CELL, left : left + CELL], item, fine=item is scene.card)
    return _in_view(canvas, view)


def render_cell(scene: Scene, item: Thing | Plate, view: View = "low") -> Image.Image:
    """The cell of one of a scene's items, as it is in the picture."""
    canvas = np.empty((CELL, CELL, 3), np.int64)
    canvas[:] = _rgb(BACKGROUND_RGB[scene.background], scene.tint)
    _draw_item(canvas, item, fine=item is scene.card)
    return _in_view(canvas, view)


def _draw_item(cell: Int[np.ndarray, "CELL CELL 3"], item: Thing | Plate, *, fine: bool) -> None:
    if isinstance(item, Thing):
        alpha = thing_mask(item)[:, :, None].astype(np.int64)
        cell[:] = (cell * (255 - alpha) + _rgb(COLOUR_RGB[item.colour], item.tint) * alpha + 127) // 255
    else:
        _draw_plate(cell, item, fine=fine)


def _in_view(canvas: Int[np.ndarray, "side side 3"], view: View) -> Image.Image:
    picture = Image.fromarray(canvas.astype(np.uint8))
    side = len(canvas) // FINE
    return picture if view == "high" else picture.resize((side, side), Image.Resampling.BOX)


def item_words(scene: Scene, number: int, view: View) -> tuple[str, ...]:
    """The words that are true of an item of a scene: what it is, and what a view shows of it."""
    item = scene.items[number]
    if isinstance(item, Thing):
        return item.size, item.colour, item.shape
    if item is scene.card:
        return ("card", item.letter) if view == "high" else ("card",)
    return "sign", item.letter


def patch_truth(scene: Scene, patch: int, view: View = "low") -> PatchTruth:
    """What each patch shows, read from the masks that the picture was drawn with.

    Args:
        patch: width and height of a patch in pixels; it divides the view's.
    """
    side, rest = divmod(SIDE[view], patch)
    assert rest == 0, f"patches of {patch} px do not tile a picture of {SIDE[view]} px"
    width = patch * (HIGH // SIDE[view])
    covered = item_masks(scene).reshape(-1, side, width, side, width).mean(axis=(2, 4)) / 255
    covered = covered.reshape(len(scene.items), side * side)
    coverage = covered.max(axis=0)
    item = np.where(coverage > 0, covered.argmax(axis=0), -1)
    words = tuple(item_words(scene, i, view) if i >= 0 else (scene.background,) for i in item.tolist())
    return PatchTruth(item, coverage, words)


def item_masks(scene: Scene) -> UInt8[np.ndarray, "items HIGH HIGH"]:
    """How much of each pixel of the high view each item covers, of 255."""
    masks = np.zeros((len(scene.items), HIGH, HIGH), np.uint8)
    for mask, item in zip(masks, scene.items, strict=True):
        top, left = (CELL * place for place in divmod(item.cell, GRID))
        cell = mask[top : top + CELL, left : left + CELL]
        if isinstance(item, Thing):
            cell[:] = thing_mask(item)
        else:
            x, y, side = _place(item, fine=item is scene.card)
            cell[y : y + side, x : x + side] = 255
    return masks


def thing_mask(thing: Thing) -> Mask:
    """How much of each pixel of its cell, in the high view, a thing covers, of 255."""
    cell = CELL * SMOOTH
    centre_x, centre_y = ((0.5 + offset) * cell for offset in thing.offset)
    radius = thing.diameter / 2 * cell

    def disc(share: float) -> tuple[int, int, int, int]:
        reach = radius * share
        left, top = round(centre_x - reach), round(centre_y - reach)
        return left, top, round(centre_x + reach) - 1, round(centre_y + reach) - 1

    large = Image.new("L", (cell, cell))
    pen = ImageDraw.Draw(large)
    if thing.shape in OUTLINES:
        outline = OUTLINES[thing.shape]
        pen.polygon([(round(centre_x + x * radius), round(centre_y + y * radius)) for x, y in outline], fill=255)
    else:
        pen.ellipse(disc(1.0), fill=255)
        if thing.shape == "ring":
            pen.ellipse(disc(RING_HOLE), fill=0)
    return np.asarray(large.reduce(SMOOTH))


def letter_strokes(letter: str) -> Int[np.ndarray, "5 5"]:
    """1 where a letter has ink, 0 elsewhere."""
    rows = [row.ljust(5, ".") for row in LETTER_ROWS[letter].split()]
    return np.array([[int(stroke == "#") for stroke in row] for row in rows])


def _place(plate: Plate, *, fine: bool) -> tuple[int, int, int]:
    """Left, top and width of a plate in its cell, in pixels of the high view; whole pixels of the low one."""
    side = 28 if fine else 56
    steps = (CELL - side) // FINE
    x, y = (FINE * min(int(share * (steps + 1)), steps) for share in plate.room)
    return x, y, side


def _draw_plate(cell: Int[np.ndarray, "CELL CELL 3"], plate: Plate, *, fine: bool) -> None:
    x, y, side = _place(plate, fine=fine)
    stroke = side // 7
    strokes = np.kron(letter_strokes(plate.letter), np.ones((stroke, stroke), np.int64))
    inside = cell[y : y + side, x : x + side]
    letter = inside[stroke : 6 * stroke, stroke : 6 * stroke]
    if fine:
        inside[:] = CARD_RGB
        letter += (strokes * np.where(np.arange(len(strokes)) % FINE, -STRIPE, STRIPE))[:, :, None]
    else:
        inside[:] = SIGN_RGB
        letter[strokes == 1] = INK_RGB


def _rgb(base: tuple[int, int, int], tint: tuple[int, int, int]) -> Int[np.ndarray, " 3"]:
    return np.clip(np.add(base, tint), 0, 255)
