"""The images of a row: names of files, bytes, or members of the archive that the row came in."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import SightlineError
from ...types import ImageSource
from ..images import resolve_image
from .base import EmbeddedImage
from .wording import check_text, kind, shown


def given_images(row: Mapping[str, Any], where: str) -> list[Any]:
    """What `image` or `images` holds, as a list.

    Raises:
        SightlineError: for anything that cannot be an image.
    """
    keys = [key for key in ("image", "images") if row.get(key) not in (None, "", [])]
    if len(keys) > 1:
        raise SightlineError(f"{where} has both 'image' and 'images'. Keep one of them.")
    if not keys:
        return []
    (key,) = keys
    value = row[key]
    values = value if isinstance(value, list) else [value]
    wrong = next((number for number, item in enumerate(values) if not is_image(item)), None)
    if wrong is not None:
        is_what = f"its item {wrong} is {kind(values[wrong])}" if values is value else f"is {kind(value)}"
        raise SightlineError(
            f"{where}: '{key}' should be a file name or a list of them, and {is_what}. "
            "Name files inside the image folder."
        )
    return values


def is_image(value: Any) -> bool:
    """Whether a value is a name, bytes, or an object with either."""
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or (isinstance(value.get("path"), str) and value["path"] != "")
    return isinstance(value, str | bytes) and value != ""


def find_image(
    value: Any, root: Path, where: str, members: Mapping[str, EmbeddedImage] | None, check_only: bool
) -> ImageSource:
    """The image that a value of a row means; see `sample_from_row`.

    Raises:
        SightlineError: if it has a name that leads out of the folder, is an address, or is not in the archive.
    """
    if isinstance(value, Mapping):
        path = value.get("path")
        if isinstance(value.get("bytes"), bytes):
            return EmbeddedImage(f"'{shown(path)}' of {where}" if path else f"of {where}", value["bytes"])
        value = path
    if isinstance(value, bytes):
        return EmbeddedImage(f"of {where}", value)
    if members is not None:
        return _member(value, members, where)
    if value.startswith("data:") or "://" in value:
        raise SightlineError(
            f"{where}: image '{shown(value)}' is an address, and nothing is downloaded. "
            "Save it in the image folder, and name the file."
        )
    check_text(value, f"{where}: image '{shown(value)}'")
    if check_only and ".." not in value and not os.path.isabs(value):  # noqa: PTH117  (makes no path)
        return root
    return resolve_image(root, value, where)


def _member(name: str, members: Mapping[str, EmbeddedImage], where: str) -> EmbeddedImage:
    """The image of an archive that a row means: by its name there, the last part of it, or what follows its key."""
    last = name.rpartition("/")[2]
    fits = [full for full in members if (base := full.rpartition("/")[2]) == last or base.partition(".")[2] == name]
    fits = [name] if name in members else fits
    if len(fits) != 1:
        there = shown(", ".join(members)) or "none"
        raise SightlineError(
            f"{where}: image '{shown(name)}' is not in the archive beside it. There: {there}. Name one of them."
        )
    return members[fits[0]]
