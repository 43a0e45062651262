import hashlib
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.world.draw import (
    BACKGROUND_RGB,
    CARD_RGB,
    COLOUR_RGB,
    INK_RGB,
    SIDE,
    SIGN_RGB,
    VIEWS,
    View,
    item_masks,
    letter_strokes,
    patch_truth,
    render,
    render_cell,
    thing_mask,
)
from sightline.world.scene import BACKGROUNDS, LETTERS, SHAPES, SIZES, Plate, Scene, Size, Thing, sample_scene

SCENES = [sample_scene(5, split, i) for split in ("train", "novel") for i in range(40)]
rooms = st.tuples(st.floats(0, 1), st.floats(0, 1))
"""Where a plate can stand in its cell."""


def thing(shape: str, size: Size = "large", cell: int = 0) -> Thing:
    return Thing("red", shape, size, cell, 0.85 if size == "large" else 0.55, (0.0, 0.0), (0, 0, 0))


def pixels(scene: Scene, view: View) -> np.ndarray:
    return np.asarray(render(scene, view)).astype(int)


@pytest.mark.parametrize(
    ("view", "hash"),
    [
        ("low", "fee23d8ca1beaef9cacf03fbd1febb1c84579e0be92c617fc375e8a181d7cc81"),
        ("high", "0b6004004909a66bdb781267b5724122c2eabfb58096a9d35b7e714a86ca4c98"),
    ],
)
def test_same_seed_same_pixels_on_every_machine(view: View, hash: str):
    """The hashes were taken with Pillow 13.0.0 and numpy 2.4.6 on x86-64, over 40 training pictures of seed 0."""
    drawn = b"".join(render(sample_scene(0, "train", i), view).tobytes() for i in range(40))
    assert hashlib.sha256(drawn).hexdigest() == hash


