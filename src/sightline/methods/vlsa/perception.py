"""VLSA's compressive encoding: high resolution, gathered into the tokens of a small view by an SA-Perceiver.

However many crops an image has, the language model reads as many tokens as for one view. Beside them comes a token for
the whole image, which goes through the connector too and never into the language model: the reconstruction's losses
read it (`methods/vlsa/reconstruct.py`).

Source: VLSA, section 3.1, equations 1 and 2; deviations in docs/papers.md.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...config import Stage
from ...data.view import Box, Frame
from ...errors import SightlineError
from ...types import Batch
from ..anyres import PINPOINTS
from ..base import AlignmentMethod, MethodConfig, Needs, Size, Sizes, Tap, Views
from ..counting import counted
from .perceiver import Activation, Attention, SAPerceiver, sincos
from .views import (
    Low,
    Raster,
    centres,
    covering,
    raster_of,
    shown_in_crops,
    shown_in_low,
    views_of,
)

FORMAT = 1
"""Raised when views are cut in another way."""
WHOLE = "perceiver/whole"
"""The token of each image as a whole, [num_images, d_llm], among what the forward pass keeps."""

PRESETS: dict[str, dict[str, Any]] = {"vlsa_paper": {"scale": False, "normalise": False}}


class PerceptionConfig(MethodConfig):
    """Options of the SA-Perceiver."""

    presets = PRESETS
    preset: Literal["vlsa_paper"] | None = None
    """`vlsa_paper` takes equation 1 as it is printed, without a scale or a normaliser; options that are given stay."""
    max_crops: Annotated[int, Field(ge=1, le=64)] = 4
    """Crops of an image, at most: a larger one is scaled down first."""
    pinpoints: bool = False
    """Scale images to the best of LLaVA-NeXT's rasters, of 2 to 4 crops, instead of laying them out as they are."""
    low: Low = "padded"
    """What the small view shows: the padded image that the crops are cut from, or the original one, as LLaVA-NeXT's."""
    activation: Activation = "silu"
    """Of the scores of both attentions; the paper has SiLU."""
    scale: bool = True
    """Divide scores by the root of the width."""
    normalise: bool = True
    """Divide SiLU's weights by the number of keys, so that more crops do not mean more."""
    heads: Annotated[int, Field(ge=1)] = 1
    separate_values: bool = False
    """A matrix of its own for values, which share that of the keys in the paper."""
    space: Literal["vision", "llm"] = "vision"
    """Before the connector, in the tower's width, or after it, in the language model's."""
    positions: Literal["none", "sincos", "covering"] = "none"
    """What tells where a crop is: nothing, as in the paper; `sincos` added to queries and keys; or `covering`, where a
    token sees the patches that show its own part of the image alone."""

    @property
    def rasters(self) -> tuple[tuple[int, int], ...]:
        """Those that an image is scaled to, where it is."""
        if not self.pinpoints:
            return ()
        return tuple((rows, columns) for rows, columns in PINPOINTS if rows * columns <= self.max_crops)

    @model_validator(mode="after")
    def _some_raster_fits(self) -> "PerceptionConfig":
        if self.pinpoints and not self.rasters:
            raise ValueError(f"max_crops={self.max_crops} leaves no raster of pinpoints, which have 2 to 4 crops")
        return self


class Crops(Views):
    """A small view, and crops of the same padded image."""

    def __init__(self, config: PerceptionConfig) -> None:
        self.config = config

    def raster(self, size: Size, side: int) -> Raster:
        return raster_of(size, side, self.config.max_crops, self.config.rasters)

    def count(self, size: Size, side: int) -> int:
        return self.raster(size, side).views

    @property
    def facts(self) -> Mapping[str, Any]:
        config = self.config
        return {"format": FORMAT, "max_crops": config.max_crops, "pinpoints": config.pinpoints, "low": config.low}

    def box(self, size: Size, side: int) -> Box:
        if self.config.low == "original":
            return Box(0.0, 0.0, *map(float, size))
        raster = self.raster(size, side)
        across, down = size[0] / raster.width, size[1] / raster.height
        return Box(0.0, 0.0, raster.columns * side * across, raster.rows * side * down)

    def cut(self, image: Image.Image, frame: Frame) -> list[Image.Image]:
        return views_of(image, self.raster(image.size, frame.side), frame, self.config.low)

    def tokens(self, size: Size, side: int, per_view: int) -> int:
        return per_view


