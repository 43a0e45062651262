"""Rows on their way to the model: each one is laid out when it is asked for, by (epoch, row)."""

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import SightlineError
from ..types import Batch, Example, Sample
from .collate import collate
from .order import generator, micro_batches
from .processor import Processor

Columns = Mapping[str, Mapping[str, Tensor]]
"""{column: {sample id: value}}: what methods have annotated."""


class Rows(Dataset):
    """Samples with their columns, laid out by a processor.

    What a row is depends on (seed, epoch, row) alone. A row that cannot be laid out is given as its error, so that it
    reaches the user from a worker process in its own words.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        processor: Processor,
        *,
        seed: int,
        columns: Columns | None = None,
        training: bool = True,
    ) -> None:
        """
        Args:
            training: let methods insert turns.

        Raises:
            SightlineError: if a method needs a column that is absent, or a row has no value in one.
        """
        self.samples = samples
        self.processor = processor
        self.seed = seed
        self.training = training
        needed = processor.methods.columns
        self.columns = {name: values for name, values in (columns or {}).items() if name in needed}
        for name, method in needed.items():
            source = samples[0].source or "the data"
            fix = f"Run: sightline annotate RECIPE --method {method}"
            if name not in self.columns:
                raise SightlineError(f"method '{method}' needs column '{name}', absent from {source}. {fix}")
            absent = next((s.id for s in samples if s.id not in self.columns[name]), None)
            if absent is not None:
                raise SightlineError(f"column '{name}' of method '{method}' has no value for sample '{absent}'. {fix}")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> Example | SightlineError:
        epoch, row = key
        sample = self.samples[row]
        columns = {name: values[sample.id] for name, values in self.columns.items()}
        try:
            rng = generator(self.seed, 1, epoch, row) if self.training else None
            return self.processor(sample, rng=rng, columns=columns)
        except SightlineError as error:
            return error


def training_batches(
    rows: Rows, *, batch_size: int, accumulate: int, num_steps: int, start: int = 0, workers: int = 0
) -> DataLoader:
    """Micro-batches for optimizer steps `start` to `num_steps`, in the order that the rows' seed fixes."""
    order = micro_batches(rows.seed, len(rows), batch_size, accumulate, num_steps, start)
    return _loader(rows, order, workers)


def validation_batches(rows: Rows, *, batch_size: int, workers: int = 0) -> DataLoader:
    """Every row once, in the order of the file."""
    keys = [(0, row) for row in range(len(rows))]
    return _loader(rows, [keys[i : i + batch_size] for i in range(0, len(keys), batch_size)], workers)


def _loader(rows: Rows, order, workers: int) -> DataLoader:
    pad_id = rows.processor.pad_id
    return DataLoader(rows, batch_sampler=order, collate_fn=partial(_collate, pad_id=pad_id), num_workers=workers)


def _collate(examples: Sequence[Example | SightlineError], *, pad_id: int) -> Batch | SightlineError:
    laid_out = [example for example in examples if isinstance(example, Example)]
    errors = [example for example in examples if isinstance(example, SightlineError)]
    return errors[0] if errors else collate(laid_out, pad_id=pad_id)
