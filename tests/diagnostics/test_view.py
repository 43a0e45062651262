"""What the lens draws is what the model sees: the box of an image is held against the pixels that the tower gets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from sightline.data.view import Box, Sight, seen_box
from sightline.diagnostics.lens import grid_of
from sightline.diagnostics.material import Case, TokenTruth
from sightline.diagnostics.subject import truth_seen
from sightline.errors import SightlineError
from sightline.methods.base import OneView

SQUARE = {"height": 32, "width": 32}
PROCESSORS = {
    "pad": LlavaImageProcessorPil(do_pad=True, size={"shortest_edge": 32}, crop_size=SQUARE),
    "crop": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE),
    "resize larger, then crop": CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=SQUARE),
    "crop beyond the image": CLIPImageProcessorPil(size={"shortest_edge": 20}, crop_size=SQUARE),
    "squeeze": SiglipImageProcessorPil(size=SQUARE),
}


@pytest.mark.parametrize("size", [(64, 64), (120, 60), (61, 117)], ids=str)
@pytest.mark.parametrize("name", list(PROCESSORS))
def test_the_picture_is_what_the_tower_gets(name: str, size: tuple[int, int]):
    processor = PROCESSORS[name]
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    image = Image.fromarray(np.stack([x, y, 128 + 0 * x], axis=-1).astype(np.uint8))
    pixels = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    given = (pixels.transpose(1, 2, 0) * processor.image_std + processor.image_mean) * 255
    drawn = np.asarray(Sight(processor, OneView()).drawn(image, 32), dtype=np.float64)
    difference = np.abs(drawn - given).max(axis=-1)
    assert np.median(difference) < 2
    assert (difference > 12).mean() < 0.08  # at most a line of pixels, where padding begins within one


def test_the_boxes_of_an_image_that_is_not_square():
    assert seen_box(PROCESSORS["pad"], (120, 60)) == Box(0.0, -30.0, 120.0, 90.0)
    assert seen_box(PROCESSORS["crop"], (120, 60)) == Box(30.0, 0.0, 90.0, 60.0)
    assert seen_box(PROCESSORS["squeeze"], (120, 60)) == Box(0.0, 0.0, 120.0, 60.0)


def test_cells_tile_the_box_and_know_padding():
    box = Box(0.0, -30.0, 120.0, 90.0)
    assert box.cell(0, 0, 4) == Box(0.0, -30.0, 30.0, 0.0) and box.cell(3, 3, 4) == Box(90.0, 60.0, 120.0, 90.0)
    outside = [box.cell(row, 1, 4).is_outside((120, 60)) for row in range(4)]
    assert outside == [True, False, False, True]


def test_truth_counts_only_where_the_whole_image_is_seen():
    case = Case("a", Path("a.png"), caption="", patches=(TokenTruth(("red",), -1, 0.0),) * 4)
    assert len(truth_seen(Sight(PROCESSORS["crop"], OneView()), case, (64, 64), 4)) == 4
    assert truth_seen(Sight(PROCESSORS["resize larger, then crop"], OneView()), case, (64, 64), 4) == ()
    assert truth_seen(Sight(PROCESSORS["pad"], OneView()), case, (64, 48), 4) == ()


def test_tokens_that_are_no_square_have_no_places():
    assert grid_of(36) == 6
    with pytest.raises(SightlineError, match="are no square grid, so they have no places"):
        grid_of(37)
