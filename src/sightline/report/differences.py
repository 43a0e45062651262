"""Where the recipes of runs differ, and mappings as lines."""

from collections.abc import Collection, Mapping
from typing import Any

import yaml

from ..overrides import NOT_YAML

LEFT_OUT = ("name", "out", "annotations")
"""Keys that say where a run lies, not what it does."""


def differences(recipes: Mapping[str, str]) -> list[tuple[str, list[str | None]]]:
    """Each key whose value differs among recipes, with every recipe's value; None where it has none.

    A stage or a method that not all of them have is one line.

    Args:
        recipes: YAML by the name of the run; what cannot be read has nothing.
    """
    read = [_read(text) for text in recipes.values()]
    parts = {key for recipe in read for key in _parts(recipe)}
    partial = {key for key in parts if not all(key in _parts(recipe) for recipe in read)}
    lines = [_lines(recipe, partial) for recipe in read]
    keys = dict.fromkeys(key for found in lines for key in found)
    table = [(key, [found.get(key) for found in lines]) for key in keys]
    return [(key, values) for key, values in table if len(set(values)) > 1]


def _read(text: str) -> Mapping[str, Any]:
    try:
        recipe = yaml.safe_load(text)
    except NOT_YAML:
        return {}
    return recipe if isinstance(recipe, Mapping) else {}


def _parts(recipe: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Its stages and methods, by their places."""
    return {
        f"{kind}.{name}": part for kind in ("stages", "methods") for name, part in _by_name(recipe.get(kind)).items()
    }


def _lines(recipe: Mapping[str, Any], partial: Collection[str]) -> dict[str, str]:
    whole = {key: _in_a_line(part) for key, part in _parts(recipe).items() if key in partial}
    rest = {
        key: value
        for key, value in flat(recipe).items()
        if key.split(".")[0] not in LEFT_OUT and ".".join(key.split(".")[:2]) not in partial and value != "[]"
    }
    return rest | whole


def _in_a_line(part: Mapping[str, Any]) -> str:
    """What a stage or a method says, but for what says nothing."""
    said = {key: value for key, value in flat(part).items() if key != "name" and value not in ("None", "False", "[]")}
    return ", ".join(f"{key}: {value}" for key, value in said.items()) or "as it is"


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
