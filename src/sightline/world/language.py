"""What is said about a scene: captions, and questions whose answers follow from the scene. Lower case.

Counts are uniform by construction (see `scene`), and "is there ...?" is true in every second group of four scenes. An
untrue one names a pair of colour and shape as POPE does (Li et al., 2023): any that is absent (random), a common one
that is absent (popular), or an absent companion of something that is there (adversarial). The three take turns. Every
pair that a text names is one that its split may show, so that a pair's novelty tells nothing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .draw import View
from .lexicon import with_article
from .scene import (
    BACKGROUNDS,
    COLOURS,
    GRID,
    LETTERS,
    MOST_THINGS,
    SHAPES,
    SIZES,
    Pair,
    Plate,
    Scene,
    Split,
    Thing,
    choose,
    companions,
    pairs_of,
    popular_pairs,
)

Existence = Literal["existence_random", "existence_popular", "existence_adversarial"]
Ability = Literal["colour", "shape", "size", "count", "background", "relation", "reading", "fine", Existence]
ABILITIES: tuple[Ability, ...] = get_args(Ability)
EXISTENCE: tuple[Existence, ...] = get_args(Existence)
NUMBERS = ("zero", "one", "two", "three", "four")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
"""Of the cells, in reading order."""

ANSWERS: dict[Ability, tuple[str, ...]] = {
    "colour": COLOURS,
    "shape": SHAPES,
    "size": SIZES,
    "count": NUMBERS[1 : MOST_THINGS + 1],
    "background": BACKGROUNDS,
    "relation": ("left", "right", "above", "below"),
    "reading": LETTERS,
    "fine": LETTERS,
    **dict.fromkeys(EXISTENCE, ("yes", "no")),
}
"""Every answer that a question of an ability can have."""

CAPTION_REQUESTS = ("describe the picture.", "what do you see?", "give a short description of the picture.")

TEMPLATES: dict[str, tuple[str, ...]] = {
    "caption": (
        "{items} on a {background} background.",
        "a {background} background with {items}.",
        "a picture of {items}. the background is {background}.",
        "{count} on a {background} background: {items}.",
        "the background is {background}. there is {items}.",
    ),
    "thing": ("{a_size} {colour} {shape}", "{a_size} {shape} in {colour}"),
    "pair": ("{a_colour} {shape}", "{a_shape} in {colour}"),
    "plate": ("a {plate} with the letter {letter}", "the letter {letter} on a {plate}"),
    "unread": ("a {plate}",),
    "place": ("{item} at the {place}",),
    "colour": ("what colour is the {shape}?", "which colour does the {shape} have?"),
    "shape": ("what shape is the {colour} object?", "which shape does the {colour} object have?"),
    "size": ("what size is the {colour} {shape}?", "is the {colour} {shape} small or large?"),
    "count": ("how many shapes are there?", "how many shapes do you see?"),
    "background": ("what colour is the background?", "which colour does the background have?"),
    "left or right": ("is the {colour} {shape} left or right of the {other}?",),
    "above or below": ("is the {colour} {shape} above or below the {other}?",),
    "reading": ("what letter is on the sign?", "which letter does the sign show?"),
    "fine": ("what letter is on the card?", "which letter does the card show?"),
    "existence": ("is there {what}?", "do you see {what}?"),
}
"""The sentences of the world; braces are filled from a scene."""

ONE_ORDER, BOTH_ORDERS = (0,), (0, 1)
"""How things and plates are named: by the first template alone, or by either."""


@dataclass(frozen=True)
class Question:
    """A question with its one-word answer."""

    text: str
    answer: str
    ability: Ability


def name_pair(pair: Pair, template: str = TEMPLATES["pair"][0]) -> str:
    """`"a red star"`, or `"a star in red"` by the second template of a pair."""
    colour, shape = pair
    return template.format(colour=colour, shape=shape, a_colour=with_article(colour), a_shape=with_article(shape))


def name_item(scene: Scene, item: Thing | Plate, view: View, order: int = 0) -> str:
    """`"a small red star"`, `"a sign with the letter k"`, or, where a view does not show the letter, `"a card"`."""
    if isinstance(item, Thing):
        words = {"a_size": with_article(item.size), "colour": item.colour, "shape": item.shape}
        return TEMPLATES["thing"][order].format(**words)
    plate = "card" if item is scene.card else "sign"
    if plate == "card" and view == "low":
        return TEMPLATES["unread"][0].format(plate=plate)
    return TEMPLATES["plate"][order].format(plate=plate, letter=item.letter)


def list_names(names: Sequence[str]) -> str:
    """`"a red star, a blue ring and a pink cross"`."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def caption(
    scene: Scene,
    rng: np.random.Generator,
    *,
    view: View = "low",
    places: bool | None = None,
    orders: Sequence[int] = BOTH_ORDERS,
) -> str:
    """A clean caption that names everything in the scene, its items in a random order.

    Args:
        view: what is told is what this view shows.
        places: whether it says where each item is; drawn, as likely as not, when None.
        orders: the templates that items may be named by; all items of a caption are named by the same.
    """
    template, order = choose(rng, TEMPLATES["caption"]), choose(rng, orders)
    placed = bool(rng.integers(2)) if places is None else places
    names = []
    for number in rng.permutation(len(scene.items)):
        item = scene.items[number]
        name = name_item(scene, item, view, order)
        names.append(TEMPLATES["place"][0].format(item=name, place=PLACES[item.cell]) if placed else name)
    count = len(scene.things)
    number = f"{NUMBERS[count]} shape{'s' if count > 1 else ''}"
    return template.format(items=list_names(names), background=scene.background, count=number)


