"""Where metrics go beside `metrics.jsonl`: TensorBoard, wandb, trackio, behind one small protocol.

Values are named `<stage>/<name>`. Their step counts optimizer steps through all stages, so it only grows; what a stage
begins at, and the id of a run elsewhere, are kept in `trackers.json` of the run folder. A run that is resumed goes on
with both: its curves continue, and no second run appears.
"""

import importlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from uuid import uuid4

from ..errors import SightlineError
from ..files import write_json

PROJECT = "sightline"
"""What wandb and trackio file the runs under; WANDB_PROJECT and TRACKIO_PROJECT name another."""
STATE = "trackers.json"


@runtime_checkable
class Tracker(Protocol):
    """One place that keeps metrics."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, counted from 1 within its stage."""
        ...

    def close(self) -> None:
        """Write what is left. Nothing is logged after it."""
        ...


def check_trackers(names: Sequence[str]) -> None:
    """See that what a recipe names is installed, before anything is done.

    Raises:
        SightlineError: naming what is not, with the command that installs it.
    """
    absent = [name for name in names if find_spec(name) is None]
    if absent:
        raise SightlineError(
            f"the recipe sends metrics to {', '.join(absent)}, which is not installed, so they would be lost. Run: "
            f"pip install {' '.join(absent)}  (or pip install 'sightline[track]'), or take it out of trackers."
        )


def open_trackers(
    names: Sequence[str],
    folder: Path,
    run_name: str,
    config: Mapping[str, Any],
    *,
    resume: tuple[str, int] | None = None,
) -> list[Tracker]:
    """Open the trackers of a run, in its one process that writes.

    Args:
        folder: the run folder.
        config: the resolved recipe, for people who look at the run.
        resume: the stage and the step that training goes on after; None for a new run.

    Raises:
        SightlineError: if one is not installed, or does not start.
    """
    check_trackers(names)
    if not names:
        return []
    steps = Steps(folder, resume)
    opened: list[Tracker] = []
    for name in dict.fromkeys(names):
        try:
            opened.append(TRACKERS[name](folder, run_name, config, steps))
        except Exception as error:  # each has errors of its own: no login, no network, a full disk
            for tracker in opened:
                tracker.close()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise SightlineError(f"{name} does not start: {reason}. {FIXES[name]}") from None
    return opened


class Steps:
    """The count of steps through all stages, the same before and after a resume."""

    def __init__(self, folder: Path, resume: tuple[str, int] | None) -> None:
        self._path = folder / STATE
        self.resumed = resume is not None
        self._starts: dict[str, int] = {}
        self._ids: dict[str, str] = {}
        self._last = 0
        if resume is not None:
            stage, step = resume
            if self._path.is_file():
                state = json.loads(self._path.read_text(encoding="utf-8"))
                start = state["starts"].get(stage, 0)
                self._starts = {name: first for name, first in state["starts"].items() if first <= start}
                self._ids = state["ids"]
            self._starts.setdefault(stage, 0)
            self._last = self._starts[stage] + step

    @property
    def last(self) -> int:
        """The last step that was logged, or that training goes on after."""
        return self._last

    def of(self, stage: str, step: int) -> int:
        """A stage's step counted through all stages. A stage begins where what came before it ended."""
        if stage not in self._starts:
            self._starts[stage] = self._last
            self._write()
        self._last = max(self._last, self._starts[stage] + step)
        return self._starts[stage] + step

    def run_id(self, tracker: str) -> str:
        """The id of this run at a tracker: a new one for a new run, the same for one that is resumed."""
        if tracker not in self._ids:
            self._ids[tracker] = uuid4().hex[:12]
            self._write()
        return self._ids[tracker]

    def _write(self) -> None:
        write_json(self._path, {"starts": self._starts, "ids": self._ids})


class TensorBoard:
    """Event files in `tensorboard/` of the run folder. What was written of steps that are done again is hidden."""

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any], steps: Steps) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        purge = steps.last + 1 if steps.resumed else None
        self._steps = steps
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        if not steps.resumed:
            text = json.dumps(config, indent=2, ensure_ascii=False, default=str)
            self._writer.add_text("recipe", f"{run_name}\n\n" + "\n".join(f"    {line}" for line in text.splitlines()))

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One scalar for each value."""
        at = self._steps.of(stage, step)
        for name, value in values.items():
            self._writer.add_scalar(f"{stage}/{name}", value, at)

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, with its files in the run folder. Steps that it has and that are done again are not
    sent."""

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any], steps: Steps) -> None:
        wandb = importlib.import_module("wandb")
        self._steps = steps
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run_name,
            id=steps.run_id("wandb"),
            dir=str(folder),
            config=dict(config),
            resume="allow" if steps.resumed else None,
            settings=wandb.Settings(console="off"),
        )
        self._known = self._run.step if steps.resumed else 0

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One entry; several of one step are joined."""
        at = self._steps.of(stage, step)
        if at >= self._known:
            self._run.log({f"{stage}/{name}": value for name, value in values.items()}, step=at)

    def close(self) -> None:
        self._run.finish()


class Trackio:
    """A run of trackio, on this machine unless TRACKIO_SPACE_ID says where, told apart by its name. Steps that are done
    again stand there twice."""

    def __init__(self, folder: Path, run_name: str, config: Mapping[str, Any], steps: Steps) -> None:
        trackio = importlib.import_module("trackio")
        self._steps = steps
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{run_name}-{steps.run_id('trackio')[:6]}",
            config=dict(config),
            resume="allow" if steps.resumed else "never",
            embed=False,
        )

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """One entry."""
        self._run.log({f"{stage}/{name}": value for name, value in values.items()}, step=self._steps.of(stage, step))

    def close(self) -> None:
        self._run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}
FIXES = {
    "tensorboard": "Make room on the disk, or take it out of trackers.",
    "wandb": "Run `wandb login`, set WANDB_MODE=offline, or take it out of trackers.",
    "trackio": "Make room on the disk, or take it out of trackers.",
}
