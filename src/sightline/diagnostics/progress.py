"""A progress bar for whatever turns out to take longer than two seconds."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

PATIENCE = 2.0
"""Seconds of work before a bar is worth showing."""

Item = TypeVar("Item")


def watched(items: Sequence[Item], what: str, *, progress: bool = True) -> Iterator[Item]:
    """The items, with a bar on stderr from the moment that they take longer than `PATIENCE`."""
    if not progress:
        yield from items
        return
    start = time.monotonic()
    bar = Progress(console=Console(file=sys.stderr), transient=True)
    task = bar.add_task(what, total=len(items))
    try:
        for item in items:
            yield item
            bar.advance(task)
            if not bar.live.is_started and time.monotonic() - start > PATIENCE:
                bar.start()
    finally:
        bar.stop()
