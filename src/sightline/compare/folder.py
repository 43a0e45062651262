"""The folder of a comparison: its plan, one small file for each finished run, and who works on which.

plan.yaml        the plan, as it was when the first run began
plan.json        its hash, the time, and hashes of the recipes and question files that it names
tuning/, rows/   one line of JSON for each finished run; fit to be committed
settings/        the setting that tuning chose for each arm, and why
results.jsonl    all rows
results.md       the tables
runs/, logs/, locks/     not fit to be committed, and left out by .gitignore
"""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import Any, Literal
from uuid import uuid4

from .. import __version__
from ..errors import SightlineError
from ..files import write_json, write_text
from .checks import Material
from .plan import Plan, Setting
from .read import load_plan, plan_hash

BEGINNING = ("plan.yaml", ".gitignore", ".plan.yaml.*", "..gitignore.*", ".plan.json.*", "..plan.json.*")
"""What is there while a comparison begins, or was killed as it began."""
MATERIAL = tuple(field.name for field in fields(Material))
"""What `plan.json` has the hashes of."""
Row = dict[str, Any]
"""What a finished run leaves; see `work.finish`."""


@dataclass(frozen=True)
class Job:
    """One run: an arm, a seed, and which of its settings (None: the chosen one)."""

    kind: Literal["tuning", "claim"]
    arm: str
    seed: int
    setting: int | None = None

    @property
    def key(self) -> str:
        """Its name in the folder."""
        tried = "" if self.setting is None else f".setting{self.setting}"
        return f"{self.arm}{tried}.seed{self.seed}"

    @property
    def label(self) -> str:
        """Its name for people."""
        tried = "" if self.setting is None else f", setting {self.setting}"
        return f"{self.kind}: {self.arm}{tried}, seed {self.seed}"


def jobs_of(plan: Plan) -> list[Job]:
    """Every run of a plan: tuning first, then the claim, all arms of a seed together."""
    jobs = [
        Job("tuning", arm.name, seed, number)
        for arm in plan.arms
        for number in range(len(plan.settings_of(arm)))
        for seed in (plan.tuning.seeds if plan.tuning else [])
    ]
    return jobs + [Job("claim", arm.name, seed) for seed in plan.seeds for arm in plan.arms]


@dataclass(frozen=True)
class Comparison:
    """A plan and the folder where it is carried out."""

    plan: Plan
    path: Path
    hash: str

    def row_path(self, job: Job) -> Path:
        """Where a run's row is, once it is finished."""
        return self.path / ("tuning" if job.kind == "tuning" else "rows") / f"{job.key}.json"

    def run_path(self, job: Job) -> Path:
        """The run folder of the trainer."""
        return self.path / "runs" / job.kind / job.key

    def done(self, job: Job) -> bool:
        """Whether a run is finished."""
        return self.row_path(job).is_file()

    def row(self, job: Job) -> Row:
        """The row of a finished run.

        Raises:
            SightlineError: if it cannot be read, or is another plan's.
        """
        path = self.row_path(job)
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
            ours = (row["plan"], row["kind"], row["arm"], row["seed"]) == (self.hash, job.kind, job.arm, job.seed)
            ours = ours and job.setting in (None, row["setting"])
            if not {"scores", "compute", "versions", "machine"} <= row.keys():
                raise KeyError
        except (OSError, ValueError, KeyError, TypeError):
            raise SightlineError(
                f"{path} is not a row that can be read, so no result can be computed. Restore it, or remove it to have "
                f"the run done again: rm '{path}'"
            ) from None
        if not ours:
            raise SightlineError(
                f"{path} is a row of another plan or run, so it cannot be counted here. Remove it to have this run "
                f"done: rm '{path}'"
            )
        return row

    def rows(self) -> dict[Job, Row]:
        """The rows there are, in the order of the plan."""
        return {job: self.row(job) for job in jobs_of(self.plan) if self.done(job)}

    def tuned(self, arm: str) -> list[float] | None:
        """The mean score of each of an arm's settings over the tuning seeds; None while a run is missing."""
        tuning = self.plan.tuning
        assert tuning is not None, "a plan without tuning has no settings to tell apart"
        jobs = [job for job in jobs_of(self.plan) if job.kind == "tuning" and job.arm == arm]
        if not all(self.done(job) for job in jobs):
            return None
        scores: dict[int | None, list[float]] = {}
        for job in jobs:
            file = self.row(job)["scores"][Path(tuning.questions).name]
            scores.setdefault(job.setting, []).append(score_of(file, self.plan.primary.ability)["value"])
        return [fmean(values) for values in scores.values()]

    def chosen(self, arm: str) -> int | None:
        """The number of an arm's best setting, the first of equals; 0 without tuning, None while it is not known."""
        if self.plan.tuning is None:
            return 0
        means = self.tuned(arm)
        return None if means is None else means.index(max(means))

    def setting(self, job: Job) -> Setting:
        """What a run changes of its arm's recipe; for one of the claim, what tuning chose."""
        number = job.setting if job.setting is not None else self.chosen(job.arm)
        assert number is not None, "a run of the claim waits for its arm's tuning"
        return self.plan.settings_of(self.plan.arm(job.arm))[number]

    def note_settings(self) -> None:
        """Write what tuning chose for each arm whose tuning is complete.

        Raises:
            SightlineError: if a run of the claim was made with another setting.
        """
        for arm in self.plan.arms:
            if self.plan.tuning is None or (means := self.tuned(arm.name)) is None:
                continue
            number = means.index(max(means))
            tried = [
                {"overrides": s, "mean": round(m, 6)} for s, m in zip(self.plan.settings_of(arm), means, strict=True)
            ]
            write_json(self.path / "settings" / f"{arm.name}.json", {"arm": arm.name, "chosen": number, "tried": tried})
            for job in jobs_of(self.plan):
                if job.kind == "claim" and job.arm == arm.name and self.done(job):
                    used = self.row(job)["setting"]
                    if used != number:
                        raise SightlineError(
                            f"{self.row_path(job)} was made with setting {used}, and tuning now chooses {number}: rows "
                            f"in {self.path / 'tuning'} were changed. Restore them, or start a comparison anew."
                        )


