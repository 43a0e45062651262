"""The one protocol of an alignment method: a few members that default to nothing.

A method is an `nn.Module`. Its submodules are what it adds to the model; what serves training alone sits under
`train_only`, which export drops. It says what it needs, annotates offline, makes ready for a stage, edits the forward
pass, adds losses, measures, and adds turns; and it says what of it is constant, so that export can make a token of it.
Everything else (data, trunk, loop, checkpoints) is not its concern.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from ..config import Recipe, Stage
from ..data.view import Box, Frame
from ..types import Batch, Sample, Trace, Turn

if TYPE_CHECKING:
    from ..models.assemble import Assembly

Tap = Literal["patches", "visual", "embeds", "hidden"]
"""Where the forward pass can be edited, in the order of the flow; the names are those of `Trace`."""
TAPS: tuple[Tap, ...] = ("patches", "visual", "embeds", "hidden")

Scope = Literal["additive", "micro-batch", "rank", "gathered"]
"""What a loss couples. An additive loss is a sum over parts of the batch, so it may be cut into micro-batches at will.
The others couple rows (a contrastive loss) and are means over the rows that their scope names: those of one forward
pass (`micro-batch`); all that a process has in a step, which must then be one forward pass (`rank`); those that all
processes have at hand (`gathered`), which the method puts together with `objectives.gather.gather_rows`."""


@dataclass(frozen=True)
class Slot:
    """One position of the sequence that a method fills itself: after BOS, or first where the tokenizer has none."""

    token: str
    """A special token, added to the tokenizer, that marks the slot."""
    kind: str
    only_with_images: bool = True
    """Whether rows without images go without the slot."""


@dataclass(frozen=True)
class LossSpec:
    """A loss that a method adds, as the loop must know it before the forward pass."""

    name: str
    """`method/loss`; recipes weigh it by this name."""
    scope: Scope = "additive"
    count: Callable[[Batch], Tensor] | None = None
    """For additive losses: over how many parts of this batch the loss is a sum. The mean is taken over a whole
    optimizer step, so that accumulation does not change it."""
    columns: tuple[str, ...] = ()
    """Columns that this loss alone reads: they are needed where a stage weighs it."""


@dataclass(frozen=True)
class InsertedTurn:
    """An exchange added to a row in training."""

    after: int
    """It follows this many exchanges of the row: 0 puts it first."""
    question: Turn
    answer: Turn
    """Its `kind` is one that the method declares, so that its tokens are counted apart."""


Size = tuple[int, int]
"""Width and height of an image, in pixels."""


class Views(ABC):
    """What the tower sees of an image: views of `side` x `side` pixels."""

    @abstractmethod
    def count(self, size: Size, side: int) -> int:
        """How many views an image of this size has."""

    @abstractmethod
    def cut(self, image: Image.Image, frame: Frame) -> list[Image.Image]:
        """The views of an image."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the views of an image depend on, beside its pixels."""
        return {}

    def box(self, size: Size, side: int) -> Box | None:
        """The part of an image that its first view shows; None where the image processor decides it."""
        return None

    def tokens(self, size: Size, side: int, per_view: int) -> int:
        """Visual tokens of an image, where the connector gives `per_view`."""
        return per_view * self.count(size, side)


class OneView(Views):
    """The image itself, as the tower's own processor fits it."""

    def count(self, size: Size, side: int) -> int:
        return 1

    def cut(self, image: Image.Image, frame: Frame) -> list[Image.Image]:
        return [image]


@dataclass(frozen=True)
class Needs:
    """What a method asks of the data and the trunk."""

    columns: tuple[str, ...] = ()
    """Per-sample values, from the method's annotation, that `batch.columns` must hold in all training."""
    slots: tuple[Slot, ...] = ()
    kinds: tuple[str, ...] = ()
    """Kinds of tokens it adds with its turns (a slot's kind is declared with the slot)."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """What of these kinds is a mean of its own, and how much it weighs, where a stage does not say it."""
    tokens: tuple[str, ...] = ()
    """Tokens that its turns are written in, added to the tokenizer; they are said as words are."""
    views: Views | None = None
    """What the tower sees of an image, where that is not the image alone."""
    tower_states: tuple[int, ...] = ()
    """Hidden states of the tower that its losses read, beside those that the connector does, by their index."""
    pixels: bool = False
    """Whether it reads `batch.pixel_values`, which are empty where features of the tower are read from disk."""
    edits: tuple[Tap, ...] = ()
    reshapes: tuple[Tap, ...] = ()
    """Those of `edits` whose shape it changes; no two methods may change the same one."""
    losses: tuple[LossSpec, ...] = ()


Reader = Callable[[Sample, int], Mapping[str, Tensor]]
"""The columns of a sample in an epoch, by name."""


@dataclass(frozen=True)
class Setting:
    """A stage as a method meets it: offline when it annotates, and before the stage trains."""

    recipe: Recipe
    number: int
    """Of the stage in the recipe."""
    assembly: "Assembly"
    device: torch.device
    sources: Sequence[Sequence[Sample]] = ()
    """The rows of the stage's data, then of its validation."""
    say: Callable[[str], None] = field(default=lambda text: None)

    @property
    def stage(self) -> Stage:
        return self.recipe.stages[self.number]


