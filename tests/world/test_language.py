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


@pytest.mark.parametrize("split", SPLITS)
def test_nothing_can_be_answered_from_the_question_alone(split: Split):
    """The best guess from a question's text, chosen on the answers themselves, stays near the best constant
    answer.

    On novel pictures a shape has one or two colours, so that colour and shape are left out there: what a
    text alone could tell is known only to who has seen those pictures.
    """
    given_text: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for index in range(4000):
        for question in asked(split, index)[1]:
            given_text[question.ability][question.text][question.answer] += 1
    for ability in ABILITIES:
        if split == "novel" and ability in ("colour", "shape"):
            continue
        texts = given_text[ability].values()
        total = sum(sum(counts.values()) for counts in texts)
        best = sum(max(counts.values()) for counts in texts) / total
        assert best < 1 / len(ANSWERS[ability]) + 0.11, (ability, best)


@pytest.mark.parametrize("split", SPLITS)
def test_existence_is_as_often_true_as_not_for_every_count(split: Split):
    answers = Counter((i % 4, q.answer) for i in range(80) for q in asked(split, i)[1] if q.ability == "existence")
    assert set(answers.values()) == {10}
