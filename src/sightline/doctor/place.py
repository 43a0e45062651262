"""The run folder of a recipe: whether training could make it. Nothing is written to find out."""

import os
from contextlib import suppress
from pathlib import Path

from ..config import Recipe
from ..errors import SightlineError
from ..files import claim_empty
from .findings import Finding, from_error


def about_run_folder(recipe: Recipe) -> list[Finding]:
    """What would keep training from writing there."""
    folder, check = recipe.run_folder, "recipe/run-folder"
    try:
        claim_empty(folder, f"run '{recipe.name}'")
        reason = _why_not(folder)
    except SightlineError as error:
        return [from_error(error, severity="error", check=check, where=recipe.name)]
    except (OSError, ValueError) as error:  # a name that no folder can have
        reason = str(getattr(error, "strerror", None) or error)
    if not reason:
        return []
    message = f"the run folder '{folder}' cannot be made: {reason}."
    return [Finding("error", check, recipe.name, message, "Choose another place with out=FOLDER.")]


def _why_not(folder: Path) -> str:
    """Why a folder cannot be made or written to; empty if it can."""
    with suppress(FileNotFoundError, NotADirectoryError):
        folder.stat()  # of a name that no folder can have, this says why
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir():
        return f"'{there}' is a file"
    return "" if os.access(there, os.W_OK | os.X_OK) else f"'{there}' may not be written to"
