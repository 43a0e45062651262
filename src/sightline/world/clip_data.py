"""What the world's CLIP learns from: pictures, quarters of the high view and cells, with captions full or short.

No truth by patch is used: which patch of a picture shows what is never told. Two weaker kinds of truth are, and the
backbone's card says so: where single items stand (a crop is a cell, a square of 2 x 2 patches, or a quarter with what
is in it), and which captions of a batch are true of which pictures, so that a true one is never pushed away.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from .claims import Attribute, Claim, full_claim, partial_claim, statements_of, swap, swappable, truth_of
from .draw import CELL, HIGH, SIDE, View, item_masks, render, render_cell
from .language import TEMPLATES, name_item, name_pair
from .lexicon import DISTRACTORS
from .scene import BACKGROUNDS, COLOURS, GRID, LETTERS, SHAPES, SIZES, Plate, Scene, Thing, choose, sample_scene

Kind = Literal["cell", "fine cell", "grey cell", "quarter", "picture"]

WORDS = (*COLOURS, *SHAPES, *SIZES, *LETTERS, "sign", "card", *BACKGROUNDS)
"""The words that a patch can show."""
NEVER = 24
"""Distractors that stand beside them in a step, always absent."""
SCENES = 1 << 24
"""Scenes that pictures are drawn of."""
OFTEN: dict[Attribute, int] = {"letter": 8, "size": 4, "shape": 2}
"""How many times as often as a colour or the background these are made wrong."""
SEEN_SHARE = 0.6
"""Least share of an item that a quarter shows for it to be told."""

MEAN, STD = 0.5, 0.5
"""Of the image processor, for every channel."""


@dataclass(frozen=True)
class Look:
    """Pixels, and what is in them as a scene of its own."""

    pixels: UInt8[np.ndarray, "height width 3"]
    scene: Scene
    view: View
    cut: frozenset[str] = frozenset()
    """Words of items that are cut off: neither shown nor absent."""


@dataclass(frozen=True)
class ClipBatch:
    """Pictures (or crops) and captions: first those of the pictures, then false ones."""

    pixels: Float[Tensor, "batch 3 height width"]
    positions: Int[Tensor, " tokens"]
    """Position embeddings of the class token and of each patch."""
    texts: tuple[str, ...]
    true: Bool[Tensor, "batch texts"]
    """Whether a caption is true of a picture."""
    words: tuple[str, ...]
    present: Bool[Tensor, "batch words"]
    """Which of `words` a picture shows."""
    absent: Bool[Tensor, "batch words"]
    """Which it does not show; a picture without colours tells nothing about them."""


def clip_batch(
    kind: Kind, size: int, rng: np.random.Generator, *, seed: int, patch: int, shorten: float, wrong: int
) -> ClipBatch:
    """A batch of one kind.

    Args:
        shorten: share of the captions of pictures that name only some things.
        wrong: full captions with one attribute wrong that come with each picture or quarter.
    """
    looks = [look_at(kind, sample_scene(seed, "train", int(rng.integers(SCENES))), rng) for _ in range(size)]
    if kind == "grey cell":
        claims = [_say_shape(look.scene, rng) for look in looks]
    elif kind in ("cell", "fine cell"):
        claims = [say_one(look, rng) for look in looks]
    else:
        claims = [say(look, rng, shorten) for look in looks]
        for look in looks * wrong:
            claims.append(full_claim(swap(look.scene, _attribute(look.scene, rng), rng), rng, look.view))
    words = (*WORDS, *(DISTRACTORS[i] for i in rng.choice(len(DISTRACTORS), size=NEVER, replace=False)))
    shown = [words_in(look.scene, look.view) for look in looks]
    present = torch.tensor([[word in some for word in words] for some in shown])
    absent = ~present & torch.tensor([[word not in look.cut for word in words] for look in looks])
    if kind == "grey cell":
        blind = torch.tensor([word in COLOURS or word in BACKGROUNDS for word in words])
        present, absent = present & ~blind, absent & ~blind
    truths = [truth_of(look.scene, look.view) for look in looks]
    return ClipBatch(
        pixels=to_pixel_values(torch.from_numpy(np.stack([look.pixels for look in looks])).permute(0, 3, 1, 2)),
        positions=_positions(len(looks[0].pixels) // patch, SIDE["low"] // patch, rng),
        texts=tuple(claim.text for claim in claims),
        true=torch.tensor([[claim.is_true_of(truth) for claim in claims] for truth in truths]),
        words=words,
        present=present,
        absent=absent,
    )


def look_at(kind: Kind, scene: Scene, rng: np.random.Generator) -> Look:
    """A look at a scene: all of it, a quarter of its high view, or the cell of one item."""
    if kind == "picture":
        return Look(np.asarray(render(scene)), scene, "low")
    if kind == "quarter":
        return _quarter(scene, rng)
    view: View = "high" if kind == "fine cell" else "low"
    items = scene.things if kind == "grey cell" else scene.items
    item = scene.card if kind == "fine cell" and scene.card and rng.integers(4) else choose(rng, items)
    image = render_cell(scene, item, view)
    if kind == "grey cell":
        image = image.convert("L").convert("RGB")
    alone = replace(
        scene,
        things=(item,) if isinstance(item, Thing) else (),
        sign=item if item is scene.sign else None,
        card=item if item is scene.card else None,
    )
    return Look(np.asarray(image), alone, view)


def _quarter(scene: Scene, rng: np.random.Generator) -> Look:
    """A quarter of the high view that shows something whole, or as large a window around one item."""
    masks, half = item_masks(scene).astype(np.int64), HIGH // 2

    def shares(window: tuple[int, int]) -> Float[np.ndarray, " items"]:
        top, left = window
        return masks[:, top : top + half, left : left + half].sum((1, 2)) / masks.sum((1, 2))

    quarters = [(top, left) for top in (0, half) for left in (0, half)]
    around = tuple(min(max(CELL * place - 16, 0), half) for place in divmod(choose(rng, scene.items).cell, GRID))
    top, left = choose(rng, [window for window in quarters if shares(window).max() >= SEEN_SHARE] or [around])
    kept = dict(zip(scene.items, shares((top, left)), strict=True))
    part = replace(
        scene,
        things=tuple(thing for thing in scene.things if kept[thing] >= SEEN_SHARE),
        sign=scene.sign if scene.sign and kept[scene.sign] >= SEEN_SHARE else None,
        card=scene.card if scene.card and kept[scene.card] >= SEEN_SHARE else None,
    )
    picture = render(scene, "high").crop((left, top, left + half, top + half))
    return Look(np.asarray(picture), part, "high", words_in(scene, "high") - words_in(part, "high"))


def words_in(scene: Scene, view: View) -> frozenset[str]:
    """Which of `WORDS` a scene shows."""
    words = {scene.background, *(word for thing in scene.things for word in (*thing.pair, thing.size))}
    if scene.sign:
        words |= {"sign", scene.sign.letter}
    if scene.card:
        words |= {"card", scene.card.letter} if view == "high" else {"card"}
    return frozenset(words)


def say(look: Look, rng: np.random.Generator, shorten: float) -> Claim:
    """A caption of a picture or a quarter: with probability `shorten` only of some of its things, else a full one."""
    if look.scene.things and rng.random() < shorten:
        return partial_claim(look.scene, rng)
    return full_claim(look.scene, rng, look.view)


def say_one(look: Look, rng: np.random.Generator) -> Claim:
    """A short caption of a cell: one word, or a name, at times with the background."""
    scene, form = look.scene, int(rng.integers(8))
    (item,) = scene.items
    if form == 0:
        return Claim(scene.background, frozenset({("background", scene.background)}))
    stated = frozenset(said for said in statements_of(scene, look.view) if said[0] in ("thing", "sign", "card"))
    name = name_item(scene, item, look.view, int(rng.integers(2)))
    if form <= 3:
        return _one_word(scene, item, look.view, rng)
    if form <= 5 and isinstance(item, Thing):
        return Claim(name_pair(item.pair, choose(rng, TEMPLATES["pair"])), frozenset({("thing", *item.pair)}))
    if form == 6:
        background = frozenset({("background", scene.background)})
        return Claim(f"{name} on a {scene.background} background.", stated | background)
    return Claim(name, stated)


def _attribute(scene: Scene, rng: np.random.Generator) -> Attribute:
    """What to make wrong: more often what is hard to see in a whole picture."""
    options = swappable(scene)
    weights = np.array([OFTEN.get(attribute, 1) for attribute in options])
    return options[int(np.searchsorted(weights.cumsum(), rng.integers(weights.sum()), side="right"))]


def _one_word(scene: Scene, item: Thing | Plate, view: View, rng: np.random.Generator) -> Claim:
    if isinstance(item, Thing):
        kind = choose(rng, ("colour", "shape", "shape", "size"))
        return Claim(getattr(item, kind), frozenset({(kind, getattr(item, kind))}))
    plate = "card" if item is scene.card else "sign"
    if (plate == "card" and view == "low") or not rng.integers(4):
        return Claim(plate, frozenset({(plate,)}))
    return Claim(choose(rng, (item.letter, f"the letter {item.letter}")), frozenset({("letter", item.letter)}))


def _say_shape(scene: Scene, rng: np.random.Generator) -> Claim:
    """What a picture without colours tells of its one thing."""
    (thing,) = scene.things
    return Claim(choose(rng, (thing.shape, f"a {thing.shape}")), frozenset({("shape", thing.shape)}))


def to_pixel_values(pixels: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """What the image processor does to the values of a picture of the right size."""
    return (pixels.float() / 255 - MEAN) / STD


def _positions(side: int, across: int, rng: np.random.Generator) -> Int[Tensor, " tokens"]:
    """Positions of the class token and of a square of patches somewhere in the picture's, in a cell's place if it
    can."""
    step = side if across % side == 0 else 1
    top, left = (step * int(place) for place in rng.integers((across - side) // step + 1, size=2))
    grid = torch.arange(across * across).view(across, across)[top : top + side, left : left + side]
    return torch.cat([torch.zeros(1, dtype=torch.long), grid.flatten() + 1])


def pictures_of(scenes: Sequence[Scene], view: View = "low") -> UInt8[Tensor, "scenes 3 height width"]:
    """The pictures of scenes, in bytes."""
    return torch.from_numpy(np.stack([np.asarray(render(scene, view)) for scene in scenes])).permute(0, 3, 1, 2)


def picture_values(scenes: Sequence[Scene], view: View = "low") -> Float[Tensor, "scenes 3 height width"]:
    """The pictures of scenes as the image processor gives them."""
    return to_pixel_values(pictures_of(scenes, view))
