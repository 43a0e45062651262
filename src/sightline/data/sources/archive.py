"""The members of a tar, plain or compressed, in one pass and in little memory.

`tarfile` does the parsing. What it passes over in silence (a damaged header, a second archive behind the first) is an
error here: the samples behind it would be lost.
"""

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import SightlineError
from .base import MAX_ROW
from .files import reading, too_long
from .wording import shown

OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
ZSTD = b"\x28\xb5\x2f\xfd"
CHUNK = 2**20
KEPT = (".json", ".txt")


@dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    offset: int
    """Of its first header."""
    data_offset: int
    size: int
    data: bytes | None
    """Its bytes: of text always, of others if the archive was opened to keep them."""

    @property
    def key(self) -> str:
        """The name up to the first dot behind the folder: what the members of a sample share."""
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    @property
    def ending(self) -> str:
        """What follows the first dot, in small letters."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()

    @property
    def hidden(self) -> bool:
        """Whether the system made it (`._a.jpg` on a Mac)."""
        return self.name.rpartition("/")[2].startswith(".")


class Archive:
    """An open tar; iterating gives its members in order."""

    def __init__(self, path: Path, *, at: int = 0, keep: bool = False) -> None:
        """
        Args:
            at: the offset of the header to start from (plain files only).
            keep: hold every member's bytes, not those of text alone.

        Raises:
            SightlineError: if the file cannot be read or is no tar; from iterating also where it is damaged.
        """
        self.path, self.keep = path, keep
        with ExitStack() as stack, reading(path):
            self._file = stack.enter_context(path.open("rb"))
            magic = self._file.peek(8)[:8] if at == 0 else b""  # type: ignore[attr-defined]
            if magic.startswith(ZSTD):
                raise SightlineError(f"{path} is compressed with zstd, which cannot be read here. Unpack it to a .tar.")
            opener = next((opener for start, opener in OPENERS.items() if magic.startswith(start)), None)
            raw = stack.enter_context(opener(self._file)) if opener else self._file
            self._forward = _Forward(raw, at, plain=opener is None)
            self._stack = stack.pop_all()
        self._whole = at == 0

    @staticmethod
    def compressed(path: Path) -> bool:
        """Whether a file starts as a compressed one does."""
        with reading(path), path.open("rb") as file:
            return file.read(8).startswith((*OPENERS, ZSTD))

    @property
    def position(self) -> int:
        """Bytes of the file that were read, also of a compressed one."""
        return self._file.tell()

    def __enter__(self) -> "Archive":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Member]:
        last = -1
        try:
            tar = tarfile.TarFile(fileobj=self._forward)  # type: ignore[arg-type]
        except Exception as error:  # tarfile, zlib and lzma each raise their own on damaged input
            raise self._damaged(error) from None
        while True:
            try:
                info = tar.next()
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
                if info is None:
                    break
                member = self._member(tar, info)
            except SightlineError:
                raise
            except Exception as error:
                raise self._damaged(error) from None
            if info.offset <= last:
                raise self._damaged("a header points back")
            last = info.offset
            if info.isreg():
                yield member
        if self._whole:
            self._check_end(tar.offset)  # type: ignore[attr-defined]

    def _member(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
        data = None
        if info.isreg() and (self.keep or info.name.lower().endswith(KEPT)):
            if info.size > MAX_ROW and not self.keep:
                raise SightlineError(too_long(f"{self.path.name} member '{shown(info.name)}'", info.size))
            reader = tar.extractfile(info)
            assert reader is not None, "a regular file has data"
            data = reader.read()
        return Member(info.name, info.offset, info.offset_data, info.size, data)

    def _check_end(self, offset: int) -> None:
        try:
            if any(self._forward.last):
                raise self._damaged(f"the header at byte {offset} is broken, and what follows cannot be found")
            while rest := self._forward.read(CHUNK):
                if any(rest):
                    raise self._damaged(f"more follows its end mark at byte {offset}, as if several were joined")
        except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
            if isinstance(error, SightlineError):
                raise
            raise self._damaged(error) from None

    def _damaged(self, reason: object) -> SightlineError:
        text = shown(str(reason) or type(reason).__name__, 200)
        return SightlineError(f"{self.path} is no sound tar: {text}. Make it again, or remove it.")


class _Forward:
    """A file that only goes forward; `tarfile` needs no more. Remembers what was read last."""

    def __init__(self, raw: Any, at: int, *, plain: bool) -> None:
        self.raw, self.plain, self.position, self.last = raw, plain, 0, b""
        if at:
            self.seek(at)

    def tell(self) -> int:
        return self.position

    def read(self, size: int) -> bytes:
        """In pieces: a damaged header may ask for more than there is memory."""
        pieces, left = [], size
        while left > 0 and (piece := self.raw.read(min(left, CHUNK))):
            pieces.append(piece)
            left -= len(piece)
        self.last = b"".join(pieces)
        self.position += len(self.last)
        return self.last

    def seek(self, position: int, whence: int = 0) -> None:
        assert whence == 0
        if position < self.position:
            raise ValueError("a header points back")
        if self.plain:
            self.raw.seek(position)
            self.position = position
            return
        while self.position < position and (piece := self.raw.read(min(position - self.position, CHUNK))):
            self.position += len(piece)
