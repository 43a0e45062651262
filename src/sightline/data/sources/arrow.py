"""Hugging Face `datasets` saved on disk, and Parquet: memory-mapped by the `datasets` library, offline.

Parquet cannot be read at random, so `datasets` turns it into Arrow files once, in its cache (HF_DATASETS_CACHE); that
takes as much disk as the Parquet files hold, and is found again the next time.
"""

import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import SightlineError
from ...types import Sample
from ..images import image_folder
from .base import Index, Progress, Report, Source, stop
from .rows import FIELDS, sample_from_row
from .wording import shown

if TYPE_CHECKING:
    import pyarrow as pa

SPLIT = re.compile(r"(train|test|validation|valid|val|dev)(?=[^a-z]|$)", re.IGNORECASE)
STEP = 1000
"""Rows that are checked at a time."""


class Arrow(Source):
    """A data set that `datasets` holds. Images are embedded (their bytes, alone or beside a path), or name files."""

    def __init__(
        self,
        path: Path,
        files: Sequence[Path] = (),
        images: Path | None = None,
        *,
        progress: Progress | None = None,
        report: Report = stop,
    ) -> None:
        """
        Args:
            path: what the user named: a folder that `save_to_disk` wrote, or where the Parquet files are.
            files: the Parquet files, in order; none for a folder of `save_to_disk`.

        Raises:
            SightlineError: if `datasets` is missing or cannot open the data, and (from `report`) for a broken row.
        """
        self.path, self.root = path, image_folder(path, images)
        self.rows = Index()
        _need_library(path)
        self._files = [(file.name, _num_rows(file)) for file in files]
        # `datasets` fails on Parquet files without rows.
        filled = [file for file, (_, count) in zip(files, self._files, strict=True) if count]
        if files and not filled:
            raise _no_rows(path)
        self._table = _open(path, filled)
        if not len(self._table):
            raise _no_rows(path)
        for number, row in enumerate(self._light_rows()):
            try:
                if isinstance(row, SightlineError):
                    raise row
                self.rows.add(self._sample(row, number), number)
            except SightlineError as problem:
                report(problem)
            if progress is not None and ((number + 1) % STEP == 0 or number + 1 == len(self._table)):
                progress(number + 1, len(self._table))

    def where(self, row: int) -> str:
        return self._place(self.rows.number(row))

    def read(self, row: int) -> Sample:
        number = self.rows.number(row)
        return self._sample(_plain_row(self._slice(number, number + 1).to_pylist()[0]), number)

    def _place(self, number: int) -> str:
        for name, count in self._files:
            if number < count:
                return f"{name} row {number}"
            number -= count
        return f"{self.path.name} row {number}"

    def _sample(self, row: dict[str, Any], number: int) -> Sample:
        # The number alone, as names of files repeat in shards: ids do not.
        return sample_from_row(
            row, self.root, self._place(number), source=str(self.path), default_id=f"{self.path.name} row {number}"
        )

    def _slice(self, start: int, end: int) -> "pa.Table":
        table: Any = self._table[start:end]  # with_format("arrow"): nothing is decoded
        return table

    def _light_rows(self) -> Iterator[dict[str, Any] | SightlineError]:
        """Every row with the fields that are checked, the bytes of its images left on the disk."""
        for start in range(0, len(self._table), STEP):
            yield from self._light_slice(start, min(start + STEP, len(self._table)))

    def _light_slice(self, start: int, end: int) -> Iterator[dict[str, Any] | SightlineError]:
        """Rows of a slice. One with a broken row is cut in half until that row is alone."""
        import pyarrow as pa

        table = self._slice(start, end)
        others = dict.fromkeys(name for name in table.column_names if name not in FIELDS)
        names = [name for name in table.column_names if name in FIELDS]
        try:
            # Nothing else looks at what a file claims of its text and its lengths.
            table.select(names).validate(full=True)
        except pa.ArrowInvalid as error:
            if end - start == 1:
                yield SightlineError(f"{self._place(start)} is damaged: {_first_line(error)}. Write it again as UTF-8.")
            else:
                yield from self._light_slice(start, (start + end) // 2)
                yield from self._light_slice((start + end) // 2, end)
            return
        columns = {
            name: _light(table[name]) if name in ("image", "images") else table[name].to_pylist() for name in names
        }
        for row in range(end - start):
            yield _plain_row(others | {name: values[row] for name, values in columns.items()})


def _open(path: Path, files: Sequence[Path]):
    """The data set, each row as an Arrow table: nothing is decoded."""
    import datasets

    shown_before = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        if files:
            rows = datasets.Dataset.from_parquet([str(file) for file in files])
        else:
            rows = datasets.load_from_disk(str(path))
    except Exception as error:  # pyarrow and datasets have no error of their own for damaged files
        raise SightlineError(
            f"cannot open {path} with `datasets`: {_first_line(error.__cause__ or error)}. "
            "Save it again, or name the right folder."
        ) from None
    finally:
        if shown_before:
            datasets.enable_progress_bars()
    if isinstance(rows, datasets.DatasetDict):
        if len(rows) != 1:
            splits = ", ".join(f"'{path / str(name)}'" for name in rows)
            raise SightlineError(f"{path} holds several splits. Name one of them: {splits}.")
        rows = next(iter(rows.values()))
    return rows.with_format("arrow")


def _need_library(path: Path) -> None:
    if find_spec("datasets") is None:
        raise SightlineError(
            f"reading {path} needs the `datasets` library, which is not installed. Run: pip install 'sightline[data]'"
        )


def _num_rows(file: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    import pyarrow.parquet as pq

    try:
        return pq.read_metadata(file).num_rows
    except Exception as error:
        raise SightlineError(f"{file} is no sound Parquet file: {_first_line(error)}. Write it again.") from None


def _light(column: "pa.ChunkedArray") -> list[Any]:
    """A column of images as Python values, with one byte in the place of each image's own."""
    import pyarrow as pa
    from pyarrow import compute

    pc: Any = compute  # its functions are made when it is imported

    def light(array: Any) -> list[Any]:
        kind = array.type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return [b"-" if here else None for here in pc.is_valid(array).to_pylist()]
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            data = light(pc.struct_field(array, "bytes"))
            has_path = kind.get_field_index("path") >= 0
            paths = pc.struct_field(array, "path").to_pylist() if has_path else [None] * len(data)
            here = pc.is_valid(array).to_pylist()
            return [{"bytes": d, "path": p} if h else None for d, p, h in zip(data, paths, here, strict=True)]
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            flat = iter(light(pc.list_flatten(array)))
            lengths = pc.list_value_length(array).to_pylist()
            return [None if n is None else [next(flat) for _ in range(n)] for n in lengths]
        return array.to_pylist()

    return [value for chunk in column.chunks for value in light(chunk)]


def _plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """`datasets` keeps some lists of objects as an object of lists; turns are lists of objects."""
    for name in ("conversations", "messages"):
        value = row.get(name)
        if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
            lengths = {len(v) for v in value.values()}
            if len(lengths) == 1:
                row[name] = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]
    return row


def parquet_files(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The files of one data set.

    Raises:
        SightlineError: if their names speak of several splits, which are not one data set.
    """
    splits = sorted({match[1].lower() for file in files if (match := SPLIT.match(file.name))})
    if len(splits) > 1:
        raise SightlineError(
            f"{folder} holds several splits ({', '.join(splits)}). Name the files of one: {folder}/{splits[0]}*.parquet"
        )
    return list(files)


def _no_rows(path: Path) -> SightlineError:
    return SightlineError(f"{path} holds no rows. Put rows in it.")


def _first_line(error: BaseException) -> str:
    return shown((str(error) or type(error).__name__).splitlines()[0], 200).rstrip(".")
