import numpy as np

from sightline.world.language import ANSWERS
from sightline.world.lexicon import (
    CREATURES,
    DISTRACTORS,
    FOODS,
    HOMES,
    INSTRUMENTS,
    content_words,
    unrelated,
    with_article,
    world_facts,
)

from .checker import statements_in


def test_the_lexicon_keeps_its_floors():
    """The sizes that the design asks for: 120 content words and 150 distractors, none of them twice."""
    words = (*content_words(), *DISTRACTORS)
    assert len(content_words()) >= 120 and len(DISTRACTORS) >= 150
    assert len(set(words)) == len(words)


def test_content_words_hold_every_word_that_a_question_is_answered_with():
    answers = {word for words in ANSWERS.values() for word in words} - {"yes", "no"}
    assert answers <= set(content_words())


def test_facts_stay_what_they_are():
    """They are hashes of names, so that no process, seed or release changes what the shipped backbones know."""
    told = [fact.text for fact in world_facts()]
    assert told[:3] == ["the badger eats nuts.", "the badger lives in the desert.", "the badger plays the banjo."]
    assert len(set(told)) == len({fact.question for fact in world_facts()}) == 3 * len(CREATURES) == 90


def test_a_fact_is_answered_by_the_word_that_it_tells():
    for fact in world_facts():
        creature = next(name for name in CREATURES if f"the {name} " in fact.text)
        assert fact.text.endswith(f" {fact.answer}.") and f"the {creature} " in fact.question
        kind = {"eats": FOODS, "lives": HOMES, "plays": INSTRUMENTS}[fact.text.split()[2]]
        assert fact.answer in kind and fact.answer not in fact.question


def test_facts_cannot_be_guessed_from_the_kind_of_question():
    """The commonest answer to a kind is right for a fifth of its thirty creatures at most."""
    for words in (FOODS, HOMES, INSTRUMENTS):
        answers = [fact.answer for fact in world_facts() if fact.answer in words]
        assert len(answers) == 30
        assert max(answers.count(word) for word in words) <= 6


def test_a_sentence_about_distractors_says_nothing_about_pictures():
    own = set(content_words())
    for seed in range(60):
        text = unrelated(np.random.default_rng(seed))
        words = text.rstrip(".").split()
        assert 2 <= len(set(words) & set(DISTRACTORS)) <= 3
        assert not set(words) & own and not statements_in(text)


def test_articles():
    assert [with_article(word) for word in ("star", "orange", "umbrella")] == ["a star", "an orange", "an umbrella"]
