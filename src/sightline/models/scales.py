"""Several scales of an image for one tower: S2 (Shi et al. 2024, "When Do We Not Need Larger Vision Models?").

    pixels -> tiles of every scale -> the tower, on all of them at once -> merged and pooled -> patches

The tower sees every tile at its own size, and each scale ends as the tower's own grid: as many tokens as before, as
many times wider as there are scales, the smallest scale first (the paper's "S2-Wrapper"). Every scale is made of the
image itself, so none depends on another. Where it differs from the paper's code: pixels are resized with antialiasing,
and the tiles of all scales go through the tower in one call.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..errors import SightlineError
from .towers import PatchSelect, TowerSpec

Scales = Sequence[int]
"""Multiples of the tower's own size, ascending from 1."""


def check_scales(scales: Scales | None, select: PatchSelect) -> list[int] | None:
    """Scales that a model can have, as a list.

    Raises:
        SightlineError: for scales that are no ascending multiples from 1, or tokens beside the grid.
    """
    if scales is None:
        return None
    if len(scales) < 2 or scales[0] != 1 or any(b <= a for a, b in pairwise(scales)):
        raise SightlineError(
            f"vision_scales {list(scales)} should be multiples of the tower's size, ascending from 1, such as "
            "[1, 2, 3]. Leave it out for the tower's own size alone."
        )
    if select == "full":
        raise SightlineError(
            "vision_scales merges the grids of tiles, and vision_select=full has tokens beside them. Say "
            "vision_select=patch."
        )
    return list(scales)


def pixels_side(tower: TowerSpec, scales: Scales | None) -> int:
    """Pixels along a side of the image that a model takes: those of its largest scale."""
    return tower.image_size * max(scales or (1,))


def num_tiles(scales: Scales | None) -> int:
    """Tiles of a view that the tower sees."""
    return sum(scale**2 for scale in scales or (1,))


def resize(pixels: Float[Tensor, "views 3 height width"], side: int) -> Float[Tensor, "views 3 side side"]:
    """Images made smaller: bicubic, with antialiasing, in fp32."""
    if pixels.shape[-2:] == (side, side):
        return pixels
    small = F.interpolate(pixels.float(), size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return small.to(pixels.dtype)


def to_tiles(
    pixels: Float[Tensor, "views 3 large large"], scales: Scales, size: int
) -> Float[Tensor, "tiles 3 size size"]:
    """The tiles of each view in turn: scale by scale, each row by row.

    Args:
        size: of the tower, in pixels.

    Raises:
        SightlineError: for pixels of another size than the largest scale's.
    """
    large = size * max(scales)
    if pixels.shape[-2:] != (large, large):
        raise SightlineError(
            f"pixels of {pixels.shape[-2]} x {pixels.shape[-1]} for a model that takes {large} x {large}: scales "
            f"{list(scales)} of a tower of {size}. Use this model's own image processor."
        )
    tiles = []
    for scale in scales:
        rows = resize(pixels, scale * size).unflatten(3, (scale, size)).unflatten(2, (scale, size))
        tiles.append(rows.permute(0, 2, 4, 1, 3, 5).flatten(1, 2))
    return torch.cat(tiles, dim=1).flatten(0, 1)


def from_tiles(patches: Float[Tensor, "tiles patches d"], scales: Scales) -> Float[Tensor, "views patches wide"]:
    """What the tower gives for those tiles, as one grid for each view.

    The tiles of a scale are laid side by side as one large grid, whose cells of `scale` x `scale` patches are averaged.
    """
    grid = round(patches.shape[1] ** 0.5)
    of_views = patches.unflatten(0, (-1, num_tiles(scales)))
    pooled = []
    for scale, tiles in zip(scales, of_views.split([scale**2 for scale in scales], dim=1), strict=True):
        squares = tiles.unflatten(1, (scale, scale)).unflatten(3, (grid, grid))
        large = squares.transpose(2, 3).reshape(len(tiles), scale * grid, scale * grid, -1)
        cells = large.unflatten(2, (grid, scale)).unflatten(1, (grid, scale))
        pooled.append(cells.mean((2, 4)).flatten(1, 2))
    return torch.cat(pooled, dim=-1)
