"""Recipes that have a tiny model tell what is in pictures."""

from pathlib import Path

from rich.console import Console

from sightline.config import Recipe, check
from sightline.methods.base import Sizes
from sightline.methods.compose import build_methods
from sightline.methods.vlsa.cognition import Cognition
from sightline.train.annotate import annotate_method

SIZES = Sizes(d_vision=8, d_llm=16, patches=16, tokens=16)
GRID, WINDOW = 8, 3


def options(pipeline: Path, **changed) -> dict:
    given = {"vq": str(pipeline), "resolution": 16, "window": WINDOW, "probability": 1.0, "digits": 2}
    return {"name": "cognition"} | given | changed


def recipe(tiny, pictures: Path, pipeline: Path, folder: Path, *, stage=None, methods=(), **changed) -> Recipe:
    """Captions with the language model frozen, then chats."""
    shared = {"batch_size": 4, "steps": 2, "save": True}
    return check(
        {
            "name": "told",
            "out": str(folder / "run"),
            "device": "cpu",
            "annotations": str(folder / "annotations"),
            "model": {"vision": str(tiny["clip"]), "language": str(tiny["llama"])},
            "methods": [*methods, options(pipeline, **changed)],
            "stages": [
                {
                    "name": "one",
                    "data": {"path": str(pictures / "captions.json"), "template": "plain"},
                    "trainable": ["connector"],
                }
                | shared,
                {
                    "name": "two",
                    "data": {"path": str(pictures / "chats.json")},
                    "trainable": ["connector", "language"],
                }
                | shared
                | (stage or {}),
            ],
        }
    )


def annotated(made: Recipe) -> Recipe:
    annotate_method(made, "cognition", console=Console(quiet=True))
    return made


def method_of(pipeline: Path, **changed) -> Cognition:
    (method,) = build_methods([options(pipeline, **changed)], SIZES).all
    assert isinstance(method, Cognition)
    return method
