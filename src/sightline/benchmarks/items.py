"""One thing to ask, what came of it, and what a benchmark is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..evaluation.metrics import Estimate
from ..types import ImageSource

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_CN = "\n请直接回答选项字母。"
WORD = "\nAnswer the question with a single word."
UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
CAPTION = "Provide a one-sentence caption for the provided image."
"""What LLaVA-1.5 and its followers add to questions."""

OWN_SCALE = ("mme", "coco", "textcaps", "llava-bench", "mm-vet")
"""Benchmarks whose scores are no shares: points, CIDEr x 100, marks x 100."""

Scores = Mapping[str, Estimate]
"""By name; shares of 1, except where a benchmark's own scale is another (CIDEr x 100, MME's points)."""


@dataclass(frozen=True)
class Item:
    """One thing to ask."""

    id: str
    prompt: str
    images: tuple[ImageSource, ...] = ()
    truth: Mapping[str, Any] = field(default_factory=dict)
    """What its score needs: answers, a letter, a split. As JSON has it."""
    cluster: str = ""
    """What it shares with others, its image as a rule; intervals resample these. Itself by default."""


@dataclass(frozen=True)
class Answered:
    """What a model said."""

    item: Item
    said: str

    @property
    def cluster(self) -> str:
        return self.item.cluster or self.item.id


@dataclass(frozen=True)
class Marking:
    """How a judge marks what was said, where no rule can."""

    prompt: str
    """What it is asked; braces are filled from an item's truth, and `{said}` with what the model said."""
    read: Callable[[str, str], Any]
    """A row's mark from what the judge said, and where that stands, for errors."""
    score: Callable[[Sequence[Any], Sequence[Answered]], Scores]
    """Scores of the marks of all rows."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: where its files are, what it asks, and how it scores."""

    name: str
    title: str
    files: str
    """What it reads below the root, in words."""
    read: Callable[[Path], list[Item]]
    score: Callable[[Sequence[Answered]], Scores] | Marking
    """By a rule, or by a judge."""
    primary: str
    """The score that papers quote."""
    way: Literal["answer", "letters"] = "answer"
    """How it is asked. `answer`: the model speaks. `letters`: the likeliest of A to D counts as said."""
    max_new_tokens: int = 16
    note: str = ""
    """What its number can be compared with, and what not."""
