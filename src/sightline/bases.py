"""A recipe that names a `base` holds only what differs from it.

    base: llava-1.5-7b               # a shipped recipe, or a file, relative to this one
    name: mine
    stages:
      instruct: {lr_by_part: {connector: 1e-4}}

Mappings are laid over the base's, key by key; every other value takes the place of the base's. Under `stages` a
mapping changes the base's stages by their names, and a list replaces them all. `name` and `out` are never taken from a
base: two recipes must not write to one folder. The keys of a recipe are checked afterwards, when all is laid together.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import SightlineError, did_you_mean
from .overrides import NOT_YAML

OWN = ("name", "out")
"""Keys that a recipe does not take from its base."""


def read_recipe(path: str | Path, shipped: Mapping[str, Path]) -> tuple[dict[str, Any], list[str]]:
    """The values of a recipe file over those of its bases, and what is wrong with how they are laid.

    Args:
        path: a file, or the name of a shipped recipe.
        shipped: the files of those.

    Raises:
        SightlineError: if a file is not there, cannot be read, holds no recipe, or is its own base.
    """
    return _read(find_recipe(path, Path(), shipped), shipped, ())


def find_recipe(name: str | Path, folder: Path, shipped: Mapping[str, Path]) -> Path:
    """The file of a recipe: the one at that place, else the shipped one of that name."""
    try:
        there = (folder / name).is_file()
    except (OSError, ValueError):  # no name that a file can have
        there = False
    return shipped[str(name)] if str(name) in shipped and not there else folder / name


def _read(file: Path, shipped: Mapping[str, Path], above: tuple[Path, ...]) -> tuple[dict[str, Any], list[str]]:
    """A file over its base. `above` are the files that name it as theirs, the first one first."""
    values = _load(file, shipped, above[-1] if above else None)
    for number, other in enumerate(above):
        if other.resolve() == file.resolve():
            circle = " -> ".join(map(str, (*above[number:], file)))
            raise SightlineError(f"{circle}: a recipe cannot be its own base. Take `base` out of one of them.")
    if "base" not in values:
        return values, []
    name = values.pop("base")
    if not isinstance(name, str):
        raise SightlineError(f"{file}: base should be a recipe's name or file (got {name!r}).")
    under, problems = _read(find_recipe(name, file.parent, shipped), shipped, (*above, file))
    under = {key: value for key, value in under.items() if key not in OWN}
    try:
        return _over_recipe(under, values, name, problems), problems
    except RecursionError:
        raise SightlineError(
            f"{file} and its base '{name}' hold themselves, so neither ends. Write them out."
        ) from None


def _load(file: Path, shipped: Mapping[str, Path], above: Path | None) -> dict[str, Any]:
    """The values of one file.

    Args:
        above: the recipe whose base it is, if it is one.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if above is None:
            what, give = "recipe not found", "Give a file, or a shipped one"
        else:
            what, give = f"{above}: its base is not there", "Name a file, relative to the recipe, or a shipped one"
        guess = did_you_mean(str(file) if above is None else file.name, shipped) or "."
        raise SightlineError(f"{what}: {file}{guess} {give}: {', '.join(shipped)}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SightlineError(f"cannot read {file}: {error}.") from None
    except NOT_YAML as error:
        raise SightlineError(f"{file} is not YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise SightlineError(f"{file} should hold a recipe: name, model and stages. It holds {type(values).__name__}.")
    return values


def _over_recipe(base: dict[str, Any], changes: dict[str, Any], name: str, problems: list[str]) -> dict[str, Any]:
    """A recipe's values over its base's. What is wrong with its changes of stages is added to `problems`."""
    changed, stages = changes.get("stages"), base.get("stages")
    if not isinstance(changed, dict):
        return _over(base, changes)
    stages = list(stages) if isinstance(stages, list) else []
    places = {_name(stage): place for place, stage in enumerate(stages)}
    names = [known for known in places if known]
    for stage, values in changed.items():
        if stage not in names:
            has = f"It has: {', '.join(names)}." if names else "It has none."
            problems.append(f"stages.{stage}: no stage of base '{name}'{did_you_mean(str(stage), names) or '.'} {has}")
        elif not isinstance(values, dict):
            problems.append(f"stages.{stage}: should hold the keys to change of this stage (got {values!r})")
        else:
            stages[places[stage]] = _over(stages[places[stage]], values)
    return _over(base, {**changes, "stages": stages})


def _name(stage: Any) -> str:
    """The name of a stage, if it is one and has one."""
    name = stage.get("name") if isinstance(stage, dict) else None
    return name if isinstance(name, str) else ""


def _over(base: Any, changes: Any) -> Any:
    """`changes` laid over `base`: mappings key by key, everything else whole."""
    if not (isinstance(base, dict) and isinstance(changes, dict)):
        return changes
    laid = dict(base)
    for key, value in changes.items():
        laid[key] = _over(base[key], value) if key in base else value
    return laid
