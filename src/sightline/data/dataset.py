"""Rows on their way to the model: each one is laid out when it is asked for, by (epoch, row)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import ImageError, LongRowError, SightlineError
from ..methods.base import Reader
from ..types import Batch, Example, Sample
from .collate import collate
from .order import Order, generator
from .processor import Processor
from .sources import Source
from .templates import IMAGE

Columns = Mapping[str, Mapping[str, Tensor]]
"""{column: {sample id: value}}: values held in memory."""


@dataclass(frozen=True)
class Policies:
    """What becomes of rows that cannot be trained on as they are. Never another row in their place."""

    bad_images: Literal["raise", "skip"] = "raise"
    long_rows: Literal["raise", "drop", "shorten"] = "raise"


@dataclass(frozen=True)
class Dropped:
    """A row that was left out, or not laid out whole."""

    id: str
    reason: Literal["bad image", "too long", "shortened", "no room for turns"]
    message: str


@dataclass(frozen=True)
class Fetched:
    """What came of a micro-batch: its rows, unless none was left, and what the policies did."""

    batch: Batch | None
    dropped: tuple[Dropped, ...] = ()


Outcome = Example | Dropped | SightlineError


class Rows:
    """Samples with their columns, laid out by a processor. What a row is depends on (seed, epoch, row) alone."""

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Processor,
        *,
        seed: int,
        columns: Columns | None = None,
        readers: Sequence[Reader] = (),
        needed: Mapping[str, str] | None = None,
        training: bool = True,
        policies: Policies | None = None,
    ) -> None:
        """
        Args:
            columns: values held in memory.
            readers: what reads the columns that are not; each gives those of a sample in an epoch.
            needed: the columns to hold, each with the method that asks for it; by default those that methods always
                need.
            training: let methods insert turns.

        Raises:
            SightlineError: if a method needs a column that is absent, a row has no value in one, or two share an id.
        """
        self.samples = samples
        self.processor = processor
        self.seed = seed
        self.training = training
        self.policies = policies or Policies()
        self.readers = tuple(readers)
        if needed is None:
            needed = {column: method.name for method in processor.methods.all for column in method.needs.columns}
        self.columns = {name: values for name, values in (columns or {}).items() if name in needed}
        for name, method in needed.items():
            source = samples[0].source or "the data"
            fix = "Compute it, and give it to sightline.train.train(recipe, columns=...)."
            if name not in self.columns:
                raise SightlineError(f"method '{method}' needs column '{name}', absent from {source}. {fix}")
            seen: set[str] = set()
            for sample in samples:
                if sample.id not in self.columns[name]:
                    raise SightlineError(
                        f"column '{name}' of method '{method}' has no value for sample '{sample.id}'. {fix}"
                    )
                if sample.id in seen:
                    raise SightlineError(
                        f"two rows of {source} have the id '{sample.id}', and column '{name}' is kept by id, so they "
                        "would share one value. Give each row an id of its own."
                    )
                seen.add(sample.id)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Example:
        """The row laid out.

        Raises:
            SightlineError: if it cannot be; policies do not apply here.
        """
        epoch, row = key
        return self._lay_out(self.samples[row], epoch, row)

    def fetch(self, key: tuple[int, int]) -> tuple[Outcome, ...]:
        """What becomes of a row under the policies: an example, a note that it was left out, both if it was not laid
        out whole, or the error that stops the run. A row too long for the turns of methods goes without them."""
        epoch, row = key
        try:
            sample = self.samples[row]
            try:
                return (self._lay_out(sample, epoch, row),)
            except ImageError as error:
                if self.policies.bad_images == "raise":
                    raise SightlineError(f"sample '{sample.id}': {error}") from None
                return (Dropped(sample.id, "bad image", str(error)),)
            except LongRowError as error:
                alone = self._alone(sample, epoch, row) if self.training else error
                if isinstance(alone, Example):
                    return alone, Dropped(sample.id, "no room for turns", error.fact)
                if self.policies.long_rows == "raise":
                    raise alone from None
                if self.policies.long_rows == "shorten" and (found := self._shortened(sample, epoch, row)):
                    return *found, Dropped(sample.id, "shortened", alone.fact)
                return (Dropped(sample.id, "too long", alone.fact),)
        except SightlineError as error:
            return (error,)

    def _lay_out(self, sample: Sample, epoch: int, row: int, *, alone: bool = False) -> Example:
        columns = {name: values[sample.id] for name, values in self.columns.items()}
        for reader in self.readers:
            columns |= reader(sample, epoch if self.training else 0)
        rng = generator(self.seed, 1, epoch, row) if self.training and not alone else None
        return self.processor(sample, rng=rng, columns=columns)

    def _alone(self, sample: Sample, epoch: int, row: int) -> Example | LongRowError:
        """The row without the turns of methods, or how long it is by itself."""
        try:
            return self._lay_out(sample, epoch, row, alone=True)
        except LongRowError as error:
            return error

    def _shortened(self, sample: Sample, epoch: int, row: int) -> tuple[Outcome, ...]:
        """The row without as many of its oldest exchanges as it takes, and a note if it then goes without the turns of
        methods; nothing if that is not enough."""
        while (shorter := without_oldest_exchange(sample)) is not None:
            sample = shorter
            try:
                return (self._lay_out(sample, epoch, row),)
            except LongRowError as error:
                if isinstance(example := self._alone(sample, epoch, row), Example):
                    return example, Dropped(sample.id, "no room for turns", error.fact)
        return ()


class Mixture(Dataset):
    """Several sources as one, rows numbered through, each with its own template and weight.

    A row that cannot be laid out is given as its error, so that it reaches the user from a worker process in its own
    words.
    """

    def __init__(self, parts: Sequence[Rows], weights: Sequence[float] | None = None) -> None:
        self.parts = tuple(parts)
        self.weights = tuple(weights) if weights is not None else (1.0,) * len(self.parts)
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.seed = self.parts[0].seed
        self.pad_id = self.parts[0].processor.pad_id

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, key: tuple[int, int]) -> tuple[Outcome, ...]:
        """What becomes of a row under the policies of its part."""
        epoch, row = key
        part = int(np.searchsorted(self.ends, row, side="right"))
        return self.parts[part].fetch((epoch, row - (int(self.ends[part - 1]) if part else 0)))

    def order(self, *, batch_size: int, accumulate: int, group_by_length: bool = False) -> Order:
        """The order of its rows for a stage."""
        lengths = np.concatenate([rough_lengths(part) for part in self.parts]) if group_by_length else None
        return Order(
            seed=self.seed,
            sizes=tuple(len(part) for part in self.parts),
            batch_size=batch_size,
            accumulate=accumulate,
            weights=self.weights,
            lengths=lengths,
            sequential=any(isinstance(p.samples, Head) and p.samples.source.sequential for p in self.parts),
        )


class Head(Sequence[Sample]):
    """The first rows of a source."""

    def __init__(self, source: Source, limit: int | None) -> None:
        self.source = source
        self.limit = len(source) if limit is None else min(limit, len(source))

    def __len__(self) -> int:
        return self.limit

    def __getitem__(self, row: int) -> Sample:  # pyright: ignore[reportIncompatibleMethodOverride]  (no slices)
        if not 0 <= row < self.limit:
            raise IndexError(f"row {row} of {self.limit}")
        return self.source[row]


def rough_lengths(rows: Rows) -> np.ndarray:
    """About how many tokens each row has: four characters a token, and its visual ones. Read from the index if any."""
    per_image = rows.processor.tokens_per_view
    if isinstance(rows.samples, Head):
        source = rows.samples.source
        return (source.sizes // 4 + per_image * source.num_images.astype(np.int32))[: len(rows)]
    sizes = (sum(len(turn.text) for turn in s.turns) // 4 + per_image * len(s.images) for s in rows.samples)
    return np.fromiter(sizes, dtype=np.int32, count=len(rows))


def without_oldest_exchange(sample: Sample) -> Sample | None:
    """The sample without its oldest exchange that has no image; None if that would leave nothing."""
    lead = [turn for turn in sample.turns if turn.role == "system"]
    rest = sample.turns[len(lead) :]
    exchanges = [rest[i : i + 2] for i in range(0, len(rest), 2)]
    oldest = next((i for i, exchange in enumerate(exchanges) if IMAGE not in exchange[0].text), None)
    if oldest is None or len(exchanges) == 1:
        return None
    kept = exchanges[:oldest] + exchanges[oldest + 1 :]
    return replace(sample, turns=(*lead, *(turn for exchange in kept for turn in exchange)))


def training_batches(
    rows: Mixture, order: Order, *, num_steps: int, start: int = 0, workers: int = 0, share: tuple[int, int] = (0, 1)
) -> DataLoader:
    """What came of each micro-batch of optimizer steps `start` to `num_steps`, for process `share[0]` of `share[1]`."""
    rank, world = share
    return _loader(rows, order.micro_batches(num_steps, start, rank=rank, world=world), workers)


def validation_batches(
    rows: Mixture, *, batch_size: int, workers: int = 0, share: tuple[int, int] = (0, 1)
) -> DataLoader:
    """Every row once, in the order of the files. Of several processes each has as many batches as the others: where
    there are not enough, they begin again."""
    rank, world = share
    count = math.ceil(len(rows) / batch_size)
    begins = (turn % count * batch_size for turn in range(rank, math.ceil(count / world) * world, world))
    mine = ([(0, row) for row in range(begin, min(begin + batch_size, len(rows)))] for begin in begins)
    return _loader(rows, mine, workers)


def _loader(rows: Mixture, order: Iterable[list[tuple[int, int]]], workers: int) -> DataLoader:
    collate_fn = partial(_collate, pad_id=rows.pad_id)
    return DataLoader(rows, batch_sampler=order, collate_fn=collate_fn, num_workers=workers)


def _collate(outcomes: Sequence[tuple[Outcome, ...]], *, pad_id: int) -> Fetched | SightlineError:
    flat = [item for outcome in outcomes for item in outcome]
    errors = [item for item in flat if isinstance(item, SightlineError)]
    if errors:
        return errors[0]
    examples = [item for item in flat if isinstance(item, Example)]
    dropped = tuple(item for item in flat if isinstance(item, Dropped))
    return Fetched(collate(examples, pad_id=pad_id) if examples else None, dropped)
