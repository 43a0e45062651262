"""A comparison carried out: every run that is missing, on so many workers, as far as this process can take it."""

import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack

from ..errors import SightlineError
from ..train.signals import Stopped, StopSignal, listening
from .folder import Comparison, Job, jobs_of, locked
from .progress import Watch
from .work import Runner, work

TICK = 0.2
"""Seconds between looks at the clock and at signals."""


def run_comparison(
    comparison: Comparison,
    runner: Runner,
    *,
    workers: int = 1,
    shard: tuple[int, int] = (1, 1),
    device: str | None = None,
    discard: bool = False,
    watch: Watch | None = None,
    poll: float = 5.0,
) -> list[SightlineError]:
    """Do the runs that are missing.

    A run that another process holds is left to it; so are, until its end, runs that wait for the tuning it does.

    Args:
        workers: runs at once.
        shard: (2, 5) does the second of five parts of the runs.
        poll: seconds between looks at what others hold.

    Returns:
        What went wrong with runs, none of which has a row.

    Raises:
        Stopped: if SIGTERM or Ctrl-C asked for it; trainings have written checkpoints.
    """
    part, parts = shard
    jobs = [job for number, job in enumerate(jobs_of(comparison.plan)) if number % parts == part - 1]
    watch = watch or Watch(comparison, jobs, workers, quiet=True)
    desk = Desk(comparison, jobs, watch)
    running: dict[Future[None], tuple[Job, int, ExitStack]] = {}
    lonely = 0
    with listening() as stop, ThreadPoolExecutor(workers) as pool:
        try:
            while not stop:
                free = [slot for slot in range(workers) if slot not in {slot for _, slot, _ in running.values()}]
                for slot in free:
                    started = desk.take()
                    if started is None:
                        break
                    job, lock, held = started
                    watch.started(job)
                    options = {"lock": lock, "worker": slot, "device": device, "discard": discard}
                    running[pool.submit(_quietly, comparison, job, runner, options)] = (job, slot, held)
                if running:
                    for future in wait(running, timeout=TICK, return_when=FIRST_COMPLETED).done:
                        job, _, held = running.pop(future)
                        held.close()
                        desk.ended(job, future)
                    watch.tick()
                elif not desk.to_come():
                    break
                else:  # what is left is held by others, waits for them, or is theirs
                    lonely = 0 if desk.held_elsewhere() else lonely + 1
                    if lonely > 1:
                        break
                    watch.waiting()
                    _sleep(poll, stop)
            if stop:
                watch.say(f"stopping: {len(running)} runs write their checkpoints")
                runner.stop(signal.SIGTERM)
                wait(running)  # here, so that another Ctrl-C stops them at once
        except BaseException:
            runner.stop(signal.SIGKILL)
            raise
        finally:
            for future, (_, _, held) in running.items():
                future.exception()
                held.close()
            watch.close()
    unfinished = [job for job, _, _ in running.values() if not comparison.done(job)]
    if stop and (unfinished or desk.to_come()):
        done = sum(map(comparison.done, jobs))
        raise Stopped(
            f"stopped; {done} of {len(jobs)} runs are finished and nothing is lost. Go on with the same command.",
            stop.signum,
        )
    return desk.failures


class Desk:
    """Which of this process' runs are to come, which failed, and who holds the others."""

    def __init__(self, comparison: Comparison, jobs: Sequence[Job], watch: Watch) -> None:
        self.comparison, self.jobs, self.watch = comparison, jobs, watch
        self.failures: list[SightlineError] = []
        self._taken: set[Job] = set()
        self._tuned: set[str] = set()

    def to_come(self) -> list[Job]:
        """Runs without a row that were not tried."""
        return [job for job in self.jobs if job not in self._taken and not self.comparison.done(job)]

    def take(self) -> tuple[Job, int, ExitStack] | None:
        """The next run that can start, its lock, and what releases it."""
        for job in self.to_come():
            if job.kind == "claim" and not self._is_tuned(job.arm):
                continue
            held = ExitStack()
            lock = held.enter_context(locked(self.comparison, job))
            if lock is None or self.comparison.done(job):
                held.close()
                continue
            self._taken.add(job)
            return job, lock, held
        return None

    def ended(self, job: Job, future: "Future[None]") -> None:
        """Note how a run ended; only what a user can mend is a failure of the run alone."""
        error = future.exception()
        if error is not None and not isinstance(error, SightlineError | OSError):
            raise error
        if error is not None:
            failed = error if isinstance(error, SightlineError) else SightlineError(f"{job.label}: {error}.")
            self.failures.append(failed)
        else:
            self.comparison.note_settings()
        self.watch.ended(job, str(error) if error is not None else None)

    def held_elsewhere(self) -> bool:
        """Whether another process works on any run of the comparison."""
        return any(True for _ in self._held())

    def _is_tuned(self, arm: str) -> bool:
        if arm not in self._tuned and self.comparison.chosen(arm) is not None:
            self._tuned.add(arm)
        return arm in self._tuned

    def _held(self) -> Iterator[Job]:
        for job in jobs_of(self.comparison.plan):
            if not self.comparison.done(job):
                with locked(self.comparison, job) as lock:
                    if lock is None:
                        yield job


def _quietly(comparison: Comparison, job: Job, runner: Runner, options: dict) -> None:
    work(comparison, job, runner, **options)


def _sleep(seconds: float, stop: StopSignal) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not stop:
        time.sleep(min(TICK, seconds))
