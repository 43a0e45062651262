"""A whole run: a recipe in, a run folder out, from the start or from where an earlier process left it.

recipe.yaml     the recipe, every default spelled out
run.json        versions, seed, machine, command, time, what annotations depend on
metrics.jsonl   one line for each step and each validation
dropped.jsonl   rows that a policy left out or shortened
checkpoints/    where the run can be taken up again
stages/<name>/  the model after a stage that asks to be kept
model/          the finished model

train_only.safetensors beside it has what methods need for training alone, and trackers.json what trackers go on with.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoints import load_model, save_model
from ..checkpoints.model import model_folder, read_config
from ..checkpoints.resume import Checkpoints
from ..checkpoints.trainonly import read_train_only, save_train_only
from ..config import Recipe, Stage
from ..data.dataset import Columns, Mixture
from ..data.templates import get_template
from ..errors import SightlineError
from ..methods.base import Setting
from ..methods.compose import Methods
from ..models.adapters import check_stage, check_stages, prepare_stage
from ..models.assemble import Assembly, assemble, attach_methods
from .features import find_features
from .folder import check_annotated, fixed, held, note_annotated, note_end, note_start, open_run
from .processes import Processes, joined
from .progress import Reporter
from .rows import Sources, annotations_of, lay_out, read_data, rehearse
from .setup import set_trainable
from .signals import listening
from .stage import Desk, check_same, run_stage
from .trackers import check_trackers, open_trackers


def train(recipe: Recipe, *, columns: Columns | None = None, quiet: bool = False, resume: bool = False) -> Path:
    """Run every stage of a recipe and save the finished model.

    Under torchrun its processes share the work; a recipe means the same on any number of them.

    Args:
        columns: what methods have annotated, held in memory.
        quiet: say nothing on the terminal.
        resume: go on with the run in the recipe's folder, if there is one.

    Returns:
        The run folder.

    Raises:
        SightlineError: for anything wrong in the recipe, the parts or the data; before training where it can be known.
        Stopped: if SIGTERM or Ctrl-C asked for it; a checkpoint was written.
    """
    folder = recipe.run_folder
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(fixed_bits(recipe))
        processes = stack.enter_context(joined(recipe.device))
        if not processes.agree(lambda: open_run(recipe, resume=resume)):
            if processes.main and not quiet:
                print(f"the run in '{folder}' is finished; nothing was done", file=sys.stderr)
            return folder
        check_shares(recipe, processes)
        check_trackers(recipe.trackers)
        check_stages(recipe.stages)
        data = Data(recipe, columns, processes)
        assembly = start(recipe, recipe.stages[0], None, data.say)
        data.rehearse(assembly)

        stack.enter_context(held(folder, processes))
        if processes.main:
            note_start(recipe, processes)
        reporter = stack.enter_context(Reporter(folder, quiet=quiet, main=processes.main))
        stop = stack.enter_context(listening())
        checkpoints = Checkpoints(folder / "checkpoints", keep=recipe.keep_checkpoints, processes=processes)
        saved = processes.agree(lambda: checkpoints.latest(reporter.say)) if resume else None
        if saved is not None:
            check_same(saved, {"recipe": fixed(recipe)})
        reporter.rewind(saved.state["marks"] if saved is not None else {})
        if processes.main:
            checkpoints.sweep()
            at = (recipe.stages[saved.state["stage"]].name, saved.state["step"]) if saved is not None else None
            at = at or ((recipe.stages[0].name, 0) if resume else None)
            reporter.trackers = open_trackers(
                recipe.trackers, folder, recipe.name, recipe.model_dump(mode="json"), resume=at
            )
        processes.wait()

        desk = Desk(recipe, processes, reporter, checkpoints, stop, carried=set())
        now = saved.state["stage"] if saved is not None else 0
        for number, stage in enumerate(recipe.stages):
            if number:
                assembly = start(recipe, stage, assembly, reporter.say)
            if stage.init_from is not None:
                desk.carried.clear()
            if number < now:  # its training is in the checkpoint; what it made of the model's shape is done again
                prepare_stage(assembly, stage, seed=recipe.seed)
                set_trainable(assembly.model, stage)
                desk.carried.update(name for name, p in assembly.model.named_parameters() if p.requires_grad)
                continue
            rows, validation = data.of(number, assembly, reporter.say)
            if processes.main:
                note_annotated(folder, stage.name, data.annotated[stage.name])
            assembly = run_stage(desk, number, assembly, rows, validation, saved if number == now else None)
            if stage.save and processes.main:
                place = folder / "stages" / stage.name
                save_model(assembly, place / "model", get_template(stage.data[0].template))
                save_train_only(assembly.model, place)
        if processes.main:
            reasons = save_model(assembly, folder / "model", get_template(recipe.stages[-1].data[0].template))
            save_train_only(assembly.model, folder)
            kind = "a stock checkpoint" if not reasons else f"a Sightline model ({'; '.join(reasons)})"
            reporter.say(f"saved {folder / 'model'}, {kind}")
            note_end(folder, time.monotonic() - began)
        processes.wait()
    return folder


def start(
    recipe: Recipe, stage: Stage, current: Assembly | None, say: Callable[[str], None] = lambda text: None
) -> Assembly:
    """The model that a stage starts from; what is fresh in it depends on the recipe's seed alone."""
    if stage.init_from is None and current is not None:
        return current
    seed_everything(recipe.seed)
    if stage.init_from is not None:
        assembly = load_model(stage.init_from)
    else:
        parts = recipe.model
        assert parts is not None, "a recipe without parts starts from a saved model"
        assembly = assemble(
            parts.vision,
            parts.language,
            connector=parts.connector,
            shuffle_factor=parts.shuffle_factor,
            pooled_grid=parts.pooled_grid,
            vision_layer=parts.vision_layer,
            vision_select=parts.vision_select,
            vision_scales=parts.vision_scales,
            image_fit=parts.image_fit,
        )
    left = read_train_only(stage.init_from) if stage.init_from is not None else None
    for note in attach_methods(assembly, recipe.methods, left):
        say(f"stage '{stage.name}' starts from {stage.init_from}: {note}")
    return assembly


