"""Which patches are supervised by which words: one patch from each window, one label of it (SEA, equation 7).

What is drawn for an image follows from the run's seed, the epoch and the image's bytes, so that it is the same whether
it is drawn in training, from stored labels, or beforehand for some epochs (`labels.Drawn`: 3 bytes a window instead of
30 a patch).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int

from ..data.order import generator
from ..errors import SightlineError
from ..types import ImageSource, Sample

LabelsOf = Callable[[ImageSource], tuple[str, np.ndarray, np.ndarray]]
"""The key of an image, and of each of its patches the words and their scores, [patches, n]; 0 where there is none."""
DrawnOf = Callable[[ImageSource, int], tuple[str, np.ndarray]]
"""The key of an image, and what is drawn of it in an epoch, [windows, 2]."""
NONE = -1
"""The word and the place of a window of which nothing is drawn."""


@dataclass(frozen=True)
class How:
    """How patches and labels are drawn."""

    grid: int
    """Patches along a side."""
    seed: int
    """The run's."""
    window: int = 2
    """One patch is drawn from each square of so many a side."""
    partial: bool = True
    """Whether squares that reach beyond the grid count."""
    power: float = 1.0
    """A label is drawn in proportion to its score to this power."""

    @property
    def squares(self) -> Int[np.ndarray, "windows places"]:
        """The places in each window."""
        return windows(self.grid, self.window, self.partial)

    def draw(
        self, image: int, epoch: int, ids: Int[np.ndarray, "patches n"], scores: Float[np.ndarray, "patches n"]
    ) -> Int[np.ndarray, "windows 2"]:
        """(place of the patch, word) for each window of an image in an epoch.

        Args:
            image: a number that stands for it.
        """
        return draw(ids, scores, self.squares, generator(self.seed, 4, epoch, image), power=self.power)

    def rows(
        self, number: int, image: int, epoch: int, found: Int[np.ndarray, "windows 2"]
    ) -> Int[np.ndarray, "drawn 4"]:
        """What is drawn of an image as (its number among others, place, word, priority), without empty windows."""
        rows = np.column_stack([np.full(len(found), number), found, self.priorities(image, epoch)])
        return rows[found[:, 0] != NONE].astype(np.int64)

    def priorities(self, image: int, epoch: int) -> Int[np.ndarray, " windows"]:
        """Of the patches that drew the same word, the one of the highest priority is kept."""
        return generator(self.seed, 5, epoch, image).integers(2**31, size=len(self.squares))


class Drawing:
    """What is drawn for a sample in an epoch. It can be pickled."""

    def __init__(self, how: How, drawn: DrawnOf) -> None:
        self.how, self.drawn = how, drawn

    def __call__(self, sample: Sample, epoch: int) -> Int[torch.Tensor, "drawn 4"]:
        """Rows of (number of the image in the sample, place in its grid, word, priority)."""
        rows = [np.zeros((0, 4), dtype=np.int64)]
        for number, image in enumerate(sample.images):
            key, found = self.drawn(image, epoch)
            rows.append(self.how.rows(number, seed_of(key), epoch, found))
        return torch.from_numpy(np.concatenate(rows))


class FromLabels:
    """Draws from labels as they are needed. It can be pickled."""

    def __init__(self, how: How, labels: LabelsOf) -> None:
        self.how, self.labels = how, labels

    def __call__(self, image: ImageSource, epoch: int) -> tuple[str, Int[np.ndarray, "windows 2"]]:
        """The key of an image, and (place, word) for each of its windows in an epoch."""
        key, ids, scores = self.labels(image)
        return key, self.how.draw(seed_of(key), epoch, ids, scores)


def draw(
    ids: Int[np.ndarray, "patches n"],
    scores: Float[np.ndarray, "patches n"],
    squares: Int[np.ndarray, "windows places"],
    rng: np.random.Generator,
    *,
    power: float = 1.0,
) -> Int[np.ndarray, "windows 2"]:
    """One patch of each window that has one with a label, and one of its labels in proportion to its score.

    Args:
        scores: of the labels; those of 0 or less are none.

    Returns:
        (place of the patch, word) for each window, or `NONE`.
    """
    chances = probabilities(scores, power)
    labelled = np.append(chances.any(axis=1), False)  # -1, outside the grid, is none
    order = np.where(labelled[squares], rng.random(squares.shape), -1.0)
    places = squares[np.arange(len(squares)), order.argmax(axis=1)]
    mine = chances[places]
    label = (mine.cumsum(axis=1) <= rng.random((len(squares), 1))).sum(axis=1)
    past = (label >= mine.shape[1]) | (mine[np.arange(len(mine)), label.clip(max=mine.shape[1] - 1)] == 0)
    label = np.where(past, mine.argmax(axis=1), label)  # the sum may be just under 1
    drawn = np.stack([places, ids[places, label]], axis=1)
    return np.where(order.max(axis=1, keepdims=True) >= 0, drawn, NONE)


def probabilities(scores: Float[np.ndarray, "patches n"], power: float = 1.0) -> Float[np.ndarray, "patches n"]:
    """How likely each label is to be drawn (equation 7): its score over the sum; those of 0 or less never are."""
    positive = np.where(scores > 0, np.where(scores > 0, scores, 1.0).astype(np.float64) ** power, 0.0)
    return positive / np.maximum(positive.sum(axis=-1, keepdims=True), np.finfo(np.float64).tiny)


@lru_cache(maxsize=8)
def windows(grid: int, window: int, partial: bool) -> Int[np.ndarray, "windows places"]:
    """The places in each square window of a grid, in reading order; -1 beyond its edge."""
    count = -(-grid // window) if partial else grid // window
    if count == 0:
        raise SightlineError(f"no window of {window} fits into a grid of {grid}. Use a smaller one, or partial ones.")
    steps = np.arange(count * window).reshape(count, window)
    rows, columns = steps[:, None, :, None], steps[None, :, None, :]
    places = np.where((rows < grid) & (columns < grid), rows * grid + columns, -1)
    return places.reshape(count * count, window * window)


def out_of_order(
    key: str, ids: Int[np.ndarray, "patches n"], scores: Float[np.ndarray, "patches n"]
) -> tuple[Int[np.ndarray, "patches n"], Float[np.ndarray, "patches n"]]:
    """Labels of patches in a random order, the same each time for an image: for the control `shuffled`."""
    order = np.random.Generator(np.random.Philox(seed_of(key))).permutation(len(ids))
    return ids[order], scores[order]


def seed_of(key: str) -> int:
    """A number that follows from an image's key."""
    return int(key[:15] or "0", 16)
