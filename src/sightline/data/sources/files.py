"""Files as bytes at offsets, and text in them: what the readers of files share."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import SightlineError
from .base import MAX_ROW, Progress

BOM = b"\xef\xbb\xbf"
STEP = 4 * 2**20
"""Bytes between two calls of a progress callback."""


class IndexedFile:
    """A file whose rows are read at their offsets. Each process opens it for itself, also after pickling.

    Raises:
        SightlineError: from `read`, if the file cannot be read or is not the one that was indexed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        with reading(path):
            self.size, self._stamp = self._facts()

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`, at most the longest row that there can be."""
        with reading(self.path):
            if self._file is None:
                self.check()
                self._file = self.path.open("rb", buffering=0)
            # pread keeps no position, which processes that were forked would share.
            return os.pread(self._file.fileno(), min(end - start, MAX_ROW + 1), start)

    def check(self) -> None:
        """See that the file is the one that was indexed."""
        with reading(self.path):
            if self._facts() != (self.size, self._stamp):
                raise SightlineError(
                    f"'{self.path}' changed after it was indexed, so its rows may stand elsewhere. Start again."
                )

    def _facts(self) -> tuple[int, int]:
        facts = self.path.stat()
        return facts.st_size, facts.st_mtime_ns

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says about a file into our error."""
    try:
        yield
    except FileNotFoundError:
        raise SightlineError(f"data file not found: {path}. Check `data.path` (relative to where you are).") from None
    except OSError as error:
        raise SightlineError(f"cannot read {path}: {error.strerror or error}. Check the file and its rights.") from None


class Meter:
    """Calls a progress callback every few megabytes."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.next = progress, total, STEP

    def __call__(self, done: int) -> None:
        if self.progress is not None and (done >= self.next or done >= self.total):
            self.progress(min(done, self.total), self.total)
            self.next = done + STEP


def lines(file: BinaryIO, offset: int = 0) -> Iterator[tuple[int, bytes, int]]:
    """(offset, line, size) of each line from `offset` on, its end included and a byte order mark left out.

    A line longer than a row may be comes cut, with its whole size.
    """
    file.seek(offset)
    if offset == 0:
        offset = skip_mark(file)
    while line := file.readline(MAX_ROW + 1):
        size, last = len(line), line
        while len(last) > MAX_ROW and not last.endswith(b"\n"):
            last = file.readline(MAX_ROW + 1)
            size += len(last)
        yield offset, line, size
        offset += size


def skip_mark(file: BinaryIO) -> int:
    """Move a file at its start past a byte order mark, which Windows editors write; the position it is at then."""
    return file.seek(len(BOM) if file.read(len(BOM)) == BOM else 0)


def decode(raw: bytes, where: str, offset: int) -> str:
    """Text of the bytes that start at `offset` of their file.

    Raises:
        SightlineError: naming the first byte that is not UTF-8.
    """
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SightlineError(not_utf8(where, raw[error.start], offset + error.start, error.start)) from None


def not_utf8(where: str, value: int, position: int, column: int | None = None) -> str:
    """The message for a byte that is not UTF-8."""
    here = f"byte {column} of it, " if column is not None else ""
    return (
        f"{where} is not UTF-8: {here}byte {position} of the file, is 0x{value:02x}. "
        "Mend that character, or save the file as UTF-8."
    )


def parse(text: str, where: str, *, fix: str) -> Any:
    """A JSON value.

    Raises:
        SightlineError: if it is not one, or its nesting or a number is beyond what can be read.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SightlineError(f"{where} is not JSON: {json_problem(error)}. {fix}") from None


def json_problem(error: ValueError | RecursionError, *, line: int | None = None) -> str:
    """What a JSON parser found, without its excerpt; `line` is that of the file, where it is known."""
    match error:
        case json.JSONDecodeError():
            place = f"line {line} of the file" if line is not None else f"column {error.colno}"
            return f"{error.msg} ({place})"
        case RecursionError():
            return "it is nested too deep"
        case _:
            return str(error).split(";")[0]  # a number of thousands of digits


def too_long(where: str, size: int | None = None) -> str:
    """The message for a row beyond what memory should hold."""
    has = f"has {size:,} bytes" if size is not None else "goes on for more"
    return f"{where} {has}, and a row may have {MAX_ROW:,}. Is a line end or a quote missing? Split or remove the row."
