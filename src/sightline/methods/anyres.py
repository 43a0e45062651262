"""LLaVA-NeXT's any-resolution: the tokens of every crop go into the language model, after those of a small view.

    image -> [small view][crops of the whole image, row by row, without padding, a learned token after each row]

It is the baseline of what VLSA compresses, and transformers has it: such a model is saved as a stock `llava_next`
checkpoint, and computes what that computes (tested).

Source: LLaVA-NeXT (Liu et al. 2024), as transformers' `LlavaNextModel` has it.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from pydantic import PositiveInt
from torch import Tensor, nn
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from ..data.view import Box, Frame, crops_of
from ..errors import SightlineError
from ..types import Batch
from .abilities import BuiltIn
from .base import MethodConfig, Needs, Size, Sizes, Tap, Views

PINPOINTS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""Rows and columns of the rasters that LLaVA-NeXT chooses from, in its order."""
BLACK = (0, 0, 0)
FORMAT = 1
"""Raised when views are cut in another way."""


class AnyResConfig(MethodConfig):
    """Options of any-resolution."""

    pinpoints: tuple[tuple[PositiveInt, PositiveInt], ...] = PINPOINTS
    """Rows and columns of the rasters of crops to choose from; an image is scaled to fill the one that fits it best."""


class AnyResViews(Views):
    """The whole image squeezed into a small view, and crops of it on a raster, padded all around."""

    def __init__(self, config: AnyResConfig) -> None:
        self.config = config

    def raster(self, size: Size, side: int) -> tuple[int, int]:
        """Rows and columns of an image of (width, height): the raster that shows most of it with the least padding."""
        resolutions = [(rows * side, columns * side) for rows, columns in self.config.pinpoints]
        height, width = select_best_resolution((size[1], size[0]), resolutions)
        return height // side, width // side

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"format": FORMAT, "pinpoints": self.config.pinpoints}

    def count(self, size: Size, side: int) -> int:
        rows, columns = self.raster(size, side)
        return 1 + rows * columns

    def box(self, size: Size, side: int) -> Box:
        return Box(0.0, 0.0, float(size[0]), float(size[1]))

    def cut(self, image: Image.Image, frame: Frame) -> list[Image.Image]:
        side = frame.side
        rows, columns = self.raster(image.size, side)
        wide, high = columns * side, rows * side
        across, down = wide / image.width, high / image.height
        if across < down:
            size = (wide, min(math.ceil(image.height * across), high))
        else:
            size = (min(math.ceil(image.width * down), wide), high)
        canvas = Image.new("RGB", (wide, high), BLACK)
        canvas.paste(image.resize(size, frame.resample), ((wide - size[0]) // 2, (high - size[1]) // 2))
        return [image.resize((side, side), frame.resample), *crops_of(canvas, side)]

    def tokens(self, size: Size, side: int, per_view: int) -> int:
        rows, columns = self.raster(size, side)
        grid = math.isqrt(per_view)
        high, wide = (end - begin for begin, end in shown(size, rows * grid, columns * grid))
        return per_view + high * (wide + 1)


def shown(size: Size, rows: int, columns: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Which rows, and which columns, of a raster of tokens show an image of (width, height) and not its padding."""
    width, height = size
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return (padding, rows - padding), (0, columns)
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return (0, rows), (padding, columns - padding)


class AnyRes(BuiltIn):
    """Tokens of all crops, and a learned one at the end of each of their rows."""

    name = "anyres"
    model_type = "llava_next"
    Config = AnyResConfig
    config: AnyResConfig

    def __init__(self, config: AnyResConfig, sizes: Sizes) -> None:
        """
        Raises:
            SightlineError: if a view's tokens are no square grid, or a raster has no crops.
        """
        super().__init__(config, sizes)
        self.views = AnyResViews(config)
        self.grid = math.isqrt(sizes.tokens)
        if self.grid**2 != sizes.tokens:
            raise SightlineError(
                f"any-resolution lays a square grid of tokens for each crop, and the connector gives {sizes.tokens}. "
                "Say model.vision_select=patch."
            )
        if not config.pinpoints or any(rows * columns < 2 for rows, columns in config.pinpoints):
            raise SightlineError(f"pinpoints={config.pinpoints}: every raster needs two crops or more.")
        self.newline = nn.Parameter(torch.randn(sizes.d_llm) / sizes.d_llm**0.5)

    @property
    def needs(self) -> Needs:
        return Needs(views=self.views, edits=("visual",), reshapes=("visual",))

    def edit(self, tap: Tap, x: Tensor, batch: Batch, kept: dict[str, Tensor]) -> Tensor:
        views = x.unflatten(0, (-1, self.grid**2))
        side = batch.pixel_values.shape[-1]
        laid = [x[:0] + 0 * self.newline]  # a batch without images has the token in its graph, too
        for mine, (height, width) in zip(
            views.split(batch.view_counts.tolist()), batch.image_sizes.tolist(), strict=True
        ):
            laid += [mine[0], self.laid_out(mine[1:], (width, height), side)]
        return torch.cat(laid)

    def laid_out(self, crops: Tensor, size: Size, side: int) -> Tensor:
        """The tokens of an image's crops, row by row of the whole image, each row with its end."""
        rows, columns = self.views.raster(size, side)
        whole = crops.unflatten(1, (self.grid, self.grid)).unflatten(0, (rows, columns))
        whole = whole.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        (top, bottom), (left, right) = shown(size, rows * self.grid, columns * self.grid)
        inside = whole[top:bottom, left:right]
        ends = self.newline.to(inside.dtype).expand(len(inside), 1, -1)
        return torch.cat([inside, ends], dim=1).flatten(0, 1)

    def stock_config(self, side: int) -> Mapping[str, Any]:
        return {"image_grid_pinpoints": [[rows * side, columns * side] for rows, columns in self.config.pinpoints]}

    def stock_state(self) -> Mapping[str, Tensor]:
        return {"model.image_newline": self.newline.data}

    def load_stock_state(self, state: Mapping[str, Tensor]) -> None:
        self.newline = nn.Parameter(state["model.image_newline"])

    @classmethod
    def record_of(cls, config: Mapping[str, Any], side: int) -> dict[str, Any]:
        grids = config["image_grid_pinpoints"]
        for height, width in grids:
            if height % side or width % side:
                raise SightlineError(
                    f"image_grid_pinpoints has {height} x {width}, which is no raster of views of {side} pixels, so "
                    "its images would be cut in another way. Sightline loads checkpoints whose pinpoints are."
                )
        return {"name": cls.name, "pinpoints": [[height // side, width // side] for height, width in grids]}

    def image_processor(self, fitted: Any) -> LlavaNextImageProcessorPil:
        side = Frame.of(fitted).side
        return LlavaNextImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            resample=fitted.resample,
            image_mean=fitted.image_mean,
            image_std=fitted.image_std,
            rescale_factor=fitted.rescale_factor,
            **self.stock_config(side),
        )
