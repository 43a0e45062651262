"""Views of VLSA: any image on a raster of crops, its padding known, and both kinds of view of the same pixels."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from PIL import Image

from sightline.data.view import Frame
from sightline.methods.anyres import PINPOINTS
from sightline.methods.vlsa.views import (
    Raster,
    by_crop,
    centres,
    covering,
    raster_of,
    shown_in_crops,
    shown_in_low,
    views_of,
)

SIDE, GRID = 8, 4
FRAME = Frame(SIDE, (127, 127, 127))
sizes = strategies.tuples(strategies.integers(1, 200), strategies.integers(1, 200))


def shapes(max_crops: int) -> list[tuple[int, int]]:
    return [(r, c) for r in range(1, max_crops + 1) for c in range(1, max_crops // r + 1)]


@given(size=sizes, max_crops=strategies.integers(1, 9))
def test_an_image_is_scaled_no_more_than_it_must_be(size, max_crops):
    raster = raster_of(size, SIDE, max_crops)
    assert 1 <= raster.crops <= max_crops
    assert raster.rows == -(-raster.height // SIDE) and raster.columns == -(-raster.width // SIDE), "no crop of padding"
    fits = any(r * SIDE >= size[1] and c * SIDE >= size[0] for r, c in shapes(max_crops))
    if fits:
        assert (raster.width, raster.height) == size
    else:
        scale = max(min(r * SIDE / size[1], c * SIDE / size[0]) for r, c in shapes(max_crops))
        for length, scaled in zip(size, (raster.width, raster.height), strict=True):
            assert scaled <= max(1, length * scale + 1e-6) < scaled + 1 or scaled == 1


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((672, 672), Raster(2, 2, 672, 672, 336)),
        ((336, 336), Raster(1, 1, 336, 336, 336)),
        ((337, 336), Raster(1, 2, 337, 336, 336)),
        ((3000, 4000), Raster(2, 2, 504, 672, 336)),
        ((1, 4000), Raster(4, 1, 1, 1344, 336)),
        ((4000, 1), Raster(1, 4, 1344, 1, 336)),
        ((100, 60), Raster(1, 1, 100, 60, 336)),
    ],
)
def test_rasters_by_hand(size, expected):
    assert raster_of(size, 336, 4) == expected


@pytest.mark.parametrize("size", [(1, 1), (50, 20), (400, 300), (300, 400), (1000, 200), (200, 1000), (4000, 20)])
def test_pinpoints_are_those_that_transformers_chooses(size):
    from transformers.image_processing_utils import select_best_resolution

    raster = raster_of(size, 336, 4, PINPOINTS)
    best = select_best_resolution((size[1], size[0]), [(r * 336, c * 336) for r, c in PINPOINTS])
    assert (raster.rows * 336, raster.columns * 336) == tuple(best)
    assert raster.width <= raster.columns * 336 and raster.height <= raster.rows * 336
    assert raster.width == raster.columns * 336 or raster.height == raster.rows * 336, "it fills the raster one way"


@given(size=sizes, max_crops=strategies.integers(1, 6), low=strategies.sampled_from(["padded", "original"]))
@settings(max_examples=50)
def test_every_view_has_the_towers_size(size, max_crops, low):
    raster = raster_of(size, SIDE, max_crops)
    views = views_of(Image.new("RGB", size, (200, 0, 0)), raster, FRAME, low)
    assert len(views) == raster.views and all(view.size == (SIDE, SIDE) and view.mode == "RGB" for view in views)


@given(size=sizes, max_crops=strategies.integers(2, 6))
@settings(max_examples=50)
def test_what_is_padding_is_known(size, max_crops):
    """A crop's patch is hidden where all of its pixels have the padding's colour, and shown where one has not."""
    raster = raster_of(size, SIDE, max_crops)
    views = views_of(Image.new("RGB", size, (200, 0, 0)), raster, FRAME)
    shown, patch = shown_in_crops(raster, GRID), SIDE // GRID
    assert shown.shape == (raster.crops, GRID**2)
    if raster.crops > 1:
        for crop, view in enumerate(views[1:]):
            cells = np.asarray(view).reshape(GRID, patch, GRID, patch, 3).transpose(0, 2, 1, 3, 4)
            red = (cells == (200, 0, 0)).all(-1).any((2, 3)).reshape(-1)
            assert shown[crop].tolist() == red.tolist()
    low = shown_in_low(raster, GRID).reshape(GRID, GRID)
    assert low[0, 0] and bool(low.any(0).sum() >= GRID * raster.width / (raster.columns * SIDE))


def test_patches_of_the_small_view_show_rectangles_of_the_crops():
    """On an image of 2 x 2 crops, a small patch covers 2 x 2 patches of one crop, in both rasters' order."""
    raster = raster_of((2 * SIDE, 2 * SIDE), SIDE, 4)
    low, high = centres(raster, GRID)
    assert low.shape == (GRID**2, 2) and high.shape == (4, GRID**2, 2)
    mean_of_squares = high.reshape(2, 2, 2, 2, 2, 2, 2).mean((3, 5)).permute(0, 2, 1, 3, 4).reshape(GRID**2, 2)
    assert torch.allclose(mean_of_squares, low, atol=1e-6)


