from typing import get_args

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sightline.world.build_clip import clip_processor
from sightline.world.claims import truth_of
from sightline.world.clip_data import (
    NEVER,
    SEEN_SHARE,
    WORDS,
    ClipBatch,
    Kind,
    Look,
    clip_batch,
    look_at,
    picture_values,
    say,
    say_one,
    to_pixel_values,
    words_in,
)
from sightline.world.draw import COLOUR_RGB, VIEWS, View, item_masks, render
from sightline.world.lexicon import DISTRACTORS
from sightline.world.scene import BACKGROUNDS, COLOURS, LETTERS, sample_scene

from .checker import holds, statements_in

KINDS: tuple[Kind, ...] = get_args(Kind)
SIDES: dict[Kind, int] = {"cell": 32, "fine cell": 64, "grey cell": 32, "quarter": 96, "picture": 96}


def batch_of(kind: Kind, *, seed: int = 0, size: int = 12, wrong: int = 1) -> ClipBatch:
    return clip_batch(kind, size, np.random.default_rng(seed), seed=0, patch=16, shorten=0.5, wrong=wrong)


def looks_of(kind: Kind, count: int = 60) -> list[Look]:
    return [look_at(kind, sample_scene(0, "train", i), np.random.default_rng(i)) for i in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_a_function_of_its_random_numbers(kind: Kind):
    one, same, other = (batch_of(kind, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.pixels, same.pixels) and torch.equal(one.positions, same.positions)
    assert (one.texts, one.words) == (same.texts, same.words)
    assert not torch.equal(one.pixels, other.pixels) and one.texts != other.texts


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_and_crops_are_of_their_size(kind: Kind):
    assert batch_of(kind).pixels.shape == (12, 3, SIDES[kind], SIDES[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_caption_is_true_of_its_own_picture(kind: Kind):
    batch = batch_of(kind, size=40)
    assert batch.true[:, :40].diagonal().all()


@pytest.mark.parametrize("kind", ["picture", "quarter"])
def test_the_caption_with_one_attribute_wrong_is_false_of_its_picture(kind: Kind):
    batch = batch_of(kind, size=40)
    assert len(batch.texts) == 80 and not batch.true[:, 40:].diagonal().any()
    assert len(batch_of(kind, wrong=False).texts) == 12


@pytest.mark.parametrize("kind", ["cell", "fine cell", "grey cell"])
def test_cells_come_without_wrong_captions(kind: Kind):
    assert len(batch_of(kind).texts) == 12


def test_a_caption_that_is_true_of_another_picture_counts_as_true():
    """By the checker, which reads captions and scenes itself."""
    looks = looks_of("picture")
    claims = [say(one, np.random.default_rng((1, i)), 0.8) for i, one in enumerate(looks)]
    true = [[claim.is_true_of(truth_of(one.scene)) for claim in claims] for one in looks]
    for one, row in zip(looks, true, strict=True):
        said = [statements_in(claim.text) | claim.statements for claim in claims]
        assert row == [all(holds(statement, one.scene) for statement in some) for some in said]
    assert np.sum(true) > len(looks)  # Short captions are true of more pictures than their own.


@pytest.mark.parametrize("kind", KINDS)
def test_a_true_caption_has_no_word_that_the_picture_does_not_show(kind: Kind):
    """Of a cell, which has one item, a caption is true if and only if all of its words are."""
    batch = batch_of(kind, size=40)
    for true, present in zip(batch.true, batch.present, strict=True):
        shown = {word for word, there in zip(batch.words, present, strict=True) if there}
        said = [set(text.replace(",", " ").replace(".", " ").split()) & set(WORDS) for text in batch.texts]
        fits = torch.tensor([words <= shown for words in said])
        assert torch.equal(true, fits) if kind.endswith("cell") else not (true & ~fits).any()


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_the_worlds_own_and_some_that_no_picture_shows(kind: Kind):
    batch = batch_of(kind)
    assert batch.words[: len(WORDS)] == WORDS
    never = batch.words[len(WORDS) :]
    assert len(set(never)) == NEVER and set(never) <= set(DISTRACTORS)
    assert batch.absent[:, len(WORDS) :].all() and not batch.present[:, len(WORDS) :].any()


@pytest.mark.parametrize("kind", ["cell", "fine cell", "picture"])
def test_a_word_is_present_or_absent_where_nothing_is_cut_off(kind: Kind):
    batch = batch_of(kind)
    assert torch.equal(batch.present, ~batch.absent)


def test_a_picture_without_colours_tells_nothing_about_them():
    batch = batch_of("grey cell")
    colours = torch.tensor([word in COLOURS or word in BACKGROUNDS for word in batch.words])
    assert not (batch.present | batch.absent)[:, colours].any()
    assert (batch.present | batch.absent)[:, ~colours].all()
    assert torch.equal(batch.pixels, batch.pixels[:, :1].expand_as(batch.pixels))
    assert not set(" ".join(batch.texts).split()) & {*COLOURS, *BACKGROUNDS}


def test_the_letter_of_a_card_is_told_only_where_it_can_be_read():
    plain, fine = ([one for one in looks_of(kind) if one.scene.card] for kind in ("cell", "fine cell"))
    assert plain and fine
    for i, one in enumerate((*plain, *fine)):
        said = say_one(one, np.random.default_rng((1, i))).text.split()
        assert one.scene.card
        letter = one.scene.card.letter
        assert (letter in words_in(one.scene, one.view)) == (one.view == "high")
        assert one.view == "high" or letter not in said


@pytest.mark.parametrize("kind", ["cell", "fine cell", "grey cell"])
def test_a_cell_shows_one_item_and_short_captions_of_it(kind: Kind):
    """By the checker: what the words of a caption say holds for the cell; a single word is one of its item's."""
    for i, one in enumerate(looks_of(kind)):
        assert len(one.scene.items) == 1
        text = say_one(one, np.random.default_rng((1, i))).text
        words = set(text.rstrip(".").split())
        assert words & words_in(one.scene, one.view)
        assert not (words & set(WORDS)) - words_in(one.scene, one.view)
        assert all(holds(statement, one.scene) for statement in statements_in(text))


def test_short_captions_are_of_every_form():
    texts = {say_one(one, np.random.default_rng((1, i))).text for i, one in enumerate(looks_of("fine cell", 400))}
    assert {"red", "ring", "small", "sign", "card", "grey"} <= texts
    assert {f"the letter {letter}" for letter in LETTERS} & texts and set(LETTERS) & texts
    assert any(text.endswith("background.") for text in texts)
    assert any(text.startswith("a small") and text.count(" ") == 3 for text in texts)
    assert any(" in " in text and not {"small", "large"} & set(text.split()) for text in texts)


def test_a_quarter_tells_what_stands_in_it_and_neither_claims_nor_denies_what_is_cut_off():
    """Where the quarter was taken is found again by its pixels; how much of each item it shows, by the masks."""
    for i, quarter in enumerate(looks_of("quarter", 40)):
        scene = sample_scene(0, "train", i)
        picture, masks = np.asarray(render(scene, "high")), item_masks(scene).astype(int)
        windows = [(top, left) for top in (0, 48, 96) for left in (0, 48, 96)]
        shares = [
            masks[:, top : top + 96, left : left + 96].sum((1, 2)) / masks.sum((1, 2))
            for top, left in windows
            if np.array_equal(picture[top : top + 96, left : left + 96], quarter.pixels)
        ]
        assert shares and quarter.scene.items
        told = [item in quarter.scene.items for item in scene.items]
        assert any(told == (share >= SEEN_SHARE).tolist() for share in shares)
        assert quarter.scene.background == scene.background
        assert not quarter.cut & words_in(quarter.scene, "high")
        assert quarter.cut | words_in(quarter.scene, "high") == words_in(scene, "high")


def test_a_quarter_neither_shows_nor_denies_cut_words_in_a_batch():
    batch = batch_of("quarter", size=40)
    unknown = ~batch.present & ~batch.absent
    assert unknown.any() and not (batch.present & batch.absent).any()


def test_what_a_quarter_tells_of_has_its_colour_in_the_pixels():
    for quarter in looks_of("quarter"):
        for item in quarter.scene.things:
            colour = np.clip(np.add(COLOUR_RGB[item.colour], item.tint), 0, 255)
            assert (quarter.pixels == colour).all(-1).sum() > 50


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_those_of_a_square_of_the_pictures_patches(kind: Kind):
    """Patches of 16 px: a picture has 6 by 6, and a cell stands where a cell can stand, in steps of its own width."""
    across, starts = SIDES[kind] // 16, set()
    for seed in range(60):
        positions = batch_of(kind, seed=seed, size=1).positions
        assert positions[0] == 0 and len(positions) == across**2 + 1
        grid = positions[1:].view(across, across) - 1
        row, column = divmod(int(grid[0, 0]), 6)
        rows, columns = (torch.arange(start, start + across) for start in (row, column))
        assert row + across <= 6 and column + across <= 6
        assert torch.equal(grid, 6 * rows[:, None] + columns)
        starts.add((row, column))
    step = {2: 2, 4: 1, 6: 1}[across]
    assert starts == {(row, column) for row in range(0, 7 - across, step) for column in range(0, 7 - across, step)}


@pytest.mark.parametrize("view", VIEWS)
def test_the_image_processor_gives_the_pixels_of_the_low_view_from_either(
    view: View, tokenizer: PreTrainedTokenizerFast
):
    """So a folder of high pictures can be used with the same backbone, and nothing of a card's letter comes with it."""
    scenes = [sample_scene(0, "validation", i) for i in range(12)]
    processor = clip_processor(tokenizer).image_processor
    given = processor(images=[render(scene, view) for scene in scenes], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(given, picture_values(scenes), atol=1e-6, rtol=0)


def test_pixel_values_lie_between_minus_one_and_one():
    values = to_pixel_values(torch.tensor([0, 51, 255], dtype=torch.uint8))
    torch.testing.assert_close(values, torch.tensor([-1.0, -0.6, 1.0]))
