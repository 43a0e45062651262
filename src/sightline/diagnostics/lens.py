"""The lens: the word of each visual token, to be drawn over what the model saw (SEA, arXiv 2408.11813v1, Figure 1).

`look` computes, `lens_figure.draw` makes a PNG of it and `lens_page.render` a page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..errors import SightlineError
from .material import Case
from .subject import Subject
from .words import nearest_words, words_known

SIDE, CELL = 960, 64
"""Pixels of the picture under the words along a side, and of a token at least, where there are many."""
MARKS = ("Ġ", "▁")
"""How tokenizers mark a token that begins a word: byte-level ones, SentencePiece."""


@dataclass(frozen=True)
class Cell:
    """One visual token."""

    words: tuple[tuple[str, float], ...]
    """Its nearest words with their cosines, best first."""
    true: tuple[str, ...] = ()
    """Words that are plainly true of it; none where that is not known."""
    right: bool | None = None
    """Whether its nearest word is true; None where that is not known, or no true word was there to choose."""
    padding: bool = False
    """Whether it stands for padding, for the most part at least."""

    @property
    def word(self) -> str:
        return self.words[0][0]


@dataclass(frozen=True)
class Lens:
    """The words of an image's visual tokens."""

    image: Image.Image
    """What the model saw: a square, padding and all; each token has as many whole pixels."""
    grid: int
    """Tokens along a side."""
    cells: tuple[Cell, ...]
    """Row by row."""
    candidates: int
    """Words to choose from."""

    @property
    def judged(self) -> tuple[Cell, ...]:
        """Cells of which it is known whether their word is right."""
        return tuple(cell for cell in self.cells if cell.right is not None)

    @property
    def right(self) -> int:
        """How many of those are."""
        return sum(cell.right is True for cell in self.judged)

    def summary(self) -> str:
        """What there is to see, in a sentence or two."""
        said = f"{self.grid} x {self.grid} visual tokens, each with the nearest of {self.candidates} words."
        if not self.judged:
            return said
        return f"{said} The word is right on {self.right} of the {len(self.judged)} tokens whose truth is known."


def look(subject: Subject, image: Image.Image, words: Sequence[str], *, case: Case | None = None, top: int = 5) -> Lens:
    """The nearest words of each visual token of an image, in their places.

    Args:
        image: RGB.
        words: to choose from.
        case: what is known of the image; where its truth and the tokens do not fit each other, no word is judged.
        top: words for each token.

    Raises:
        SightlineError: if there are no words, or the model's tokens are no square grid.
    """
    words = tuple(dict.fromkeys(words))
    if not words:
        raise SightlineError("the list of words is empty, so no token has a nearest one. Give at least one word.")
    (visual,) = subject.visual([image])
    on_grid = subject.grid(visual)
    grid = grid_of(len(on_grid) if len(visual) == subject.tokens_of_a_view else 0)
    near, scores = nearest_words(on_grid, subject.words(words), top=top)
    truth = subject.truth(case, image, visual) if case is not None else ()
    box = subject.sight.box(image.size)
    cells = []
    for token, (numbers, cosines) in enumerate(zip(near.tolist(), scores.tolist(), strict=True)):
        best = tuple((words[number], cosine) for number, cosine in zip(numbers, cosines, strict=True))
        true = words_known(truth[token]) if truth else ()
        known = bool(set(true) & set(words))
        place = box.cell(*divmod(token, grid), grid)
        cells.append(Cell(best, true, best[0][0] in true if known else None, place.is_outside(image.size)))
    picture = subject.sight.drawn(image, grid * max(CELL, -(-SIDE // grid)))
    return Lens(picture, grid, tuple(cells), len(words))


def grid_of(tokens: int) -> int:
    """Tokens along a side of the grid that an image's tokens are.

    Raises:
        SightlineError: if they are no square grid.
    """
    grid = math.isqrt(tokens)
    if tokens == 0 or grid * grid != tokens:
        raise SightlineError(
            "the model's visual tokens of this image are no square grid, so they have no places on it. The lens shows "
            "models that make as many tokens of every image."
        )
    return grid


def vocabulary_words(tokenizer: Any) -> tuple[str, ...]:
    """The words that a tokenizer has as single tokens: those that begin a word, of two letters or more, nothing else.

    Some are only the beginnings of words, which no tokenizer tells apart. Of forms that differ in capitals alone
    the one with the fewest is taken: `red` before `Red` before `RED`.

    Raises:
        SightlineError: if it has none, as one that marks no beginnings.
    """
    marked = (token for token in tokenizer.get_vocab() if token.startswith(MARKS))
    texts = (tokenizer.convert_tokens_to_string([token]).strip() for token in marked)
    found: dict[str, str] = {}
    for text in sorted(text for text in texts if text.isalpha() and len(text) > 1):
        found[text.lower()] = text
    if not found:
        raise SightlineError(
            "the tokenizer marks no tokens that begin a word, so its vocabulary gives no list. Give one with --words."
        )
    return tuple(sorted(found.values()))
