"""Windows of an image's cells, and what is in them as text.

An image is laid out in cells: one code of a VQ model stands for each, and one pixel of a thumbnail. A window is a
square of cells; what is in it is told row by row, as numbers of a fixed width without anything between them, or as
tokens of their own. Either way what is written can be read again exactly.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

UNREAD = -1
"""The value of what could not be read."""
LEVELS = 256
"""Values of a colour's channel, and three digits that tell each."""


@dataclass(frozen=True)
class Window:
    """A square of cells: its first row and column, and its size."""

    row: int
    column: int
    size: int

    @classmethod
    def draw(cls, grid: int, size: int, rng: np.random.Generator) -> "Window":
        """Anywhere on a grid of `grid` by `grid` cells, each place as likely."""
        row, column = (int(place) for place in rng.integers(grid - size + 1, size=2))
        return cls(row, column, size)

    def of(self, cells: Tensor) -> Tensor:
        """What of [rows, columns, ...] is in the window: [size, size, ...]."""
        return cells[self.row : self.row + self.size, self.column : self.column + self.size]


@dataclass(frozen=True)
class Digits:
    """Decimal numbers, zero-padded to one width."""

    width: int
    most: int
    """There are so many numbers: the largest is one less."""

    def __post_init__(self) -> None:
        assert self.most <= 10**self.width, f"{self.width} digits cannot tell {self.most} numbers"

    def write(self, values: Sequence[int]) -> str:
        """Numbers as text."""
        return "".join(f"{value:0{self.width}d}" for value in values)

    def read(self, text: str, count: int) -> Int[Tensor, " count"]:
        """The first `count` numbers that a text begins with; `UNREAD` for the rest, and for those that are none."""
        digits = re.match(r"[0-9]*", text.strip())
        found = digits.group() if digits else ""
        groups = [found[at : at + self.width] for at in range(0, len(found), self.width)]
        return _filled([int(group) for group in groups if len(group) == self.width], count, self.most)


@dataclass(frozen=True)
class Marks:
    """A token for each number: `<vq_0>`, `<vq_1>` and so on."""

    most: int

    @property
    def tokens(self) -> tuple[str, ...]:
        """All of them, in order."""
        return tuple(f"<vq_{value}>" for value in range(self.most))

    def write(self, values: Sequence[int]) -> str:
        """As for digits."""
        return "".join(f"<vq_{value}>" for value in values)

    def read(self, text: str, count: int) -> Int[Tensor, " count"]:
        """As for digits."""
        begins = re.match(r"(?:<vq_[0-9]+>\s?)*", text.strip())
        found = re.findall(r"[0-9]+", begins.group()) if begins else []
        return _filled([int(number) for number in found], count, self.most)


Alphabet = Digits | Marks
"""How numbers from 0 on are told."""
COLOURS = Digits(3, LEVELS)


def _filled(values: Sequence[int], count: int, most: int) -> Int[Tensor, " count"]:
    """`count` values, `UNREAD` for those that are absent or too large."""
    read = [value if value < most else UNREAD for value in values[:count]]
    return torch.tensor(read + [UNREAD] * (count - len(read)), dtype=torch.long)


def tokens_of(tokenizer: Callable[..., Any], alphabet: Alphabet, most: int, count: int) -> int:
    """How many tokens `count` numbers below `most` take, told side by side: the most of a few draws."""
    rng = np.random.default_rng(0)
    draws = [[0] * count, [most - 1] * count, *(rng.integers(most, size=count).tolist() for _ in range(4))]
    return max(len(tokenizer(alphabet.write(values), add_special_tokens=False)["input_ids"]) for values in draws)
