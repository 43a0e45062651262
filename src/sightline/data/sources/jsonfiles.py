"""JSON Lines, and JSON lists that are read in a stream: neither is ever whole in memory."""

import codecs
import json
import re
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import SightlineError
from ...types import Sample
from ..images import image_folder
from .base import MAX_ROW, Index, Progress, Report, Source, stop
from .files import IndexedFile, Meter, decode, json_problem, lines, not_utf8, parse, reading, skip_mark, too_long
from .rows import sample_from_row

CHUNK = 2**20
SPACE = re.compile(r"[ \t\r\n]*")
DECODER = json.JSONDecoder()
LINE_FIX = "Each line should be one row, whole."
LIST_FIX = "It should be one list of rows."


class JsonLines(Source):
    """One row of JSON on each line. Blank lines are passed over."""

    def __init__(
        self, path: Path, images: Path | None = None, *, progress: Progress | None = None, report: Report = stop
    ) -> None:
        """
        Raises:
            SightlineError: for a file that cannot be read or holds no rows, and (from `report`) for a broken row.
        """
        self.path, self.root = path, image_folder(path, images)
        self.rows = Index(first=1)
        self._file = IndexedFile(path)
        meter, empty = Meter(progress, self._file.size), True
        with reading(path), path.open("rb") as file:
            for number, (offset, line, size) in enumerate(lines(file), start=1):
                meter(offset + size)
                if line.isspace():
                    continue
                if empty and line.lstrip().startswith(b"["):
                    raise SightlineError(
                        f"{self._line(number)} starts a list, so {path} is no JSON Lines. Name it .json."
                    )
                empty = False
                try:
                    if size > MAX_ROW:
                        raise SightlineError(too_long(self._line(number), size))
                    self.rows.add(self._sample(line, number, offset, check_only=True), number, offset)
                except SightlineError as problem:
                    report(problem)
        if empty:
            raise SightlineError(f"{path} holds no rows. {LINE_FIX}")

    def where(self, row: int) -> str:
        return self._line(self.rows.number(row))

    def read(self, row: int) -> Sample:
        start, end = self.rows.span(row, self._file.size)
        return self._sample(self._file.read(start, end).partition(b"\n")[0], self.rows.number(row), start)

    def _line(self, number: int) -> str:
        return f"{self.path.name} line {number}"

    def _sample(self, line: bytes, number: int, offset: int, *, check_only: bool = False) -> Sample:
        where = self._line(number)
        row = parse(decode(line, where, offset).rstrip(), where, fix=LINE_FIX)
        return sample_from_row(row, self.root, where, source=str(self.path), check_only=check_only)