@dataclass
class Data:
    """The rows of all stages: read once, laid out for the model when a stage needs them."""

    recipe: Recipe
    columns: Columns | None
    processes: Processes

    def __post_init__(self) -> None:
        for stage in self.recipe.stages:
            if stage.init_from is not None:
                read_config(model_folder(stage.init_from))
        self.training: list[Sources] = [read_data(stage.data, self.say) for stage in self.recipe.stages]
        self.validation: list[Sources] = [read_data(stage.validation, self.say) for stage in self.recipe.stages]
        self.annotated: dict[str, Mapping[str, Any]] = {}
        """By stage that was laid out, what the annotations that it reads depend on."""

    def say(self, text: str) -> None:
        if self.processes.main:
            print(text, file=sys.stderr)

    def of(
        self, number: int, assembly: Assembly, say: Callable[[str], None] = lambda text: None
    ) -> tuple[Mixture, dict[str, Mixture]]:
        """A stage's rows, and its validation rows by name ("" for those without one); `say` is told where their images
        come from.

        Raises:
            SightlineError: if a method has not annotated them, or the run began with another annotation.
        """
        recipe, stage = self.recipe, self.recipe.stages[number]
        sources, held_out = self.training[number], self.validation[number]
        features = find_features(recipe, number, assembly, [*sources, *held_out], self.processes.device, say)
        setting = Setting(recipe, number, assembly, self.processes.device, [*sources, *held_out], say)
        annotations = annotations_of(setting, self.columns)
        self.annotated[stage.name] = {name: each.facts for name, each in annotations.items() if each.facts}
        check_annotated(recipe.run_folder, stage.name, self.annotated[stage.name])
        readers = [annotation.reader() for annotation in annotations.values()]
        for method in assembly.model.model.methods.all:
            method.begin(setting)
        given = {"readers": readers, "features": features}
        rows = lay_out(recipe, stage, stage.data, sources, assembly, self.columns, **given)
        sets: dict[str, Mixture] = {}
        for name in dict.fromkeys(data.name or "" for data in stage.validation):
            mine = [
                (data, part) for data, part in zip(stage.validation, held_out, strict=True) if name == (data.name or "")
            ]
            data, parts = (list(some) for some in zip(*mine, strict=True))
            sets[name] = lay_out(recipe, stage, data, parts, assembly, self.columns, training=False, **given)
        return rows, sets

    @property
    def sharded(self) -> bool:
        return self.processes.several and self.recipe.parallel == "fsdp"

    def rehearse(self, assembly: Assembly) -> None:
        """Try every stage that goes on with this model."""
        for number, stage in enumerate(self.recipe.stages):
            if number == 0 or stage.init_from is None:
                rows, validation = self.of(number, assembly)
                for mixture in (rows, *validation.values()):
                    check_stage(assembly.model, stage, self.processes.device, sharded=self.sharded)
                    rehearse(stage, assembly, mixture, world=self.processes.world)
        check_weighed(self.recipe, assembly.model.model.methods)


def check_weighed(recipe: Recipe, methods: Methods) -> None:
    """That every loss of the methods is weighed in some stage: one that is not would silently train nothing.

    Raises:
        SightlineError: naming the loss.
    """
    named = {name for stage in recipe.stages for name in stage.weights}
    for method in methods.all:
        for spec in method.needs.losses:
            if spec.name not in named:
                raise SightlineError(
                    f"method '{method.name}' has a loss '{spec.name}' that no stage weighs, so it would train nothing. "
                    f"Say where it counts: stages.0.weights={{{spec.name}: 1.0}}; 0 leaves it out."
                )


def check_shares(recipe: Recipe, processes: Processes) -> None:
    """That every process has something to do in every step.

    Raises:
        SightlineError: if a stage has fewer forward passes in a step than there are processes.
    """
    for stage in recipe.stages:
        if stage.accumulate < processes.world:
            raise SightlineError(
                f"stage '{stage.name}' has {stage.accumulate} forward passes of {stage.batch_size} rows in a step, and "
                f"there are {processes.world} processes to share them. Keep the rows of a step with smaller passes, "
                f"for example batch_size={max(1, stage.batch_size * stage.accumulate // processes.world)} "
                f"accumulate={processes.world}."
            )


@contextmanager
def fixed_bits(recipe: Recipe) -> Iterator[None]:
    """Where the recipe says `deterministic`, have torch refuse what gives other bits on each call."""
    before = torch.are_deterministic_algorithms_enabled()
    if recipe.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch; before a model is built."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (libraries that we call may draw from it)
    torch.manual_seed(seed)