def test_the_low_view_is_the_average_of_the_high_one_over_two_by_two_pixels():
    """Pillow averages two columns, then two rows, and rounds a half up each time."""
    for scene in SCENES:
        high = pixels(scene, "high")
        assert high.shape == (192, 192, 3)
        columns = (high[:, ::2] + high[:, 1::2] + 1) // 2
        assert np.array_equal(pixels(scene, "low"), (columns[::2] + columns[1::2] + 1) // 2)


@given(st.sampled_from(LETTERS), st.sampled_from(LETTERS), rooms)
def test_the_low_view_shows_nothing_at_all_of_a_cards_letter(one: str, other: str, room: tuple[float, float]):
    cards = [Scene("grey", (thing("ring"),), card=Plate(letter, 8, room)) for letter in (one, other)]
    assert np.array_equal(*(pixels(scene, "low") for scene in cards))
    assert np.array_equal(*(pixels(scene, "high") for scene in cards)) == (one == other)


@given(st.sampled_from(LETTERS), rooms)
def test_a_cards_letter_can_be_read_in_the_high_view(letter: str, room: tuple[float, float]):
    """The letter's pixels, four to a stroke, are those that are neither the card's colour nor the background's."""
    high = pixels(Scene("black", (), card=Plate(letter, 0, room)), "high")[:64, :64]
    other = (high != CARD_RGB).any(-1) & (high != BACKGROUND_RGB["black"]).any(-1)
    assert np.array_equal(trimmed(other), trimmed(np.kron(letter_strokes(letter), np.ones((4, 4), int)) == 1))


@pytest.mark.parametrize(("view", "stroke"), [("low", 4), ("high", 8)])
@given(letter=st.sampled_from(LETTERS), room=rooms)
def test_a_signs_letter_can_be_read_in_both_views(view: View, stroke: int, letter: str, room: tuple[float, float]):
    picture = pixels(Scene("white", (), sign=Plate(letter, 4, room)), view)
    ink = (picture == INK_RGB).all(-1)
    assert np.array_equal(trimmed(ink), trimmed(np.kron(letter_strokes(letter), np.ones((stroke, stroke), int)) == 1))


def trimmed(ink: np.ndarray) -> np.ndarray:
    """The smallest part with all of the ink."""
    rows, columns = (np.flatnonzero(ink.any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def test_letters_differ_in_four_strokes_or_more():
    for one, other in combinations(LETTERS, 2):
        assert (letter_strokes(one) != letter_strokes(other)).sum() >= 4, (one, other)


def test_pixels_that_an_item_covers_have_its_colours_and_others_the_backgrounds():
    for scene in SCENES:
        high, masks = pixels(scene, "high"), item_masks(scene)
        assert np.all(high[masks.max(0, initial=0) == 0] == background(scene))
        for item, mask in zip(scene.items, masks, strict=True):
            inside = high[mask == 255]
            if isinstance(item, Thing):
                assert np.all(inside == np.clip(np.add(COLOUR_RGB[item.colour], item.tint), 0, 255))
            else:
                plain = CARD_RGB if item is scene.card else SIGN_RGB
                share = (inside == plain).all(-1).mean()
                assert 0.6 < share < 0.9  # The rest is the letter: 9 to 17 strokes of 49.


def background(scene: Scene) -> np.ndarray:
    return np.clip(np.add(BACKGROUND_RGB[scene.background], scene.tint), 0, 255)


@pytest.mark.parametrize("view", VIEWS)
def test_truth_by_patch_agrees_with_the_pixels(view: View):
    """Read back from the drawing: how much of a patch is not background bounds what the truth says is covered."""
    for scene in SCENES:
        picture, truth = pixels(scene, view), patch_truth(scene, 16, view)
        across = SIDE[view] // 16
        assert len(truth.item) == len(truth.words) == across**2
        for number, item in enumerate(truth.item):
            row, column = divmod(number, across)
            patch = picture[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16].reshape(-1, 3)
            foreign = (np.abs(patch - background(scene)).sum(1) > 0).mean()
            if item < 0:
                assert foreign == 0 and truth.coverage[number] == 0
                assert truth.words[number] == (scene.background,)
                continue
            shown = scene.items[item]
            assert divmod(shown.cell, 3) == (row * 3 // across, column * 3 // across)
            # Smooth edges count as whole pixels here and by their share there.
            assert 0 < truth.coverage[number] <= foreign + 1e-9
            if isinstance(shown, Thing):
                full = np.clip(np.add(COLOUR_RGB[shown.colour], shown.tint), 0, 255)
                assert truth.coverage[number] >= (np.abs(patch - full).sum(1) == 0).mean() - 1e-9
                assert truth.words[number] == (shown.size, shown.colour, shown.shape)


def test_the_letter_of_a_card_is_true_of_a_patch_in_the_high_view_alone():
    scene = Scene("white", (thing("star", cell=4),), Plate("k", 8, (0.0, 0.0)), Plate("m", 0, (0.0, 0.0)))
    words = {view: set(patch_truth(scene, 16, view).words) for view in VIEWS}
    assert words["low"] == {("white",), ("large", "red", "star"), ("sign", "k"), ("card",)}
    assert words["high"] == {("white",), ("large", "red", "star"), ("sign", "k"), ("card", "m")}


def test_the_views_have_the_same_truth_of_the_same_part_of_the_picture():
    for scene in SCENES:
        low, high = patch_truth(scene, 8, "low"), patch_truth(scene, 16, "high")
        assert np.array_equal(low.item, high.item) and np.array_equal(low.coverage, high.coverage)


@pytest.mark.parametrize("patch", [4, 8, 16, 32])
def test_coverage_is_the_same_area_for_every_size_of_patch(patch: int):
    for scene in SCENES[:12]:
        area = item_masks(scene).sum() / 255 / 4
        assert patch_truth(scene, patch).coverage.sum() * patch**2 == pytest.approx(area)


def test_a_patch_that_shows_several_items_is_of_the_one_that_covers_most_of_it():
    things = (thing("circle", "small", cell=0), thing("circle", "large", cell=1), thing("ring", "small", cell=2))
    truth = patch_truth(Scene("white", things), 96)
    assert truth.item.tolist() == [1]
    assert truth.coverage[0] == pytest.approx(np.pi * (0.85 / 6) ** 2, rel=0.02)  # The circle's share of the picture.


@pytest.mark.parametrize("view", VIEWS)
def test_the_cell_of_an_item_is_cut_out_of_the_picture(view: View):
    side = SIDE[view] // 3
    for scene in SCENES:
        for item in scene.items:
            row, column = divmod(item.cell, 3)
            cut = pixels(scene, view)[row * side : row * side + side, column * side : column * side + side]
            assert np.array_equal(np.asarray(render_cell(scene, item, view)), cut)


def test_every_colour_and_background_can_be_told_from_every_other():
    """Two tints of 12 on three channels are 72 in all; whoever is farther apart cannot be confused."""
    for one, other in combinations({**COLOUR_RGB, **BACKGROUND_RGB}.values(), 2):
        assert np.abs(np.subtract(one, other)).sum() > 72


@pytest.mark.parametrize("size", SIZES)
def test_every_shape_has_a_silhouette_of_its_own(size: Size):
    masks = {shape: thing_mask(thing(shape, size)) > 127 for shape in SHAPES}
    for one, other in combinations(SHAPES, 2):
        assert (masks[one] ^ masks[other]).sum() > 0.15 * masks[one].sum(), (one, other)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_large_thing_has_twice_the_area_of_a_small_one(shape: str):
    """(.85 / .55)**2 is 2.4; the thin arms of a small cross are rounded up by a pixel. At the bounds of the sizes, .82
    and .64, it is 1.6."""
    large, small = (float(thing_mask(thing(shape, size)).sum()) for size in ("large", "small"))
    assert large / small == pytest.approx((0.85 / 0.55) ** 2, rel=0.1)


def test_a_picture_without_items_is_its_background():
    for name in BACKGROUNDS:
        assert np.all(pixels(Scene(name, ()), "low") == BACKGROUND_RGB[name])
