"""What is in a picture: a background, one to four things, sometimes a sign with a letter and a card with a fine one.

A scene is a pure function of (seed, split, index): numpy's counter-based Philox generator gives every scene a stream of
its own, so that no scene depends on how many were made before it.

Splits are disjoint by construction, whatever the seed. A hash of what a scene shows (not of its jitter) decides whether
it belongs to `train`, `validation` or `test`; a scene drawn for another split is drawn again. `novel` shows only
`NOVEL_PAIRS`, combinations of colour and shape that no other split shows or names. So the backbones that ship with the
package, trained on the `train` split of one seed, have seen no evaluation scene of any seed.

The number of things is `index % 4 + 1`: all splits have the same distribution of counts, exactly. As in photographs,
some pairs of colour and shape are common and some keep company: without that, POPE's popular and adversarial questions
would be random ones.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import numpy as np

from . import Split

T = TypeVar("T")
Size = Literal["small", "large"]
Pair = tuple[str, str]
"""A colour and a shape."""

SPLITS: tuple[Split, ...] = get_args(Split)
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = ("black", "white", "grey", "brown")
SIZES: tuple[Size, ...] = get_args(Size)
LETTERS = tuple("cdehklmpstuvwxyz")
MOST_THINGS = 4

GRID = 3
"""Cells in a row and in a column of a picture; what a scene shows stands in cells of its own."""
CORNERS = (0, GRID - 1, GRID * (GRID - 1), GRID * GRID - 1)
"""Where cards stand: a quarter of the picture holds one whole."""

NOVEL_PAIRS: tuple[Pair, ...] = tuple((colour, SHAPES[i % len(SHAPES)]) for i, colour in enumerate(COLOURS))
"""One shape for each colour, held out from every split but `novel`; other pairs show every word."""
SEEN_PAIRS: tuple[Pair, ...] = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in NOVEL_PAIRS)

POPULAR_EVERY, POPULARITY = 4, 3
"""Every fourth pair is shown three times as often as the others."""
COMPANY = 0.4
"""Chance that a further thing is a companion of one that is there already."""
PLATE_CHANCE = 0.5
"""Chance of a sign, and of a card, in a scene."""

_SHARES: dict[Split, range] = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}
_STREAMS = ("scene", "caption", "questions", "noise", "text")


@dataclass(frozen=True)
class Thing:
    """One thing of a scene."""

    colour: str
    shape: str
    size: Size
    cell: int
    """Number of its cell, in reading order."""
    diameter: float
    """In cells: .54 to .64 when small, .82 to .92 when large."""
    offset: tuple[float, float]
    """From the centre of its cell to its own, to the right and down, in cells; it never leaves its cell."""
    tint: tuple[int, int, int]
    """Added to its colour's red, green and blue (of 255)."""

    @property
    def pair(self) -> Pair:
        return self.colour, self.shape