class JsonList(Source):
    """One JSON list of rows, LLaVA's own format."""

    def __init__(
        self, path: Path, images: Path | None = None, *, progress: Progress | None = None, report: Report = stop
    ) -> None:
        """
        Raises:
            SightlineError: for a file that cannot be read or is no list of rows, and (from `report`) for a broken row.
        """
        self.path, self.root = path, image_folder(path, images)
        self.rows = Index()
        self._file = IndexedFile(path)
        with reading(path), path.open("rb") as file:
            self._scan(_Stream(file, path, Meter(progress, self._file.size)), report)

    def _scan(self, stream: "_Stream", report: Report) -> None:
        first = stream.peek()
        if first != "[":
            held = {"{": "an object", '"': "text", "n": "nothing", "t": "a boolean", "f": "a boolean"}
            if first in held or first.isdigit():
                what = held.get(first, "a number")
                hint = " If it has one object on each line, name it .jsonl." if first == "{" else ""
                raise SightlineError(f"{self.path} should hold a list of rows, and holds {what}.{hint}")
            found = f"it starts with {first!r}" if first else "it is empty"
            raise SightlineError(f"{self.path} is not JSON: {found}. {LIST_FIX}")
        stream.advance(1)
        if stream.peek() == "]":
            raise SightlineError(f"{self.path} should hold a list of rows, and holds an empty list. Put rows in it.")
        number, mark = 0, ","
        while mark == ",":
            stream.peek()
            where = f"{self.path.name} row {number}"
            offset, value = stream.offset, stream.value(where)
            try:
                if stream.offset - offset > MAX_ROW:
                    raise SightlineError(too_long(where, stream.offset - offset))
                sample = sample_from_row(value, self.root, where, source=str(self.path), check_only=True)
                self.rows.add(sample, number, offset)
            except SightlineError as problem:
                report(problem)
            mark, line, number = stream.peek(), stream.line, number + 1
            if mark not in (",", "]"):
                found = f"{mark!r} follows it" if mark else "the file ends after it"
                raise SightlineError(f"{where}: {self.path} is not JSON: {found} (line {line} of the file). {LIST_FIX}")
            stream.advance(1)
        if stream.peek():
            raise SightlineError(
                f"{self.path} is not JSON: more follows the list (line {stream.line} of the file). {LIST_FIX}"
            )

    def where(self, row: int) -> str:
        return f"{self.path.name} row {self.rows.number(row)}"

    def read(self, row: int) -> Sample:
        start, end = self.rows.span(row, self._file.size)
        where = self.where(row)
        # Behind the row stand a comma and perhaps rows that were left out; a cut in those does not matter.
        text = self._file.read(start, end).decode("utf-8", errors="replace")
        try:
            value, _ = DECODER.raw_decode(text)
        except (ValueError, RecursionError) as error:
            raise SightlineError(
                f"{where} is not JSON: {json_problem(error)}. The file changed: start again."
            ) from None
        return sample_from_row(value, self.root, where, source=str(self.path))


class _Stream:
    """JSON text from a moving position on, with the byte and the line of that position. Holds a chunk, or a row."""

    def __init__(self, file: BinaryIO, path: Path, meter: Meter) -> None:
        self.file, self.path, self.meter = file, path, meter
        self.offset = skip_mark(file)
        self.line = 1
        self.text, self.at = "", 0
        self._read = self.offset
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._broken: tuple[int, int] | None = None
        """Value and position of a byte that is not UTF-8: an error once the text before it is used up."""

    def peek(self) -> str:
        """Move past white space; the next character, or nothing at the end."""
        while True:
            self.advance(SPACE.match(self.text, self.at).end() - self.at)  # type: ignore[union-attr]
            if self.at < len(self.text) or not self._more(str(self.path)):
                return self.text[self.at : self.at + 1]

    def advance(self, length: int) -> None:
        """Move on by `length` characters of the text that is there."""
        piece = self.text[self.at : self.at + length]
        self.offset += len(piece) if piece.isascii() else len(piece.encode("utf-8"))
        self.line += piece.count("\n")
        self.at += length

    def value(self, where: str) -> Any:
        """The JSON value at the position, which moves behind it."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                # At the edge of what was read, a value that is cut looks like one that is broken.
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - 16
                if cut and self._more(where):
                    continue
                line = self.line + self.text.count("\n", self.at, error.pos)
                raise SightlineError(f"{where} is not JSON: {json_problem(error, line=line)}. {LIST_FIX}") from None
            except (ValueError, RecursionError) as error:
                raise SightlineError(f"{where} is not JSON: {json_problem(error)}. {LIST_FIX}") from None
            if end == len(self.text) and self._more(where):
                continue  # a number may go on
            self.advance(end - self.at)
            return value

    def _more(self, where: str) -> bool:
        """Read on, as much again as is waiting, so that a long row is parsed a few times only."""
        waiting = len(self.text) - self.at
        if waiting > MAX_ROW:
            raise SightlineError(too_long(f"{where} (from line {self.line} of the file)"))
        if self._broken is not None:
            value, position = self._broken
            raise SightlineError(not_utf8(where, value, position))
        raw = self.file.read(max(CHUNK, waiting))
        held, _ = self._decoder.getstate()
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            whole = held + raw
            self._broken = whole[error.start], self._read - len(held) + error.start
            text = whole[: error.start].decode("utf-8")
        self._read += len(raw)
        self.meter(self._read)
        self.text, self.at = self.text[self.at :] + text, 0
        return bool(raw) or self._broken is not None
