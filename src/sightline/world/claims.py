"""Texts whose truth is known: what each claims, and which scenes it is true of.

A text claims statements, such as `("thing", "red", "star")`; a scene makes statements true. So a caption can be clean,
partial, wrong in one word or in many, or about something else, and how much of it is true is known, not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from .draw import View
from .language import NUMBERS, TEMPLATES, caption, list_names, name_pair
from .lexicon import unrelated
from .scene import BACKGROUNDS, COLOURS, LETTERS, SEEN_PAIRS, SHAPES, SIZES, Pair, Plate, Scene, Thing, choose

Statement = tuple[str, ...]
"""Such as ("background", "grey"), ("thing", "red", "star"), ("thing", "small", "red", "star"), ("sign", "k")."""

Attribute = Literal["colour", "shape", "size", "letter", "background"]
ATTRIBUTES: tuple[Attribute, ...] = get_args(Attribute)

Grade = Literal["clean", "partial", "one_wrong", "many_wrong", "unrelated"]
GRADES: tuple[Grade, ...] = get_args(Grade)


@dataclass(frozen=True)
class Claim:
    """A text with what it states."""

    text: str
    statements: frozenset[Statement]

    def is_true_of(self, truth: frozenset[Statement]) -> bool:
        """Whether everything stated is true; never of a text that states nothing about pictures."""
        return bool(self.statements) and self.statements <= truth


@dataclass(frozen=True)
class GradedCaption:
    """A caption of a known grade of noise."""

    text: str
    grade: Grade
    stated: int
    """Statements in it."""
    true: int
    """How many of them are true of the picture."""
    left_out: int
    """Statements of a full caption of the picture that it does not make."""


def statements_of(scene: Scene, view: View = "low") -> frozenset[Statement]:
    """What a full caption of a scene states, places apart."""
    said: set[Statement] = {("background", scene.background), ("count", NUMBERS[len(scene.things)])}
    said |= {("thing", thing.size, *thing.pair) for thing in scene.things}
    if scene.sign:
        said.add(("sign", scene.sign.letter))
    if scene.card:
        said.add(("card", scene.card.letter) if view == "high" else ("card",))
    return frozenset(said)


def truth_of(scene: Scene, view: View = "low") -> frozenset[Statement]:
    """Every statement that is true of a scene, weaker ones too: that something is red, that a red star is there."""
    truth: set[Statement] = set(statements_of(scene, view))
    for thing in scene.things:
        truth |= {("colour", thing.colour), ("shape", thing.shape), ("size", thing.size), ("thing", *thing.pair)}
    truth |= {("letter", plate.letter) for plate in (scene.sign, scene.card if view == "high" else None) if plate}
    truth |= {(plate,) for plate, there in (("sign", scene.sign), ("card", scene.card)) if there}
    return frozenset(truth)


def full_claim(scene: Scene, rng: np.random.Generator, view: View = "low") -> Claim:
    """A clean caption."""
    return Claim(caption(scene, rng, view=view, places=False), statements_of(scene, view))


def partial_claim(scene: Scene, rng: np.random.Generator) -> Claim:
    """Some of a scene's things by colour and shape, not all where there are several, without the background."""
    most = max(1, len(scene.things) - 1)
    kept = [scene.things[i].pair for i in rng.permutation(len(scene.things))[: int(rng.integers(most)) + 1]]
    template = choose(rng, TEMPLATES["pair"])
    text = list_names([name_pair(pair, template) for pair in kept]) + "."
    return Claim(text, frozenset(("thing", *pair) for pair in kept))


def swappable(scene: Scene) -> tuple[Attribute, ...]:
    """The attributes that a caption of this scene states."""
    return tuple(
        name for name in ATTRIBUTES if name == "background" or (scene.sign if name == "letter" else scene.things)
    )


def swap(scene: Scene, attribute: Attribute, rng: np.random.Generator) -> Scene:
    """The scene with one attribute of one item another one; its pairs are ones that training shows."""
    if attribute == "background":
        return replace(scene, background=_other(rng, BACKGROUNDS, scene.background))
    if attribute == "letter":
        assert scene.sign
        return replace(scene, sign=_with_other_letter(rng, scene.sign))
    which = int(rng.integers(len(scene.things)))
    thing = scene.things[which]
    if attribute == "size":
        swapped = replace(thing, size=_other(rng, SIZES, thing.size))
    else:
        swapped = _with_other_pair(rng, thing, attribute, [t.pair for t in scene.things])
    return replace(scene, things=(*scene.things[:which], swapped, *scene.things[which + 1 :]))


def graded_caption(scene: Scene, grade: Grade, rng: np.random.Generator, view: View = "low") -> GradedCaption:
    """A caption of a grade: clean, partial, one attribute wrong, one wrong of everything, or of other things."""
    if grade == "unrelated":
        claim = Claim(unrelated(rng), frozenset())
    elif grade == "partial":
        claim = partial_claim(scene, rng)
    else:
        told = scene
        if grade == "one_wrong":
            told = swap(scene, choose(rng, swappable(scene)), rng)
        elif grade == "many_wrong":
            told = _swap_all(scene, rng)
        claim = full_claim(told, rng, view)
    return grade_of(claim, grade, scene, view)


def grade_of(claim: Claim, grade: Grade, scene: Scene, view: View = "low") -> GradedCaption:
    """A claim beside a scene: how much of what its text says is true. A number counts where the text says it."""
    stated = claim.statements
    if not set(claim.text.split()) & set(NUMBERS):
        stated = frozenset(said for said in stated if said[0] != "count")
    full = {said for said in statements_of(scene, view) if said[0] != "count"}
    return GradedCaption(claim.text, grade, len(stated), len(stated & truth_of(scene, view)), len(full - stated))


def _swap_all(scene: Scene, rng: np.random.Generator) -> Scene:
    """Another background, another letter, and every thing with another colour or shape."""
    scene = swap(scene, "background", rng)
    things: list[Thing] = []
    for thing in scene.things:
        taken = [t.pair for t in (*scene.things, *things)]
        first, second = choose(rng, (("colour", "shape"), ("shape", "colour")))
        swapped = _with_other_pair(rng, thing, first, taken)
        things.append(swapped if swapped != thing else _with_other_pair(rng, thing, second, taken))
    sign = _with_other_letter(rng, scene.sign) if scene.sign else None
    return replace(scene, things=tuple(things), sign=sign)


def _with_other_pair(rng: np.random.Generator, thing: Thing, attribute: str, taken: Sequence[Pair]) -> Thing:
    words = {"colour": COLOURS, "shape": SHAPES}[attribute]
    others = [replace(thing, **{attribute: word}) for word in words]
    allowed = [other for other in others if other.pair in SEEN_PAIRS and other.pair not in taken]
    return choose(rng, allowed) if allowed else thing


def _with_other_letter(rng: np.random.Generator, plate: Plate) -> Plate:
    return replace(plate, letter=_other(rng, LETTERS, plate.letter))


def _other(rng: np.random.Generator, words: Sequence[str], word: str) -> str:
    return choose(rng, [w for w in words if w != word])
