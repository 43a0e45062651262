"""`sightline annotate --features`: what a frozen tower gives for every image of a recipe, computed once.

Images are taken in the order in which the stages' rows first name them, each once however often it occurs. Shards and
the batches within them have fixed boundaries, and every batch has the same size (the last one of a shard is filled with
black views), so that a run that was killed, or several processes under torchrun, write the same bytes as one that was
not. The batch is the stage's, so that in training a batch of as many views sees the very same bits.
"""

import copy
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from ..config import Recipe, Stage
from ..data.features import image_bytes, image_key, image_name
from ..data.images import load_image
from ..data.sources.base import EmbeddedImage
from ..data.store import Shard, Store
from ..data.templates import get_template
from ..errors import ImageError, SightlineError
from ..files import write_json
from ..models.assemble import Assembly
from ..types import ImageSource, Sample
from .features import as_held, depends_on, images_of, store_folder, why_no_features
from .loop import autocast
from .processes import pick_device
from .progress import reading_bar
from .rows import read_data
from .run import start

SHARD_BYTES = 64 * 2**20
SHARD_ROWS = 4096
"""A shard has at most so many bytes, and images."""


@dataclass
class Job:
    """The features of one tower and preprocess, for one or several stages."""

    assembly: Assembly
    tower: nn.Module
    """A copy of the tower, its weights as the stage holds them."""
    stage: Stage
    facts: dict[str, Any]
    sources: list[Sequence[Sample]] = field(default_factory=list)
    skips: list[bool] = field(default_factory=list)
    """For each source, whether its stage skips images that cannot be read."""
    names: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The job's stages."""
        return f"stage{'s' if len(self.names) > 1 else ''} {', '.join(self.names)}"

    def image(self, place: tuple[int, int, int]) -> ImageSource:
        """The image at a place: source, row, number in the row."""
        source, row, number = place
        return self.sources[source][row].images[number]

    def refuse(self, place: tuple[int, int, int], error: ImageError) -> None:
        """Raise the error of an image with the row it is in, unless its stage skips such rows."""
        if not self.skips[place[0]]:
            sample = self.sources[place[0]][place[1]]
            raise SightlineError(f"sample '{sample.id}' ({sample.source}): {error} Or say bad_images=skip.")


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
    console = console if console is not None else Console(stderr=True)
    device = own_device(recipe)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    jobs = plan_jobs(recipe, device, say)
    if not jobs:
        raise SightlineError("no stage of this recipe can read features, so there is nothing to compute.")
    for folder, job in jobs.items():
        try:
            run_job(folder, job, device, say)
        except KeyboardInterrupt:
            say(f"\nstopped. The shards that are in {folder} stay; the same command goes on behind them")
            raise
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise SightlineError(
                f"the disk is full. The shards that are in {folder} stay; make room, and the same command goes on."
            ) from None
    return list(jobs)


def plan_jobs(recipe: Recipe, device: torch.device, say: Callable[[str], None]) -> dict[Path, Job]:
    """What to compute, by the folder that it goes to; what cannot be is said."""
    jobs: dict[Path, Job] = {}
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
            jobs[folder] = Job(assembly, tower, stage, facts)
        job = jobs[folder]
        for source in (*read_data(stage.data, say), *read_data(stage.validation, say)):
            job.sources.append(source)
            job.skips.append(stage.bad_images == "skip")
        job.names.append(stage.name)
    return jobs


