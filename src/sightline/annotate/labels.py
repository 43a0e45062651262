"""Labels of patches as they are kept, 3 bytes each, and read again; or what is drawn of them, 3 bytes a window.

A word is two bytes of them, and four where the list is longer than 65,535 words.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.features import image_key, image_name
from ..data.images import load_image
from ..data.store import Store
from ..errors import ImageError, SightlineError
from ..types import ImageSource
from .drawing import NONE, How, out_of_order

NO_PLACE = 2**8 - 1
"""The place of no patch; a window has fewer places."""
LEVELS = 255
"""Scores are kept as so many parts of the image's best."""
LABEL_VALUES = (
    "words: [1, patches, top], line numbers in words.txt from 0, {none} is none; scores: [1, patches, top], in "
    f"{LEVELS}ths of best: [1], a cosine times the sign; an image that cannot be decoded has no row"
)
DRAWN_VALUES = (
    "words: [1, epochs, windows], line numbers in words.txt from 0, {none} is none; places: [1, epochs, windows], in "
    "the window, in reading order; an image that cannot be decoded has no row"
)


class Labels:
    """Labels of images, from a store. It can be pickled."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, image: ImageSource, *, shuffled: bool = False) -> tuple[str, np.ndarray, np.ndarray]:
        """The key of an image, and of each of its patches the words and their scores (0 where there is none).

        Args:
            shuffled: those of another image instead, its patches in a random order.

        Raises:
            ImageError: if the image is not there, or could not be decoded when it was to be labelled.
            SightlineError: if it has no labels: it changed after the stage began.
        """
        key, values = stored(self.store, image, another=shuffled)
        ids, scores = unpacked(values)
        return (key, *out_of_order(key, ids, scores)) if shuffled else (key, ids, scores)


class Drawn:
    """What was drawn of the labels of images for some epochs, from a store. It can be pickled."""

    def __init__(self, store: Store, how: How) -> None:
        self.store, self.how = store, how

    def __call__(self, image: ImageSource, epoch: int) -> tuple[str, Int[np.ndarray, "windows 2"]]:
        """The key of an image, and (place, word) for each of its windows.

        Raises:
            ImageError, SightlineError: as `Labels`.
        """
        key, values = stored(self.store, image)
        words, slots = values["words"][0].numpy(), values["places"][0].numpy()
        assert epoch < len(words), (
            f"{self.store.folder} has what is drawn in {len(words)} epochs; opening it checks that"
        )
        squares = self.how.squares
        there = words[epoch] != np.iinfo(words.dtype).max
        places = squares[np.arange(len(squares)), np.where(there, slots[epoch], 0)]
        return key, np.where(there[:, None], np.stack([places, words[epoch].astype(np.int64)], axis=1), NONE)


def stored(store: Store, image: ImageSource, *, another: bool = False) -> tuple[str, dict[str, Tensor]]:
    """The key of an image and its values; those of another image if asked."""
    key = image_key(image)
    if key is None:
        load_image(image)
    try:
        values = of_another(store, key or "") if another else store.read(key or "")
    except KeyError:
        raise SightlineError(
            f"image {image_name(image)} has no labels in {store.folder}: it was changed after this stage began. Run "
            "sightline annotate again, then train."
        ) from None
    if not len(values["words"]):
        raise ImageError(f"image {image_name(image)} could not be decoded when its patches were to be labelled.")
    return key or "", values


def of_another(store: Store, key: str) -> dict[str, Tensor]:
    """The values of another image than this one; not of one that could not be decoded, which has none."""
    others = (store.read(store.another(key, further)) for further in range(len(store)))
    return next((values for values in others if len(values["words"])), store.read(key))


def id_type(words: int) -> torch.dtype:
    """The type that the ids of a list of so many words are kept in. Its largest number stands for no word."""
    return torch.uint16 if words < 2**16 else torch.uint32


def packed(
    ids: Int[Tensor, "views patches top"],
    scores: Float[Tensor, "views patches top"],
    dtype: torch.dtype = torch.uint16,
) -> dict[str, Tensor]:
    """Labels as they are kept. Scores of 0 or less are none; no score that counts becomes 0.

    Args:
        dtype: of the ids, an `id_type`.
    """
    best = scores.amax(dim=(1, 2)).clamp(min=0)
    levels = (scores / best.clamp(min=1e-12)[:, None, None] * LEVELS).round().clamp(min=1)
    there = scores > 0
    return {
        "words": torch.where(there, ids, torch.iinfo(dtype).max).to(dtype),
        "scores": torch.where(there, levels, 0).to(torch.uint8),
        "best": best.to(torch.float16),
    }


def unpacked(values: Mapping[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and scores of an image's patches, [patches, top], from how they are kept; `NONE` and 0 for no label."""
    scores = values["scores"][0].numpy().astype(np.float32) * (float(values["best"][0]) / LEVELS)
    return np.where(scores > 0, values["words"][0].numpy().astype(np.int64), NONE), scores


def packed_draws(labels: Mapping[str, Tensor], seeds: Sequence[int], how: How, epochs: int) -> dict[str, Tensor]:
    """What is drawn of views' labels in each epoch, as it is kept: the same as would be drawn from them in training."""
    squares, words, places, dtype = how.squares, [], [], labels["words"].dtype
    for view, seed in enumerate(seeds):
        ids, scores = unpacked({name: value[view : view + 1] for name, value in labels.items()})
        drawn = np.stack([how.draw(seed, epoch, ids, scores) for epoch in range(epochs)])
        there = drawn[:, :, 0] != NONE
        slot = (squares[None] == drawn[:, :, :1]).argmax(axis=2)
        words.append(np.where(there, drawn[:, :, 1], torch.iinfo(dtype).max))
        places.append(np.where(there, slot, NO_PLACE))
    return {
        "words": torch.from_numpy(np.stack(words)).to(dtype),
        "places": torch.from_numpy(np.stack(places)).to(torch.uint8),
    }
