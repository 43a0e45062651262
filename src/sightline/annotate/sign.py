"""Whether an encoder's patches point to their words or away from them, measured on captions."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from ..data.images import load_image
from ..errors import ImageError, SightlineError
from ..progress import watched
from ..types import Sample

PAIRS = 1000
"""Images with captions that are looked at."""


@dataclass(frozen=True)
class Signs:
    """How many of the captions' words are among the labels of their images, by sign."""

    recall: Mapping[int, float]
    pairs: int

    @property
    def best(self) -> int:
        """The sign that finds more; 1 if both find as many."""
        return 1 if self.recall[1] >= self.recall[-1] else -1

    def told(self) -> str:
        """A line for the user."""
        return (
            f"sign of the cosine: of the words in {self.pairs:,} captions, +1 finds {self.recall[1]:.1%} among the "
            f"labels of their images and -1 finds {self.recall[-1]:.1%}; {self.best:+d} is taken"
        )

    def record(self) -> dict[str, Any]:
        """For the file that keeps it."""
        return {"sign": self.best, "recall": {f"{sign:+d}": value for sign, value in self.recall.items()}} | {
            "pairs": self.pairs
        }


@runtime_checkable
class Labeller(Protocol):
    """What labels images under a sign."""

    sign: int
    batch: int

    def views(self, image: Any, key: str) -> dict[str, Tensor]: ...

    def best(self, pixels: Tensor) -> tuple[Tensor, Tensor]: ...


def measure_signs(
    labeller: Labeller, sources: Sequence[Sequence[Sample]], words: Sequence[str], *, progress: bool = False
) -> Signs:
    """The recall of captions' words under both signs: over the first `PAIRS` rows with an image and words of the list,
    the mean share of a caption's words that some patch of its image has among its labels.

    Raises:
        SightlineError: if no row has both.
    """
    number = {word.lower(): place for place, word in enumerate(words)}
    pairs = _pairs(sources, number)
    found: dict[int, list[float]] = {1: [], -1: []}
    for batch in watched(pairs, "sign of the cosine", batch_size=labeller.batch, progress=progress):
        for sample, said in batch:
            try:
                pixels = labeller.views(load_image(sample.images[0]), "")["pixels"]
            except ImageError:
                continue
            for sign, shares in found.items():
                labeller.sign = sign
                ids, scores = labeller.best(pixels)
                shares.append(len(said & set(ids[scores > 0].tolist())) / len(said))
    if not (count := len(found[1])):
        raise SightlineError(
            "no row has an image that can be read and a word of the list in its answers, so the sign cannot be "
            "measured. Say it: sign: 1, or -1, in the method's options."
        )
    return Signs({sign: sum(shares) / count for sign, shares in found.items()}, count)


def _pairs(sources: Sequence[Sequence[Sample]], number: Mapping[str, int]) -> list[tuple[Sample, set[int]]]:
    pairs = []
    for source in sources:
        for row in range(len(source)):
            sample = source[row]
            text = " ".join(turn.text for turn in sample.turns if turn.role == "assistant").lower()
            said = {number[word] for word in re.findall(r"[^\W\d_]+", text) if word in number}
            if sample.images and said:
                pairs.append((sample, said))
            if len(pairs) == PAIRS:
                return pairs
    return pairs
