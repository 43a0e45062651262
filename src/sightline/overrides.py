"""Changes to a recipe from the command line: `stages.0.lr=2e-3`, put into the values before they are checked."""

from typing import Any

import yaml

NOT_YAML = (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError)
"""What PyYAML raises: its own error, and for values that do not fit their tag (`!!int ''`) whatever comes."""


def apply_override(values: Any, text: str) -> str | None:
    """Put `a.0.b=value` into nested values, the value read as YAML. Returns what is wrong with it, if anything.

    Numbers such as `2e-3`, which YAML takes for text, are taken for numbers.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key:
        return f"{text}: an override is written key=value, for example stages.0.lr=2e-3"
    try:
        value = yaml.safe_load(raw)
    except NOT_YAML:
        return f"{key}: the value '{raw}' is not YAML"
    *path, last = key.split(".")
    place = values
    for depth, step in enumerate(path):
        so_far = ".".join(path[: depth + 1])
        if isinstance(place, list):
            if not _numbers(step, place):
                return f"{so_far}: there are {len(place)} here, numbered from 0"
            place = place[int(step)]
        elif isinstance(place, dict):
            if place.get(step) is None:
                place[step] = {}
            place = place[step]
        else:
            return f"{so_far}: has no parts of its own"
    if isinstance(place, list):
        if not _numbers(last, place):
            return f"{key}: there are {len(place)} here, numbered from 0"
        place[int(last)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        return f"{key}: '{'.'.join(path)}' has no parts of its own"
    return None


def _numbers(step: str, place: list[Any]) -> bool:
    """Whether a step of a key is the number of something in a list."""
    return step.isdecimal() and len(step) < 10 and int(step) < len(place)
