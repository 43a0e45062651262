"""What the two builds share: one thread, one seed, and a look at how far they are."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Progress = Callable[[int, int, float], None]
"""Called after each step with the steps done, the steps in all and the loss."""


@contextmanager
def one_thread(seed: int) -> Iterator[Callable[[], float]]:
    """Seed torch and keep it to one thread; gives a clock that says how many seconds have passed."""
    threads, start = torch.get_num_threads(), time.monotonic()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield lambda: time.monotonic() - start
        finally:
            torch.set_num_threads(threads)


def descend(
    model: torch.nn.Module,
    loss: torch.Tensor,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    """One step down a loss, its gradient clipped to a norm of 1."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()


def run(losses: Iterator[float], steps: int, progress: Progress | None) -> None:
    """Take every step of a training that yields its losses."""
    for done, loss in enumerate(losses, start=1):
        if progress:
            progress(done, steps, loss)
