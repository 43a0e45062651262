"""The one place where the doctor meets the readers and the recipe's shape: a table for each file of each stage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import Data, Recipe, Stage
from ..data.images import image_folder
from ..data.sources import Progress, Source, open_source
from ..errors import SightlineError
from ..types import Sample


@dataclass(frozen=True)
class Table:
    """The rows of one file of one stage."""

    stage: Stage
    role: Literal["data", "validation"]
    data: Data
    source: Source | None
    """The rows that are whole; None where the file itself cannot be read."""
    problems: tuple[str, ...]
    """What is wrong with broken rows, each naming its row."""

    def __len__(self) -> int:
        rows = len(self.source) if self.source is not None else 0
        return rows if self.data.limit is None else min(rows, self.data.limit)

    def __iter__(self) -> Iterator[tuple[str, Sample]]:
        if self.source is not None:
            for row in range(len(self)):
                yield self.source.where(row), self.source[row]

    @property
    def root(self) -> Path:
        """The folder of its images."""
        return image_folder(Path(self.data.path), Path(self.data.images) if self.data.images else None)


def parts(stage: Stage) -> Sequence[tuple[Literal["data", "validation"], Data]]:
    """The files of a stage, each with its role."""
    return [*(("data", data) for data in stage.data), *(("validation", data) for data in stage.validation)]


def tables(recipe: Recipe, progress: Progress | None = None) -> Iterator[Table]:
    """Every file of every stage, read; broken rows are problems, whole rows are samples."""
    for stage in recipe.stages:
        for role, data in parts(stage):
            samples, problems = read(data, progress)
            yield Table(stage, role, data, samples, tuple(problems))


def read(data: Data, progress: Progress | None = None) -> tuple[Source | None, list[str]]:
    """The whole rows of a file, and the problems of the others."""
    problems: list[str] = []
    try:
        return open_source(
            data.path, data.images, progress=progress, report=lambda e: problems.append(str(e))
        ), problems
    except SightlineError as error:
        return None, [*problems, str(error)]
