"""Labels of patches that somebody gives: JSON lines of images with the words of every patch.

    {"image": "train/000012.png", "patches": [{"words": ["red", "star"]}, {"words": []}, ...]}

The small world writes such files (`truth/`); annotators and segmenters can. All words of a patch count alike.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from ..data.features import image_key, image_name
from ..data.images import load_image
from ..errors import SightlineError
from ..types import ImageSource
from .drawing import out_of_order


def given_labels_facts(path: Path) -> dict[str, str]:
    """What given labels are: the bytes of their files."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files_of(path) if file.is_file()}


def files_of(path: Path) -> list[Path]:
    """A file of labels, or those of a folder."""
    return sorted(path.glob("*.jsonl")) if path.is_dir() else [path]


class GivenLabels:
    """The words of every patch, from a file or a folder of files. It can be pickled."""

    def __init__(self, path: Path, words: Sequence[str], *, tokens: int) -> None:
        """
        Args:
            words: of which labels are numbers; others in the file are left out.
            tokens: visual tokens of an image.

        Raises:
            SightlineError: if there is no file, a line is no such record, an image comes twice or has another number of
                patches, or no word is in the list.
        """
        number = {word: place for place, word in enumerate(words)}
        self.path, self.tokens = path, tokens
        self.labels: dict[str, tuple[tuple[int, ...], ...]] = {}
        try:
            for file in files_of(path):
                for line, text in enumerate(file.read_bytes().splitlines(), start=1):
                    self._add(text, number, f"{file} line {line}")
        except OSError as error:
            raise SightlineError(f"cannot read the words of patches: {error}. Name a .jsonl file.") from None
        if not self.labels:
            raise SightlineError(f"'{path}' holds no words of patches. Name a .jsonl file, or a folder of them.")
        if not any(map(any, self.labels.values())):
            raise SightlineError(
                f"no word of '{path}' is in the method's list, so no patch would have a label. Give the list that they "
                "come from: words=FILE."
            )
        self._names = list(self.labels)
        self._place = {name: place for place, name in enumerate(self._names)}

    def __call__(self, image: ImageSource, *, shuffled: bool = False) -> tuple[str, np.ndarray, np.ndarray]:
        """As `Labels`: the image's key, and of each patch the words and their scores.

        Raises:
            ImageError: if the image is not there.
            SightlineError: if the file does not name it.
        """
        key = image_key(image) or ""
        if not key:
            load_image(image)
        name = self._find(image)
        if shuffled:
            name = self._names[(self._place[name] + len(self._names) // 2) % len(self._names)]
        rows = self.labels[name]
        ids = np.zeros((len(rows), max(1, *map(len, rows))), dtype=np.int64)
        scores = np.zeros(ids.shape, dtype=np.float32)
        for place, row in enumerate(rows):
            ids[place, : len(row)], scores[place, : len(row)] = row, 1.0
        return (key, *out_of_order(key, ids, scores)) if shuffled else (key, ids, scores)

    def _add(self, text: bytes, number: dict[str, int], where: str) -> None:
        try:
            row = json.loads(text)
            name, patches = row["image"], [patch["words"] for patch in row["patches"]]
            if not isinstance(name, str) or not all(isinstance(words, list) for words in patches):
                raise TypeError
            labels = tuple(tuple(number[word] for word in words if word in number) for words in patches)
        except (ValueError, KeyError, TypeError):
            raise SightlineError(
                f"{where}: not words of patches. Each line is " + '{"image": NAME, "patches": [{"words": [...]}, ...]}.'
            ) from None
        if len(labels) != self.tokens:
            raise SightlineError(
                f"{where}: {len(labels)} patches, and the model has {self.tokens} visual tokens of an image. Give the "
                "words of these."
            )
        if name in self.labels:
            raise SightlineError(f"{where}: image '{name}' has words already, in an earlier line. Keep one of them.")
        self.labels[name] = labels

    def _find(self, image: ImageSource) -> str:
        parts = PurePosixPath(Path(image_name(image)).as_posix()).parts
        for count in range(len(parts), 0, -1):
            if (name := "/".join(parts[-count:])) in self.labels:
                return name
        raise SightlineError(f"image {image_name(image)} has no words in '{self.path}'. Add a line for it.")
