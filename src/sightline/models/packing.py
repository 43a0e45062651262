"""Sequence packing: the rows of a padded batch side by side in fewer sequences, each row seeing only itself.

The batch stays padded everywhere else. The language model alone runs on bins: sequences as long as the longest row, or
longer where that saves work, into which rows are put first-fit-decreasing (Johnson 1973). Positions restart with each
row; that is how transformers' masks (5.0 and later) tell rows apart, for sdpa, eager and flash attention and for
sliding windows. `check_packing` tries it on the model at hand rather than trust that.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..errors import SightlineError

ONE_SEQUENCE = "flash"
"""Attention of this name finds rows by their positions in a single sequence only, where it needs no bins."""


@dataclass(frozen=True)
class Packing:
    """Where each real token of a padded batch stands among the bins. Places count through the flattened tensors."""

    padded: Int[Tensor, " tokens"]
    """Its place in [batch, seq]."""
    binned: Int[Tensor, " tokens"]
    """Its place in [bins, capacity]."""
    position_ids: Int[Tensor, "bins capacity"]
    """Its position in its own row; in what fills up a bin, the count goes on."""

    def pack(self, embeds: Float[Tensor, "batch seq d_llm"]) -> Float[Tensor, "bins capacity d_llm"]:
        """The rows in their bins; zeros where a bin is not full."""
        return moved(embeds, self.padded, self.binned, self.position_ids.shape)

    def unpack(
        self, hidden: Float[Tensor, "bins capacity d_llm"], shape: Sequence[int]
    ) -> Float[Tensor, "batch seq d_llm"]:
        """The rows back in their places of a padded batch of `shape` [batch, seq]; zeros in the padding."""
        return moved(hidden, self.binned, self.padded, shape)


def plan(attention_mask: Int[Tensor, "batch seq"], width: int, *, one_sequence: bool = False) -> Packing:
    """The bins for a padded batch, whatever the side of its padding.

    Args:
        width: of the language model, which tells what attention costs beside the rest.
        one_sequence: a single bin that is exactly full, for attention that wants it.
    """
    device = attention_mask.device
    lengths = attention_mask.sum(1).tolist()
    if one_sequence:
        capacity, bins = sum(lengths), [list(range(len(lengths)))]
    else:
        capacity, bins = cheapest_bins(lengths, width)
    starts, positions = [0] * len(lengths), []
    for number, rows in enumerate(bins):
        ends = itertools.accumulate(lengths[row] for row in rows)
        for row, end in zip(rows, ends, strict=True):
            starts[row] = number * capacity + end - lengths[row]
        # The last row's positions go on to the end of the bin: what fills it up is behind every row, and seen by none.
        last = capacity - sum(lengths[row] for row in rows[:-1])
        positions += [torch.arange(length) for length in (*(lengths[row] for row in rows[:-1]), last)]
    places = [torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
    return Packing(
        padded=attention_mask.flatten().nonzero().squeeze(1),
        binned=torch.cat(places).to(device),
        position_ids=torch.cat(positions).view(len(bins), capacity).to(device),
    )


def cheapest_bins(lengths: Sequence[int], width: int) -> tuple[int, list[list[int]]]:
    """A capacity and the bins of it that cost the decoder least: long bins waste fewer places, and attend to more.

    A place costs about 24 width^2 in a layer's matrices and 4 width x capacity in its attention; half of that where no
    bin is shared, because causal attention then needs no mask and skips what is ahead.
    """
    rows, total, longest = len(lengths), sum(lengths), max(lengths)
    capacities = {longest, *(capacity for n in range(1, rows) if (capacity := -(-total // n)) > longest)}
    found = [(longest, [[row] for row in range(rows)])]
    found += [(capacity, first_fit_decreasing(lengths, capacity)) for capacity in sorted(capacities)]

    def cost(candidate: tuple[int, list[list[int]]]) -> float:
        capacity, bins = candidate
        return len(bins) * capacity * (6 * width + capacity * (0.5 if len(bins) == rows else 1.0))

    return min(found, key=cost)


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Rows in bins: from the longest to the shortest, each into the first bin that has room. No empty bins."""
    bins: list[list[int]] = []
    room: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        assert lengths[row] <= capacity, f"row {row} is {lengths[row]} long, and a bin {capacity}"
        fitting = next((number for number, left in enumerate(room) if lengths[row] <= left), None)
        if fitting is None:
            fitting = len(bins)
            bins.append([])
            room.append(capacity)
        bins[fitting].append(row)
        room[fitting] -= lengths[row]
    return bins


def moved(
    x: Float[Tensor, "rows columns width"], source: Int[Tensor, " n"], target: Int[Tensor, " n"], shape: Sequence[int]
) -> Float[Tensor, "new_rows new_columns width"]:
    """Zeros of `shape` [rows, columns] with the vectors at the flat places `source` of `x` at `target`."""
    rows, columns = shape
    out = x.new_zeros(rows * columns, x.shape[2])
    return out.index_copy(0, target, x.flatten(0, 1).index_select(0, source)).view(rows, columns, -1)


def packs_into_one(language_model: nn.Module) -> bool:
    """Whether the model's attention needs all rows in a single sequence."""
    config: Any = language_model.config
    return ONE_SEQUENCE in str(config._attn_implementation)


@torch.no_grad()
def check_packing(language_model: Any) -> None:
    """Try packing on a few random rows before a stage relies on it.

    The states of a row must stay the same when another row stands before it, and be those of the row alone, up to
    rounding.

    Raises:
        SightlineError: naming the model and its attention, if rows see each other or lose their positions.
    """
    config = language_model.config
    table = language_model.get_input_embeddings().weight
    draw = torch.Generator().manual_seed(0)
    mask = torch.ones(3, 12, dtype=torch.long, device=table.device)
    mask[1, 7:], mask[2, 5:] = 0, 0  # the last row comes after the second one, in one bin
    rows = torch.randn(3, 12, table.shape[1], generator=draw).to(table) * table.std()
    others = torch.randn(3, 12, table.shape[1], generator=draw).to(table) * table.std()
    others[2] = rows[2]
    was_training = language_model.training
    language_model.eval()
    packing = plan(mask, table.shape[1], one_sequence=packs_into_one(language_model))

    assert len(packing.position_ids) < len(mask)

    def states(embeds: Tensor, **decoder: Tensor) -> Tensor:
        return language_model(inputs_embeds=embeds, use_cache=False, **decoder).last_hidden_state

    packed, beside = (
        packing.unpack(states(packing.pack(x), position_ids=packing.position_ids), mask.shape)[2, :5]
        for x in (rows, others)
    )
    alone = states(rows[2:, :5])[0]
    language_model.train(was_training)
    off = torch.stack([packed - beside, packed - alone]).abs().max() / alone.abs().max()
    if off <= (0.03 if alone.dtype in (torch.bfloat16, torch.float16) else 1e-3):
        return
    raise SightlineError(
        f"packing=true needs a language model that keeps the rows of a sequence apart, and with "
        f"'{config.name_or_path or type(language_model).__name__}' ({config.model_type}, attention "
        f"'{config._attn_implementation}') a row changes with its neighbours: it would be trained on other rows' "
        "words. Use packing=false, with group_by_length=true against padding."
    )
