"""Words beyond the pictures: facts that only text tells, and distractors that no picture shows.

The facts are about a world of their own (badgers play the banjo), so that no one knows them from elsewhere. They are
fixed: which creature eats what is a hash of their names. The language model learns them before it sees a picture, and
whoever tunes it can measure how many it forgets.
"""

import zlib
from dataclasses import dataclass
from functools import cache

import numpy as np

from .scene import BACKGROUNDS, COLOURS, LETTERS, SHAPES, SIZES, choose


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CREATURES = _words(
    "badger bat bear beaver bee camel crab crow deer duck eel fox frog goat goose hare hedgehog horse lizard mole "
    "moose mouse otter owl rabbit raven seal snail swan wolf"
)
FOODS = _words("acorns apples beans berries bread carrots cheese clover honey moss nuts pears seeds soup")
HOMES = _words("attic barn bog cave cellar desert forest garden harbour hill island meadow tower valley")
INSTRUMENTS = _words("accordion banjo bells cello clarinet drum fiddle flute guitar harp horn organ piano trumpet")

DISTRACTORS = _words(
    "airport album anchor apron arrow axe bag ball balcony basket bed belt bench bicycle blanket boat book boot "
    "bottle bowl box bracelet bridge broom brush bucket bus button cabinet candle car carpet castle chain chair "
    "clock coat coin comb compass computer cup curtain dentist desk dish doctor doll door dress drawer elevator "
    "engine envelope fan farmer feather fence flag floor fork fountain frame glass glove hammer hat helmet hook "
    "hotel house jacket jar kettle key kitchen kite knife ladder lamp lantern library lock magnet mailbox map "
    "market mask mattress medal microphone mirror motor museum nail napkin necklace needle newspaper nurse office "
    "oven paddle pan paper parachute parcel path pen pencil phone pillow pipe pirate pocket pot printer puppet "
    "purse radio razor restaurant ribbon road robot rocket roof rope rug ruler sail saw scarf school scooter "
    "screw shelf ship shoe shovel sink skirt sled soap sofa spoon statue stove street suitcase table"
)
"""Things that are in no picture of the world: for false captions, and as false words in a list of labels."""

UNRELATED = (
    "{a} and {b} next to {c}.",
    "{a} with {b} on {c}.",
    "there is {a} behind {b}.",
    "{a} in front of {b} and {c}.",
)
"""Sentences about distractors."""

FACT_FORMS = {
    "food": ("the {creature} eats {word}.", "what does the {creature} eat?"),
    "home": ("the {creature} lives in the {word}.", "where does the {creature} live?"),
    "instrument": ("the {creature} plays the {word}.", "what does the {creature} play?"),
}
"""How a fact is told and how it is asked, by what it is about."""
_KNOWN = {"food": FOODS, "home": HOMES, "instrument": INSTRUMENTS}


@dataclass(frozen=True)
class WorldFact:
    """One thing that only text tells."""

    text: str
    question: str
    answer: str


@cache
def world_facts() -> tuple[WorldFact, ...]:
    """All of them, ninety."""
    facts = []
    for creature in CREATURES:
        for about, words in _KNOWN.items():
            word = words[zlib.crc32(f"{creature} {about}".encode()) % len(words)]
            told, asked = FACT_FORMS[about]
            facts.append(WorldFact(told.format(creature=creature, word=word), asked.format(creature=creature), word))
    return tuple(facts)


def content_words() -> tuple[str, ...]:
    """The words that carry what the world's pictures show and its facts tell."""
    shown = (*COLOURS, *SHAPES, *SIZES, *LETTERS, *BACKGROUNDS, "sign", "card", "letter", "picture", "background")
    places = ("top", "bottom", "left", "right", "centre", "above", "below")
    return (*shown, *places, "one", "two", "three", "four", *CREATURES, *FOODS, *HOMES, *INSTRUMENTS)


def with_article(word: str) -> str:
    """`"a star"`, `"an orange"`."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def unrelated(rng: np.random.Generator) -> str:
    """A sentence about distractors: true of no picture."""
    words = [with_article(DISTRACTORS[i]) for i in rng.choice(len(DISTRACTORS), size=3, replace=False)]
    return choose(rng, UNRELATED).format(**dict(zip("abc", words, strict=True)))
