"""What a comparison says while it runs: which runs are done, running, to come, and about how long is left."""

import json
import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from .folder import Comparison, Job

EVERY = 1.0
"""Seconds between looks at what the runs have written."""


class Watch:
    """Lines for each run that starts and ends, and a bar on a terminal."""

    def __init__(
        self,
        comparison: Comparison,
        jobs: Sequence[Job],
        workers: int,
        *,
        quiet: bool = False,
        console: Console | None = None,
    ) -> None:
        self.comparison, self.jobs, self.workers = comparison, jobs, workers
        self.console = console or Console(stderr=True, quiet=quiet)
        self._running: dict[Job, float] = {}
        self._looked = 0.0
        self._waited = False
        self._bar: Progress | None = None
        if self.console.is_terminal and not quiet:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
            bar = self._bar = Progress(*columns, console=self.console)
            self._task = bar.add_task("", total=len(jobs), completed=self._done())
            bar.start()

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def started(self, job: Job) -> None:
        """A run begins, or goes on."""
        on = " (goes on)" if (self.comparison.run_path(job) / "checkpoints").is_dir() else ""
        self._running[job] = time.monotonic()
        self.say(f"{job.label}: running{on}")

    def ended(self, job: Job, error: str | None) -> None:
        """A run has its row, or went wrong."""
        took = time.monotonic() - self._running.pop(job)
        if error is None:
            self.say(f"{job.label}: done in {duration(took)}; {self.summary()}")
        else:
            self.say(f"FAILED: {error}")
        self.tick(now=True)

    def waiting(self) -> None:
        """Nothing can start for now."""
        if not self._waited:
            self.say(f"waiting for runs that another process holds; {self.summary()}")
        self._waited = True

    def tick(self, *, now: bool = False) -> None:
        """Move the bar, now and then."""
        if self._bar is None or (not now and time.monotonic() - self._looked < EVERY):
            return
        self._looked = time.monotonic()
        at = "; ".join(f"{job.label} {self._at(job)}".strip() for job in self._running)
        self._bar.update(self._task, completed=self._done(), description=f"{self.summary()}  {at}")

    def summary(self) -> str:
        """How many runs are done, running, to come, and about how long is left."""
        done, running = self._done(), len(self._running)
        text = f"{done} of {len(self.jobs)} done, {running} running, {max(0, len(self.jobs) - done - running)} to come"
        left = self.seconds_left()
        return f"{text}, about {duration(left)} left" if left is not None and done < len(self.jobs) else text

    def seconds_left(self) -> float | None:
        """By the mean time of the runs that are done, whoever did them; None before the first."""
        took = []
        for job in self.jobs:
            if self.comparison.done(job):
                compute = self.comparison.row(job)["compute"]
                took.append(compute["training_seconds"] + compute["evaluation_seconds"])
        if not took:
            return None
        mean, now = sum(took) / len(took), time.monotonic()
        begun = sum(min(mean, now - began) for began in self._running.values())
        return max(0.0, mean * (len(self.jobs) - len(took)) - begun) / self.workers

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def _done(self) -> int:
        return sum(map(self.comparison.done, self.jobs))

    def _at(self, job: Job) -> str:
        """Where a training stands, by the last line of its metrics."""
        try:
            with (self.comparison.run_path(job) / "metrics.jsonl").open("rb") as file:
                file.seek(max(0, file.seek(0, 2) - 4000))
                last = json.loads(file.read().splitlines()[-1])
            return f"({last['stage']} step {last['step']})"
        except (OSError, ValueError, LookupError, TypeError):
            return ""


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
