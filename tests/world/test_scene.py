from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.world.scene import (
    BACKGROUNDS,
    COLOURS,
    NOVEL_PAIRS,
    SEEN_PAIRS,
    SHAPES,
    SPLITS,
    Split,
    sample_scene,
    split_of,
)

splits = st.sampled_from(SPLITS)
seeds = st.integers(0, 2**32)
indices = st.integers(0, 2**30)


def test_the_world_keeps_its_floors():
    assert (len(SHAPES), len(COLOURS), len(BACKGROUNDS)) == (6, 8, 4)


@given(seeds, splits, indices)
def test_a_scene_is_a_function_of_seed_split_and_index(seed: int, split: Split, index: int):
    assert sample_scene(seed, split, index) == sample_scene(seed, split, index)


@given(seeds, splits, indices)
def test_a_scene_belongs_to_the_split_it_was_drawn_for_whatever_the_seed(seed: int, split: Split, index: int):
    """So no scene is in two splits: what a scene shows decides its split, and it is one of them only."""
    assert split_of(sample_scene(seed, split, index)) == split


@given(seeds, splits, indices)
def test_things_stand_in_cells_of_their_own_in_reading_order_and_inside_them(seed: int, split: Split, index: int):
    things = sample_scene(seed, split, index).things
    cells = [thing.cell for thing in things]
    assert cells == sorted(set(cells))
    for thing in things:
        assert all(abs(x) + thing.diameter / 2 <= 0.5 for x in thing.offset)


@given(seeds, splits, indices)
def test_no_two_things_of_a_scene_look_the_same(seed: int, split: Split, index: int):
    pairs = [thing.pair for thing in sample_scene(seed, split, index).things]
    assert len(set(pairs)) == len(pairs)


def test_novel_pairs_are_in_novel_alone_and_their_words_everywhere():
    shown = {s: {t.pair for i in range(200) for t in sample_scene(0, s, i).things} for s in SPLITS}
    assert shown["novel"] == set(NOVEL_PAIRS)
    for split in ("train", "validation", "test"):
        assert shown[split] == set(SEEN_PAIRS)
        assert {c for c, _ in shown[split]} == set(COLOURS)
        assert {s for _, s in shown[split]} == set(SHAPES)


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_as_many_scenes_of_each_count(split: Split):
    counts = Counter(len(sample_scene(0, split, i).things) for i in range(40))
    assert counts == {1: 10, 2: 10, 3: 10, 4: 10}


def test_seeds_give_other_scenes():
    assert len({sample_scene(seed, "train", 7) for seed in range(50)}) == 50
