"""What the world's CLIP learns from: pictures and crops of single things, with captions full or short.

No truth by patch is used. Two weaker kinds of truth are, and the backbone's card says so: where a single
thing stands (a crop is its cell), and which captions of a batch are true of which pictures, so that a true
one is never pushed away.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from .draw import render
from .language import TEMPLATES, caption, list_things, name_thing
from .scene import BACKGROUNDS, COLOURS, SEEN_PAIRS, SHAPES, Geometry, Scene, Split, Thing, sample_scene

WORDS = (*COLOURS, *SHAPES, *BACKGROUNDS)
"""The content words: those that a patch can show."""
Fact = str | tuple[str, str]
"""What a caption can state: that a word, or a colour and a shape in one thing, is in the picture."""

MEAN, STD = 0.5, 0.5
"""Of the image processor, for every channel."""


@dataclass(frozen=True)
class Claim:
    """A caption and the facts that it states."""

    text: str
    facts: frozenset[Fact]


@dataclass(frozen=True)
class ClipBatch:
    """Pictures (or crops) and captions: first those of the pictures, then false ones."""

    pixels: Float[Tensor, "batch 3 height width"]
    positions: Int[Tensor, " tokens"]
    """Position embeddings of the class token and of each patch."""
    texts: tuple[str, ...]
    true: Bool[Tensor, "batch texts"]
    """Whether a caption is true of a picture."""
    words: Bool[Tensor, "batch words"]
    """Which of `WORDS` a picture shows."""


def draw_scenes(
    seed: int, split: Split, count: int, geometry: Geometry
) -> tuple[list[Scene], UInt8[Tensor, "scenes 3 height width"]]:
    """Scenes of a split with their pictures."""
    scenes = [sample_scene(seed, split, i, geometry) for i in range(count)]
    pixels = np.stack([np.asarray(render(scene, geometry)) for scene in scenes])
    return scenes, torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def to_pixel_values(pixels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What the image processor does to the values of a picture of the right size."""
    return (pixels.float() / 255 - MEAN) / STD


def facts_of(things: tuple[Thing, ...], background: str | None) -> frozenset[Fact]:
    """Everything that is true of these things, and of the background unless it is None."""
    facts: set[Fact] = {fact for t in things for fact in (t.colour, t.shape, t.pair)}
    return frozenset(facts | ({background} if background else set()))


def say(scene: Scene, rng: np.random.Generator, shorten: float) -> Claim:
    """A caption of a picture: with probability `shorten` only of some of its things, else a full one."""
    if rng.random() >= shorten:
        return Claim(caption(scene, rng), facts_of(scene.things, scene.background))
    kept = [scene.things[i] for i in rng.permutation(len(scene.things))[: int(rng.integers(1, 3))]]
    template = TEMPLATES["thing"][int(rng.integers(2))]
    return Claim(list_things(kept, template), facts_of(tuple(kept), None))


def say_one(thing: Thing, background: str, rng: np.random.Generator) -> Claim:
    """A short caption of a crop: a pair, at times with the background, or one word of it."""
    form = int(rng.integers(8))
    if form == 0:
        return Claim(thing.colour, frozenset({thing.colour}))
    if form <= 2:
        return Claim(thing.shape, frozenset({thing.shape}))
    if form == 3:
        return Claim(background, frozenset({background}))
    name = name_thing(thing.pair, TEMPLATES["thing"][form % 2])
    if form <= 5:
        return Claim(f"{name} on a {background} background.", facts_of((thing,), background))
    return Claim(name, facts_of((thing,), None))


def swap_one(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one word wrong: a thing's shape (half of the time), its colour, or the background."""
    which, what = int(rng.integers(len(scene.things))), int(rng.integers(4))
    thing = scene.things[which]
    if what == 0:
        others = [b for b in BACKGROUNDS if b != scene.background]
        return replace(scene, background=others[int(rng.integers(len(others)))])
    others = [
        (colour, shape)
        for colour, shape in SEEN_PAIRS
        if (colour == thing.colour) == (what > 1) and (shape == thing.shape) == (what == 1)
    ]
    colour, shape = others[int(rng.integers(len(others)))]
    swapped = replace(thing, colour=colour, shape=shape)
    return replace(scene, things=(*scene.things[:which], swapped, *scene.things[which + 1 :]))


def picture_batch(
    scenes: list[Scene],
    pixels: UInt8[Tensor, "scenes 3 height width"],
    size: int,
    rng: np.random.Generator,
    *,
    patches: int,
    shorten: float,
) -> ClipBatch:
    """Whole pictures, each with a caption and with a full caption that has one word wrong."""
    rows = rng.integers(len(scenes), size=size)
    shown = [facts_of(scenes[i].things, scenes[i].background) for i in rows]
    claims = [say(scenes[i], rng, shorten) for i in rows]
    for i in rows:
        wrong = swap_one(scenes[i], rng)
        claims.append(Claim(caption(wrong, rng), facts_of(wrong.things, wrong.background)))
    return _batch(to_pixel_values(pixels[torch.from_numpy(rows)]), torch.arange(patches + 1), shown, claims)


def crop_batch(
    scenes: list[Scene],
    pixels: UInt8[Tensor, "scenes 3 height width"],
    size: int,
    rng: np.random.Generator,
    *,
    patch: int,
    geometry: Geometry,
) -> ClipBatch:
    """Cells with one thing each, and short captions. All crops of a batch take the same place of the picture."""
    cell = int(rng.integers(geometry.grid**2))
    row, column = divmod(cell, geometry.grid)
    crops, shown, claims = [], [], []
    while len(crops) < size:
        i = int(rng.integers(len(scenes)))
        scene = scenes[i]
        thing = scene.things[int(rng.integers(len(scene.things)))]
        top, left = (x * geometry.cell for x in divmod(thing.cell, geometry.grid))
        crops.append(pixels[i, :, top : top + geometry.cell, left : left + geometry.cell])
        shown.append(facts_of((thing,), scene.background))
        claims.append(say_one(thing, scene.background, rng))
    side, across = geometry.cell // patch, geometry.image // patch
    grid = torch.arange(across * across).view(across, across)
    places = grid[row * side : (row + 1) * side, column * side : (column + 1) * side].flatten()
    positions = torch.cat([torch.zeros(1, dtype=torch.long), places + 1])
    return _batch(to_pixel_values(torch.stack(crops)), positions, shown, claims)


def _batch(
    pixels: Float[Tensor, "batch 3 height width"],
    positions: Int[Tensor, " tokens"],
    shown: list[frozenset[Fact]],
    claims: list[Claim],
) -> ClipBatch:
    true = torch.tensor([[claim.facts <= facts for claim in claims] for facts in shown])
    words = torch.tensor([[word in facts for word in WORDS] for facts in shown])
    return ClipBatch(pixels, positions, tuple(claim.text for claim in claims), true, words)
