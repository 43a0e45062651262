"""How many rows a stage has and how long they are: counted where the data is, else from `data.rows` and assumptions."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config import Data, Stage
from ..data.dataset import Head
from ..data.order import Order
from ..errors import SightlineError
from ..train.rows import read_data

CAPTION_TOKENS = 20
CONVERSATION_TOKENS = 320
"""Text of a row where it cannot be counted, an assumption: means of what caption and instruction sets have."""
CHARACTERS = 4
"""Characters of a token, roughly; as in `data.dataset.rough_lengths`."""


@dataclass(frozen=True)
class StageRows:
    """The rows of a stage's data, by source, and the mean row of an epoch."""

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    counted: bool
    """Whether all of it was read; False where `data.rows` or an assumption stands for some of it."""
    roughly: bool
    """Whether some of those numbers are rough ones of the recipe (`about_rows`)."""
    images: float
    """Images of the mean row."""
    text: float
    """Text tokens of the mean row."""
    text_from: str
    """Where that comes from."""

    def order(self, stage: Stage) -> Order:
        """The arithmetic of the stage's epochs."""
        return Order(
            seed=0,
            sizes=self.sizes,
            batch_size=stage.batch_size,
            accumulate=stage.accumulate,
            weights=self.weights,
        )


def stage_rows(stage: Stage, *, text_tokens: int | None = None) -> StageRows:
    """The rows of a stage.

    Args:
        text_tokens: text tokens of a row, for all sources, whatever is there.

    Raises:
        SightlineError: if a source is neither on disk nor has `rows`, or cannot be read.
    """
    counted = [_source(data) for data in stage.data]
    sizes = tuple(size for size, _, _, _ in counted)
    weights = tuple(data.weight for data in stage.data)
    shares = Order(seed=0, sizes=sizes, batch_size=1, weights=weights).shares
    here = [there for *_, there in counted]
    if text_tokens is not None:
        text, origin = float(text_tokens), "as you say"
    else:
        text = _mean([text for _, _, text, _ in counted], shares)
        origin = "four characters a token" if all(here) else "an assumption; --text-tokens N changes it"
    return StageRows(
        sizes=sizes,
        weights=weights,
        counted=all(here),
        roughly=any(data.rows is None and not there for data, there in zip(stage.data, here, strict=True)),
        images=_mean([images for _, images, _, _ in counted], shares),
        text=text,
        text_from=origin,
    )


def _source(data: Data) -> tuple[int, float, float, bool]:
    """Rows of a source, images and text tokens of its mean row, and whether it was read."""
    path = Path(data.path)
    if path.exists() or glob.glob(data.path, recursive=True):  # noqa: PTH207  (any root)
        head = read_data([data])[0]
        assert isinstance(head, Head), "the rows of a source are a head of it"
        sizes, images = head.source.sizes[: len(head)], head.source.num_images[: len(head)]
        return len(head), float(np.mean(images)), float(np.mean(sizes)) / CHARACTERS, True
    rows = data.rows or data.about_rows
    if rows is None:
        raise SightlineError(
            f"data file not found: {data.path}, so its rows cannot be counted. Add `rows: N` beside `path` in the "
            "recipe, or `about_rows: N` for a rough number, or put the file there."
        )
    rows = rows if data.limit is None else min(rows, data.limit)
    return rows, 1.0, float(CAPTION_TOKENS if data.template == "plain" else CONVERSATION_TOKENS), False


def _mean(values: Sequence[float], shares: Sequence[int]) -> float:
    return float(np.average(values, weights=shares))
