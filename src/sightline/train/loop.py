"""The loop of one stage. What happens at a step depends on (seed, step) and the state alone."""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from torch import Tensor
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ..config import Stage
from ..data.dataset import Dropped, Fetched, Mixture, training_batches, validation_batches
from ..data.order import Order
from ..errors import SightlineError
from ..types import Batch
from .engine import Engine
from .guards import GradientGuard
from .objective import ASKED, RIGHT, add_up
from .processes import Processes
from .progress import Reporter
from .setup import schedule, set_modes
from .signals import StopSignal
from .step import autocast, means, take_step


@dataclass
class StageRun:
    """One stage under way: what its steps work on. `step` and `skipped` are all that changes."""

    stage: Stage
    engine: Engine
    optimizer: torch.optim.Optimizer
    rows: Mixture
    validation: Mapping[str, Mixture]
    """By the name of the set."""
    order: Order
    guard: GradientGuard
    reporter: Reporter
    processes: Processes = field(default_factory=Processes)
    stop: StopSignal = field(default_factory=StopSignal)
    step: int = 0
    """Optimizer steps done."""
    skipped: int = 0
    """How many of them were left out because they were not finite."""
    samples: int = 0
    """Rows that it has seen."""

    @property
    def total(self) -> int:
        return num_steps(self.stage, self.order)

    def stopping(self) -> bool:
        """Whether any process was asked to stop."""
        return self.processes.any(bool(self.stop))


def num_steps(stage: Stage, order: Order) -> int:
    """Optimizer steps of a stage."""
    return stage.steps if stage.steps is not None else max(1, round(stage.epochs * order.steps_per_epoch))


def train_stage(run: StageRun) -> Iterator[int]:
    """Train a stage from `run.step` to its end. Yields after each step, before the validation that may be due then.

    The first validation is before the first step: what the stage began with stands beside what it does.

    What a step does follows from the weights, the optimizer's state and its number, so a run that is given those goes
    on as if it had never stopped.

    Raises:
        SightlineError: for a row that cannot be laid out and that no policy lets go, or a loss that is not finite.
    """
    stage, order, total = run.stage, run.order, run.total
    rate = schedule(stage, total)
    validate_every = stage.validate_every or tenth(total)

    def validate_if_due() -> None:
        if run.step % validate_every and run.step != total:
            return
        for name, rows in run.validation.items():
            found = validate(run.engine, rows, stage, stopping=run.stopping)
            if found is None:
                return
            losses, dropped = found
            if not run.step:  # the same rows each time, listed the first
                run.reporter.dropped(run.step, dropped, split="validation")
            run.reporter.validation(run.step, losses, name)

    run.engine.objective.progress = run.step / total
    validate_if_due()
    share = (run.processes.rank, run.processes.world)
    loader = training_batches(run.rows, order, num_steps=total, start=run.step, workers=stage.workers, share=share)
    fetched = _alive(loader)
    spare: Batch | None = None
    while run.step < total and not run.stopping():
        began = time.monotonic()
        got = islice(fetched, order.rounds_of(run.step, run.processes.world))
        batches, dropped, spare = in_step(got, order.counted(run.step, *share), spare, run.processes)
        if run.processes.any(bool(dropped)):
            run.reporter.dropped(run.step + 1, [row for part in run.processes.gather(dropped) for row in part])
        for group in run.optimizer.param_groups:
            group["lr"] = group["peak"] * rate(run.step)
        torch.manual_seed(step_seed(run.rows.seed, run.step, run.processes.rank))
        set_modes(run.engine.objective.model, stage)
        if batches:
            result = take_step(run.engine, batches, run.optimizer, stage, step=run.step + 1)
            run.guard.look(run.step + 1, total, run.processes, run.reporter.say)
            run.skipped += result.skipped
            run.samples += result.samples
            rates = {f"lr/{group['part']}": group["lr"] for group in run.optimizer.param_groups}
            epoch, seconds = (run.step + 1) / order.steps_per_epoch, time.monotonic() - began
            run.reporter.step(run.step + 1, epoch=epoch, result=result, rates=rates, seconds=seconds)
        run.step += 1
        run.engine.objective.progress = run.step / total
        if run.step == total and not run.samples:
            raise SightlineError(f"no row of stage '{stage.name}' can be used. Run: sightline doctor RECIPE")
        yield run.step
        validate_if_due()


