import hashlib

import numpy as np
import pytest

from sightline.world.draw import BACKGROUND_RGB, COLOUR_RGB, patch_truth, render, thing_masks
from sightline.world.scene import BACKGROUNDS, COLOURS, SHAPES, Geometry, Scene, Thing, sample_scene

SCENES = [sample_scene(5, split, i) for split in ("train", "novel") for i in range(60)]


def thing(shape: str, colour: str = "red", cell: int = 0) -> Thing:
    return Thing(colour, shape, "large", cell, diameter=0.85, offset=(0.0, 0.0), tint=(0, 0, 0))


def test_same_seed_same_pixels_on_every_machine():
    """The hash was taken with Pillow 13.0.0 and numpy 2.4.6 on x86-64, over 40 training pictures of seed 0."""
    pixels = b"".join(render(sample_scene(0, "train", i)).tobytes() for i in range(40))
    assert hashlib.sha256(pixels).hexdigest() == "48c0b24a1ad414581189a404c807f23ad8d8f983e696b5b66156907216ee61e8"


def test_pixels_that_a_thing_covers_have_its_colour_and_others_the_backgrounds():
    for scene in SCENES:
        pixels = np.asarray(render(scene)).astype(int)
        masks = thing_masks(scene)
        assert np.all(
            pixels[masks.sum(0) == 0] == np.clip(np.add(BACKGROUND_RGB[scene.background], scene.tint), 0, 255)
        )
        for one, mask in zip(scene.things, masks, strict=True):
            assert np.all(pixels[mask == 255] == np.clip(np.add(COLOUR_RGB[one.colour], one.tint), 0, 255))


def test_truth_by_patch_agrees_with_the_pixels():
    """Read back from the drawing: how much of a patch is not background, and how much is quite the thing's."""
    for scene in SCENES:
        pixels, truth = np.asarray(render(scene)).astype(float), patch_truth(scene, 16)
        for number in range(16):
            row, column = divmod(number, 4)
            patch = pixels[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16].reshape(-1, 3)
            background = np.clip(np.add(BACKGROUND_RGB[scene.background], scene.tint), 0, 255)
            foreign = np.abs(patch - background).sum(1) > 0
            if truth.thing[number] < 0:
                assert not foreign.any() and truth.words[number] == (scene.background,)
                continue
            one = scene.things[truth.thing[number]]
            assert truth.words[number] == (one.colour, one.shape)
            # Smooth edges count as whole pixels here and by their share there.
            full = (np.abs(patch - np.clip(np.add(COLOUR_RGB[one.colour], one.tint), 0, 255)).sum(1) == 0).mean()
            assert full - 1e-9 <= truth.coverage[number] <= foreign.mean() + 1e-9


@pytest.mark.parametrize("patch", [4, 8, 16, 32])
def test_coverage_is_the_same_area_for_every_size_of_patch(patch: int):
    for scene in SCENES[:12]:
        area = thing_masks(scene).sum() / 255
        assert patch_truth(scene, patch).coverage.sum() * patch**2 == pytest.approx(area)


def test_every_colour_and_background_can_be_told_from_every_other():
    known = list({**COLOUR_RGB, **BACKGROUND_RGB}.values())
    for i, one in enumerate(known):
        for other in known[:i]:
            assert np.abs(np.subtract(one, other)).sum() > 72  # two tints of 12 on three channels


def test_every_shape_has_a_silhouette_of_its_own():
    masks = {shape: thing_masks(Scene("black", (thing(shape),)))[0] > 127 for shape in SHAPES}
    for i, one in enumerate(SHAPES):
        for other in SHAPES[:i]:
            assert (masks[one] ^ masks[other]).sum() > 0.15 * masks[one].sum(), (one, other)


def test_a_larger_picture_shows_the_same_scene():
    scene = Scene(BACKGROUNDS[0], tuple(thing(s, COLOURS[i], i) for i, s in enumerate(SHAPES[:4])))
    small, large = (patch_truth(scene, g.image // 4, g).coverage for g in (Geometry(64), Geometry(128)))
    assert np.abs(small - large).max() < 0.04
