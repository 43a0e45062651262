"""The runs of one page, and how they are told apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import SightlineError
from .run_folder import Run, read_run

MARKS = ("a", "b", "c", "d")
"""How runs are told apart: a colour and a shape each, so that the colour alone decides nothing."""

ALONE = "The model"
"""What a run is called that has none beside it."""


@dataclass(frozen=True)
class Series:
    """One run on the page."""

    run: Run
    name: str
    mark: str
    """Of `MARKS`, or `twin`."""

    @property
    def short(self) -> str:
        """For a narrow place."""
        return "model" if self.name == ALONE else "twin" if self.is_twin else self.name

    @property
    def is_twin(self) -> bool:
        return self.mark == "twin"


def series_of(runs: Sequence[Path], twin: Path | None) -> list[Series]:
    """The runs of a page, told apart: by their names, and by their folders where two are called the same.

    Raises:
        SightlineError: if a folder is no run's, is there twice, or there are too many.
    """
    if len(runs) > len(MARKS):
        raise SightlineError(
            f"a page holds at most {len(MARKS)} runs, and {len(runs)} were given. Give fewer; for arms over seeds "
            "there is `sightline compare`."
        )
    places = [path.resolve() for path in runs]
    if twice := next((run for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None):
        raise SightlineError(f"the run '{twice}' is given twice, and has nothing to be compared with. Give it once.")
    read = [read_run(path) for path in runs]
    choices = ([run.name for run in read], [run.resolve().name for run in runs], [str(run) for run in runs])
    told = next(names for names in choices if len(set(names)) == len(names))
    told = told if len(read) > 1 else [ALONE]
    series = [Series(run, name, mark) for run, name, mark in zip(read, told, MARKS, strict=False)]
    return [*series, *([Series(read_run(twin), "The blind twin", "twin")] if twin is not None else [])]