def questions(
    scene: Scene, split: Split, index: int, rng: np.random.Generator, *, view: View = "low"
) -> list[Question]:
    """At most one question for each ability; each asks of what the words single out.

    Args:
        index: the scene's number in its split; it settles whether "is there ...?" is true, and its kind.
        view: a card's letter is asked of in the high view only.
    """
    asked: list[Question] = []

    def ask(ability: Ability, answer: str, template: str | None = None, **words: str) -> None:
        asked.append(Question(choose(rng, TEMPLATES[template or ability]).format(**words), answer, ability))

    shapes, colours = (Counter(t.shape for t in scene.things), Counter(t.colour for t in scene.things))
    if single := [t for t in scene.things if shapes[t.shape] == 1]:
        thing = choose(rng, single)
        ask("colour", thing.colour, shape=thing.shape)
    if single := [t for t in scene.things if colours[t.colour] == 1]:
        thing = choose(rng, single)
        ask("shape", thing.shape, colour=thing.colour)
    thing = choose(rng, scene.things)
    ask("size", thing.size, colour=thing.colour, shape=thing.shape)
    ask("count", NUMBERS[len(scene.things)])
    ask("background", scene.background)
    if len(scene.things) > 1:
        one, other = (scene.things[i] for i in rng.choice(len(scene.things), size=2, replace=False))
        template, answer = choose(rng, relations(one, other))
        words = {"colour": one.colour, "shape": one.shape, "other": f"{other.colour} {other.shape}"}
        ask("relation", answer, template, **words)
    if scene.sign:
        ask("reading", scene.sign.letter)
    if scene.card and view == "high":
        ask("fine", scene.card.letter)
    is_there, kind = index // MOST_THINGS % 2 == 0, EXISTENCE[index // (2 * MOST_THINGS) % len(EXISTENCE)]
    pair = choose(rng, scene.things).pair if is_there else _absent(scene, split, kind, rng)
    what = name_pair(pair, choose(rng, TEMPLATES["pair"]))
    ask(kind, "yes" if is_there else "no", "existence", what=what)
    return asked


def relations(one: Thing, other: Thing) -> list[tuple[str, str]]:
    """How `one` stands to `other`: the templates that can ask for it, each with its answer."""
    (row, column), (other_row, other_column) = divmod(one.cell, GRID), divmod(other.cell, GRID)
    sides = []
    if column != other_column:
        sides.append(("left or right", "left" if column < other_column else "right"))
    if row != other_row:
        sides.append(("above or below", "above" if row < other_row else "below"))
    return sides


def _absent(scene: Scene, split: Split, kind: Existence, rng: np.random.Generator) -> Pair:
    """A pair that is not in the scene; any, where the kind has none (novel has two popular pairs)."""
    shown = [thing.pair for thing in scene.things]
    near = {
        "existence_random": [],
        "existence_popular": popular_pairs(split),
        "existence_adversarial": [other for pair in shown for other in companions(pair, split)],
    }[kind]
    absent = [pair for pair in near if pair not in shown] or [p for p in pairs_of(split) if p not in shown]
    return choose(rng, absent)
