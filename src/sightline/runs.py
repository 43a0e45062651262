"""What a run folder tells of its run."""

from pathlib import Path

from .config import Recipe, load_recipe


def recipe_of(run: str | Path) -> Recipe | None:
    """The recipe of a run, by its folder, or that of a stage or a model in it; None for a folder that is in no run.

    Raises:
        SightlineError: if there is one that cannot be read.
    """
    path = Path(run)
    path = path.parent if path.name == "model" else path
    path = path.parents[1] if path.parent.name == "stages" else path
    file = path / "recipe.yaml"
    return load_recipe(file) if file.is_file() else None
