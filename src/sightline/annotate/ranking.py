"""From scores to levels: where they are cut, and which level a score has.

AlignGPT (Zhao et al. 2024, `docs/papers.md`) says both "rank" and "equally spaced": by rank, levels have equally many
rows (its authors' answer, and 558,128 / 8 is whole); by width, they span equally much. Either way a level follows from
the score alone, so rows of equal scores share one.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

By = Literal["rank", "width"]
Scope = Literal["all", "source"]
CutPoints = tuple[float, ...]
"""Ascending; a score's level is 1 and one more for each of them that it reaches."""


@dataclass(frozen=True)
class Scored:
    """The rows of a stage's training data that have scores, in their order, and how many have none."""

    scores: Float[np.ndarray, " rows"]
    source: Int[np.ndarray, " rows"]
    """The number of each row's source."""
    names: tuple[str, ...]
    """The sources, by number."""
    places: Int[np.ndarray, "rows 2"]
    """Where each row is: which of the stage's sources, and which row there."""
    chunks: Int[np.ndarray, " rows"]
    """In how many pieces its caption was scored; 0 where scores were given."""
    truncated: Bool[np.ndarray, " rows"]
    """Whether some of its caption was not read even so."""
    text_only: int
    """Rows without an image."""
    unreadable: int
    """Rows with an image that cannot be read, in a stage that skips those."""


@dataclass(frozen=True)
class Cuts:
    """Where the scores of a stage are cut into levels."""

    levels: int
    everywhere: CutPoints
    """Over all rows of the training data."""
    by_source: Mapping[str, CutPoints]
    """Within each source of it; empty where levels are those of all rows."""

    def __call__(self, score: float, source: str) -> int:
        """The level of a score, from 1; of a source that the training data lacks, by the cut points of all of it."""
        return 1 + bisect_right(self.by_source.get(source, self.everywhere), score)


def cut(scored: Scored, levels: int, by: By, scope: Scope) -> Cuts:
    """Where scores are cut, over all rows or within each source."""
    by_source = {}
    if scope == "source":
        for number, name in enumerate(scored.names):
            by_source[name] = cut_points(scored.scores[scored.source == number], levels, by)
    return Cuts(levels, cut_points(scored.scores, levels, by), by_source)


def cut_points(scores: Float[np.ndarray, " rows"], levels: int, by: By) -> CutPoints:
    """The `levels - 1` scores at which the next level begins.

    By rank: the scores that `ceil(k * rows / levels)` others precede, so that levels of distinct scores differ by one
    row at most. Of fewer rows than levels, the best has the highest. By width: equal steps from the lowest score to
    the highest.
    """
    assert len(scores), "there is a score"
    steps = range(1, levels)
    if by == "rank":
        ordered = np.sort(scores)
        return tuple(float(ordered[min(-(-step * len(ordered) // levels), len(ordered) - 1)]) for step in steps)
    low, high = float(scores.min()), float(scores.max())
    return tuple(low + step * (high - low) / levels for step in steps)