@torch.no_grad()
def validate(
    engine: Engine, rows: Mixture, stage: Stage, *, stopping: Callable[[], bool] = lambda: False
) -> tuple[dict[str, float], list[Dropped]] | None:
    """The same losses over all validation rows, with the model in evaluation mode.

    Returns:
        The losses, with `accuracy`, the share of rows every token of whose answers is the likeliest; and the rows that
        the policies left out; None if it was to stop meanwhile.

    Raises:
        SightlineError: if the policies leave no row.
    """
    objective, processes = engine.objective, engine.processes
    objective.model.eval()
    sums: list[Mapping[str, Tensor]] = []
    counts: list[Mapping[str, Tensor]] = []
    dropped: list[Dropped] = []
    spare: Batch | None = None
    share = (processes.rank, processes.world)
    loader = validation_batches(rows, batch_size=stage.batch_size, workers=stage.workers, share=share)
    for number, fetched in enumerate(_alive(loader)):
        if stopping():
            return None
        counted = number * processes.world + processes.rank < math.ceil(len(rows) / stage.batch_size)
        batches, left_out, spare = in_step([fetched], int(counted), spare, processes)
        dropped += left_out
        for batch in batches:
            with autocast(stage, processes.device):
                found = objective(batch, grade=True)
            counts.append(objective.counts(batch) | {RIGHT: found.pop(ASKED)})
            sums.append(found)
    if not sums:
        raise SightlineError(f"no validation row of stage '{stage.name}' can be used. Run: sightline doctor RECIPE")
    summed, counted_up = processes.add(add_up(sums)), processes.add(add_up(counts))
    right, asked = summed.pop(RIGHT), counted_up.pop(RIGHT)
    losses = means(objective, summed, counted_up) | {"accuracy": float(right / asked.clamp(min=1))}
    return losses, [row for part in processes.gather(dropped) for row in part]


def in_step(
    fetched: Iterable[Fetched | SightlineError], counted: int, spare: Batch | None, processes: Processes
) -> tuple[list[Batch], list[Dropped], Batch | None]:
    """The micro-batches of this process, on its device, and what the policies left out of them.

    Every process must run the model as often as the others. One whose share is smaller, or whose rows were all left
    out, runs a batch it has seen once more, and that one does not count.

    Args:
        counted: how many of `fetched`, from the first, are this process' share; the others only keep step.
        spare: the last batch that this process saw.
    """
    batches: list[Batch] = []
    dropped: list[Dropped] = []
    rounds = 0
    for number, item in enumerate(fetched):
        if isinstance(item, SightlineError):
            raise item
        rounds += 1
        batch = None if item.batch is None else item.batch.to(processes.device)
        if number < counted:
            dropped += item.dropped
            batches += [] if batch is None else [batch]
        spare = batch if batch is not None else spare
    if not processes.several or not processes.any(bool(batches)):
        return batches, dropped, spare
    if len(batches) < rounds and spare is None:
        raise SightlineError(
            "every row of a process' first micro-batch was left out by a policy, so it has nothing to keep step with. "
            "Use a larger batch_size, or mend the rows: sightline doctor RECIPE"
        )
    idle = [replace(spare, counted=False)] * (rounds - len(batches)) if spare is not None else []
    return batches + idle, dropped, spare


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The seed of what is random in a step (dropout), so that resuming needs no generator state."""
    return (seed * 1_000_003 + step + 1 + rank * 7_368_787) % 2**63


def tenth(total: int) -> int:
    """How often something happens that by default happens ten times in a stage."""
    return max(1, math.ceil(total / 10))


def _alive(loader: Iterable[Fetched | SightlineError]) -> Iterator[Fetched | SightlineError]:
    """What workers prepare, with the death of one said in words, and only where the next batch is awaited.

    torch has the death of a worker raise wherever the program happens to be, which may be half way through an update of
    the weights. The loader notices by itself when it waits, so that handler is put aside.

    Raises:
        SightlineError: if a worker died, or cannot pass on what it made.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    ours = threading.current_thread() is threading.main_thread() and handler is not None
    fetched: Iterator[Fetched | SightlineError] | None = None
    try:
        fetched = iter(loader)
        if ours:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        yield from fetched
    except (RuntimeError, ConnectionError, EOFError) as error:
        died = "exited unexpectedly" in str(error) or "killed by signal" in str(error)
        if not died and not isinstance(error, ConnectionError | EOFError):
            raise
        raise SightlineError(
            f"a process that prepares batches died: {str(error).splitlines()[0]}. Most often the machine ran out of "
            "memory. Use fewer `workers`, or 0."
        ) from None
    finally:
        if ours:
            # torch's handler raises for as long as a worker that died is on its list, whichever child ends next
            if isinstance(fetched, _MultiProcessingDataLoaderIter):
                fetched._shutdown_workers()
            signal.signal(signal.SIGCHLD, handler)
