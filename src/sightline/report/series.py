"""The runs of one page, and how they are told apart."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import SightlineError
from .run_folder import Evaluation, Run, read_run, with_first

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

    def beside(self, name: str) -> Evaluation | None:
        """Its evaluation to set beside the first run's of that name: that of the same name; a blind twin's may have
        `-blank` after it, as `sightline eval --blank-images` calls it."""
        names = [f"{name}-blank", name] if self.is_twin else [name]
        return next((one for wanted in names for one in self.run.evaluations if one.name == wanted), None)


def series_of(runs: Sequence[Path], twin: Path | None, first: str | None = None) -> list[Series]:
    """The runs of a page, told apart: by their names, and by their folders where two are called the same.

    Args:
        first: the evaluation of the first run that comes first; by default the first by name that all of them have, the
            images shown.

    Raises:
        SightlineError: if a folder is no run's, is there twice, there are too many, or there is no such evaluation.
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
    series += [Series(read_run(twin), "The blind twin", "twin")] if twin is not None else []
    own = series[0].run
    sighted = (one.name for one in own.evaluations if not one.is_blank)
    first = first or next((name for name in sighted if all(other.beside(name) for other in series[1:])), None)
    return [replace(series[0], run=with_first(own, first)), *series[1:]] if first else series
