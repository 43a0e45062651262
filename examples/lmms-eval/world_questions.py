"""What lmms-eval needs to know of the small world's questions."""

from pathlib import Path
from typing import Any

from PIL import Image

from sightline.evaluation.metrics import is_correct

IMAGES = Path("data/world/images")


def visual(doc: dict[str, Any]) -> list[Image.Image]:
    """The picture that a question is about."""
    return [Image.open(IMAGES / doc["image"]).convert("RGB")] if doc.get("image") else []


def scored(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether it is answered right, by the rule of `sightline eval`."""
    return {"right": float(is_correct(results[0], [doc["answer"]]))}