@dataclass(frozen=True)
class Plate:
    """A sign, with a letter that every view shows, or a card, whose letter only the high-resolution view shows."""

    letter: str
    cell: int
    room: tuple[float, float]
    """How far to the right and down it stands in its cell, of what its size leaves free: 0 to 1."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    background: str
    things: tuple[Thing, ...]
    """In reading order of their cells; no two have the same colour and shape."""
    sign: Plate | None = None
    card: Plate | None = None
    tint: tuple[int, int, int] = (0, 0, 0)

    @property
    def items(self) -> tuple[Thing | Plate, ...]:
        """Everything that stands in a cell: the things, then the sign, then the card."""
        return (*self.things, *filter(None, (self.sign, self.card)))

    @property
    def content(self) -> str:
        """What the low view shows without its jitter: the identity that splits are kept apart by."""
        things = (f"{t.cell} {t.size} {t.colour} {t.shape}" for t in self.things)
        sign = f"sign {self.sign.cell} {self.sign.letter}" if self.sign else "no sign"
        card = f"card {self.card.cell}" if self.card else "no card"
        return "; ".join([self.background, *things, sign, card])


def pairs_of(split: Split) -> tuple[Pair, ...]:
    """The combinations of colour and shape that a split may show and name."""
    return NOVEL_PAIRS if split == "novel" else SEEN_PAIRS


def popular_pairs(split: Split) -> tuple[Pair, ...]:
    """The pairs that a split shows most often."""
    return pairs_of(split)[::POPULAR_EVERY]


def companions(pair: Pair, split: Split) -> tuple[Pair, Pair]:
    """The two pairs that a split shows beside this one more often than chance."""
    pairs = pairs_of(split)
    place = pairs.index(pair)
    return pairs[(place + 11) % len(pairs)], pairs[(place + 17) % len(pairs)]


def split_of(scene: Scene) -> Split | None:
    """The one split that a scene can belong to; None for a mixture of novel and other pairs."""
    novel = sum(thing.pair in NOVEL_PAIRS for thing in scene.things)
    if novel:
        return "novel" if novel == len(scene.things) else None
    bucket = zlib.crc32(scene.content.encode()) % 10
    return next(split for split, share in _SHARES.items() if bucket in share)


def stream(seed: int, split: Split, index: int, use: str) -> np.random.Generator:
    """The random numbers for one use ("scene", "caption", "questions", "noise" or "text") of one scene."""
    counter = [0, 0, index, _STREAMS.index(use)]
    return np.random.Generator(np.random.Philox(key=[seed, SPLITS.index(split)], counter=counter))


def sample_scene(seed: int, split: Split, index: int) -> Scene:
    """The scene numbered `index` of a split."""
    rng = stream(seed, split, index, "scene")
    while True:
        scene = _draw_one(rng, split, index % MOST_THINGS + 1)
        if split_of(scene) == split:
            return scene


def _draw_one(rng: np.random.Generator, split: Split, count: int) -> Scene:
    background = choose(rng, BACKGROUNDS)
    pairs = _draw_pairs(rng, split, count)
    has_sign, has_card = rng.random(2) < PLATE_CHANCE
    corner = choose(rng, CORNERS)
    free = [cell for cell in range(GRID * GRID) if not (has_card and cell == corner)]
    cells = [int(cell) for cell in rng.choice(free, size=count + has_sign, replace=False)]
    things = [_thing(rng, pair, cell) for pair, cell in zip(pairs, sorted(cells[:count]), strict=True)]
    return Scene(
        background,
        tuple(things),
        _plate(rng, cells[-1]) if has_sign else None,
        _plate(rng, corner) if has_card else None,
        _tint(rng),
    )


def _draw_pairs(rng: np.random.Generator, split: Split, count: int) -> list[Pair]:
    """Different pairs: popular ones more often, and companions of those already drawn."""
    pairs, popular = pairs_of(split), popular_pairs(split)
    drawn: list[Pair] = []
    while len(drawn) < count:
        near = [other for pair in drawn for other in companions(pair, split) if other not in drawn]
        if near and rng.random() < COMPANY:
            drawn.append(choose(rng, near))
            continue
        left = [pair for pair in pairs if pair not in drawn]
        weights = np.array([POPULARITY if pair in popular else 1 for pair in left])
        drawn.append(left[np.searchsorted(weights.cumsum(), rng.integers(weights.sum()), side="right")])
    return [drawn[i] for i in rng.permutation(count)]


def _thing(rng: np.random.Generator, pair: Pair, cell: int) -> Thing:
    size = choose(rng, SIZES)
    diameter = float(rng.uniform(0.54, 0.64) if size == "small" else rng.uniform(0.82, 0.92))
    room = (1 - diameter) / 2
    right, down = (float(x) for x in rng.uniform(-room, room, size=2))
    return Thing(*pair, size, cell, diameter, (right, down), _tint(rng))


def _plate(rng: np.random.Generator, cell: int) -> Plate:
    right, down = (float(x) for x in rng.random(2))
    return Plate(choose(rng, LETTERS), cell, (right, down))


def _tint(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(-12, 13, size=3).tolist()
    return red, green, blue


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of `options`, each as likely as any other."""
    return options[int(rng.integers(len(options)))]