def score_of(file: Row, ability: str | None) -> Row:
    """The score of a question file in a row, overall or of an ability: value, low, high, n."""
    return file["overall"] if ability is None else file["by_ability"][ability]


def open_comparison(plan: Plan, text: str, material: Material, out: Path) -> Comparison:
    """The comparison of a plan in the folder `out`, begun now or earlier.

    Args:
        text: the plan's file, copied as it is.

    Raises:
        SightlineError: if the folder holds something else, or if anything of the plan changed since it began.
    """
    place = out / "plan.json"
    if (
        out.exists()
        and not (out.is_dir() and all(map(_beginning, out.iterdir())))
        and not place.is_file()  # looked at last: another process may have begun it meanwhile
    ):
        raise SightlineError(
            f"'{out}' is there and is no comparison that was begun, so nothing was run. Name another folder with --out."
        )
    facts = {"plan": plan_hash(plan), **asdict(material)}
    if not place.is_file():
        write_text(out / "plan.yaml", text)
        write_text(out / ".gitignore", "runs/\nlogs/\nlocks/\n")
        _write_once(place, {**facts, "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "sightline": __version__})
    comparison, begun = begun_comparison(plan, out)
    for what, now in asdict(material).items():
        changed = [name for name in now if begun[what].get(name) != now[name]]
        if changed:
            raise SightlineError(
                f"{what} that the plan names are others than on {begun['began']}, when '{out}' was begun: "
                f"{', '.join(changed)}. Runs before and after could not be compared, so nothing was run. {anew(out)}"
            )
    return comparison


def begun_comparison(plan: Plan, out: Path) -> tuple[Comparison, dict[str, Any]]:
    """The comparison of a plan in a folder where it was begun, whatever has become of its recipes and data since; and
    what they were.

    Raises:
        SightlineError: if it was not begun there, or with another plan.
    """
    try:
        begun = json.loads((out / "plan.json").read_text(encoding="utf-8"))
        copy, digest = plan_hash(load_plan(out / "plan.yaml")), plan_hash(plan)
        then = {key: begun[key] for key in ("plan", "began", *MATERIAL)}
        if not all(isinstance(then[key], dict) for key in MATERIAL):
            raise TypeError(f"its {', '.join(MATERIAL)} should be named")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SightlineError(f"cannot tell with which plan '{out}' was begun: {error}. Restore it.") from None
    if not digest == then["plan"] == copy:
        raise SightlineError(
            f"the plan is another one than the one that was begun in '{out}' on {then['began']}. A plan that changes "
            f"once there are results proves nothing, so nothing was run. {anew(out)}"
        )
    return Comparison(plan, out, digest), then


def anew(out: Path) -> str:
    """What to do where something changed."""
    how = "give the plan another `name`, or another folder with --out"
    return f"Restore it, or start anew: {how}. See {out}/plan.yaml."


@contextmanager
def locked(comparison: Comparison, job: Job) -> Iterator[int | None]:
    """Hold a run, so that no other process starts it: the lock's file descriptor, or None if another one has it.

    The lock goes with the last process that has the descriptor, however it ends: a training that outlives the
    comparison that started it keeps its run.
    """
    path = comparison.path / "locks" / f"{job.kind}.{job.key}"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        yield descriptor
    finally:
        os.close(descriptor)


def _beginning(path: Path) -> bool:
    return any(fnmatchcase(path.name, pattern) for pattern in BEGINNING)


def _write_once(path: Path, value: Any) -> None:
    """Write JSON whole, unless another process was first; of several machines two may have one process id."""
    work = path.with_name(f".{path.name}.{uuid4().hex}")
    write_json(work, value)
    try:
        os.link(work, path)
    except FileExistsError:
        pass
    finally:
        work.unlink(missing_ok=True)
