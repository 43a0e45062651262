"""The order of data: a pure function of (seed, epoch, step), so that resuming is a matter of starting there.

Nothing here keeps state. The permutation of an epoch and the generator of a sample come from numpy's counter-based
Philox, keyed by what they depend on.
"""

from collections.abc import Iterator

import numpy as np


def generator(seed: int, *keys: int) -> np.random.Generator:
    """A generator that depends on `seed` and `keys` alone, whatever was drawn elsewhere."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *keys])))


def permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """The order of `num_rows` rows in `epoch`."""
    return generator(seed, 0, epoch).permutation(num_rows)


def steps_per_epoch(num_rows: int, rows_per_step: int) -> int:
    """Optimizer steps in one epoch; the last one may be smaller, no row is dropped."""
    return -(-num_rows // rows_per_step)


def micro_batches(
    seed: int, num_rows: int, batch_size: int, accumulate: int, num_steps: int, start: int = 0
) -> Iterator[list[tuple[int, int]]]:
    """Micro-batches of (epoch, row) for optimizer steps `start` to `num_steps`.

    Each step covers `batch_size * accumulate` rows of its epoch's permutation, cut into micro-batches of `batch_size`;
    the last step of an epoch has what is left.
    """
    rows_per_step = batch_size * accumulate
    per_epoch = steps_per_epoch(num_rows, rows_per_step)
    order, current = np.empty(0, dtype=np.int64), -1
    for step in range(start, num_steps):
        epoch, within = divmod(step, per_epoch)
        if epoch != current:
            order, current = permutation(seed, epoch, num_rows), epoch
        rows = order[within * rows_per_step : (within + 1) * rows_per_step]
        for begin in range(0, len(rows), batch_size):
            yield [(epoch, int(row)) for row in rows[begin : begin + batch_size]]
