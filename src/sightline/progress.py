"""A progress bar for whatever turns out to take longer than two seconds."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

PATIENCE = 2.0
"""Seconds of work before a bar is worth showing."""

T = TypeVar("T")


def watched(items: Sequence[T], what: str, *, batch_size: int, progress: bool = True) -> Iterator[Sequence[T]]:
    """The items in batches, with a bar on stderr that counts them once they have taken longer than `PATIENCE`."""
    batches = (items[start : start + batch_size] for start in range(0, len(items), batch_size))
    if not progress:
        yield from batches
        return
    from rich.console import Console
    from rich.progress import Progress

    start = time.monotonic()
    bar = Progress(console=Console(file=sys.stderr))
    task = bar.add_task(what, total=len(items))
    try:
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))
            if not bar.live.is_started and time.monotonic() - start > PATIENCE:
                bar.start()
    finally:
        bar.stop()


@contextmanager
def reading_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A callback (done, total) that draws a bar on a terminal once two seconds have passed."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(TextColumn(title), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    task = bar.add_task(title)
    began = time.monotonic()

    def progress(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        if not bar.live.is_started and bar.console.is_terminal and time.monotonic() - began > PATIENCE:
            bar.start()

    try:
        yield progress
    finally:
        if bar.live.is_started:  # stopping one that never started would print an empty line
            bar.stop()
