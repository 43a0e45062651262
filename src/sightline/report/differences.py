"""Where the recipes of runs differ, and mappings as lines."""

from collections.abc import Mapping
from typing import Any

import yaml

from ..overrides import NOT_YAML

LEFT_OUT = ("name", "out", "annotations")
"""Keys that say where a run lies, not what it does."""


def differences(recipes: Mapping[str, str]) -> list[tuple[str, list[str | None]]]:
    """Each key whose value differs among recipes, with every recipe's value; None where it has none.

    Args:
        recipes: YAML by the name of the run; what cannot be read differs in everything, and is left out.
    """
    lines = [_lines(text) for text in recipes.values()]
    keys = dict.fromkeys(key for found in lines for key in found)
    table = [(key, [found.get(key) for found in lines]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def _lines(text: str) -> dict[str, str]:
    try:
        recipe = yaml.safe_load(text)
    except NOT_YAML:
        return {}
    if not isinstance(recipe, Mapping):
        return {}
    return {key: value for key, value in flat(recipe).items() if key.split(".")[0] not in LEFT_OUT}


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """A mapping of anything as lines of text, with dots for what is inside; nothing for anything else.

    What a list holds is called by its `name` where it has one, as stages and methods have, and else shown whole.
    """
    if not isinstance(value, Mapping):
        return {}
    lines: dict[str, str] = {}
    for key, inner in value.items():
        named = _by_name(inner)
        if isinstance(inner, Mapping) or named:
            lines |= flat(inner if isinstance(inner, Mapping) else named, f"{prefix}{key}.")
        else:
            lines[f"{prefix}{key}"] = str(inner)
    return lines


def _by_name(value: Any) -> dict[str, Any]:
    """The items of a list by their names, if all are mappings that have one."""
    items = value if isinstance(value, list) else []
    if not all(isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in items):
        return {}
    return {item["name"]: item for item in items}
