from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.world.scene import (
    BACKGROUNDS,
    COLOURS,
    CORNERS,
    LETTERS,
    NOVEL_PAIRS,
    SEEN_PAIRS,
    SHAPES,
    SIZES,
    SPLITS,
    Plate,
    Scene,
    Split,
    Thing,
    companions,
    pairs_of,
    popular_pairs,
    sample_scene,
    split_of,
    stream,
)

splits = st.sampled_from(SPLITS)
seeds = st.integers(0, 2**32)
indices = st.integers(0, 2**30)


def test_the_world_keeps_its_floors():
    """The sizes that the design asks for; a smaller world makes its thresholds easy."""
    assert [len(set(words)) for words in (SHAPES, COLOURS, LETTERS, BACKGROUNDS)] == [6, 8, 16, 4]


@given(seeds, splits, indices)
def test_a_scene_is_a_function_of_seed_split_and_index(seed: int, split: Split, index: int):
    assert sample_scene(seed, split, index) == sample_scene(seed, split, index)


def test_seeds_indices_and_uses_give_streams_of_their_own():
    assert len({sample_scene(seed, "train", 7).content for seed in range(30)}) == 30
    assert len({sample_scene(0, "train", 4 * i + 3).content for i in range(30)}) == 30
    uses = ("scene", "caption", "questions", "noise", "text")
    assert len({stream(0, split, 7, use).random() for split in SPLITS for use in uses}) == 20


@given(seeds, splits, indices)
def test_a_scene_belongs_to_the_split_it_was_drawn_for_whatever_the_seed(seed: int, split: Split, index: int):
    """So no scene is in two splits: what a scene shows decides its split, and it is one of them only."""
    assert split_of(sample_scene(seed, split, index)) == split


@given(seeds, splits, indices)
def test_jitter_and_the_letter_of_a_card_do_not_decide_the_split(seed: int, split: Split, index: int):
    """Of two pictures that differ in these alone, one could not be in training and the other in a test."""
    scene = sample_scene(seed, split, index)
    things = tuple(replace(t, diameter=0.6, offset=(0.0, 0.0), tint=(1, 2, 3)) for t in scene.things)
    card = Plate("z", scene.card.cell, (0.5, 0.5)) if scene.card else None
    assert split_of(replace(scene, things=things, card=card, tint=(4, 5, 6))) == split


def test_what_the_low_view_shows_is_all_in_the_content():
    things = (Thing("red", "star", "small", 3, 0.6, (0.0, 0.0), (0, 0, 0)),)
    scene = Scene("black", things, sign=Plate("k", 4, (0.0, 0.0)), card=Plate("m", 0, (0.0, 0.0)))
    others = [
        replace(scene, background="white"),
        replace(scene, sign=None),
        replace(scene, sign=Plate("l", 4, (0.0, 0.0))),
        replace(scene, sign=Plate("k", 5, (0.0, 0.0))),
        replace(scene, card=None),
        replace(scene, card=Plate("m", 8, (0.0, 0.0))),
        replace(scene, things=(replace(things[0], cell=2),)),
        replace(scene, things=(replace(things[0], size="large"),)),
        replace(scene, things=(replace(things[0], colour="blue"),)),
        replace(scene, things=(replace(things[0], shape="ring"),)),
    ]
    assert len({one.content for one in (scene, *others)}) == len(others) + 1


def test_a_mixture_of_novel_and_other_pairs_belongs_to_no_split():
    novel, seen = (
        Thing(*pairs[0], "large", i, 0.9, (0.0, 0.0), (0, 0, 0)) for i, pairs in enumerate((NOVEL_PAIRS, SEEN_PAIRS))
    )
    assert split_of(Scene("black", (novel, seen))) is None
    assert split_of(Scene("black", (novel,))) == "novel"
    assert split_of(Scene("black", (seen,))) in ("train", "validation", "test")


