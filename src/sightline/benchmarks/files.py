"""Reading a benchmark's own files. What is not as it should be is an error that names the file, the row and the fix."""

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import SightlineError
from ..types import EncodedImage


class Bytes:
    """An image that a table holds as base64."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self._text = name, text

    def read(self) -> bytes:
        """The encoded bytes."""
        try:
            return base64.b64decode(self._text, validate=True)
        except ValueError:
            raise SightlineError(f"{self.name} is no base64. Get the file again.") from None


def first(root: Path, *names: str) -> Path:
    """The first of some files that is there; names may have wildcards.

    Raises:
        SightlineError: if none is.
    """
    for name in names:
        if found := sorted(root.glob(name)):
            return found[0]
    raise SightlineError(f"{root} has none of: {', '.join(names)}. Put the benchmark's own file there.")


def folder(root: Path, *names: str) -> Path:
    """The first of some folders that is there; the root itself if none is."""
    return next((root / name for name in names if (root / name).is_dir()), root)


def image(path: Path, where: str) -> Path:
    """An image file, known to exist; opened when it is asked about.

    Raises:
        SightlineError: if it is not there.
    """
    if not path.is_file():
        raise SightlineError(f"{where}: image not found: {path}. Put the benchmark's images there.")
    return path


def image_of(parent: Path, stem: str, where: str) -> Path:
    """The image of this name, whatever its kind."""
    for kind in ("jpg", "png", "jpeg", "JPG", "PNG"):
        if (path := parent / f"{stem}.{kind}").is_file():
            return path
    return image(parent / f"{stem}.jpg", where)


def embedded(name: str, text: str) -> EncodedImage:
    """An image from base64."""
    return Bytes(name, text)


def load(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        SightlineError: if it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise SightlineError(f"cannot read {path}: {error}. Get the file again.") from None


def lines(path: Path) -> list[Any]:
    """The objects of a JSONL file; of a JSON list too, since some releases have one under the same name."""
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line]
    except (OSError, ValueError, RecursionError) as error:
        raise SightlineError(f"cannot read {path}: {error}. Get the file again.") from None


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a TSV with a heading."""
    csv.field_size_limit(2**31 - 1)  # images are in it
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SightlineError(f"cannot read {path}: {error}. Get the file again.") from None


def rows(path: Path) -> list[list[str]]:
    """The rows of a CSV without a heading."""
    try:
        return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SightlineError(f"cannot read {path}: {error}. Get the file again.") from None


def each(path: Path, entries: Any, *fields: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The entries of a file with the place of each, every one with these fields.

    Raises:
        SightlineError: if the file holds something else.
    """
    if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
        raise SightlineError(f"{path} holds no list of entries. Get the benchmark's own file.")
    for number, entry in enumerate(entries):
        lacking = [name for name in fields if not isinstance(entry, Mapping) or name not in entry]
        if lacking:
            raise SightlineError(f"{path.name} entry {number} has no '{lacking[0]}'. Get the benchmark's own file.")
        yield f"{path.name} entry {number}", entry
