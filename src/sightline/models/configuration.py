"""The configuration of a Sightline model: transformers' LLaVA, plus the connector's name and the methods' records."""

from collections.abc import Mapping
from typing import Any, Literal

from transformers import LlavaConfig

from ..errors import SightlineError
from .connectors import ConnectorName
from .scales import pixels_side
from .towers import PatchSelect, TowerSpec, tower_spec


class SightlineConfig(LlavaConfig):
    """`LlavaConfig` with what stock LLaVA has no word for."""

    model_type = "sightline"

    connector: ConnectorName = "mlp"
    shuffle_factor: int | None = None
    """pixel_shuffle's: patches along the side of a token."""
    pooled_grid: int | None = None
    """pool's: tokens along a side."""
    vision_select: PatchSelect = "patch"
    """`patch` takes the grid, `full` also the tokens before it; transformers' own word for it follows from this."""
    vision_scales: list[int] | None = None
    """Multiples of the tower's size at which it sees an image, as `scales` has them; None for its own size alone."""
    methods: list[dict[str, Any]] | None = None
    """The methods' records, `{"name": ..., options}`, in order."""
    slot_token_ids: dict[str, int] | None = None
    """The ids of the tokens that mark the methods' slots, and of `prefix_tokens`."""
    prefix_tokens: list[str] | None = None
    """Tokens that stand where slots do, in rows with images, and are no more than their embeddings: vectors of methods
    that an export has baked in."""
    base: dict[str, Any] | None = None
    """Where the weights come from, for adapters that are saved without them; see `adapters`."""

    @property
    def tower(self) -> TowerSpec:
        """What the trunk must know of the vision tower."""
        return spec(self)

    @property
    def pixels_side(self) -> int:
        """Pixels along a side of the image that the model takes."""
        return pixels_side(self.tower, self.vision_scales)

    @property
    def llm(self) -> Any:
        """The language model's own config."""
        return self.text_config


def prefix_of(note: Mapping[str, Any]) -> dict[str, Any]:
    """What a stock checkpoint's note of `prefix_tokens`, by their ids, is in our config."""
    ids = note.get("prefix_tokens") or {}
    return {"prefix_tokens": list(ids), "slot_token_ids": dict(ids)} if ids else {}


def spec(config: Any) -> TowerSpec:
    """The spec of the tower of a LLaVA config, stock or ours."""
    return tower_spec(config.vision_config)


def stock_strategy(tower: TowerSpec, select: PatchSelect) -> Literal["default", "full"] | None:
    """transformers' word for a selection (`default` drops the first token, `full` none); None where it has none."""
    if select == "full" or tower.prefix == 0:
        return "full"
    return "default" if tower.prefix == 1 else None


def select_of(config: Any) -> PatchSelect:
    """Our word for the selection of a stock LLaVA config.

    Raises:
        SightlineError: for a config that drops the first patch of a tower that has no class token.
    """
    prefix = spec(config).prefix
    if config.vision_feature_select_strategy == "full":
        return "full" if prefix else "patch"
    if prefix != 1:
        raise SightlineError(
            f"this checkpoint drops the first of its tower's tokens, and the tower puts {prefix} before its patches. "
            "Set vision_feature_select_strategy to 'full' in its config.json."
        )
    return "patch"
