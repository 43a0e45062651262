"""What a run folder tells of its run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .config import Recipe, load_recipe


def recipe_of(run: str | Path) -> Recipe | None:
    """The recipe of a run, by its folder, or that of a stage or a model in it; None for a folder that is in no run.

    Raises:
        SightlineError: if there is one that cannot be read.
    """
    file = _folder_of(run) / "recipe.yaml"
    return load_recipe(file) if file.is_file() else None


def annotation_facts_of(run: str | Path) -> Mapping[str, Mapping[str, Any]]:
    """By stage and method, what the annotations depend on that a run was trained with; empty where it is not said."""
    return annotation_facts_in(_folder_of(run))


def annotation_facts_in(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """The same by the run's own folder."""
    stages = read_facts(folder).get("annotations")
    found = stages.items() if isinstance(stages, dict) else ()
    return {stage: methods for stage, methods in found if isinstance(methods, dict)}


def read_facts(folder: Path) -> dict[str, Any]:
    """A run folder's `run.json`; empty if there is none that can be read."""
    try:
        known = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _folder_of(run: str | Path) -> Path:
    path = Path(run)
    inner = path.parent if path.name == "model" else path
    outer = inner.parents[1] if inner.parent.name == "stages" else inner
    return next((folder for folder in (path, inner) if (folder / "recipe.yaml").is_file()), outer)
