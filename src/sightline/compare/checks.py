"""What a plan names, looked at before anything runs: recipes that can be built, question files that are kept apart."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Recipe
from ..data.images import image_folder
from ..errors import SightlineError, did_you_mean
from ..evaluation.questions import Question, read_questions
from ..models.backbones import resolve
from ..train.folder import fixed
from .diagnosed import check_diagnosed
from .plan import Outcome, Plan, Tuning
from .read import arm_recipe


@dataclass(frozen=True)
class Material:
    """What a plan's runs are made of, by hashes: another one is another comparison."""

    recipes: dict[str, list[str]]
    """Of each arm's recipe under each setting, seed and folder apart."""
    questions: dict[str, str]
    """Of each question file's bytes, by its name."""
    files: dict[str, str]
    """Of the files with rows, and of the parts' weights where they are in local folders, by the names in recipes."""


def check_plan(plan: Plan) -> Material:
    """Read every recipe and question file of a plan.

    Raises:
        SightlineError: for recipes or files that cannot be used, tuning on the claim's questions, or arms that would
            get less tuning than others.
    """
    recipes = {arm.name: _recipes(plan, arm.name) for arm in plan.arms}
    files: dict[str, Path] = {}
    for outcome in [*plan.outcomes, *([plan.tuning] if plan.tuning else [])]:
        path = Path(outcome.questions)
        if files.setdefault(path.name, path).resolve() != path.resolve():
            raise SightlineError(
                f"two question files are called {path.name}: {files[path.name]} and {path}. Rows tell them apart by "
                "name; rename one."
            )
    asked = [_read(outcome) for outcome in plan.outcomes]
    for outcome, questions in zip(plan.outcomes, asked, strict=True):
        abilities = sorted({question.ability for question in questions})
        _check_ability(outcome.ability, abilities, outcome.questions)
        for name, variants in recipes.items():
            _check_not_trained_on(outcome, name, variants[0])
    if _split_of(plan.primary.questions) in ("train", "validation"):
        raise SightlineError(
            f"the primary outcome is on {plan.primary.questions}, and a claim is about `{plan.split}`. Name the "
            f"questions of `{plan.split}`."
        )
    if plan.tuning is not None:
        _check_tuning(plan, plan.tuning, asked)
    variants = [recipe for several in recipes.values() for recipe in several]
    named = _trained_on(variants)
    if plan.diagnostics is not None:
        check_diagnosed(plan.diagnostics, {arm: several[0] for arm, several in recipes.items()})
        data = Path(plan.diagnostics.data)
        named.add(str(data / "world.json" if data.is_dir() else data))
    return Material(
        {name: [fixed(recipe) for recipe in several] for name, several in recipes.items()},
        {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in sorted(files.items())},
        {name: found for name in sorted(named) if (found := _digest(name)) is not None},
    )


def _trained_on(recipes: Sequence[Recipe]) -> set[str]:
    """What the recipes name that runs are made of: rows, parts, models to start from."""
    stages = [stage for recipe in recipes for stage in recipe.stages]
    named = {data.path for stage in stages for data in [*stage.data, *stage.validation]}
    named |= {stage.init_from for stage in stages if stage.init_from is not None}
    return named | {part for recipe in recipes if (parts := recipe.model) for part in (parts.vision, parts.language)}


def _digest(name: str) -> str | None:
    """A hash of a file, or of the weights in a folder; None for what is not on this disk, and for a folder of rows."""
    path = Path(resolve(name)) if name.startswith("world:") else Path(name).expanduser()
    paths = [path] if path.is_file() else sorted(path.rglob("*.safetensors")) if path.is_dir() else []
    found = hashlib.sha256()
    for each in paths:
        with each.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest() if paths else None


def _recipes(plan: Plan, name: str) -> list[Recipe]:
    """An arm's recipe under each of its settings, which must all be different runs."""
    arm = plan.arm(name)
    variants = [arm_recipe(plan, arm, seed=0, setting=setting, out=Path("out")) for setting in plan.settings_of(arm)]
    for number, recipe in enumerate(variants):
        if recipe in variants[:number]:
            raise SightlineError(
                f"arm '{name}': settings {variants.index(recipe)} and {number} give the same recipe (what they change "
                "may be in a stage that it drops), so it would be tuned less than others. Give it `settings` of its "
                "own that differ."
            )
    return variants


def _read(outcome: Outcome | Tuning) -> list[Question]:
    path = Path(outcome.questions)
    given = Path(outcome.images) if outcome.images else None
    if not path.is_file():
        raise SightlineError(
            f"question file not found: {path}, so nothing could be scored. Name one that is there; paths are relative "
            "to where you are."
        )
    return read_questions(path, image_folder(path, given))


def _check_ability(ability: str | None, known: Sequence[str], where: str) -> None:
    if ability is not None and ability not in known:
        raise SightlineError(
            f"no question of {where} is of ability '{ability}'{did_you_mean(ability, known)}. It has: "
            f"{', '.join(known)}."
        )


def _check_not_trained_on(outcome: Outcome, arm: str, recipe: Recipe) -> None:
    file = Path(outcome.questions).resolve()
    for stage in recipe.stages:
        if any(Path(data.path).resolve() == file for data in [*stage.data, *stage.validation]):
            raise SightlineError(
                f"arm '{arm}' reads {outcome.questions} in stage '{stage.name}', and the claim is about it. Train and "
                "validate on other rows."
            )


def _check_tuning(plan: Plan, tuning: Tuning, asked: Sequence[Sequence[Question]]) -> None:
    """That settings are not chosen on what the claim is about."""
    apart = "its score would have been chosen for being high. Tune on the questions of `validation`"
    if _split_of(tuning.questions) == plan.split:
        raise SightlineError(f"the plan tunes on {tuning.questions}, the split of the claim: {apart}.")
    questions = _read(tuning)
    _check_ability(plan.primary.ability, sorted({q.ability for q in questions}), tuning.questions)
    tuned_on = {_what(question) for question in questions}
    for outcome, others in zip(plan.outcomes, asked, strict=True):
        shared = {_what(question) for question in others} & tuned_on
        if shared:
            raise SightlineError(
                f"{tuning.questions} and {outcome.questions} share {len(shared)} pictures or questions: {apart}, "
                "which share none with it."
            )


def _what(question: Question) -> object:
    """What a question is about: its pictures; a question without any is its own text and answers."""
    return tuple(path.resolve() for path in question.images) or (question.text, question.answers)


def _split_of(path: str) -> str:
    """The split that a file's name says: `test` of `data/test.questions.jsonl`."""
    return Path(path).name.partition(".")[0].lower()
