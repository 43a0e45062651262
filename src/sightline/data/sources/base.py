"""What every reader gives: samples at random, from an index of some twenty bytes a row.

A row is parsed and checked once, while its file is indexed, and again each time it is asked for; nothing of it stays in
memory but where it starts, how long its text is, how many images it has, and a hash of its id.
"""

from abc import abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from ...errors import SightlineError
from ...types import Sample

Progress = Callable[[int, int], None]
"""Called with the bytes (or rows) read so far and their total."""
Report = Callable[[SightlineError], None]
"""What becomes of a row's error: `stop` raises it; where a report returns, that row is left out."""

MAX_ROW = 16 * 2**20
"""Bytes that the text of one row may have. Longer ones are errors, so that no row can fill the memory."""

BLOCK = 4096
"""Rows that the memory of an index grows by."""


def stop(problem: SightlineError) -> None:
    """Raise the first problem."""
    raise problem


@dataclass(frozen=True)
class EmbeddedImage:
    """An encoded image inside another file: its bytes, or where they are. Nothing is read until `read`."""

    name: str
    """What errors call it."""
    data: bytes | None = field(default=None, repr=False)
    path: Path | None = None
    """The file that holds it, where `data` is not given."""
    offset: int = 0
    size: int = 0

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            SightlineError: if the file that holds them is gone or shorter than it was.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None, "an embedded image has its bytes or a file"
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise SightlineError(f"cannot read image {self.name}: {error}. Put '{self.path}' back.") from None
        if len(data) != self.size:
            raise SightlineError(
                f"image {self.name}: '{self.path}' ends within it, so it changed after it was indexed. Start again."
            )
        return data


class Column:
    """Numbers of one type, one for each row. They grow in blocks that stay where they are: an array that is copied as
    it grows leaves holes in the heap (measured on 300,000 rows: 23 bytes a row so, 27 with holes)."""

    def __init__(self, code: str) -> None:
        """
        Args:
            code: the type, as in `array.array`.
        """
        self.code, self.length = code, 0
        self.blocks: list[array] = []

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> int:
        return self.blocks[row // BLOCK][row % BLOCK]

    def append(self, value: int) -> None:
        """Add the number of the next row."""
        block, within = divmod(self.length, BLOCK)
        if within == 0:
            self.blocks.append(array(self.code, bytes(BLOCK * array(self.code).itemsize)))
        self.blocks[block][within] = value
        self.length += 1

    def numpy(self) -> np.ndarray:
        """All of them, as a new array."""
        if not self.blocks:
            return np.empty(0, dtype=self.code)
        return np.concatenate([np.frombuffer(block, dtype=self.code) for block in self.blocks])[: self.length]


class Index:
    """What is kept of each row; it grows while a file is read."""

    def __init__(self, first: int = 0) -> None:
        """
        Args:
            first: the number of the first row in its file; see `number`.
        """
        self._offsets = Column("q")
        self.sizes, self.num_images, self.id_hashes = Column("i"), Column("B"), Column("Q")
        self._first = self._next = first
        self._jumps, self._numbers = Column("I"), Column("I")

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, sample: Sample, number: int, offset: int | None = None) -> None:
        """Add a checked row: its number in the file, and the byte it starts at where it has one."""
        if number != self._next:
            self._jumps.append(len(self))
            self._numbers.append(number)
        self._next = number + 1
        if offset is not None:
            self._offsets.append(offset)
        self.sizes.append(min(sum(len(turn.text) for turn in sample.turns), 2**31 - 1))
        self.num_images.append(min(len(sample.images), 255))
        digest = blake2b(sample.id.encode("utf-8"), digest_size=8).digest()
        self.id_hashes.append(int.from_bytes(digest, "little"))

    def number(self, row: int) -> int:
        """The row's (or line's) number in the file. Only the places where it jumps are kept."""
        jump = bisect_right(self._jumps, row) - 1
        return self._first + row if jump < 0 else self._numbers[jump] + row - self._jumps[jump]

    def span(self, row: int, end: int) -> tuple[int, int]:
        """The bytes from the start of `row` to that of the next one; the last one ends at `end`."""
        return self._offsets[row], self._offsets[row + 1] if row + 1 < len(self._offsets) else end


class Source(Sequence[Sample]):
    """The rows of one file or folder, in its order: `source[row]` reads a sample, whatever was read before.

    A source can be pickled; each process opens its files when it first needs them.
    """

    path: Path
    """What was opened. Every sample names it as its `source`."""
    rows: Index
    sequential: bool = False
    """True for a stream that cannot be indexed: reading an earlier row starts it again."""
    notice: str = ""
    """What a user should know about reading it; empty for most."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Sample:
        """The sample of a row.

        Raises:
            IndexError: if there is no such row.
            SightlineError: if the file changed after it was indexed.
        """
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.read(row)

    def __iter__(self) -> Iterator[Sample]:
        return (self.read(row) for row in range(len(self)))

    @property
    def sizes(self) -> np.ndarray:
        """Characters of text of each row, int32; images are apart. A new array each time."""
        return self.rows.sizes.numpy()

    @property
    def num_images(self) -> np.ndarray:
        """Images of each row, uint8; 255 stands for more. A new array each time."""
        return self.rows.num_images.numpy()

    @property
    def id_hashes(self) -> np.ndarray:
        """A stable 64-bit hash of each row's id, uint64: equal ids are found without keeping them. A new array each
        time."""
        return self.rows.id_hashes.numpy()

    @abstractmethod
    def where(self, row: int) -> str:
        """Where a row stands, for people: "chats.jsonl line 12"."""

    @abstractmethod
    def read(self, row: int) -> Sample:
        """The sample of a row that is there."""
