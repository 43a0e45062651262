"""A whole run: a recipe in, a run folder out.

recipe.yaml     the recipe, every default spelled out
run.json        versions, seed, machine, command, time
metrics.jsonl   one line for each step and each validation
stages/<name>/  the model after a stage that asks to be kept
model/          the finished model
"""

import platform
import random
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..checkpoints import load_model, save_model
from ..checkpoints.model import model_folder, read_config
from ..config import Data, Recipe, Stage, dump
from ..data.dataset import Columns, Head, Mixture, Policies, Rows
from ..data.sources import open_source
from ..data.templates import get_template
from ..errors import SightlineError
from ..files import claim_empty, write_json, write_text
from ..models.assemble import Assembly, assemble, attach_methods
from ..types import Sample
from .loop import train_stage
from .objective import Objective
from .progress import Reporter, reading_bar
from .setup import set_trainable

LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "pillow", "numpy")


def train(recipe: Recipe, *, columns: Columns | None = None, quiet: bool = False) -> Path:
    """Run every stage of a recipe and save the finished model.

    Args:
        columns: what methods have annotated, held in memory.
        quiet: say nothing on the terminal.

    Returns:
        The run folder.

    Raises:
        SightlineError: for anything wrong in the recipe, the parts or the data; before training where it can be known.
    """
    folder = recipe.run_folder
    claim_empty(folder, f"run '{recipe.name}'")
    device = pick_device(recipe.device)
    data = [read_data(stage.data) for stage in recipe.stages]
    held_out = [read_data(stage.validation) for stage in recipe.stages]

    seed_everything(recipe.seed)
    for stage in recipe.stages:
        if stage.init_from is not None:
            read_config(model_folder(stage.init_from))
    assembly = start(recipe, recipe.stages[0], None).to(device)
    for stage, sources, held in zip(recipe.stages, data, held_out, strict=True):
        if stage is recipe.stages[0] or stage.init_from is None:
            rehearse(stage, assembly, lay_out(recipe, stage, stage.data, sources, assembly, columns))
            if held:
                rows = lay_out(recipe, stage, stage.validation, held, assembly, columns, training=False)
                rehearse(stage, assembly, rows)
    began = time.time()
    write_text(folder / "recipe.yaml", dump(recipe))
    write_json(folder / "run.json", facts(recipe, device))
    with Reporter(folder / "metrics.jsonl", quiet=quiet) as reporter:
        for stage, sources, held in zip(recipe.stages, data, held_out, strict=True):
            if stage is not recipe.stages[0]:
                assembly = start(recipe, stage, assembly).to(device)
            rows = lay_out(recipe, stage, stage.data, sources, assembly, columns)
            validation = None
            if held:
                validation = lay_out(recipe, stage, stage.validation, held, assembly, columns, training=False)
            train_stage(Objective(assembly.model, stage.weights), stage, rows, validation, reporter, device=device)
            template = get_template(stage.data[0].template)
            if stage.save:
                save_model(assembly, folder / "stages" / stage.name / "model", template)
        reasons = save_model(assembly, folder / "model", get_template(recipe.stages[-1].data[0].template))
        kind = "a stock llava checkpoint" if not reasons else f"a Sightline model ({'; '.join(reasons)})"
        reporter.say(f"saved {folder / 'model'}, {kind}")
    write_json(folder / "run.json", facts(recipe, device) | {"seconds": round(time.time() - began, 1)})
    return folder


def start(recipe: Recipe, stage: Stage, current: Assembly | None) -> Assembly:
    """The model that a stage starts from."""
    if stage.init_from is not None:
        assembly = load_model(stage.init_from)
    elif current is not None:
        return current
    else:
        parts = recipe.model
        assert parts is not None, "a recipe without parts starts from a saved model"
        assembly = assemble(
            parts.vision,
            parts.language,
            connector=parts.connector,
            vision_layer=parts.vision_layer,
            vision_select=parts.vision_select,
            image_fit=parts.image_fit,
        )
    attach_methods(assembly, recipe.methods)
    return assembly


def rehearse(stage: Stage, assembly: Assembly, rows: Mixture) -> None:
    """Find what would stop a stage hours from now: its parts, its weights, the first row of each source."""
    set_trainable(assembly.model, stage)
    Objective(assembly.model, stage.weights)
    for part in rows.parts:
        for outcome in part.fetch((0, 0)):
            if isinstance(outcome, SightlineError):
                raise outcome


def read_data(sources: Sequence[Data]) -> list[Sequence[Sample]]:
    """The rows of each source of a stage's data: indexed and checked once, read when they are needed."""
    heads: list[Sequence[Sample]] = []
    for data in sources:
        with reading_bar(f"reading {data.path}") as progress:
            heads.append(Head(open_source(data.path, data.images, progress=progress), data.limit))
    return heads


def lay_out(
    recipe: Recipe,
    stage: Stage,
    data: Sequence[Data],
    sources: Sequence[Sequence[Sample]],
    assembly: Assembly,
    columns: Columns | None,
    *,
    training: bool = True,
) -> Mixture:
    """A stage's rows for this model, each source with its template, under the stage's policies."""
    policies = Policies(bad_images=stage.bad_images, long_rows=stage.long_rows)
    parts = []
    for part, samples in zip(data, sources, strict=True):
        processor = assembly.processor(
            get_template(part.template), max_length=recipe.max_length, blank_images=recipe.blank_images
        )
        rows = Rows(samples, processor, seed=recipe.seed, columns=columns, training=training, policies=policies)
        parts.append(rows)
    return Mixture(parts, [part.weight for part in data])


def pick_device(name: str) -> torch.device:
    """The device that a recipe names; `auto` takes the first accelerator, else the CPU.

    Raises:
        SightlineError: if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SightlineError(f"device '{name}' cannot be used: {reason}. Try device=auto or device=cpu.") from None
    return device


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch; before a model is built."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries that we call may draw from it)
    torch.manual_seed(seed)


def facts(recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """What a reader of the run must know to repeat it."""
    return {
        "name": recipe.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": recipe.seed,
        "command": " ".join(sys.argv),
        "versions": {"sightline": __version__, "python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
        "machine": {
            "system": platform.platform(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "threads": torch.get_num_threads(),
        },
    }
