from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.world.language import ABILITIES, ANSWERS, caption, questions
from sightline.world.scene import SPLITS, Split, pairs_of, sample_scene, stream

from .checker import answer, pairs_named


def asked(split: Split, index: int, seed: int = 0):
    scene = sample_scene(seed, split, index)
    return scene, questions(scene, split, index, stream(seed, split, index, "questions"))


@given(st.sampled_from(SPLITS), st.integers(0, 2**30), st.integers(0, 9))
def test_answers_follow_from_the_scene(split: Split, index: int, seed: int):
    scene, qs = asked(split, index, seed)
    for question in qs:
        assert question.answer == answer(question.text, scene), question
        assert question.answer in ANSWERS[question.ability]


@given(st.sampled_from(SPLITS), st.integers(0, 2**30))
def test_no_pair_of_another_split_is_ever_named(split: Split, index: int):
    scene, qs = asked(split, index)
    texts = [caption(scene, stream(0, split, index, "caption")), *(q.text for q in qs)]
    assert {pair for text in texts for pair in pairs_named(text)} <= set(pairs_of(split))


@given(st.sampled_from(SPLITS), st.integers(0, 2**30))
def test_a_caption_names_everything_in_the_scene_and_nothing_else(split: Split, index: int):
    scene = sample_scene(0, split, index)
    text = caption(scene, stream(0, split, index, "caption"))
    assert pairs_named(text) == {thing.pair for thing in scene.things}
    assert scene.background in text.split() or f"{scene.background}." in text.split()


@pytest.mark.parametrize("split", ["train", "novel"])
def test_nothing_can_be_answered_from_the_question_alone(split: Split):
    """The commonest answer to the same text among 600 other scenes does no better than a constant answer.

    The bound is chance and a tenth (a colour has five of the six shapes; the rest is four standard errors). On novel
    pictures a shape has one or two colours, so colour and shape are left out there: a text tells them only to who has
    seen those pictures.
    """
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(600):
        for question in asked(split, index)[1]:
            known[question.text][question.answer] += 1
    right: dict[str, list[bool]] = defaultdict(list)
    for index in range(600, 900):
        for question in asked(split, index)[1]:
            guess = known[question.text].most_common(1)
            right[question.ability].append(bool(guess) and guess[0][0] == question.answer)
    for ability in ABILITIES:
        if split == "train" or ability not in ("colour", "shape"):
            score = sum(right[ability]) / len(right[ability])
            assert score < 1 / len(ANSWERS[ability]) + 0.1, (ability, score)


@pytest.mark.parametrize("split", SPLITS)
def test_existence_is_as_often_true_as_not_for_every_count(split: Split):
    answers = Counter((i % 4, q.answer) for i in range(80) for q in asked(split, i)[1] if q.ability == "existence")
    assert set(answers.values()) == {10}
