"""The run folder: whose run it is, whether it may go on, and what `run.json` says of it."""

import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from .. import __version__
from ..config import Recipe, dump
from ..errors import SightlineError
from ..files import claim_empty, write_json, write_text
from ..runs import annotation_facts_in, read_facts
from .processes import Processes

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "pillow", "numpy")
FREE = {"device", "out", "parallel", "keep_checkpoints", "trackers", "annotations"}
"""Keys of a recipe that may change when a run is taken up again: they do not change what it computes."""
FREE_IN_STAGE = {"workers", "save_every", "validate_every", "non_finite", "bad_images", "long_rows"}
"""Of a stage: how, and what becomes of rows and steps that would otherwise stop it."""


def open_run(recipe: Recipe, *, resume: bool) -> bool:
    """Whether there is something to do in a recipe's run folder: False if its run is finished.

    Raises:
        SightlineError: if the folder holds something else than an unfinished run of this recipe, or one that was not
            asked to go on.
    """
    folder = recipe.run_folder
    ours = (folder / "recipe.yaml").is_file()
    finished = ours and "seconds" in read_facts(folder)
    if not resume:
        if ours and not finished:
            raise SightlineError(
                f"'{folder}' holds a run that is not finished, so nothing was done. Go on with it: "
                f"{how_to_go_on(folder)}. Or name another folder with out=..., or remove this one: rm -r '{folder}'"
            )
        claim(recipe)
    elif not ours:
        claim(recipe)
    elif changed := differences(recipe, folder / "recipe.yaml"):
        lines = "\n".join(f"  {line}" for line in changed)
        raise SightlineError(
            f"the run in '{folder}' was begun with another recipe, so it cannot go on with this one:\n{lines}\n"
            f"Go on as it was: {how_to_go_on(folder)}. Or start in another folder with out=..."
        )
    return not finished


def claim(recipe: Recipe) -> None:
    """Refuse a run folder with something in it; what a run leaves that was killed as it began is nothing."""
    folder = recipe.run_folder
    begun = [*folder.glob(".lock"), *folder.glob(".recipe.yaml.*")] if folder.is_dir() else []
    if not begun or len(begun) < len(list(folder.iterdir())):
        claim_empty(folder, f"run '{recipe.name}'")


def check_place(file: Path, recipe: Recipe) -> None:
    """That a recipe that is taken up again from its run folder names that folder: moved or copied, it names another.

    Raises:
        SightlineError: saying where it is, and how to go on there.
    """
    here = file.parent
    if file.name == "recipe.yaml" and (here / "run.json").is_file() and here.resolve() != recipe.run_folder.resolve():
        on = f"{how_to_go_on(here)} {shlex.quote(f'out={here}')}"
        raise SightlineError(
            f"'{file}' lies in a run folder, and its run is to be in '{recipe.run_folder}': the folder was moved or "
            f"copied, or is named from another place. To go on with it: {on}"
        )


