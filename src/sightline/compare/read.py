"""A plan read from its file, and the recipes of its runs."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ..config import Recipe, Record, check, load_recipe
from ..errors import SightlineError, did_you_mean
from ..overrides import NOT_YAML
from ..train.folder import flat, said
from .plan import Arm, Diagnosed, Evaluation, Outcome, Plan, Setting, Tuning


def load_plan(path: Path) -> Plan:
    """Read a plan from YAML and check its own keys.

    Raises:
        SightlineError: with every error at once, each with its place.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SightlineError(
            f"plan not found: {path}. Give a plan file, or two recipes or more to have one written: "
            "sightline compare A.yaml B.yaml --seeds 10"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SightlineError(f"cannot read {path}: {error}.") from None
    except NOT_YAML as error:
        raise SightlineError(f"{path} is not YAML: {' '.join(str(error).split())}.") from None
    if isinstance(values, dict) and "stages" in values and "arms" not in values:
        raise SightlineError(
            f"{path} is a recipe, and one alone has nothing to be compared with. Give two or more, or a plan whose "
            "`arms` name them."
        )
    if not isinstance(values, dict):
        raise SightlineError(
            f"{path} should hold a plan: name, arms, seeds, primary, smallest_effect. It holds "
            f"{type(values).__name__}. docs/compare.md has one to start from."
        )
    return parse_plan(values, str(path))


def parse_plan(values: dict[str, Any], where: str) -> Plan:
    """`values` as a plan.

    Raises:
        SightlineError: listing everything that is wrong.
    """
    try:
        return Plan.model_validate(values)
    except ValidationError as error:
        problems = [_describe(e) for e in error.errors()]
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    raise SightlineError("\n".join([f"{count} in {where}, so nothing was run:", *(f"  {line}" for line in problems)]))


def plan_hash(plan: Plan) -> str:
    """What a plan says, defaults included, as a SHA-256: comments and the order of keys do not change it."""
    return said(flat(plan.model_dump(mode="json")))


def arm_recipe(plan: Plan, arm: Arm, *, seed: int, setting: Setting, out: Path) -> Recipe:
    """The recipe of one run: the arm's, with a setting, a seed, and without the stages that it drops.

    Raises:
        SightlineError: if the recipe is not there or something is wrong with it.
    """
    try:
        values = load_recipe(arm.recipe, [*arm.overrides, *setting]).model_dump(mode="json")
        names = [stage["name"] for stage in values["stages"]]
        for name in arm.drop_stages:
            if name not in names:
                raise SightlineError(
                    f"there is no stage '{name}' to drop{did_you_mean(name, names)}. It has: {', '.join(names)}."
                )
        values["stages"] = [stage for stage in values["stages"] if stage["name"] not in arm.drop_stages]
        values |= {"name": arm.name, "seed": seed, "out": str(out)}
        if arm.blank_images == "always":
            values["blank_images"] = True
        return check(
            values, where=f"recipe '{arm.recipe}' without {arm.drop_stages}" if arm.drop_stages else arm.recipe
        )
    except SightlineError as error:
        raise SightlineError(f"arm '{arm.name}': {error}") from None


def _describe(error: Any) -> str:
    """One line for one of pydantic's errors, at its place in the file."""
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"{place}: unknown key{did_you_mean(str(error['loc'][-1]), _keys(error['loc'][:-1]))}"
    if error["type"] == "missing":
        return f"{place}: missing"
    message = error["msg"].removeprefix("Value error, ")
    given = f" (got {error['input']!r})" if isinstance(error["input"], str | int | float) else ""
    return f"{place}: {message[0].lower() + message[1:]}{given}" if place else message


def _keys(location: tuple[Any, ...]) -> list[str]:
    """The keys known at a place in a plan."""
    kinds: dict[Any, type[Record]] = {"arms": Arm, "primary": Outcome, "secondary": Outcome}
    kinds |= {"tuning": Tuning, "evaluation": Evaluation, "diagnostics": Diagnosed}
    record = next((kinds[part] for part in reversed(location) if part in kinds), Plan)
    return list(record.model_fields)
