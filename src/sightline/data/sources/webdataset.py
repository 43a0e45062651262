"""WebDataset: tar files whose members of one name are a sample (`a.jpg` with `a.json`, or with its caption in `a.txt`).

A tar is indexed once by its headers; a sample is then read at its offset. A compressed tar has no offsets: it is read
forward, and asked for an earlier row it starts again. A pipe can be read once only, and is refused: rows are checked
before they are trained on, and a writer that writes again cannot be told from one that goes on.
"""

import os
import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import SightlineError
from ...types import Sample
from .archive import Archive, Member
from .base import EmbeddedImage, Index, Progress, Report, Source, stop
from .files import IndexedFile, Meter, decode, parse, reading
from .rows import SHAPES, sample_from_row
from .wording import shown

IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif", "jp2")
"""The last ending of members that are images."""
TEXTS = ("json", "txt")
FIX = "The members of a sample should stand together: make the tar with --sort=name."


class Shards(Source):
    """Plain tars, read at random."""

    def __init__(
        self, path: Path, files: Sequence[Path], *, progress: Progress | None = None, report: Report = stop
    ) -> None:
        """
        Args:
            path: what the user named; `files` are the tars it means, in order.

        Raises:
            SightlineError: for a tar that cannot be read to its end, and (from `report`) for a broken sample.
        """
        self.path = path
        self._tars = [IndexedFile(file) for file in files]
        self.rows, self._ends = _index(path, files, progress, report)

    def where(self, row: int) -> str:
        members = self._members(row)
        return _place(self._tar(row).path, members[0].key)

    def read(self, row: int) -> Sample:
        return _sample(self._members(row), self._tar(row).path, self.path)

    def _tar(self, row: int) -> IndexedFile:
        return self._tars[bisect_right(self._ends, row)]

    def _members(self, row: int) -> list[Member]:
        tar = self._tar(row)
        tar.check()
        offset, _ = self.rows.span(row, tar.size)
        with Archive(tar.path, at=offset) as archive:
            return next(_samples(archive))


class Stream(Source):
    """Tars that can only be read from their start. The last sample is kept, so that asking twice costs nothing."""

    sequential = True

    def __init__(
        self, path: Path, files: Sequence[Path], *, progress: Progress | None = None, report: Report = stop
    ) -> None:
        """See `Shards`. Checking the samples reads the whole stream once."""
        self.path, self._tars = path, [IndexedFile(file) for file in files]
        self.notice = (
            f"{path} is compressed and cannot be read at random: its stage's rows come in the order of their files, "
            "neither shuffled nor grouped, a run that resumes skips forward, and going back starts it again. "
            "Unpack it to plain .tar files to read it at random."
        )
        self.rows, _ = _index(path, files, progress, report)
        self._rewind()
        self._warned = False

    def where(self, row: int) -> str:
        return f"{self.path.name} sample {self.rows.number(row)}"

    def read(self, row: int) -> Sample:
        number = self.rows.number(row)
        if self._process != os.getpid():  # a process that was forked would move the other's place in the file
            self._rewind()
        if number < self._position:
            if not self._warned:
                warnings.warn(self.notice, stacklevel=3)
                self._warned = True
            self._rewind()
        while self._position < number:
            self._current, self._position = next(self._samples), self._position + 1
        file, members = self._current
        return _sample(members, file, self.path)

    def _rewind(self) -> None:
        self._process, self._samples, self._position = os.getpid(), self._read_all(), -1
        self._current: tuple[Path, list[Member]] = (self.path, [])

    def _read_all(self) -> Iterator[tuple[Path, list[Member]]]:
        for tar in self._tars:
            tar.check()
            with Archive(tar.path, keep=True) as archive:
                for members in _samples(archive):
                    yield tar.path, members

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_samples": None, "_warned": False, "_position": -1, "_current": (self.path, [])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._rewind()


def open_tars(
    path: Path, files: Sequence[Path], *, progress: Progress | None = None, report: Report = stop
) -> Shards | Stream:
    """The samples of tars, at random if they can be."""
    reader = Stream if any(Archive.compressed(file) for file in files) else Shards
    return reader(path, files, progress=progress, report=report)


def _index(path: Path, files: Sequence[Path], progress: Progress | None, report: Report) -> tuple[Index, list[int]]:
    """The index of all samples, and how many there are up to the end of each tar."""
    index, ends = Index(), []
    with reading(path):
        sizes = [file.stat().st_size for file in files]
    meter, done, number = Meter(progress, sum(sizes)), 0, 0
    for file, size in zip(files, sizes, strict=True):
        with Archive(file) as archive:
            for members in _samples(archive):
                meter(done + archive.position)
                try:
                    index.add(_sample(members, file, path), number, members[0].offset)
                except SightlineError as problem:
                    report(problem)
                number += 1
        done += size
        meter(done)
        ends.append(len(index))
    if not number:
        raise SightlineError(f"{path} holds no samples. {FIX}")
    return index, ends


def _samples(archive: Archive) -> Iterator[list[Member]]:
    """Members that stand together and share a key. Names that start with a dot are the system's own."""
    group: list[Member] = []
    for member in archive:
        if member.hidden:
            continue
        if group and member.key != group[0].key:
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def _sample(members: list[Member], tar: Path, path: Path) -> Sample:
    key = members[0].key
    where = _place(tar, key)
    endings = [member.ending for member in members]
    twice = next((member for i, member in enumerate(members) if member.ending in endings[:i]), None)
    if twice is not None:
        raise SightlineError(f"{where} has two members named {shown(twice.name)}. Keep one of them.")
    images = {
        member.name: EmbeddedImage(
            f"'{shown(member.name)}' of {tar.name}", member.data, tar, member.data_offset, member.size
        )
        for member in members
        if member.ending.rpartition(".")[2] in IMAGES
    }
    texts = {member.ending: member for member in members if member.ending in TEXTS}
    if not texts:
        names = shown(", ".join(member.name for member in members))
        raise SightlineError(f"{where} has no .json and no .txt, only {names}. {FIX}")
    row: Any = {}
    if "json" in texts:
        row = parse(_text(texts["json"], where), f"{where}: its .json", fix="It should be one row.")
    if "txt" in texts and isinstance(row, dict) and not any(row.get(shape) is not None for shape in SHAPES):
        row = {**row, "caption": _text(texts["txt"], where).rstrip("\r\n")}
    return sample_from_row(row, path, where, source=str(path), members=images, default_id=key)


def _text(member: Member, where: str) -> str:
    assert member.data is not None, "text is read with its header"
    return decode(member.data, f"{where}: its .{member.ending}", member.data_offset).removeprefix("\ufeff")


def _place(tar: Path, key: str) -> str:
    return f"{tar.name} sample '{shown(key)}'"
