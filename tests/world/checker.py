"""The world's sentences, read back by other rules: from their words and the scene, without the package's templates."""

import re
from pathlib import Path
from typing import Any

from sightline.world.scene import Plate, Scene, Thing

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
PLACES = {
    "top left": (0, 0),
    "top": (0, 1),
    "top right": (0, 2),
    "left": (1, 0),
    "centre": (1, 1),
    "right": (1, 2),
    "bottom left": (2, 0),
    "bottom": (2, 1),
    "bottom right": (2, 2),
}
"""Row and column of each."""

_COLOUR = "(red|orange|yellow|green|cyan|blue|purple|pink)"
_SHAPE = "(circle|square|triangle|star|cross|ring)"
_SIZE = "(small|large)"
_BACKGROUND = "(black|white|grey|brown)"
_LETTER = "([a-z])"


def answer(question: str, scene: Scene) -> str:
    """The one right answer; an AssertionError where there is none or more than one."""
    if match := re.fullmatch(r"(?:is there|do you see) (.+)\?", question):
        return "yes" if pairs_named(match[1]) <= {t.pair for t in scene.things} else "no"
    if re.fullmatch(r"how many shapes (are there|do you see)\?", question):
        return NUMBERS[len(scene.things)]
    if "background" in question:
        return scene.background
    if match := re.fullmatch(r"(?:what letter is on the|which letter does the) (sign|card)(?: show)?\?", question):
        plate = scene.sign if match[1] == "sign" else scene.card
        assert plate, question
        return plate.letter
    if " left or right of " in question or " above or below " in question:
        return _relation(question, scene)
    if re.search("what size|small or large", question):
        return _only(question, scene).size
    (thing,) = [t for t in scene.things if {t.colour, t.shape} & set(re.findall(r"\w+", question))]
    return thing.colour if "which colour" in question or "what colour" in question else thing.shape


def _relation(question: str, scene: Scene) -> str:
    """By the centres of the two things, not by their cells."""
    one, other = (_centre(_only(words, scene)) for words in re.split(" of the | below the ", question))
    if "left or right" in question:
        assert abs(one[0] - other[0]) > 0.5, question
        return "left" if one[0] < other[0] else "right"
    assert abs(one[1] - other[1]) > 0.5, question
    return "above" if one[1] < other[1] else "below"


def _only(words: str, scene: Scene) -> Thing:
    (thing,) = [t for t in scene.things if pairs_named(words) == {t.pair}]
    return thing


def _centre(thing: Thing) -> tuple[float, float]:
    """To the right and down, in cells."""
    return thing.cell % 3 + 0.5 + thing.offset[0], thing.cell // 3 + 0.5 + thing.offset[1]


def pairs_named(text: str) -> set[tuple[str, str]]:
    """Colours and shapes that a text names together: "a red star", "a star in red"."""
    found = {(m[1], m[2]) for m in re.finditer(rf"\b{_COLOUR} {_SHAPE}\b", text)}
    return found | {(m[2], m[1]) for m in re.finditer(rf"\b{_SHAPE} in {_COLOUR}\b", text)}


def statements_in(text: str) -> set[tuple[str, ...]]:
    """What a text says of a picture, places apart: ("background", "grey"), ("thing", "small", "red", "star"), ..."""
    said: set[tuple[str, ...]] = set()
    said |= {("background", m[1]) for m in re.finditer(rf"\b{_BACKGROUND} background\b", text)}
    said |= {("background", m[1]) for m in re.finditer(rf"\bbackground is {_BACKGROUND}\b", text)}
    said |= {("count", m[1]) for m in re.finditer(r"\b(one|two|three|four) shapes?\b", text)}
    sized = {(m[1], m[2], m[3]) for m in re.finditer(rf"\b{_SIZE} {_COLOUR} {_SHAPE}\b", text)}
    sized |= {(m[1], m[3], m[2]) for m in re.finditer(rf"\b{_SIZE} {_SHAPE} in {_COLOUR}\b", text)}
    said |= {("thing", *words) for words in sized}
    said |= {("thing", *pair) for pair in pairs_named(text) - {words[1:] for words in sized}}
    said |= {(m[1], m[2]) for m in re.finditer(rf"\ba (sign|card) with the letter {_LETTER}\b", text)}
    said |= {(m[2], m[1]) for m in re.finditer(rf"\bthe letter {_LETTER} on a (sign|card)\b", text)}
    lettered = {words[0] for words in said if words[0] in ("sign", "card")}
    return said | {(m[1],) for m in re.finditer(r"\ba (sign|card)\b", text) if m[1] not in lettered}


def places_in(text: str) -> set[tuple[str, int]]:
    """What stands where by a text: its last word (a shape, a colour, a letter, "sign" or "card"), and its cell."""
    longest_first = "|".join(sorted(PLACES, key=len, reverse=True))
    found = re.finditer(rf"\b(\w+) at the ({longest_first})\b", text)
    return {(m[1], 3 * PLACES[m[2]][0] + PLACES[m[2]][1]) for m in found}


def holds(statement: tuple[str, ...], scene: Scene) -> bool:
    """Whether a statement is true of a scene, all of whose letters can be read."""
    kind, *words = statement
    if kind == "background":
        return words == [scene.background]
    if kind == "count":
        return words == [NUMBERS[len(scene.things)]]
    if kind in ("sign", "card"):
        plate = scene.sign if kind == "sign" else scene.card
        return plate is not None and words in ([], [plate.letter])
    if kind == "letter":
        return words[0] in {plate.letter for plate in (scene.sign, scene.card) if plate}
    return any(set(words) <= {t.size, t.colour, t.shape} for t in scene.things)


def scene_from(told: dict[str, Any]) -> Scene:
    """The scene that a line of `truth/` tells."""
    things = tuple(Thing(**t | {"offset": tuple(t["offset"]), "tint": tuple(t["tint"])}) for t in told["things"])
    plates = {
        name: Plate(**told[name] | {"room": tuple(told[name]["room"])}) if told[name] else None
        for name in ("sign", "card")
    }
    return Scene(told["background"], things, plates["sign"], plates["card"], tuple(told["tint"]))


def files_in(folder: Path) -> list[str]:
    """Paths of all files, relative to the folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