def differences(recipe: Recipe, begun: Path) -> list[str]:
    """What a recipe changes of the one that a run was begun with, as `key: then, now`; keys that are free apart."""
    try:
        then = yaml.safe_load(begun.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise SightlineError(f"cannot read {begun}: {error}. The run cannot go on without it.") from None
    was, now = flat(then), flat(yaml.safe_load(dump(recipe)))
    keys = [key for key in dict.fromkeys([*was, *now]) if was.get(key) != now.get(key) and not is_free(key)]
    return [f"{key}: {was.get(key)} then, {now.get(key)} now" for key in keys]


def fixed(recipe: Recipe) -> str:
    """A hash of what may not change between the parts of a run: whose a checkpoint is."""
    return said({key: value for key, value in flat(yaml.safe_load(dump(recipe))).items() if not is_free(key)})


def said(keys: Mapping[str, Any]) -> str:
    """A hash of dotted keys that say something. What is null, false or empty says nothing, so that a key that a later
    version adds does not make what was begun another thing."""
    kept = {key: value for key, value in keys.items() if value is not None and value is not False and value != []}
    return hashlib.sha256(json.dumps({k: v for k, v in kept.items() if v != {}}, sort_keys=True).encode()).hexdigest()


def is_free(key: str) -> bool:
    """Whether a dotted key may change between the parts of a run."""
    first, _, rest = key.partition(".")
    if key.endswith(".about_rows"):  # the dry run's alone
        return True
    return first in FREE or (first == "stages" and rest.partition(".")[2].partition(".")[0] in FREE_IN_STAGE)


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {place: value}
    inner = [flat(part, f"{place}.{key}" if place else str(key)) for key, part in items]
    return {key: part for parts in inner for key, part in parts.items()} or {place: value}


def how_to_go_on(folder: Path) -> str:
    """The command that takes a run up again, on as many processes as now."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    start = f"torchrun --nproc-per-node {world} -m sightline" if world > 1 else "sightline"
    return f"{start} train {shlex.quote(str(folder / 'recipe.yaml'))} --resume"


@contextmanager
def held(folder: Path, processes: Processes) -> Iterator[None]:
    """Keep other runs out of the folder while this one writes to it. The lock goes with the process, however it ends.

    Raises:
        SightlineError: if another process has it.
    """
    if not processes.main:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SightlineError(
                f"another process is training in '{folder}'. Stop it, or name another folder."
            ) from None
        for leftover in [*folder.glob(".model.*"), *folder.glob("stages/*/.model.*")]:  # of one killed while it saved
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in folder.glob(".*.[0-9]*"):
            leftover.unlink(missing_ok=True)
        yield
    (folder / ".lock").unlink(missing_ok=True)


def note_start(recipe: Recipe, processes: Processes) -> None:
    """Write `recipe.yaml` and `run.json`; a run that goes on keeps its first facts and notes when it was taken up."""
    folder = recipe.run_folder
    known = read_facts(folder)
    now = facts(recipe, processes)
    if known:
        again = {key: now[key] for key in ("created", "command", "versions", "machine")}
        now = known | {"resumed": [*known.get("resumed", []), again]}
    write_text(folder / "recipe.yaml", dump(recipe))
    write_json(folder / "run.json", now)


def check_annotated(folder: Path, stage: str, annotated: Mapping[str, Any]) -> None:
    """That a stage goes on with the annotations that it began with.

    Args:
        annotated: by method, what its annotation depends on, as far as that is known.

    Raises:
        SightlineError: naming the method, and what is another.
    """
    for method, began in annotation_facts_in(folder).get(stage, {}).items():
        was, now = flat(began), flat(annotated.get(method, {}))
        both = [key for key in now if key in was and not key.rpartition(".")[2].startswith("_")]  # of who saved it
        if changed := [key for key in both if was[key] != now[key]]:
            lines = "\n".join(f"  {key}: {was[key]} then, {now[key]} now" for key in changed)
            raise SightlineError(
                f"stage '{stage}' of the run in '{folder}' began with another annotation of method '{method}', so to "
                f"go on would mix the two. It is made of other things now:\n{lines}\nRestore what was there, or start "
                "in another folder with out=..."
            )


def note_annotated(folder: Path, stage: str, annotated: Mapping[str, Any]) -> None:
    """Say in `run.json` what the annotations of a stage depend on."""
    known = read_facts(folder)
    write_json(folder / "run.json", known | {"annotations": known.get("annotations", {}) | {stage: annotated}})


def note_end(folder: Path, seconds: float) -> None:
    """Say in `run.json` that the run is finished, and how long this last part of it took."""
    write_json(folder / "run.json", read_facts(folder) | {"seconds": round(seconds, 1)})


@cache
def source() -> str:
    """The beginning of a hash over Sightline's own source: a version number says little while it is being changed."""
    package = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *package.rglob("*.yaml")]):
        found.update(path.relative_to(package).as_posix().encode() + b"\n" + path.read_bytes())
    return found.hexdigest()[:12]


def facts(recipe: Recipe, processes: Processes) -> dict[str, Any]:
    """What a reader of the run must know to repeat it."""
    device = processes.device
    return {
        "name": recipe.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": recipe.seed,
        "command": " ".join(sys.argv),
        "versions": {"sightline": __version__, "source": source(), "python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
        "machine": {
            "system": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": processes.world,
            "threads": torch.get_num_threads(),
        },
    }
