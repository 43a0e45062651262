"""The order of data: a pure function of (seed, epoch, step), so that resuming is a matter of starting there.

Nothing here keeps state. The permutation of an epoch and the generator of a sample come from numpy's counter-based
Philox, keyed by what they depend on.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

CHUNK = 50
"""Steps among whose rows those of like length are put together."""


def generator(seed: int, *keys: int) -> np.random.Generator:
    """A generator that depends on `seed` and `keys` alone, whatever was drawn elsewhere."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *keys])))


def permutation(seed: int, epoch: int, num_rows: int) -> np.ndarray:
    """The order of `num_rows` rows in `epoch`."""
    return generator(seed, 0, epoch).permutation(num_rows)


@dataclass(frozen=True)
class Order:
    """Which rows are in which micro-batch of which step, for a mixture of sources.

    Rows are numbered through all sources. A source of weight 2.5 gives each of its rows twice an epoch, and a random
    half of them a third time, another half each epoch.
    """

    seed: int
    sizes: tuple[int, ...]
    """Rows of each source."""
    batch_size: int
    accumulate: int = 1
    weights: tuple[float, ...] | None = None
    """How often the rows of each source are seen in an epoch; once by default."""
    lengths: Int[np.ndarray, " rows"] | None = None
    """Rough length of each row. Where given, a micro-batch has rows of like length."""
    sequential: bool = False
    """Keep the order of the file, for a stream that cannot be read at random."""

    @property
    def shares(self) -> tuple[int, ...]:
        """Rows that each source gives to an epoch, at least one."""
        weights = self.weights or (1.0,) * len(self.sizes)
        return tuple(max(1, round(weight * size)) for weight, size in zip(weights, self.sizes, strict=True))

    @property
    def rows_per_step(self) -> int:
        return self.batch_size * self.accumulate

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last one may be smaller, no row is dropped."""
        return math.ceil(sum(self.shares) / self.rows_per_step)

    def micro_batches_of(self, step: int) -> int:
        """Micro-batches of a step."""
        left = sum(self.shares) - (step % self.steps_per_epoch) * self.rows_per_step
        return min(self.accumulate, math.ceil(left / self.batch_size))

    def rounds_of(self, step: int, world: int) -> int:
        """Micro-batches that each of `world` processes runs in a step: the last ones may have to run one that does not
        count."""
        return math.ceil(self.micro_batches_of(step) / world)

    def counted(self, step: int, rank: int, world: int) -> int:
        """How many of the micro-batches that a process runs in a step are its own."""
        return len(range(rank, self.micro_batches_of(step), world))

    def epoch(self, epoch: int) -> Int[np.ndarray, " rows_of_epoch"]:
        """The rows of an epoch, in order."""
        firsts = np.cumsum((0, *self.sizes))
        chosen = [self._of_source(source, epoch) + firsts[source] for source in range(len(self.sizes))]
        rows = (np.concatenate(chosen) if len(chosen) > 1 else chosen[0]).astype(np.int32)
        if self.sequential:
            return rows
        rows = rows[permutation(self.seed, epoch, len(rows))]
        return rows if self.lengths is None else self._grouped(rows, epoch)

    def micro_batches(
        self, num_steps: int, start: int = 0, *, rank: int = 0, world: int = 1
    ) -> Iterator[list[tuple[int, int]]]:
        """Micro-batches of (epoch, row) for optimizer steps `start` to `num_steps`, for process `rank` of `world`.

        Each step covers `rows_per_step` rows of its epoch, cut into micro-batches; the last step has what is left. The
        processes take the micro-batches of a step in turn, and begin again where there are not enough.
        """
        order, current = np.empty(0, dtype=np.int64), -1
        for step in range(start, num_steps):
            epoch, within = divmod(step, self.steps_per_epoch)
            if epoch != current:
                order, current = self.epoch(epoch), epoch
            rows = order[within * self.rows_per_step : (within + 1) * self.rows_per_step]
            for turn in range(self.rounds_of(step, world)):
                begin = (turn * world + rank) % self.micro_batches_of(step) * self.batch_size
                yield [(epoch, int(row)) for row in rows[begin : begin + self.batch_size]]

    def _of_source(self, source: int, epoch: int) -> Int[np.ndarray, " share"]:
        size, share = self.sizes[source], self.shares[source]
        whole, rest = divmod(share, size)
        once = np.arange(size)
        if not rest:
            return np.tile(once, whole) if whole != 1 else once
        part = np.sort(generator(self.seed, 2, epoch, source).permutation(size)[:rest])
        return np.concatenate([*[once] * whole, part])

    def _grouped(self, rows: Int[np.ndarray, " rows_of_epoch"], epoch: int) -> Int[np.ndarray, " rows_of_epoch"]:
        """`rows` with like lengths together: sorted within chunks, then the chunk's micro-batches shuffled."""
        assert self.lengths is not None
        rng = generator(self.seed, 3, epoch)
        grouped = []
        for begin in range(0, len(rows), self.rows_per_step * CHUNK):
            chunk = rows[begin : begin + self.rows_per_step * CHUNK]
            chunk = chunk[np.argsort(-self.lengths[chunk], kind="stable")]
            whole = len(chunk) // self.batch_size
            order = rng.permutation(whole)
            grouped += [chunk[: whole * self.batch_size].reshape(whole, self.batch_size)[order].flatten()]
            grouped += [chunk[whole * self.batch_size :]]
        return np.concatenate(grouped)
