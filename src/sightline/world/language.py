"""What is said about a scene: captions, and questions whose answers follow from the scene. Lower case.

No answer can be had from the text of a question better than by always giving the commonest answer. Counts
are uniform by construction (see `scene`); "is there ...?" is true in every second group of four scenes, and
what an untrue one names is drawn as the true ones are. Every pair of colour and shape that a question names
is one that its split may show, so that a pair's novelty tells nothing either.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .scene import BACKGROUNDS, COLOURS, MOST_THINGS, SHAPES, Pair, Scene, Split, Thing, pairs_of

Ability = Literal["colour", "shape", "count", "background", "existence"]
ABILITIES: tuple[Ability, ...] = get_args(Ability)
NUMBERS = ("zero", "one", "two", "three", "four")

ANSWERS: dict[Ability, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "count": NUMBERS[1 : MOST_THINGS + 1],
    "background": BACKGROUNDS,
    "existence": ("yes", "no"),
}
"""Every answer that a question of an ability can have."""

CAPTION_REQUESTS = ("describe the picture.", "what do you see?", "give a short description of the picture.")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "caption": (
        "{things} on a {background} background.",
        "a {background} background with {things}.",
        "a picture of {things}. the background is {background}.",
        "{count} on a {background} background: {things}.",
        "the background is {background}. there is {things}.",
    ),
    "anything": ("anything {colour}",),
    "thing": ("{a_colour} {shape}", "{a_shape} in {colour}"),
    "colour": ("what colour is the {shape}?", "which colour does the {shape} have?"),
    "shape": ("what shape is the {colour} object?", "which shape does the {colour} object have?"),
    "count": ("how many objects are there?", "how many objects do you see?"),
    "background": ("what colour is the background?", "which colour does the background have?"),
    "existence": ("is there {what}?", "do you see {what}?"),
}
"""The sentences of the world; braces are filled from a scene."""


@dataclass(frozen=True)
class Question:
    """A question with its one-word answer."""

    text: str
    answer: str
    ability: Ability


def with_article(word: str) -> str:
    """`"a star"`, `"an orange"`."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def name_thing(pair: Pair, template: str = TEMPLATES["thing"][0]) -> str:
    """`"a red star"`, or `"a star in red"` by the second template of a thing."""
    colour, shape = pair
    return template.format(colour=colour, shape=shape, a_colour=with_article(colour), a_shape=with_article(shape))


def list_things(things: Sequence[Thing], template: str = TEMPLATES["thing"][0]) -> str:
    """`"a red star, a blue ring and a pink cross"`."""
    *names, last = [name_thing(thing.pair, template) for thing in things]
    return f"{', '.join(names)} and {last}" if names else last


def caption(scene: Scene, rng: np.random.Generator, names: Sequence[str] = TEMPLATES["thing"]) -> str:
    """A clean caption that names everything in the scene, its things in a random order.

    Args:
        names: the templates that a thing may be named by; all of a caption's things are named by the same.
    """
    count = len(scene.things)
    order = [scene.things[i] for i in rng.permutation(count)]
    template, thing = _pick(rng, TEMPLATES["caption"]), _pick(rng, names)
    number = f"{NUMBERS[count]} object{'s' if count > 1 else ''}"
    return template.format(things=list_things(order, thing), background=scene.background, count=number)


def questions(scene: Scene, split: Split, index: int, rng: np.random.Generator) -> list[Question]:
    """At most one question for each ability; colour and shape are asked only of what the words single out.

    Args:
        index: the scene's number in its split; it settles whether "is there ...?" is true.
    """
    asked: list[Question] = []

    def ask(ability: Ability, answer: str, **words: str) -> None:
        asked.append(Question(_pick(rng, TEMPLATES[ability]).format(**words), answer, ability))

    shapes, colours = (Counter(t.shape for t in scene.things), Counter(t.colour for t in scene.things))
    if single := [t for t in scene.things if shapes[t.shape] == 1]:
        thing = single[rng.integers(len(single))]
        ask("colour", thing.colour, shape=thing.shape)
    if single := [t for t in scene.things if colours[t.colour] == 1]:
        thing = single[rng.integers(len(single))]
        ask("shape", thing.shape, colour=thing.colour)
    ask("count", NUMBERS[len(scene.things)])
    ask("background", scene.background)
    is_there = index // MOST_THINGS % 2 == 0
    ask("existence", "yes" if is_there else "no", what=_what(scene, split, is_there, rng))
    return asked


def _what(scene: Scene, split: Split, is_there: bool, rng: np.random.Generator) -> str:
    """Something that is in the scene, or something that is not: a pair in half of the cases, a colour, or a
    shape.

    In half of the cases an absent pair differs from one of the scene's in one word (POPE's adversarial
    form) where the split has such a pair, else it is any absent one.
    """
    kind = _pick(rng, ("pair", "pair", "colour", "shape"))

    def name(pair: Pair) -> str:
        colour, shape = pair
        anything = TEMPLATES["anything"][0].format(colour=colour)
        return {"pair": name_thing(pair), "colour": anything, "shape": with_article(shape)}[kind]

    shown = {thing.pair: name(thing.pair) for thing in scene.things}
    if is_there:
        return _pick(rng, list(shown.values()))
    absent = {pair: name(pair) for pair in pairs_of(split) if name(pair) not in shown.values()}
    near = [text for (c, s), text in absent.items() if any((c == colour) != (s == shape) for colour, shape in shown)]
    adversarial = kind == "pair" and rng.random() < 0.5
    return _pick(rng, near if near and adversarial else list(absent.values()))
