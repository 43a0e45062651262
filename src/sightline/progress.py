"""A progress bar for whatever turns out to take longer than two seconds."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

PATIENCE = 2.0
"""Seconds of work before a bar is worth showing."""

Batch = TypeVar("Batch", bound=Sequence[object])


def watched(batches: Sequence[Batch], what: str, *, progress: bool = True) -> Iterator[Batch]:
    """The batches, with a bar on stderr that counts their items once they have taken longer than `PATIENCE`."""
    if not progress:
        yield from batches
        return
    from rich.console import Console
    from rich.progress import Progress

    start = time.monotonic()
    bar = Progress(console=Console(file=sys.stderr))
    task = bar.add_task(what, total=sum(map(len, batches)))
    try:
        for batch in batches:
            yield batch
            bar.advance(task, len(batch))
            if not bar.live.is_started and time.monotonic() - start > PATIENCE:
                bar.start()
    finally:
        bar.stop()
