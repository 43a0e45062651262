"""What is in a picture: a background and one to four things, each with a colour, a shape, a size and a place.

A scene is a pure function of (seed, split, index): numpy's counter-based Philox generator gives every scene
a stream of its own, so that no scene depends on how many were made before it.

Splits are disjoint by construction, whatever the seed. A hash of what a scene shows (not of its jitter)
decides whether it belongs to `train`, `validation` or `test`; a scene drawn for another split is drawn
again. `novel` shows only `NOVEL_PAIRS`, combinations of colour and shape that no other split shows or
names. So the backbones that ship with the package, trained on the `train` split of one seed, have seen no
evaluation scene of any seed.

The number of things is `index % 4 + 1`: all splits have the same distribution of counts, exactly.
"""

import zlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

Split = Literal["train", "validation", "test", "novel"]
Size = Literal["small", "large"]
Pair = tuple[str, str]
"""A colour and a shape."""

SPLITS: tuple[Split, ...] = get_args(Split)
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
BACKGROUNDS = ("black", "white", "grey", "brown")
SIZES: tuple[Size, ...] = get_args(Size)
MOST_THINGS = 4

NOVEL_PAIRS: tuple[Pair, ...] = tuple((colour, SHAPES[i % len(SHAPES)]) for i, colour in enumerate(COLOURS))
"""One shape for each colour, held out from every split but `novel`; other pairs show every word."""
SEEN_PAIRS: tuple[Pair, ...] = tuple((c, s) for c in COLOURS for s in SHAPES if (c, s) not in NOVEL_PAIRS)

_SHARES: dict[Split, range] = {"train": range(6), "validation": range(6, 8), "test": range(8, 10)}
_STREAMS = ("scene", "caption", "questions")


@dataclass(frozen=True)
class Geometry:
    """The picture's layout, in pixels. Things stand in the cells of a square grid, one in a cell."""

    image: int = 64
    """Width and height of a picture."""
    grid: int = 2
    """Cells in a row and in a column."""

    def __post_init__(self) -> None:
        assert self.image % self.grid == 0 and self.grid**2 >= MOST_THINGS, self

    @property
    def cell(self) -> int:
        """Width and height of a cell."""
        return self.image // self.grid


@dataclass(frozen=True)
class Thing:
    """One thing of a scene."""

    colour: str
    shape: str
    size: Size
    cell: int
    """Number of its cell, in reading order."""
    diameter: float
    """In cells: .62 to .70 when small, .78 to .88 when large."""
    offset: tuple[float, float]
    """From the centre of its cell to its own, to the right and down, in cells; it never leaves its cell."""
    tint: tuple[int, int, int]
    """Added to its colour's red, green and blue (of 255)."""

    @property
    def pair(self) -> Pair:
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """What a picture shows."""

    background: str
    things: tuple[Thing, ...]
    """In reading order of their cells; no two have the same colour and shape."""
    tint: tuple[int, int, int] = (0, 0, 0)

    @property
    def content(self) -> str:
        """What the scene shows without its jitter: the identity that splits are kept apart by."""
        return "; ".join([self.background, *(f"{t.cell} {t.size} {t.colour} {t.shape}" for t in self.things)])


def pairs_of(split: Split) -> tuple[Pair, ...]:
    """The combinations of colour and shape that a split may show and name."""
    return NOVEL_PAIRS if split == "novel" else SEEN_PAIRS


def split_of(scene: Scene) -> Split | None:
    """The one split that a scene can belong to; None for a mixture of novel and other pairs."""
    novel = sum(thing.pair in NOVEL_PAIRS for thing in scene.things)
    if novel:
        return "novel" if novel == len(scene.things) else None
    bucket = zlib.crc32(scene.content.encode()) % 10
    return next(split for split, share in _SHARES.items() if bucket in share)


def stream(seed: int, split: Split, index: int, use: str) -> np.random.Generator:
    """The random numbers for one use ("scene", "caption" or "questions") of one scene."""
    counter = [0, 0, index, _STREAMS.index(use)]
    return np.random.Generator(np.random.Philox(key=[seed, SPLITS.index(split)], counter=counter))


def sample_scene(seed: int, split: Split, index: int, geometry: Geometry | None = None) -> Scene:
    """The scene numbered `index` of a split."""
    geometry = geometry or Geometry()
    rng = stream(seed, split, index, "scene")
    while True:
        scene = _draw_one(rng, pairs_of(split), index % MOST_THINGS + 1, geometry)
        if split_of(scene) == split:
            return scene


def _draw_one(rng: np.random.Generator, pairs: tuple[Pair, ...], count: int, geometry: Geometry) -> Scene:
    def tint() -> tuple[int, int, int]:
        red, green, blue = rng.integers(-12, 13, size=3).tolist()
        return red, green, blue

    background = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    cells = np.sort(rng.choice(geometry.grid**2, size=count, replace=False))
    things: list[Thing] = []
    for cell, pair in zip(cells, rng.choice(len(pairs), size=count, replace=False), strict=True):
        size = SIZES[rng.integers(len(SIZES))]
        diameter = float(rng.uniform(0.62, 0.70) if size == "small" else rng.uniform(0.78, 0.88))
        room = (1 - diameter) / 2
        right, down = (float(x) for x in rng.uniform(-room, room, size=2))
        colour, shape = pairs[pair]
        things.append(Thing(colour, shape, size, int(cell), diameter, (right, down), tint()))
    return Scene(background, tuple(things), tint())
