"""What a method may be beside a method, where others have to know it: protocols that extend the one of `base`.

Levelled   its slot holds the vector of a level            ask --level, diagnose --only levels, gate
BuiltIn    a class of transformers has it built in         export as that class
Redraws    draws images again from visual tokens           reconstruct
Tells      has a model tell what is in an image, in cells  paint, diagnose --only cognition
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from ..data.view import Sight
from ..data.windows import Window
from ..types import Batch, Trace
from .base import AlignmentMethod

Task = Literal["vq", "pixels"]
"""What is told of cells: codes of a VQ model, or colours. The kinds of their tokens are called so too."""


class Levelled(AlignmentMethod, ABC):
    """A method whose slot holds the vector of a level, or a mixture of such vectors that a gate makes.

    By this it is known where a model's levels are forced (`sightline ask --level`) or looked at (`sightline diagnose`).
    """

    level: int | None = None
    """A level that fills every slot, whatever else would: 1 to N."""

    @property
    @abstractmethod
    def vectors_of_levels(self) -> Float[Tensor, "levels d_llm"]:
        """The vector of each level, the first one's first."""

    @property
    @abstractmethod
    def has_gate(self) -> bool:
        """Whether it has `weights`."""

    @abstractmethod
    def weights(self, embeds: Float[Tensor, "batch seq d_llm"], batch: Batch) -> Float[Tensor, "batch weighed"]:
        """The gate's weight of each level that it weighs, the first one's first; they sum to 1."""

    @property
    @abstractmethod
    def choices(self) -> str:
        """What `hold` takes, in words."""

    @abstractmethod
    def hold(self, choice: str) -> None:
        """Make constant what rows decide, as `--level` of an export says. It changes what the model computes.

        Raises:
            SightlineError: for a choice that the method does not have.
        """

    @contextmanager
    def forced(self, level: int) -> Iterator[None]:
        """Within it, `level` fills every slot."""
        before, self.level = self.level, level
        try:
            yield
        finally:
            self.level = before


class BuiltIn(AlignmentMethod, ABC):
    """A method that a class of transformers has built in: alone, its model is saved as that class."""

    model_type: ClassVar[str]
    """Of transformers' class."""

    @abstractmethod
    def stock_config(self, side: int) -> Mapping[str, Any]:
        """What transformers' config says of it. `side` is that of a view, in pixels."""

    @abstractmethod
    def stock_state(self) -> Mapping[str, Tensor]:
        """Its weights by their names in transformers' class."""

    @abstractmethod
    def load_stock_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `stock_state`; the weights are shared."""

    @classmethod
    @abstractmethod
    def record_of(cls, config: Mapping[str, Any], side: int) -> dict[str, Any]:
        """The method's record from transformers' config."""

    @abstractmethod
    def image_processor(self, fitted: Any) -> Any:
        """transformers' image processor that makes the same pixels of the same views as `fitted` makes of ours."""


class Redraws(AlignmentMethod, ABC):
    """A method that can draw an image again from what a model made of it."""

    @abstractmethod
    def picture(self, sight: Sight, image: Image.Image) -> UInt8[Tensor, "3 side side"]:
        """What is to be drawn of an image: all that the model sees of it."""

    @abstractmethod
    def redraw(self, trace: Trace, batch: Batch, *, steps: int, seed: int) -> UInt8[Tensor, "images 3 side side"]:
        """The pictures of a batch's images, from noise and visual tokens alone."""


class Tells(AlignmentMethod, ABC):
    """A method that has a model tell what is in a window of an image, cell by cell."""

    grid: int
    """Cells along an image."""
    codes: int
    """How many codes there are."""

    @property
    @abstractmethod
    def tasks(self) -> tuple[Task, ...]:
        """What is asked for."""

    @property
    @abstractmethod
    def vq(self) -> str:
        """The VQ model whose codes are told."""

    @property
    @abstractmethod
    def window(self) -> int:
        """Cells along a window."""

    @abstractmethod
    def picture(self, sight: Sight) -> Callable[[Image.Image], UInt8[Tensor, "3 side side"]]:
        """What makes of an image that which is laid out in cells."""

    @abstractmethod
    def question(self, task: Task, window: Window) -> str:
        """What asks for a window of an image."""

    @abstractmethod
    def write(self, task: Task, values: Sequence[int]) -> str:
        """Values as they are told."""

    @abstractmethod
    def read(self, task: Task, text: str) -> Int[Tensor, " values"]:
        """The values of a window in a text; `UNREAD` for what cannot be read."""
