"""Features of a frozen vision tower, read by the bytes of the image instead of computed.

The key of an image is the hash of its bytes as the source has them: of the file, or of what is embedded in Parquet or a
tar. They are read and hashed each time an image is asked for, which costs a small part of decoding it and makes a stale
feature impossible: an image that changed has another key.
"""

import hashlib
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..errors import ImageError, SightlineError
from ..types import ImageSource
from .images import load_image
from .store import Store

_keys: dict[Path, tuple[tuple[int, ...], str]] = {}
"""Keys of files that this process has hashed to see whether a store has them, with the files' facts. They save time
alone: the key that features are read by is hashed anew each time."""


class Features:
    """What a tower gives for each view of an image, from a store."""

    def __init__(self, store: Store, *, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """
        Args:
            shape: patches of a view, and their width.
        """
        self.store = store
        self.none = torch.zeros(0, *shape, dtype=dtype)

    def __call__(self, source: ImageSource) -> tuple[Float[Tensor, "views patches d_vision"], tuple[int, int]]:
        """The features of an image's views, and its width and height.

        Raises:
            ImageError: if the image is not there, or could not be decoded when its features were to be computed.
            SightlineError: if the store has no features of it: it changed after the stage began.
        """
        key = image_key(source)
        if key is None:
            load_image(source)
        try:
            found = self.store.read(key or "")
        except KeyError:
            raise SightlineError(
                f"image {image_name(source)} is not in {self.store.folder}: it was changed after this stage began, and "
                "its old features are not used. Run sightline annotate again, then train."
            ) from None
        if not len(found["patches"]):
            load_image(source)
            raise ImageError(
                f"image {image_name(source)} could not be decoded when {self.store.folder} was written, and now it "
                "can. Remove that folder, and run sightline annotate again."
            )
        width, height = found["size"][0].tolist()
        return found["patches"], (width, height)


def image_key(source: ImageSource) -> str | None:
    """The hash of an image's bytes, or None where there are none to read: a missing file, an image in memory."""
    data = image_bytes(source)
    return None if data is None else hashlib.sha256(data).hexdigest()


def remembered_key(image: ImageSource) -> str | None:
    """An image's key, from memory for a file whose size, place and times are those at which it was hashed."""
    if not isinstance(image, Path):
        return image_key(image)
    try:
        state = image.stat()
    except OSError:
        return None
    facts = (state.st_size, state.st_ino, state.st_mtime_ns, state.st_ctime_ns)
    if _keys.get(image, ((),))[0] != facts:
        key = image_key(image)
        if key is None:
            return None
        _keys[image] = (facts, key)
    return _keys[image][1]


def image_bytes(source: ImageSource) -> bytes | None:
    """An image's bytes as its source has them; None for a file that cannot be read and an image in memory."""
    if isinstance(source, Image.Image):
        return None
    if not isinstance(source, Path):
        return source.read()
    try:
        return source.read_bytes()
    except OSError:
        return None


def image_name(source: ImageSource) -> str:
    """What errors call an image."""
    return "in memory" if isinstance(source, Image.Image) else str(source) if isinstance(source, Path) else source.name
