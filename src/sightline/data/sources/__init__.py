"""From files to samples: one small reader a format, all alike (`Source`), chosen by what is there."""

import glob
import re
import stat
from pathlib import Path

import numpy as np

from ...errors import SightlineError, did_you_mean
from ...types import Sample
from .arrow import Arrow, parquet_files
from .base import EmbeddedImage, Progress, Report, Source, stop
from .files import reading
from .jsonfiles import JsonLines, JsonList
from .rows import sample_from_row
from .tables import Table
from .webdataset import open_tars
from .wording import shown

__all__ = [
    "EmbeddedImage",
    "Source",
    "collect_problems",
    "duplicate_ids",
    "open_source",
    "read_llava_json",
    "sample_from_row",
]

ROWS = {".json": JsonList, ".jsonl": JsonLines, ".ndjson": JsonLines, ".csv": Table, ".tsv": Table}
TAR = re.compile(r"\.(tar|tgz|tbz2?|txz|tar\.[a-z0-9]+)$", re.IGNORECASE)
FORMATS = (
    ".json (a list of rows), .jsonl, .csv, .tsv, .parquet, .tar (WebDataset), a folder or a pattern ('shards/*.tar') "
    "of .parquet or .tar files, a folder that `datasets` saved"
)


def open_source(
    path: Path | str, images: Path | str | None = None, *, progress: Progress | None = None, report: Report = stop
) -> Source:
    """The rows of a file, a folder, or a pattern of files; every row is checked once.

    Args:
        images: the folder of images that rows name; see `image_folder` for the default. Images are not opened here.
        progress: called with the bytes read (rows, for `datasets` and Parquet) and their total.
        report: called with the error of each broken row. The default raises it; if `report` returns, the row is left
            out and the next one is read.

    Raises:
        SightlineError: naming file, row, field and fix, for the first row that is not as it should be; and for a file
            that is missing, damaged, or of no known format.
    """
    path, folder = Path(path), Path(images) if images is not None else None
    with reading(path):
        mode = _mode(path)
        if mode is None and glob.has_magic(str(path)):
            files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (any root)
            if not files:
                raise SightlineError(f"no file matches {path}. Check `data.path` (relative to where you are).")
            return _open_files(path, files, folder, progress, report)
        if mode is None:
            raise FileNotFoundError
        if stat.S_ISDIR(mode):
            if any((path / name).is_file() for name in ("state.json", "dataset_info.json", "dataset_dict.json")):
                return Arrow(path, images=folder, progress=progress, report=report)
            return _open_files(path, sorted(path.iterdir()), folder, progress, report)
    _refuse_pipes([path])
    reader = ROWS.get(path.suffix.lower())
    if reader is not None:
        return reader(path, folder, progress=progress, report=report)
    return _open_files(path, [path], folder, progress, report)


def _mode(path: Path) -> int | None:
    """What kind of file is there; None if there is none."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
    except ValueError as error:  # a NUL, or half of a character
        raise SightlineError(f"'{shown(str(path))}' cannot be a file's name: {error}. Check `data.path`.") from None


def _refuse_pipes(files: list[Path]) -> None:
    pipe = next((file for file in files if file.is_fifo()), None)
    if pipe is not None:
        raise SightlineError(f"{pipe} is a pipe, which can be read once, and rows are read again. Write it to a file.")


def _open_files(
    path: Path, files: list[Path], images: Path | None, progress: Progress | None, report: Report
) -> Source:
    """Files that are one data set together."""
    tars = [file for file in files if TAR.search(file.name)]
    tables = [file for file in files if file.suffix.lower() == ".parquet"]
    _refuse_pipes([*tars, *tables])
    if tars and tables:
        raise SightlineError(f"{path} holds both .tar and .parquet files. Name those meant: '{path}/*.tar'.")
    if tars:
        return open_tars(path, tars, progress=progress, report=report)
    if tables:
        return Arrow(path, parquet_files(path, tables), images, progress=progress, report=report)
    rows = [file.name for file in files if file.suffix.lower() in ROWS]
    if path.suffix and len(files) == 1 and files[0] == path:
        near = did_you_mean(path.suffix.lower(), [*ROWS, ".parquet", ".tar"])
        raise SightlineError(f"{path} has no format that is known by its ending{near or '.'} Known: {FORMATS}.")
    hint = f" It holds {', '.join(rows[:3])}: name one file." if rows else ""
    raise SightlineError(f"{path} is no data that is known.{hint} Known: {FORMATS}.")


def read_llava_json(path: Path, images: Path | None = None) -> list[Sample]:
    """All rows of a source, in memory; see `open_source` for what is raised."""
    return list(open_source(path, images))


class _Enough(Exception):
    """The list of problems is full."""


def collect_problems(
    path: Path | str, images: Path | str | None = None, limit: int = 100, *, progress: Progress | None = None
) -> list[str]:
    """What is wrong with a source: what `open_source` would say of each broken row, up to `limit` of them.

    A problem of the file itself (it is missing, or damaged from some place on) is the last one.
    """
    problems: list[str] = []

    def note(problem: SightlineError) -> None:
        problems.append(str(problem))
        if len(problems) >= limit:
            raise _Enough

    try:
        open_source(path, images, progress=progress, report=note)
    except _Enough:
        pass
    except SightlineError as problem:
        problems.append(str(problem))
    return problems


def duplicate_ids(source: Source, limit: int = 100) -> list[str]:
    """A message for each row whose id an earlier row has. Annotations are kept by id, so the rows would share them."""
    hashes = source.id_hashes
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    again = np.flatnonzero(hashes[1:] == hashes[:-1]) + 1
    firsts = order[np.searchsorted(hashes, hashes[again])]
    pairs = sorted(zip(order[again].tolist(), firsts.tolist(), strict=True))[:limit]
    return [
        f"{source.where(row)} has the id of {source.where(first)}, so they would share annotations. "
        "Give each row an id of its own."
        for row, first in pairs
    ]
