"""The gallery of a page: answers right and wrong, with their images."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..evaluation.scores import Prediction, by_ability
from .figures import image_or_words

GALLERY = 12
"""Questions in the gallery."""
IMAGES_PER_QUESTION = 4


def pick_gallery(predictions: Sequence[Prediction], count: int = GALLERY, *, seed: int = 0) -> list[Prediction]:
    """A mix to look at: abilities in turn, right and wrong in turn, an image once while others are left.

    It shows kinds of answers and not their shares, and depends on nothing but `predictions` and `seed`. Questions
    without images are shown only where there are no others.
    """
    rng = random.Random(seed)
    candidates = [row for row in predictions if row.images] or predictions
    piles = {
        (ability, right): rng.sample(rows, len(rows))
        for ability, all_rows in by_ability(candidates).items()
        for right in (True, False)
        if (rows := [row for row in all_rows if row.correct is right])
    }
    picked: list[Prediction] = []
    later: list[Prediction] = []
    seen: set[str] = set()
    abilities = sorted({ability for ability, _ in piles})
    turn = 0
    while len(picked) < count and any(piles.values()):
        lap, place = divmod(turn, len(abilities))
        ability, wanted = abilities[place], (lap + place) % 2 == 0
        turn += 1
        pile = piles.get((ability, wanted)) or piles.get((ability, not wanted)) or []
        while pile:
            row = pile.pop()
            if row.cluster not in seen:
                seen.add(row.cluster)
                picked.append(row)
                break
            later.append(row)
    return (picked + later)[:count]


def shown(section: Mapping[str, Any], images_root: Path | None, count: int, side: int) -> list[dict[str, Any]]:
    """The gallery of a section: each question with its images, and what every run says.

    Args:
        side: of an image, in pixels; half of it beside others.
    """
    columns = section["columns"]
    evaluation = columns[0]["evaluation"]
    root = images_root if images_root is not None else Path(evaluation.scores.images_root)
    said = [(one["series"], {row.id: row for row in one["evaluation"].predictions}) for one in columns]
    items: list[dict[str, Any]] = []
    for row in pick_gallery(evaluation.predictions, count):
        width = side if len(row.images) == 1 else side // 2
        items.append(
            {
                "row": row,
                "images": [image_or_words(root / name, width) for name in row.images[:IMAGES_PER_QUESTION]],
                "more": max(len(row.images) - IMAGES_PER_QUESTION, 0),
                "said": [(series, rows[row.id]) for series, rows in said if row.id in rows],
            }
        )
    return items
