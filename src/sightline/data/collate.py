"""The only padding: examples to a batch. Pixels and counts are packed, never padded."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ..types import IGNORE, PAD, Batch, Example


def collate(examples: Sequence[Example], *, pad_id: int, side: Literal["left", "right"] = "right") -> Batch:
    """A batch of `examples`, padded to the longest on one side (right to train, left to generate)."""
    length = max(len(example) for example in examples)

    def pad(rows: Sequence[Tensor], value: int) -> Tensor:
        out = rows[0].new_full((len(rows), length), value)
        for row, values in zip(out, rows, strict=True):
            if side == "right":
                row[: len(values)] = values
            else:
                row[length - len(values) :] = values
        return out

    return Batch(
        ids=tuple(e.id for e in examples),
        input_ids=pad([e.input_ids for e in examples], pad_id),
        attention_mask=pad([torch.ones_like(e.input_ids) for e in examples], 0),
        labels=pad([e.labels for e in examples], IGNORE),
        kinds=pad([e.kinds for e in examples], PAD),
        turn_ids=pad([e.turn_ids for e in examples], -1),
        prompt_mask=pad([e.prompt_mask for e in examples], False),
        pixel_values=torch.cat([e.pixel_values for e in examples]),
        view_counts=torch.cat([e.view_counts for e in examples]),
        visual_counts=torch.cat([e.visual_counts for e in examples]),
        image_sizes=torch.cat([e.image_sizes for e in examples]),
        image_counts=torch.tensor([len(e.view_counts) for e in examples]),
        patches=torch.cat([e.patches for e in examples]),
        columns={name: tuple(e.columns[name] for e in examples) for name in examples[0].columns},
    )
