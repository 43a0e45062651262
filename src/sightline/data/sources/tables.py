"""Caption tables: CSV and TSV with a header, as Python's `csv` reads them (quotes may hold line ends)."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ...errors import SightlineError, did_you_mean
from ...types import Sample
from ..images import image_folder
from .base import MAX_ROW, Index, Progress, Report, Source, stop
from .files import IndexedFile, Meter, decode, lines, reading, too_long
from .rows import sample_from_row
from .wording import shown

TEXTS = ("caption", "text")


class Table(Source):
    """A table with the columns `image` and `caption` or `text`, and `id` if rows have ids; the others go to `meta`."""

    def __init__(
        self, path: Path, images: Path | None = None, *, progress: Progress | None = None, report: Report = stop
    ) -> None:
        """
        Raises:
            SightlineError: for a file that cannot be read, has no such header or no rows, and (from `report`) for a
                broken row.
        """
        self.path, self.root = path, image_folder(path, images)
        self.delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        self.rows = Index(first=2)
        self._file = IndexedFile(path)
        self._columns: list[str] = []
        with reading(path), path.open("rb") as file:
            self._scan(_Lines(file, path.name, Meter(progress, self._file.size)), report)

    def _scan(self, source: "_Lines", report: Report) -> None:
        empty = True
        while True:
            number, offset = source.number, source.offset
            where = self._line(number)
            source.begin()
            try:
                fields = next(self._reader(source), None)
                if fields is None:
                    break
                if not fields:
                    continue
                if not self._columns:
                    self._columns = self._header(fields, where)
                    continue
                empty = False
                if source.offset - offset > MAX_ROW:
                    raise SightlineError(too_long(where, source.offset - offset))
                self.rows.add(self._sample(fields, where, check_only=True), number, offset)
            except csv.Error as error:
                self._complain(_csv_error(error, where), report)
                source.back()  # a quote that does not close has taken lines that may be sound
            except SightlineError as problem:
                self._complain(problem, report)
        if empty:
            raise SightlineError(f"{self.path} holds no rows. Put one row on each line below its header.")

    def _complain(self, problem: SightlineError, report: Report) -> None:
        """Without a header no row can be read, so its problem is raised whatever `report` does."""
        if not self._columns:
            raise problem
        report(problem)

    def _header(self, fields: list[str], where: str) -> list[str]:
        columns = [name.strip() for name in fields]
        found = shown(", ".join(columns), 200)
        for wanted, names in (("image", ("image",)), ("caption", TEXTS)):
            if not any(name in columns for name in names):
                other = next((mark for mark in (";", "\t", ",", "|") if len(columns) == 1 and mark in columns[0]), None)
                hint = did_you_mean(wanted, [name for name in columns[:100] if len(name) < 50]) or "."
                hint = f"; the columns look parted by {other!r}, not {self.delimiter!r}." if other else hint
                raise SightlineError(
                    f"{where}: the header has no column '{wanted}'{hint} It has: {found}. "
                    "The first line should name the columns: image, caption, and id if rows have ids."
                )
        twice = next((name for name in columns if columns.count(name) > 1), None)
        if twice is not None:
            raise SightlineError(f"{where}: the header names column '{shown(twice)}' twice. Rename one of them.")
        return columns

    def where(self, row: int) -> str:
        return self._line(self.rows.number(row))

    def read(self, row: int) -> Sample:
        start, end = self.rows.span(row, self._file.size)
        where = self.where(row)
        # A cut behind the record does not matter: the reader takes the lines of this one alone.
        text = self._file.read(start, end).decode("utf-8", errors="replace")
        try:
            fields = next(self._reader(io.StringIO(text, newline="\n")))
        except csv.Error as error:
            raise _csv_error(error, where) from None
        return self._sample(fields, where)

    def _reader(self, text: Iterator[str]):
        return csv.reader(text, delimiter=self.delimiter, strict=True)

    def _line(self, number: int) -> str:
        return f"{self.path.name} line {number}"

    def _sample(self, fields: list[str], where: str, *, check_only: bool = False) -> Sample:
        if len(fields) != len(self._columns):
            raise SightlineError(
                f"{where} has {len(fields)} fields, and the header {len(self._columns)}. "
                f"Put text that holds {self.delimiter!r} or line ends in double quotes."
            )
        row = dict(zip(self._columns, fields, strict=True))
        if row.get("id") == "":
            row.pop("id")
        return sample_from_row(row, self.root, where, source=str(self.path), check_only=check_only)


class _Lines:
    """Decoded lines one at a time, with the offset and the number of the next one."""

    def __init__(self, file: BinaryIO, name: str, meter: Meter) -> None:
        self.file, self.name, self.meter = file, name, meter
        self.number, self.offset = 1, 0
        self._lines, self._second = lines(file), None

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        offset, line, size = next(self._lines)
        where = f"{self.name} line {self.number}"
        self.number, self.offset = self.number + 1, offset + size
        self._second = self._second or (self.number, self.offset)
        self.meter(self.offset)
        if size > MAX_ROW:
            raise SightlineError(too_long(where, size))
        return decode(line, where, offset)

    def begin(self) -> None:
        """A record begins with the next line."""
        self._second = None

    def back(self) -> None:
        """Go back to the second line of the record."""
        if self._second is not None:
            self.number, self.offset = self._second
            self._lines = lines(self.file, self.offset)


def _csv_error(error: csv.Error, where: str) -> SightlineError:
    if "field larger" in str(error) or "unexpected end of data" in str(error):
        return SightlineError(f'{where}: a quote opens and does not close ({error}). Close it, or double it: "".')
    return SightlineError(f'{where} is no row of a table: {error}. Double the quotes inside a quoted field: "".')