@given(seeds, splits, indices)
def test_everything_stands_in_a_cell_of_its_own(seed: int, split: Split, index: int):
    scene = sample_scene(seed, split, index)
    assert len({item.cell for item in scene.items}) == len(scene.items)
    assert all(0 <= item.cell < 9 for item in scene.items)
    assert [thing.cell for thing in scene.things] == sorted(thing.cell for thing in scene.things)
    if scene.card:
        assert scene.card.cell in CORNERS


@given(seeds, splits, indices)
def test_a_thing_is_as_large_as_its_word_says_and_stays_in_its_cell(seed: int, split: Split, index: int):
    for thing in sample_scene(seed, split, index).things:
        low, high = {"small": (0.54, 0.64), "large": (0.82, 0.92)}[thing.size]
        assert low <= thing.diameter <= high
        assert all(abs(x) + thing.diameter / 2 <= 0.5 for x in thing.offset)


@given(seeds, splits, indices)
def test_no_two_things_of_a_scene_have_the_same_colour_and_shape(seed: int, split: Split, index: int):
    pairs = [thing.pair for thing in sample_scene(seed, split, index).things]
    assert len(set(pairs)) == len(pairs)


def test_novel_pairs_are_in_novel_alone_and_their_words_everywhere():
    assert not set(NOVEL_PAIRS) & set(SEEN_PAIRS) and len(NOVEL_PAIRS) + len(SEEN_PAIRS) == 48
    shown = {s: {t.pair for i in range(240) for t in sample_scene(0, s, i).things} for s in SPLITS}
    assert shown["novel"] == set(NOVEL_PAIRS)
    for split in ("train", "validation", "test"):
        assert shown[split] == set(SEEN_PAIRS)
        assert {c for c, _ in shown[split]} == set(COLOURS)
        assert {s for _, s in shown[split]} == set(SHAPES)


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_as_many_scenes_of_each_count(split: Split):
    counts = Counter(len(sample_scene(0, split, i).things) for i in range(40))
    assert counts == {1: 10, 2: 10, 3: 10, 4: 10}


@pytest.mark.parametrize("split", SPLITS)
def test_half_of_the_scenes_have_a_sign_and_half_a_card(split: Split):
    """Of 400 scenes, within four standard errors of a half: 160 to 240."""
    scenes = [sample_scene(1, split, i) for i in range(400)]
    assert 160 <= sum(scene.sign is not None for scene in scenes) <= 240
    assert 160 <= sum(scene.card is not None for scene in scenes) <= 240
    assert {scene.sign.letter for scene in scenes if scene.sign} == set(LETTERS)
    assert {scene.card.letter for scene in scenes if scene.card} == set(LETTERS)
    assert {scene.card.cell for scene in scenes if scene.card} == set(CORNERS)
    assert {thing.size for scene in scenes for thing in scene.things} == set(SIZES)
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)


def test_popular_pairs_are_common_and_companions_keep_company():
    """In 600 scenes a popular pair is shown about twice as often as another, and one that keeps company with a
    pair that is there over three times as often as one that does not (measured: 2.1 and 3.6)."""
    shown = [{thing.pair for thing in sample_scene(0, "train", i).things} for i in range(600)]
    popular = set(popular_pairs("train"))
    counts = Counter(pair for pairs in shown for pair in pairs)
    common, rare = (sum(counts[p] for p in some) / len(some) for some in (popular, set(SEEN_PAIRS) - popular))
    assert common > 1.7 * rare

    beside = {True: [], False: []}
    for pairs in shown:
        for pair in pairs:
            for other in set(SEEN_PAIRS) - {pair}:
                beside[other in companions(pair, "train")].append(other in pairs)
    near, far = (sum(beside[kind]) / len(beside[kind]) for kind in (True, False))
    assert near > 3 * far


@pytest.mark.parametrize("split", SPLITS)
def test_companions_are_two_other_pairs_of_the_same_split(split: Split):
    for pair in pairs_of(split):
        assert len({pair, *companions(pair, split)} & set(pairs_of(split))) == 3
