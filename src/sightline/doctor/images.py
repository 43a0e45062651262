"""Every image decoded once, in worker processes that nothing but their own decoder can stop."""

import os
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from typing import Any

from .look import Looked, Trouble, look_at

FEW = 256
"""Images that one process decodes sooner than others would have started."""
CHUNK = 32

Decoded = Generator[tuple[int, Looked], None, None]


def decode_all(sources: Sequence[Any], *, workers: int, tick: Callable[[int], None]) -> Decoded:
    """(number, what became of it) for every source, in any order.

    Args:
        workers: processes; 0 decodes here.
        tick: called with how many more are done.
    """
    if workers == 0 or len(sources) <= FEW:
        for number, source in enumerate(sources):
            yield number, look_at(source)
            tick(1)
        return
    left = [range(first, min(first + CHUNK, len(sources))) for first in range(0, len(sources), CHUNK)]
    while left:
        running: dict[Future[list[Looked]], range] = {}
        with _pool(workers) as pool:
            try:
                while left or running:
                    while left and len(running) < 4 * workers:
                        running[pool.submit(_look_at_many, [sources[n] for n in left[-1]])] = left[-1]
                        left.pop()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        results = future.result()
                        numbers = running.pop(future)
                        yield from zip(numbers, results, strict=True)
                        tick(len(numbers))
            except BrokenProcessPool:
                pass
        for numbers in running.values():  # a decoder died with its process, in one of these
            for number, looked in _look_apart(sources, numbers):
                yield number, looked
                tick(1)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of fresh processes that are stopped, not waited for, when the block is left by an error or by Ctrl-C."""
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        yield pool
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes what it thinks straight to the terminal


def _look_at_many(sources: list[Any]) -> list[Looked]:
    return [look_at(source) for source in sources]


def _look_apart(sources: Sequence[Any], numbers: range) -> Decoded:
    """The same in a process of its own; where it dies, each half in its own, down to the image that ends it."""
    results: list[Looked] | None = None
    with _pool(1) as pool, suppress(BrokenProcessPool):
        results = pool.submit(_look_at_many, [sources[n] for n in numbers]).result()
    if results is not None:
        yield from zip(numbers, results, strict=True)
    elif len(numbers) == 1:
        message = "ends the process that decodes it."
        crash = Trouble("error", "images/crash", message, "Replace the file or remove its row.")
        yield numbers[0], Looked(None, (crash,))
    else:
        middle = len(numbers) // 2
        yield from _look_apart(sources, numbers[:middle])
        yield from _look_apart(sources, numbers[middle:])
