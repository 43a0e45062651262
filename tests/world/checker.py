"""Answers to the world's questions, worked out again: from the words of the question and the scene, by other rules."""

import re

from sightline.world.scene import Scene

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


def answer(question: str, scene: Scene) -> str:
    """The one right answer; an AssertionError where there is none or more than one."""
    if match := re.fullmatch(r"(?:is there|do you see) (.+)\?", question):
        return "yes" if _is_there(match[1], scene) else "no"
    if re.fullmatch(r"how many objects (are there|do you see)\?", question):
        return NUMBERS[len(scene.things)]
    if "background" in question:
        return scene.background
    if match := re.fullmatch(r"(?:what colour is|which colour does) the (\w+)(?: have)?\?", question):
        (colour,) = [t.colour for t in scene.things if t.shape == match[1]]
        return colour
    match = re.fullmatch(r"(?:what shape is|which shape does) the (\w+) object(?: have)?\?", question)
    assert match, question
    (shape,) = [t.shape for t in scene.things if t.colour == match[1]]
    return shape


def _is_there(what: str, scene: Scene) -> bool:
    words = set(what.split()) - {"a", "an", "anything"}
    return any(words <= {t.colour, t.shape} for t in scene.things)


def pairs_named(text: str) -> set[tuple[str, str]]:
    """Colours and shapes that a text names together: "a red star", "a star in red"."""
    colours = "red|orange|yellow|green|cyan|blue|purple|pink"
    shapes = "circle|square|triangle|star|cross|ring"
    found = {(m[1], m[2]) for m in re.finditer(rf"\b({colours}) ({shapes})\b", text)}
    return found | {(m[2], m[1]) for m in re.finditer(rf"\b({shapes}) in ({colours})\b", text)}