def run_job(folder: Path, job: Job, device: torch.device, say: Callable[[str], None]) -> None:
    """Compute the shards of a folder that are missing, damaged or new, and that are this process's."""
    rank, world = int(os.environ.get("RANK", "0")), world_size()
    tower = Tower(job, device)
    about = folder / "provenance.json"
    if about.is_file():
        tower.batch = int(json.loads(about.read_text(encoding="utf-8"))["batch"])
    places = unique_images(job, say)
    if not places:
        raise SightlineError(f"the rows of stage '{job.names[0]}' have no images, so there are no features of them.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(about, tower.provenance())
    store = Store(folder)
    with reading_bar(f"verifying {folder}") as progress:
        for path in store.damaged(progress=progress):
            say(f"{path} is damaged and is computed again")
            path.unlink(missing_ok=True)
    store.refresh()
    mine = [shard for shard in store.missing() if all(key in places for key in shard.keys)]
    covered = {key for shard in mine for key in shard.keys}
    new = [key for key in places if key not in store and key not in covered]
    missing = len(covered) + len(new)
    if not missing:
        say(f"{job.title}: nothing to do, the features of all {len(places):,} images are in {folder}")
        return
    views = tower.num_views(job.image(next(iter(places.values()))))
    each, free = views * tower.view_bytes, shutil.disk_usage(folder).free
    say(
        f"{job.title}: features of {missing:,} images, {size(each)} each, take {size(missing * each)} in {folder}; "
        f"{size(free)} are free"
    )
    if missing * each > free:
        raise SightlineError(
            f"{folder} needs {size(missing * each)} and its disk has {size(free)}. Nothing was computed. Make room, "
            "name another disk with annotations=..., or train without features."
        )
    if new:
        rows = max(1, min(SHARD_ROWS, SHARD_BYTES // max(each, 1)))
        store.plan(new, rows if rows < tower.batch else rows - rows % tower.batch)
        mine = [shard for shard in store.missing() if all(key in places for key in shard.keys)]
    mine = [shard for shard in mine if shard.number % world == rank]
    done, total = 0, sum(len(shard.keys) for shard in mine)
    with reading_bar(f"features of {total:,} images") as progress:
        for shard in mine:
            values = tower.features(shard, places, lambda count: progress(done + count, total))  # noqa: B023
            store.write(shard, values)
            done += len(shard.keys)
    say(f"wrote {len(mine)} of {len(store.shards)} shards; training with this recipe reads them")


def unique_images(job: Job, say: Callable[[str], None]) -> dict[str, tuple[int, int, int]]:
    """The key of every image, in order of first appearance, with its first place.

    Raises:
        ImageError: for an image that cannot be read, unless its stage skips those.
    """
    places: dict[str, tuple[int, int, int]] = {}
    sizes = [len(source) for source in job.sources]
    unreadable: set[str] = set()
    with reading_bar("hashing images") as progress:
        for image, place in images_of(job.sources):
            key = image_key(image)
            if key is not None:
                places.setdefault(key, place)
            else:
                job.refuse(place, ImageError(f"cannot read image {image_name(image)}. Put the file there."))
                unreadable.add(image_name(image))
            progress(sum(sizes[: place[0]]) + place[1], sum(sizes))
    if unreadable:
        say(f"{len(unreadable):,} image files cannot be read; bad_images=skip leaves their rows out in training too")
    return places


class Tower:
    """The tower of a job, on its device and in its precision, as training would run it."""

    def __init__(self, job: Job, device: torch.device) -> None:
        stage = job.stage
        self.job, self.device = job, device
        self.model = job.assembly.model.model
        self.model.vision_tower = job.tower.to(device)
        self.processor = job.assembly.processor(get_template(stage.data[0].template))
        self.batch = stage.batch_size
        blank = self.processor.pixels([Image.new("RGB", (8, 8))])
        self.probe = self.encode(blank)
        self.view_bytes = self.probe.numel() * self.probe.element_size()

    def provenance(self) -> dict[str, Any]:
        """What the features are and depend on, for people and for the readers of the store."""
        _, patches, width = self.probe.shape
        return {
            "what": "what a frozen vision tower gives for the views of an image, as training would see it",
            "keys": "sha256 of the image's bytes, as its file or the file that embeds it has them",
            "values": "patches: [views, patches, width]; an image that cannot be decoded has no views",
            "patches": patches,
            "width": width,
            "dtype": str(self.probe.dtype).removeprefix("torch."),
            "batch": self.batch,
            "depends_on": self.job.facts,
        }

    def num_views(self, image: ImageSource) -> int:
        """Views of an image; 1 if it cannot be decoded."""
        try:
            return len(self.processor.methods.views(load_image(image)))
        except ImageError:
            return 1

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """What the tower gives for up to a batch of views, computed at the size of a batch."""
        filled = torch.cat([pixels, pixels.new_zeros(self.batch - len(pixels), *pixels.shape[1:])])
        with autocast(self.job.stage, self.device):
            return self.model.encode(filled.to(self.device))[: len(pixels)].cpu()

    def features(
        self, shard: Shard, places: Mapping[str, tuple[int, int, int]], progress: Callable[[int], None]
    ) -> list[dict[str, Tensor]]:
        """The features of a shard's images, in order.

        Args:
            progress: called with how many are done.
        """
        counts: list[int] = []
        given: list[Tensor] = []
        waiting = self.processor.pixels([])
        with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // world_size())) as pool:
            for begin in range(0, len(shard.keys), self.batch):
                keys = shard.keys[begin : begin + self.batch]
                images = [self.job.image(places[key]) for key in keys]
                for key, pixels in zip(keys, pool.map(self.pixels, keys, images), strict=True):
                    if isinstance(pixels, ImageError):
                        self.job.refuse(places[key], pixels)
                        pixels = self.processor.pixels([])
                    counts.append(len(pixels))
                    waiting = torch.cat([waiting, pixels])
                while len(waiting) >= self.batch:
                    given.append(self.encode(waiting[: self.batch]))
                    waiting = waiting[self.batch :]
                progress(len(counts))
        given.append(self.encode(waiting) if len(waiting) else self.probe[:0])
        return [{"patches": patches} for patches in torch.cat(given).split(counts)]

    def pixels(self, key: str, image: ImageSource) -> Tensor | ImageError:
        """The views of an image as the tower takes them, or why it cannot be decoded.

        Raises:
            SightlineError: if its bytes are no longer those of the key.
        """
        data = image_bytes(image)
        if data is None or hashlib.sha256(data).hexdigest() != key:
            raise SightlineError(
                f"image {image_name(image)} changed while features were computed. Leave the images alone, and run "
                "this again; the shards that were written stay."
            )
        try:
            decoded = load_image(EmbeddedImage(image_name(image), data))
            return self.processor.pixels(self.processor.methods.views(decoded))
        except ImageError as error:
            return error


def own_device(recipe: Recipe) -> torch.device:
    """The recipe's device; under torchrun, each process its own GPU."""
    device = pick_device(recipe.device)
    local = os.environ.get("LOCAL_RANK")
    return torch.device("cuda", int(local)) if device.type == "cuda" and device.index is None and local else device


def world_size() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def size(count: int) -> str:
    """Bytes for people."""
    power = min(len(str(count)) - 1, 12) // 3
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
