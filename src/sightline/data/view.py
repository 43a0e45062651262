"""Which part of an image a model sees, and where in it each visual token stands.

An image processor pads an image to a square (`model.image_fit=pad`), or cuts its middle out (`crop`), or squeezes it.
All three are one thing here: a box in the image's own pixels, which the tower sees whole, and over which its grid of
tokens is laid. Where the box reaches beyond the image, the model sees padding.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from ..methods.base import Views

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Frame:
    """What an image processor makes views to: their size, and how it resizes."""

    side: int
    """Pixels along a view."""
    colour: Colour
    """The mean that the tower was trained on, for what is not image."""
    resample: Image.Resampling = Image.Resampling.BICUBIC

    @classmethod
    def of(cls, image_processor: Any) -> "Frame":
        """Colours are rounded down, as LLaVA's own processor does."""
        red, green, blue = (int(255 * channel) for channel in image_processor.image_mean)
        return cls(output_size(image_processor)[0], (red, green, blue), Image.Resampling(image_processor.resample))


@dataclass(frozen=True)
class Box:
    """The part of an image that the model sees, in the image's own pixels; it may reach beyond the image."""

    left: float
    top: float
    right: float
    bottom: float

    def is_whole(self, size: tuple[int, int]) -> bool:
        """Whether this is all of an image of (width, height), and nothing else."""
        near = ((self.left, 0), (self.top, 0), (self.right, size[0]), (self.bottom, size[1]))
        return all(abs(edge - end) < 0.5 for edge, end in near)

    def cell(self, row: int, column: int, grid: int) -> "Box":
        """What one token of a grid of `grid` by `grid` stands for."""
        width, height = (self.right - self.left) / grid, (self.bottom - self.top) / grid
        left, top = self.left + column * width, self.top + row * height
        return Box(left, top, left + width, top + height)

    def is_outside(self, size: tuple[int, int]) -> bool:
        """Whether its middle lies beyond an image of (width, height)."""
        x, y = (self.left + self.right) / 2, (self.top + self.bottom) / 2
        return not (0 <= x <= size[0] and 0 <= y <= size[1])


@dataclass(frozen=True)
class Sight:
    """What a model is shown of an image in its first view: all that it sees of it. It can be pickled."""

    image_processor: Any
    views: "Views"

    @property
    def frame(self) -> Frame:
        return Frame.of(self.image_processor)

    def box(self, size: tuple[int, int]) -> Box:
        """The part of an image of (width, height) that the first view shows."""
        return self.views.box(size, self.frame.side) or seen_box(self.image_processor, size)

    def first(self, image: Image.Image) -> Image.Image:
        """The first view, for the image processor."""
        return self.views.cut(image, self.frame)[0]

    def drawn(self, image: Image.Image, side: int, *, pixelated: bool = True) -> Image.Image:
        """The first view, `side` pixels wide and high, of an image that may be finer; see `seen_image`."""
        frame = self.frame
        pads = getattr(self.image_processor, "do_pad", False) or self.views.box(image.size, frame.side) is not None
        return seen_image(image, self.box(image.size), side, frame.colour if pads else (0, 0, 0), pixelated=pixelated)


def output_size(image_processor: Any) -> tuple[int, int]:
    """Height and width of the pixels that an image processor gives."""
    size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    side = size.get("shortest_edge")
    return (side, side) if side else (size["height"], size["width"])


def crops_of(picture: Image.Image, side: int) -> list[Image.Image]:
    """Squares of `side` pixels that tile a picture, row by row."""
    corners = [(top, left) for top in range(0, picture.height, side) for left in range(0, picture.width, side)]
    return [picture.crop((left, top, left + side, top + side)) for top, left in corners]


def seen_box(image_processor: Any, size: tuple[int, int]) -> Box:
    """The box that an image processor of CLIP's, LLaVA's, SigLIP's or DINOv2's kind makes its pixels of.

    It pads if it does, resizes, then cuts the middle out; `test_view.py` holds the box against the pixels.

    Args:
        size: width and height of the image.
    """
    width, height = size
    left = top = 0.0
    if getattr(image_processor, "do_pad", False):  # to a square, before it is resized: LLaVA's
        side = max(size)
        left, top = float(-((side - width) // 2)), float(-((side - height) // 2))
        width = height = side
    wide, high = _resized(image_processor, width, height)
    if image_processor.do_center_crop:
        crop = image_processor.crop_size
        cut_left, cut_top = _cut(wide, crop["width"]), _cut(high, crop["height"])
        across, down = width / wide, height / high
        left, top = left + cut_left * across, top + cut_top * down
        return Box(left, top, left + crop["width"] * across, top + crop["height"] * down)
    return Box(left, top, left + width, top + height)


def seen_image(image: Image.Image, box: Box, side: int, colour: Colour, *, pixelated: bool = True) -> Image.Image:
    """What the model sees, `side` pixels wide and high: finer than the tower takes it where the image is finer.

    Args:
        colour: of what lies beyond the image.
        pixelated: keep the pixels of an image that is enlarged four times or more apart, to look at them.
    """
    canvas = Image.new("RGB", (side, side), colour)
    across, down = side / (box.right - box.left), side / (box.bottom - box.top)
    inside = (max(box.left, 0), max(box.top, 0), min(box.right, image.width), min(box.bottom, image.height))
    place = [
        round((x - start) * scale)
        for x, start, scale in zip(inside, (box.left, box.top) * 2, (across, down) * 2, strict=True)
    ]
    drawn = (max(1, place[2] - place[0]), max(1, place[3] - place[1]))
    enlarged = pixelated and across >= 4 and down >= 4
    way = Image.Resampling.NEAREST if enlarged else Image.Resampling.BICUBIC
    canvas.paste(image.resize(drawn, way, box=inside), (place[0], place[1]))
    return canvas


def _resized(image_processor: Any, width: int, height: int) -> tuple[int, int]:
    """Width and height after resizing; the longer side of transformers' is cut to whole pixels."""
    if not image_processor.do_resize:
        return width, height
    size = image_processor.size
    if shortest := size.get("shortest_edge"):
        short, long = min(width, height), max(width, height)
        longer = int(shortest * long / short)
        return (shortest, longer) if width <= height else (longer, shortest)
    return size["width"], size["height"]


def _cut(length: int, wanted: int) -> int:
    """Where the middle begins: transformers' `center_crop`, whose padding is uneven where the rest is odd."""
    return (length - wanted) // 2 if length >= wanted else -math.ceil((wanted - length) / 2)
