"""`sightline annotate`: what does not change while a recipe trains, computed once for its stages.

With `--method`: what a method annotates. With `--features`: what a frozen tower gives for every image. The batch is
the stage's then, so that in training a batch of as many views sees the very same bits.
"""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from ..annotate.images import ImageJob, ImageWork, run_images
from ..config import Recipe, Stage
from ..data.templates import get_template
from ..errors import SightlineError, did_you_mean
from ..methods.base import Setting
from ..methods.compose import METHODS
from ..models.assemble import Assembly
from ..types import Sample
from .features import as_held, depends_on, store_folder, why_no_features
from .processes import pick_device
from .rows import read_data
from .run import start
from .step import autocast

EVERY = "all"
"""In place of a method's name."""


def annotate_features(recipe: Recipe, *, console: Console | None = None) -> list[Path]:
    """Compute what is missing of the features that the stages of a recipe can read.

    Under torchrun the processes share the shards; each writes those whose number is its rank, modulo their count.

    Returns:
        The folders in which all of it is, or will be once the other processes are done.

    Raises:
        SightlineError: if no stage can read features, the disk has too little room, or an image cannot be decoded and
            its stage's `bad_images` is `raise`.
        KeyboardInterrupt: having said how to go on.
    """
    say = sayer(console)
    jobs = plan_jobs(recipe, own_device(recipe), say)
    if not jobs:
        raise SightlineError("no stage of this recipe can read features, so there is nothing to compute.")
    for folder, job in jobs.items():
        run_images(folder, job, say)
    return list(jobs)


def annotate_method(recipe: Recipe, name: str, *, report: bool = False, console: Console | None = None) -> list[Path]:
    """Compute what is missing of a method's annotations, for the stages that read them.

    Args:
        name: of a method; `all` for every one that annotates something.
        report: say and show what was computed, too.

    Returns:
        The folders in which all of it is, or will be once the other processes are done; and the files of the report.

    Raises:
        SightlineError: if the recipe has no such method, or no stage reads what it annotates; and for what stops it.
        KeyboardInterrupt: having said how to go on.
    """
    say, device = sayer(console), own_device(recipe)
    folders: list[Path] = []
    found = False
    assembly: Assembly | None = None
    for number, stage in enumerate(recipe.stages):
        assembly = start(recipe, stage, assembly)
        methods = assembly.model.model.methods
        if name != EVERY and name not in methods:
            have = ", ".join(method.name for method in methods.all) or "none"
            add = f" Add it: methods=[{{name: {name}}}]" if name in METHODS else ""
            raise SightlineError(
                f"the recipe has no method '{name}'{did_you_mean(name, methods) or '.'} It has: {have}.{add}"
            )
        read = set(methods.columns(stage).values())
        for method in methods.all:
            if method.name not in read or name not in (EVERY, method.name):
                continue
            sources = [*read_data(stage.data, say), *read_data(stage.validation, say)]
            annotation = method.annotation(Setting(recipe, number, assembly, device, sources, say))
            if annotation is None:
                continue
            found = True
            if (folder := annotation.compute()) is not None and folder not in folders:
                folders.append(folder)
                if report:
                    text, files = annotation.report()
                    say(text)
                    folders += files
    if not found and name == EVERY:
        raise SightlineError("no stage of this recipe reads what a method annotates, so there is nothing to compute.")
    if not found:
        raise SightlineError(
            f"no stage of this recipe reads what '{name}' annotates, so there is nothing to compute. Weigh its loss in "
            "a stage: stages.0.weights={...}; if one does, the method's options say that nothing is stored."
        )
    return folders


def plan_jobs(recipe: Recipe, device: torch.device, say: Callable[[str], None]) -> dict[Path, ImageJob]:
    """What to compute, by the folder that it goes to; what cannot be is said."""
    jobs: dict[Path, ImageJob] = {}
    assembly: Assembly | None = None
    for number, stage in enumerate(recipe.stages):
        assembly = start(recipe, stage, assembly)
        reason = why_no_features(recipe, number, assembly)
        if reason is not None:
            say(f"stage {stage.name}: no features, {reason}")
            continue
        facts = depends_on(assembly, recipe, number, device)
        folder = store_folder(recipe, facts)
        if folder not in jobs:
            tower = copy.deepcopy(assembly.model.model.vision_tower).requires_grad_(False).eval()
            for parameter in tower.parameters():
                parameter.data = as_held(recipe, number, parameter)
            jobs[folder] = ImageJob(TowerFeatures(assembly, tower, stage, facts, device))
        sources = [*read_data(stage.data, say), *read_data(stage.validation, say)]
        jobs[folder].add(stage.name, sources, skip=stage.bad_images == "skip")
    return jobs


class TowerFeatures(ImageWork):
    """The tower of a stage, on its device and in its precision, as training would run it."""

    noun = "features"

    def __init__(
        self, assembly: Assembly, tower: nn.Module, stage: Stage, facts: dict[str, Any], device: torch.device
    ) -> None:
        """
        Args:
            tower: a copy of the model's, its weights as the stage holds them.
        """
        self.tower, self.stage, self.facts, self.device = tower, stage, facts, device
        self.model = assembly.model.model
        self.processor = assembly.processor(get_template(stage.data[0].template))
        self.batch = stage.batch_size

    def provenance(self) -> dict[str, Any]:
        probe = self.encode(self.views(Image.new("RGB", (8, 8)), ""))["patches"]
        return {
            "what": "what a frozen vision tower gives for the views of an image, as training would see it",
            "keys": "sha256 of the image's bytes, as its file or the file that embeds it has them",
            "values": "patches: [views, patches, width]; size: [views, 2], the image's width and height; of an image "
            "that cannot be decoded, none",
            "patches": probe.shape[1],
            "width": probe.shape[2],
            "dtype": str(probe.dtype).removeprefix("torch."),
            "batch": self.batch,
            "depends_on": self.facts,
        }

    def num_views(self, image: Image.Image) -> int:
        return self.processor.methods.views.count(image.size, self.processor.frame.side)

    def views(self, image: Image.Image, key: str, sample: Sample | None = None) -> dict[str, Tensor]:
        pixels = self.processor.pixels(self.processor.cut(image))
        return {"pixels": pixels, "size": torch.tensor([image.size] * len(pixels), dtype=torch.int32)}

    @torch.no_grad()
    def encode(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        self.model.vision_tower = self.tower.to(self.device)
        with autocast(self.stage, self.device):
            return {"patches": self.model.encode(views["pixels"].to(self.device)).cpu(), "size": views["size"]}


def own_device(recipe: Recipe) -> torch.device:
    """The recipe's device; under torchrun, each process its own GPU."""
    device = pick_device(recipe.device)
    local = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(local)) if device.type == "cuda" and device.index is None and local else device


def sayer(console: Console | None) -> Callable[[str], None]:
    """What says a line to the user; on stderr by default."""
    console = console if console is not None else Console(stderr=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    return say