class Perception(AlignmentMethod):
    """Crops of an image, gathered into the tokens of its small view."""

    name = "perceiver"
    Config = PerceptionConfig
    config: PerceptionConfig

    def __init__(self, config: PerceptionConfig, sizes: Sizes) -> None:
        """
        Raises:
            SightlineError: if what it gathers is no square grid, a head has no whole width, or the connector gives
                another number of tokens than it reads.
        """
        super().__init__(config, sizes)
        self.views = Crops(config)
        self.tap: Tap = "patches" if config.space == "vision" else "visual"
        count, width = (sizes.patches, sizes.d_vision) if config.space == "vision" else (sizes.tokens, sizes.d_llm)
        self.grid = math.isqrt(count)
        if self.grid**2 != count:
            raise SightlineError(
                f"the SA-Perceiver gathers a square grid, and a view has {count} tokens. Say model.vision_select=patch."
            )
        if config.space == "vision" and sizes.tokens != sizes.patches:
            raise SightlineError(
                f"the connector makes {sizes.tokens} tokens of {sizes.patches} patches, and the SA-Perceiver hands it "
                "one more that stands for the whole image. Use connector=mlp or linear, or the option space=llm."
            )
        if width % config.heads:
            raise SightlineError(f"heads={config.heads} does not divide the width {width}. Use a divisor of it.")
        attention = Attention(config.activation, config.scale, config.normalise, config.heads)
        self.perceiver = SAPerceiver(width, attention, separate_values=config.separate_values)

    @property
    def needs(self) -> Needs:
        taps: tuple[Tap, ...] = ("patches", "visual") if self.tap == "patches" else ("visual",)
        return Needs(views=self.views, edits=taps, reshapes=taps)

    def edit(self, tap: Tap, x: Tensor, batch: Batch, kept: dict[str, Tensor]) -> Tensor:
        if tap == self.tap:
            x = self.gathered(x.view(-1, self.grid**2, x.shape[-1]), batch)
        if tap == "patches":
            return x
        tokens = x.view(-1, self.grid**2 + 1, x.shape[-1])
        kept[WHOLE] = tokens[:, -1]
        return tokens[:, :-1].flatten(0, 1)

    def gathered(self, x: Float[Tensor, "sum_views tokens d"], batch: Batch) -> Float[Tensor, "num_images tokens+1 d"]:
        """Each image's small view after it has gathered the crops, and the token of the whole image."""
        side = batch.pixel_values.shape[-1]
        rasters = [self.views.raster((width, height), side) for height, width in batch.image_sizes.tolist()]
        assert [raster.views for raster in rasters] == batch.view_counts.tolist(), "views are laid out by the same rule"
        if not rasters:
            return x.new_zeros(0, x.shape[1] + 1, x.shape[2]) + 0 * self.idle(x)
        views = x.split(batch.view_counts.tolist())
        crops = [mine[1:] if len(mine) > 1 else mine for mine in views]  # an image of one crop is its own
        high = pad_sequence([mine.flatten(0, 1) for mine in crops], batch_first=True)
        seen = pad_sequence([self.seen(raster).T for raster in rasters], batch_first=True).transpose(1, 2)
        shown = torch.stack([shown_in_low(raster, self.grid, self.config.low) for raster in rasters])
        places: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.config.positions == "sincos":
            low, there = zip(*(centres(raster, self.grid, self.config.low) for raster in rasters), strict=True)
            flat = pad_sequence([each.flatten(0, 1) for each in there], batch_first=True)
            places = sincos(torch.stack(low), x.shape[-1]).to(x), sincos(flat, x.shape[-1]).to(x)
        low = torch.stack([mine[0] for mine in views])
        return self.perceiver(low, high, shown.to(x.device), seen.to(x.device), *places)

    def seen(self, raster: Raster) -> Bool[Tensor, "queries_or_1 keys"]:
        """Which patches of the crops each token of the small view sees, and the token of the whole image last."""
        shown = shown_in_crops(raster, self.grid, self.config.low).flatten().unsqueeze(0)
        if self.config.positions != "covering":
            return shown
        covered = covering(raster, self.grid, self.config.low) & shown
        alone = ~covered.any(1, keepdim=True)  # a token of padding sees what the whole image does
        return torch.cat([covered | (alone & shown), shown])

    def operations(self, size: Size, side: int, stage: Stage | None = None) -> tuple[int, int]:
        asking, keys = self.grid**2 + 1, self.views.raster(size, side).crops * self.grid**2
        width = self.perceiver.query.shape[1]
        products = asking * 4 + keys * (1 if self.perceiver.w_v is None else 2)
        forward = 2 * width**2 * products + 4 * width * asking * (keys + asking)
        return forward, 2 * forward

    def kept(self, size: Size, side: int, stage: Stage) -> int:
        crops, width = self.views.raster(size, side).crops, self.perceiver.query.shape[1]
        with torch.device("meta"):
            perceiver = SAPerceiver(width, self.perceiver.attend, separate_values=self.perceiver.w_v is not None)
            low, high = torch.zeros(1, self.grid**2, width), torch.zeros(1, crops * self.grid**2, width)
            shown, seen = torch.ones(low.shape[:2], dtype=torch.bool), torch.ones(1, 1, high.shape[1], dtype=torch.bool)
        return counted(lambda: perceiver(low, high, shown, seen), perceiver).kept

    def idle(self, x: Tensor) -> Tensor:
        """Nothing, in the graph of every weight: what a batch without images leaves for the others to wait for."""
        return sum((parameter.sum() for parameter in self.parameters()), start=x.new_zeros(()))
