"""What `sightline diagnose` says of the models of a comparison: whether a method did to the tokens what it is for.

A manipulation check, beside the outcomes and never in their place: each score after each stage that the plan names and
at the end of the run, means over seeds, and differences paired by seed.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..config import Recipe
from ..diagnostics import Part
from ..diagnostics.telling import telling
from ..errors import SightlineError, did_you_mean
from ..methods.base import Sizes
from ..methods.compose import build_methods
from .plan import Diagnosed, Plan
from .statistics import Interval, level_of, mean_interval, paired_interval

SAID = ("value", "low", "high")


@dataclass(frozen=True)
class ScoreResult:
    """One diagnostic score after one stage: arms over their seeds, and pairs."""

    score: str
    stage: str
    arms: Mapping[str, Interval]
    """Of arms that have the stage."""
    pairs: Mapping[tuple[str, str], Interval]
    """a minus b, 95% each."""


def check_diagnosed(wanted: Diagnosed, recipes: Mapping[str, Recipe]) -> None:
    """That what a plan wants diagnosed can be.

    Args:
        recipes: by arm.

    Raises:
        SightlineError: for material, scores or stages that there are not, and stages whose model is not kept.
    """
    if not Path(wanted.data).exists():
        raise SightlineError(
            f"diagnostics.data: '{wanted.data}' is not there, so no model could be looked at. Name a world folder or "
            "captions; paths are relative to where you are."
        )
    for score in wanted.scores:
        part = score.partition("/")[0]
        if part not in list(Part):
            near = did_you_mean(part, list(Part)) or "."
            raise SightlineError(f"diagnostics.scores: no part '{part}' is measured{near} There are {', '.join(Part)}.")
        if not any(is_of(score, recipe) for recipe in recipes.values()):
            raise SightlineError(
                f"diagnostics.scores: '{score}' is of models with such levels, a gate, or cognition, and no arm has "
                "it, so it could not be measured. Take it out, or compare an arm with AlignGPT or VLSA's cognition."
            )
    known = [stage.name for recipe in recipes.values() for stage in recipe.stages]
    for name in wanted.stages:
        if name not in known:
            raise SightlineError(f"diagnostics.stages: no arm has a stage '{name}'{did_you_mean(name, known) or '.'}")
        for arm, recipe in recipes.items():
            if any(stage.name == name and not stage.save for stage in recipe.stages[:-1]):
                raise SightlineError(
                    f"diagnostics.stages: arm '{arm}' does not keep its model after stage '{name}', so it could not "
                    "be looked at. Say save: true in that stage."
                )


def is_of(score: str, recipe: Recipe) -> bool:
    """Whether a recipe's model has what a score is of; levels, a gate over them, and cognition not every model has."""
    if score.startswith(f"{Part.cognition}/"):
        return telling(recipe) is not None
    gate = score.startswith(f"{Part.gate}/")
    if not gate and not score.startswith((f"{Part.levels}/", f"{Part.captions}/level/")):
        return True
    with torch.device("meta"):
        levelled = build_methods(recipe.methods, Sizes(d_vision=8, d_llm=8, patches=16, tokens=16)).levelled
    if levelled is None or (gate and not levelled.has_gate):
        return False
    named = [int(name) for name in score.split("/") if name.isascii() and name.isdecimal()]
    return all(1 <= number <= len(levelled.vectors_of_levels) - gate for number in named)


def diagnose_run(
    wanted: Diagnosed, recipe: Recipe, run: Path, command: Callable[..., None]
) -> dict[str, dict[str, dict[str, float]]]:
    """The scores of a trained run by stage: those that its model has.

    Args:
        command: runs `sightline` with some arguments, and raises where that goes wrong.

    Raises:
        SightlineError: if a score was not measured.
    """
    last, folder = recipe.stages[-1], run / "diagnosed"
    asked = [score for score in wanted.scores if is_of(score, recipe)]
    if not asked:
        return {}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    kept = [stage.name for stage in recipe.stages[:-1] if stage.name in wanted.stages]
    found = {}
    for name, model in [*((name, run / "stages" / name / "model") for name in kept), (last.name, run)]:
        out = folder / f"{name}.json"
        options = ["--split", wanted.split, "--most", str(wanted.images), "--device", recipe.device]
        for part in sorted({score.partition("/")[0] for score in asked}):
            options += ["--only", part]
        options += ["--template", last.data[0].template]
        command("diagnose", str(model), "--data", wanted.data, "--out", str(out), *options)
        scores = json.loads(out.read_text(encoding="utf-8"))["scores"]
        for score in asked:
            if score not in scores:
                raise SightlineError(
                    f"no score '{score}' was measured{did_you_mean(score, list(scores)) or '.'} "
                    f"There are {', '.join(scores)}."
                )
        found[name] = {score: {key: scores[score][key] for key in SAID} for score in asked}
    return found


def scores_of(plan: Plan, rows: Sequence[Mapping[str, Any]]) -> tuple[ScoreResult, ...]:
    """What the rows of the claim say, in the order of the plan's scores and of the stages."""
    if plan.diagnostics is None:
        return ()
    seen: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    stages = dict.fromkeys(name for row in rows for name in row.get("diagnosed", {}))
    for row in rows:
        for stage, scores in row.get("diagnosed", {}).items():
            for score, estimate in scores.items():
                arms = seen.setdefault((score, stage), {})
                arms.setdefault(row["arm"], {})[row["seed"]] = estimate["value"]
    return tuple(
        _result(plan, score, stage, seen[score, stage])
        for score in plan.diagnostics.scores
        for stage in stages
        if (score, stage) in seen
    )


def _result(plan: Plan, score: str, stage: str, by_arm: Mapping[str, Mapping[int, float]]) -> ScoreResult:
    arms = {arm.name: mean_interval([*by_arm[arm.name].values()]) for arm in plan.arms if arm.name in by_arm}
    pairs = {}
    for a, b in plan.compared:
        first, second = by_arm.get(a, {}), by_arm.get(b, {})
        seeds = [seed for seed in plan.seeds if seed in first and seed in second]
        if seeds:
            pairs[a, b] = paired_interval(
                [first[seed] for seed in seeds], [second[seed] for seed in seeds], level_of(1)
            )
    return ScoreResult(score, stage, arms, pairs)