@given(size=sizes, max_crops=strategies.integers(2, 6))
@settings(max_examples=50)
def test_a_small_view_of_the_original_covers_what_it_shows(size, max_crops):
    """low=original: each patch of the small view covers the crops' patches that show the same part of the image."""
    raster = raster_of(size, SIDE, max_crops)
    small, high = centres(raster, GRID, "original")
    covered = covering(raster, GRID, "original")
    shown = shown_in_crops(raster, GRID, "original").flatten()
    assert bool((covered.sum(0) <= 1).all())
    if raster.views == 1:
        assert torch.equal(covered, torch.eye(GRID**2, dtype=torch.bool)) and shown.all()
        return
    part = torch.tensor([raster.height / (raster.rows * SIDE), raster.width / (raster.columns * SIDE)])
    inside = (high.flatten(0, 1) < part).all(1)
    assert torch.equal(covered.any(0), inside), "what lies beyond the image is covered by none"
    token, key = covered.nonzero().T
    assert bool(((small[token] - high.flatten(0, 1)[key]).abs() <= part / (2 * GRID) + 1e-6).all())


def test_a_patch_that_does_not_divide_the_side():
    """As of SigLIP at 384 pixels by 14: 27 patches, and six pixels that the tower does not see."""
    raster = raster_of((384, 15), 384, 4)
    rows = shown_in_crops(raster, 27).reshape(27, 27)
    assert rows[:, 0].tolist() == [True, True] + 25 * [False]
    assert shown_in_crops(raster_of((384, 14), 384, 4), 27).reshape(27, 27)[:, 0].sum() == 1


def test_crops_are_in_order_row_by_row():
    raster = Raster(2, 3, 24, 16, SIDE)
    numbers = torch.arange(2 * GRID * 3 * GRID).reshape(2 * GRID, 3 * GRID)
    split = by_crop(numbers, raster, GRID)
    assert split.shape == (6, GRID**2)
    assert split[4].reshape(GRID, GRID).tolist() == numbers[GRID:, GRID : 2 * GRID].tolist()
    picture = Image.fromarray((np.arange(16 * 24) % 251).reshape(16, 24).astype(np.uint8)).convert("RGB")
    views = views_of(picture, raster, FRAME)
    assert np.array_equal(np.asarray(views[1 + 4]), np.asarray(picture)[8:, 8:16])


def test_the_small_view_of_the_original_has_no_padding():
    raster = raster_of((SIDE + 1, SIDE), SIDE, 4)
    red = Image.new("RGB", (SIDE + 1, SIDE), (200, 0, 0))
    padded, original = (np.asarray(views_of(red, raster, FRAME, low)[0]) for low in ("padded", "original"))
    assert (original == (200, 0, 0)).all() and not (padded == (200, 0, 0)).all()
    assert shown_in_low(raster, GRID, "original").all() and not shown_in_low(raster, GRID).all()
