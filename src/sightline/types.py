"""The nouns of the flow, in order: Sample -> Example -> Batch -> Trace.

    Sample    one row of a user's data: its images, its turns, where it came from
    Example   one row laid out as tokens: every placeholder at its final length, labels, kinds, pixels, columns
    Batch     padded examples with their pixels packed; no field is sometimes there and sometimes not
    Trace     what the forward pass saw on its way: patches, visual, embeds, hidden

Legend of shapes used everywhere:

    batch        rows of a batch                    seq          tokens of a row, padding included
    sum_views    views of all images of the batch   patches      patches the vision tower gives for a view
    sum_tokens   visual tokens of the whole batch   num_images   images of all rows of the batch
    d_vision     width of the vision tower          d_llm        width of the language model

Visual things travel packed: one tensor for all images of the batch, with counts that say where each image ends. Rows
with several images, none, or images of different lengths need no second design.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

IGNORE = -100
"""The label of a token that is not supervised (torch's `cross_entropy` and transformers agree on it)."""

KINDS = ("pad", "prompt", "visual", "answer")
"""What a token can be before any method adds a kind of its own; the index in this tuple is the id in `kinds`."""
PAD, PROMPT, VISUAL, ANSWER = range(4)

Role = Literal["system", "user", "assistant"]


@runtime_checkable
class EncodedImage(Protocol):
    """An image file inside another file. Nothing of it is read until `read`."""

    @property
    def name(self) -> str:
        """What errors call it."""
        ...

    def read(self) -> bytes:
        """The encoded bytes."""
        ...


ImageSource = Path | Image.Image | EncodedImage


def no_patches() -> Tensor:
    """The features of no view."""
    return torch.zeros(0, 0, 0)


@dataclass(frozen=True)
class Turn:
    """One message. `kind` names what its supervised tokens are: "answer", or a kind that a method added."""

    role: Role
    text: str
    kind: str = "answer"


@dataclass(frozen=True)
class Sample:
    """One row of data. `<image>` in the turns marks where each of `images` stands, in order."""

    id: str
    images: tuple[ImageSource, ...]
    turns: tuple[Turn, ...]
    source: str = ""
    """The file the row came from, for error messages and for levels that are ranked within a source."""
    meta: Mapping[str, Any] = field(default_factory=dict)
    """The row's other fields, untouched (an ability, a question type)."""


@dataclass(frozen=True)
class Example:
    """One laid-out row. All sequence fields have the same length."""

    id: str
    input_ids: Int[Tensor, " seq"]
    labels: Int[Tensor, " seq"]
    kinds: Int[Tensor, " seq"]
    turn_ids: Int[Tensor, " seq"]
    """The number of the exchange (a user turn and its answer) a token belongs to; -1 before the first one."""
    prompt_mask: Bool[Tensor, " seq"]
    """The user's own words: no system prompt, role names, images, answers, or turns that a method inserted."""
    pixel_values: Float[Tensor, "views 3 height width"]
    view_counts: Int[Tensor, " images"]
    visual_counts: Int[Tensor, " images"]
    image_sizes: Int[Tensor, "images 2"]
    """Height and width of each image, in pixels."""
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    patches: Float[Tensor, "cached patches d_vision"] = field(default_factory=no_patches)
    """What the tower gives for the views, where it was read from the feature store; `pixel_values` are empty then."""

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Batch:
    """Padded examples. The same type feeds training and the prefill of generation (there without labels or columns)."""

    ids: tuple[str, ...]
    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    labels: Int[Tensor, "batch seq"]
    kinds: Int[Tensor, "batch seq"]
    turn_ids: Int[Tensor, "batch seq"]
    prompt_mask: Bool[Tensor, "batch seq"]
    pixel_values: Float[Tensor, "sum_views 3 height width"]
    view_counts: Int[Tensor, " num_images"]
    """Views of each image."""
    visual_counts: Int[Tensor, " num_images"]
    """Placeholders laid out for each image."""
    image_sizes: Int[Tensor, "num_images 2"]
    """Height and width of each image, in pixels."""
    image_counts: Int[Tensor, " batch"]
    """Images of each row."""
    columns: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    """A method's offline values, one tensor for each row."""
    counted: bool = True
    """False for a batch that only keeps a process in step with the others: its rows are in no loss."""
    patches: Float[Tensor, "cached patches d_vision"] = field(default_factory=no_patches)
    """What the tower gives for the views, where it was read from the feature store; `pixel_values` are empty then."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_images(self) -> int:
        return len(self.view_counts)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with every tensor on `device`."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        columns = {name: tuple(v.to(device) for v in values) for name, values in self.columns.items()}
        return replace(self, columns=columns, **moved)


@dataclass(frozen=True)
class Trace:
    """The intermediates of one forward pass, after every method's edits. Losses read them; nothing else does."""

    patches: Float[Tensor, "views patches d_vision"]
    visual: Float[Tensor, "sum_tokens d_llm"]
    embeds: Float[Tensor, "batch seq d_llm"]
    hidden: Float[Tensor, "batch seq d_llm"]
    tower_states: Mapping[int, Tensor] = field(default_factory=dict)
    """Hidden states of the tower that methods asked for, by index: [views, tokens, d_tower], all tokens kept."""
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    """What edits put aside for losses to read, as `method/name`."""
