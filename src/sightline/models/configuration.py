"""The configuration of a Sightline model: transformers' LLaVA, plus the connector's name and the methods' records."""

from typing import Any

from transformers import LlavaConfig

from ..errors import SightlineError
from .towers import PatchSelect, TowerSpec, tower_spec


class SightlineConfig(LlavaConfig):
    """`LlavaConfig` with what stock LLaVA has no word for."""

    model_type = "sightline"

    connector: str = "mlp"
    vision_select: str = "patch"
    """`patch` takes the grid alone, `full` also the tokens before it. transformers' own word for it follows from this."""
    methods: list[dict[str, Any]] | None = None
    """The methods' records, `{"name": ..., options}`, in order."""
    slot_token_ids: dict[str, int] | None = None
    """The ids of the tokens that mark the methods' slots."""


def spec(config: LlavaConfig) -> TowerSpec:
    """The spec of the tower that `config` names."""
    return tower_spec(config.vision_config)


def stock_strategy(tower: TowerSpec, select: PatchSelect) -> str | None:
    """transformers' word for a selection (`default` drops the first token, `full` none), or None where it has no word."""
    if select == "full" or tower.prefix == 0:
        return "full"
    return "default" if tower.prefix == 1 else None


def select_of(config: LlavaConfig) -> PatchSelect:
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
