"""A progress bar for whatever turns out to take longer than two seconds."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

PATIENCE = 2.0
"""Seconds of work before a bar is worth showing."""
LINE_EVERY = 30.0
"""Seconds between lines where there is no terminal for a bar."""

T = TypeVar("T")


def watched(items: Sequence[T], what: str, *, batch_size: int, progress: bool = True) -> Iterator[Sequence[T]]:
    """The items in batches, counted on stderr: once they have taken longer than `PATIENCE`, by a bar, or where
    there is no terminal by a line every `LINE_EVERY` seconds."""
    batches = (items[start : start + batch_size] for start in range(0, len(items), batch_size))
    if not progress:
        yield from batches
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(file=sys.stderr)
    bar = Progress(console=console)
    task, done = bar.add_task(what, total=len(items)), 0
    wait, said = PATIENCE, time.monotonic()
    try:
        for batch in batches:
            yield batch
            done += len(batch)
            bar.update(task, completed=done)
            if bar.live.is_started or time.monotonic() - said <= wait:
                continue
            if console.is_terminal:
                bar.start()
            else:
                console.print(f"{what}: {done:,} of {len(items):,}", highlight=False)
                wait, said = LINE_EVERY, time.monotonic()
    finally:
        if bar.live.is_started:  # stopping one that never started would print an empty line
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