class Annotation(ABC):
    """What a method computes once, offline, for the rows of a stage."""

    @abstractmethod
    def compute(self) -> Path | None:
        """Compute what is missing. Gives the folder that holds it; a run that was killed goes on in it. None where the
        stage has nothing to compute it of.

        Raises:
            SightlineError: for what stops it.
        """

    def report(self) -> tuple[str, list[Path]]:
        """What was computed, in words, and files that show it; nothing by default."""
        return "", []

    @property
    def facts(self) -> Mapping[str, Any]:
        """All that it depends on beside the rows, as JSON has it: with other facts it is another annotation, and a run
        does not go on with that. Nothing by default."""
        return {}

    @abstractmethod
    def reader(self) -> Reader:
        """What reads it in training.

        Raises:
            SightlineError: if some of it is not there, with the command that computes it.
        """


@dataclass(frozen=True)
class Sizes:
    """The sizes that a method may build its modules from."""

    d_vision: int
    d_llm: int
    patches: int
    """Patches of one view, as the tower gives them after selection."""
    tokens: int
    """Visual tokens of one view, as the connector gives them."""


class MethodConfig(BaseModel):
    """Base of a method's options: frozen, checked when made, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Options by the names that the option `preset` takes, of a method that has it; options that are given stay."""

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, values: Any) -> Any:
        preset = values.get("preset") if isinstance(values, dict) else None
        chosen = cls.presets.get(preset, {}) if isinstance(preset, str) else {}
        return {**chosen, **values} if chosen else values


class AlignmentMethod(nn.Module, ABC):
    """A method of alignment. Subclasses set `name` and `Config`, and override the members that they use."""

    name: ClassVar[str]
    Config: ClassVar[type[MethodConfig]] = MethodConfig

    def __init__(self, config: MethodConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self.sizes = sizes
        self.train_only = nn.ModuleDict()
        self.kind_ids: dict[str, int] = {}
        """The ids, in `batch.kinds`, of the kinds it declares; set when it joins a model."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Submodules, `train_only` ones too, that a stage can train by themselves, as `name.part`; "" is all of it."""
        return ("",)

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """What the method asks for. Constant after construction."""

    def columns(self, stage: Stage) -> tuple[str, ...]:
        """The columns that it reads in a stage: those that it always does, and those of the losses that it weighs."""
        return (*self.needs.columns, *(column for spec in self.weighed(stage) for column in spec.columns))

    def weighed(self, stage: Stage) -> list[LossSpec]:
        """Its losses that count in a stage."""
        return [spec for spec in self.needs.losses if stage.weights.get(spec.name)]

    def annotation(self, setting: Setting) -> Annotation | None:
        """How its columns come about; None if others give them (`train(recipe, columns=...)`)."""
        return None

    @property
    def pretrained(self) -> Mapping[str, str]:
        """Parts of `train_only` that do not begin by chance, and where their first weights come from."""
        return {}

    def load_pretrained(self, part: str) -> None:
        """Give one of those parts its first weights. Called once, when it joins a model and no run has left any.

        Raises:
            SightlineError: if they cannot be found.
        """

    def begin(self, setting: Setting) -> None:
        """Make ready for a stage: fetch what its losses read beside the batch, and what no checkpoint keeps."""

    def edit(self, tap: Tap, x: Tensor, batch: Batch, kept: dict[str, Tensor]) -> Tensor:
        """All that can change the forward pass; the same in training and in the prefill of generation.

        Args:
            kept: what else losses read of it goes here, as `method/name`, and so into `trace.kept`.
        """
        return x

    def losses(self, trace: Trace, batch: Batch) -> Mapping[str, Tensor]:
        """Its losses by the names that `needs` declares: sums for additive ones, means for the others."""
        return {}

    def measures(self, trace: Trace, batch: Batch) -> Mapping[str, Tensor]:
        """What it logs beside its losses, as `method/name`: one value for each part that it is of (a row, an image),
        none for a batch without such parts. Their mean over an optimizer step goes to the metrics, in the steps that
        are measured. Without gradients; it draws nothing at random, and gives the same names for every batch."""
        return {}

    def constants(self) -> Mapping[str, Tensor] | None:
        """What fills its slots, by their tokens, where it is the same for all rows and all that `edit` does: an export
        can make it the embeddings of these tokens. None where `edit` does more."""
        return None

    def operations(self, size: Size, side: int, stage: Stage | None = None) -> tuple[int, int]:
        """Floating-point operations for an image of this size, forward and backward: those of generation, or with
        `stage`, of a step of it with the losses that it weighs. For the dry run; what is far below a percent of a
        model's may be 0."""
        return 0, 0

    def kept(self, size: Size, side: int, stage: Stage) -> int:
        """Bytes that a step of the stage keeps for its backward pass, for an image of this size, in fp32. For the dry
        run; what is far below a percent of a model's may be 0."""
        return 0

    def added_tokens(self, stage: Stage) -> float:
        """Tokens that its turns add to a row with images, in the mean over rows and epochs, about. For the dry run."""
        return 0.0

    def turns(self, sample: Sample, rng: np.random.Generator, columns: Mapping[str, Tensor]) -> list[InsertedTurn]:
        """Extra exchanges for a row, in training only, deterministic in `rng`.

        Args:
            columns: those of the row, by name.
        """
        return []
