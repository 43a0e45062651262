"""The pixels of a scene, and which thing covers which patch.

Things are drawn as masks at four times the size and averaged down, so that edges are smooth and coverage is
known. All vertices are whole numbers of the large drawing, and colours are blended in integers: the picture is the same
on every machine.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw

from .scene import Geometry, Scene, Thing

SUPERSAMPLE = 4

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


@dataclass(frozen=True)
class PatchTruth:
    """What each patch of a picture shows, patches in reading order."""

    thing: Int[np.ndarray, " patches"]
    """Number in `scene.things` of the thing that covers most of the patch; -1 where there is none."""
    coverage: Float[np.ndarray, " patches"]
    """Fraction of the patch that this thing covers, 0 to 1."""
    words: tuple[tuple[str, ...], ...]
    """The thing's colour and shape; the background's word where there is none."""


def thing_masks(scene: Scene, geometry: Geometry | None = None) -> UInt8[np.ndarray, "things height width"]:
    """How much of each pixel each thing covers, of 255."""
    geometry = geometry or Geometry()
    masks = [_mask(thing, geometry) for thing in scene.things]
    return np.stack(masks) if masks else np.zeros((0, geometry.image, geometry.image), np.uint8)


def _mask(thing: Thing, geometry: Geometry) -> UInt8[np.ndarray, "height width"]:
    cell = geometry.cell * SUPERSAMPLE
    row, column = divmod(thing.cell, geometry.grid)
    centre_x = (column + 0.5 + thing.offset[0]) * cell
    centre_y = (row + 0.5 + thing.offset[1]) * cell
    radius = thing.diameter / 2 * cell

    def disc(share: float) -> tuple[int, int, int, int]:
        reach = radius * share
        return (
            round(centre_x - reach),
            round(centre_y - reach),
            round(centre_x + reach) - 1,
            round(centre_y + reach) - 1,
        )

    side = geometry.image * SUPERSAMPLE
    large = Image.new("L", (side, side))
    pen = ImageDraw.Draw(large)
    if thing.shape in OUTLINES:
        pen.polygon(
            [(round(centre_x + x * radius), round(centre_y + y * radius)) for x, y in OUTLINES[thing.shape]],
            fill=255,
        )
    else:
        pen.ellipse(disc(1.0), fill=255)
        if thing.shape == "ring":
            pen.ellipse(disc(RING_HOLE), fill=0)
    return np.asarray(large.reduce(SUPERSAMPLE))


def render(scene: Scene, geometry: Geometry | None = None) -> Image.Image:
    """The picture of a scene, RGB."""
    geometry = geometry or Geometry()

    def rgb(base: tuple[int, int, int], tint: tuple[int, int, int]) -> np.ndarray:
        return np.clip(np.add(base, tint), 0, 255)

    canvas = np.empty((geometry.image, geometry.image, 3), np.int64)
    canvas[:] = rgb(BACKGROUND_RGB[scene.background], scene.tint)
    for thing, mask in zip(scene.things, thing_masks(scene, geometry), strict=True):
        alpha = mask[:, :, None].astype(np.int64)
        canvas = (canvas * (255 - alpha) + rgb(COLOUR_RGB[thing.colour], thing.tint) * alpha + 127) // 255
    return Image.fromarray(canvas.astype(np.uint8))


def patch_truth(scene: Scene, patch: int, geometry: Geometry | None = None) -> PatchTruth:
    """What each patch shows, read from the masks that the picture was drawn with.

    Args:
        patch: width and height of a patch in pixels; it divides the picture's.
    """
    geometry = geometry or Geometry()
    side, rest = divmod(geometry.image, patch)
    assert rest == 0, f"patches of {patch} px do not tile a picture of {geometry.image} px"
    masks = thing_masks(scene, geometry).reshape(-1, side, patch, side, patch)
    covered = masks.mean(axis=(2, 4)).reshape(len(scene.things), side * side) / 255
    if not scene.things:
        covered = np.zeros((1, side * side))
    coverage = covered.max(axis=0)
    thing = np.where(coverage > 0, covered.argmax(axis=0), -1)
    words = tuple(scene.things[i].pair if i >= 0 else (scene.background,) for i in thing)
    return PatchTruth(thing, coverage, words)
