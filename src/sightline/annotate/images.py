"""Something computed once for every image of a recipe, in fixed shards, resumable and shared among processes.

Images are taken in the order in which the stages' rows first name them, each once however often it occurs, or once with
each caption where the work's key holds both. Shards and the batches within them have fixed boundaries, and every batch
has the same size (the last one of a shard is filled with black views), so that a run that was killed, or several
processes under torchrun, write the same bytes as one that was not.
"""

import errno
import hashlib
import json
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..data.dataset import Head
from ..data.features import image_bytes, image_key, image_name, remembered_key
from ..data.images import load_image
from ..data.sources.base import EmbeddedImage
from ..data.store import END_BYTES, KEY_BYTES, Shard, Store
from ..errors import ImageError, SightlineError
from ..files import write_json
from ..progress import reading_bar
from ..types import ImageSource, Sample

SHARD_BYTES = 64 * 2**20
SHARD_ROWS = 4096
"""A shard has at most so many bytes, and images."""

Place = tuple[int, int, int]
"""Where an image is: source, row, number in the row."""


class ImageWork(ABC):
    """What is computed of an image."""

    noun: str
    """What comes out, for people: `features`."""
    things: str = "images"
    """What it is computed of, for people."""
    batch: int
    """Views that are computed at a time; a store keeps that of its first run."""

    def key(self, image: str, sample: Sample) -> str:
        """The key that what comes out is kept by: the image's own, if it does not depend on the row the image is in."""
        return image

    @abstractmethod
    def num_views(self, image: Image.Image) -> int:
        """Views of an image."""

    @abstractmethod
    def views(self, image: Image.Image, key: str, sample: Sample | None = None) -> dict[str, Tensor]:
        """What is computed on, by name, a row for each view of an image: its pixels, and what else is known of it.

        Args:
            sample: the row that first names the image, under this key.
        """

    @abstractmethod
    def encode(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """What comes out for a whole batch of views, by name, a row for each view; on the CPU."""

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """What it is and depends on, for people and for the readers of the store."""


@dataclass
class ImageJob:
    """Work to do on the images of one or several stages."""

    work: ImageWork
    sources: list[Sequence[Sample]] = field(default_factory=list)
    skips: list[bool] = field(default_factory=list)
    """For each source, whether its stage skips images that cannot be read."""
    names: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        """The job's stages."""
        return f"stage{'s' if len(self.names) > 1 else ''} {', '.join(self.names)}"

    def add(self, name: str, sources: Sequence[Sequence[Sample]], *, skip: bool) -> None:
        """Take in a stage's rows."""
        self.names.append(name)
        self.sources += sources
        self.skips += [skip] * len(sources)

    def image(self, place: Place) -> ImageSource:
        """The image at a place."""
        return self.sample(place).images[place[2]]

    def sample(self, place: Place) -> Sample:
        """The row of a place."""
        return self.sources[place[0]][place[1]]

    def refuse(self, place: Place, error: ImageError) -> None:
        """Raise the error of an image with the row it is in, unless its stage skips such rows."""
        if not self.skips[place[0]]:
            sample = self.sample(place)
            raise SightlineError(f"sample '{sample.id}' ({sample.source}): {error} Or say bad_images=skip.")


def run_images(folder: Path, job: ImageJob, say: Callable[[str], None]) -> None:
    """Compute the shards of a folder that are missing, damaged or new, and that are this process's.

    Raises:
        SightlineError: if the disk has too little room, or an image cannot be decoded and its stage's `bad_images` is
            `raise`.
        KeyboardInterrupt: having said how to go on.
    """
    try:
        _run(folder, job, say)
    except KeyboardInterrupt:
        say(f"\nstopped. The shards that are in {folder} stay; the same command goes on behind them")
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise SightlineError(
            f"the disk is full. The shards that are in {folder} stay; make room, and the same command goes on."
        ) from None


def _run(folder: Path, job: ImageJob, say: Callable[[str], None]) -> None:
    rank, world, work = int(os.environ.get("RANK", "0")), world_size(), job.work
    about = folder / "provenance.json"
    if about.is_file():
        work.batch = int(json.loads(about.read_text(encoding="utf-8"))["batch"])
    places = unique_images(job, say)
    if not places:
        raise SightlineError(f"the rows of stage '{job.names[0]}' have no images, so there are no {work.noun} of them.")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(about, work.provenance())
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
        say(f"{job.title}: nothing to do, the {work.noun} of all {len(places):,} {work.things} are in {folder}")
        return
    each, free = _bytes_of(job, next(iter(places.values()))), shutil.disk_usage(folder).free
    say(
        f"{job.title}: {work.noun} of {missing:,} {work.things}, {size(each)} each, take {size(missing * each)} in "
        f"{folder}; {size(free)} are free"
    )
    if missing * each > free:
        raise SightlineError(
            f"{folder} needs {size(missing * each)} and its disk has {size(free)}. Nothing was computed. Make room, "
            f"name another disk with annotations=..., or train without {work.noun}."
        )
    if new:
        rows = max(1, min(SHARD_ROWS, SHARD_BYTES // max(each, 1)))
        store.plan(new, rows if rows < work.batch else rows - rows % work.batch)
        mine = [shard for shard in store.missing() if all(key in places for key in shard.keys)]
    mine = [shard for shard in mine if shard.number % world == rank]
    done, total = 0, sum(len(shard.keys) for shard in mine)
    with reading_bar(f"{work.noun} of {total:,} {work.things}") as progress:
        for shard in mine:
            values = values_of(job, shard, places, lambda count: progress(done + count, total))  # noqa: B023
            store.write(shard, values)
            done += len(shard.keys)
    say(f"wrote {len(mine)} of {len(store.shards)} shards; training with this recipe reads them")


def checked_store(folder: Path, sources: Sequence[Sequence[Sample]], absent: str, fix: str) -> Store:
    """A store that holds something for every image of the rows, undamaged.

    Args:
        absent: what errors say is not there.
        fix: the command that computes it.

    Raises:
        SightlineError: if it does not.
    """
    if not (folder / "provenance.json").is_file():
        raise SightlineError(f"{absent}: there is no {folder}; another transform has others. {fix}")
    store = Store(folder)
    with reading_bar(f"looking for images in {folder}") as progress:
        wanted, missing = sought(store, sources, progress)
    if missing:
        raise SightlineError(f"{absent}: {folder} lacks {len(missing):,} of them. {fix}")
    with reading_bar(f"verifying {folder}") as progress:
        if damaged := store.damaged(wanted, progress):
            raise SightlineError(f"{damaged[0]} is damaged; what is in it is not used. {fix}")
    return store


def unique_images(job: ImageJob, say: Callable[[str], None]) -> dict[str, Place]:
    """The key of everything to compute, in order of first appearance, with its first place.

    Raises:
        ImageError: for an image that cannot be read, unless its stage skips those.
    """
    places: dict[str, Place] = {}
    sizes = [len(source) for source in job.sources]
    unreadable: set[str] = set()
    with reading_bar("hashing images") as progress:
        for sample, place in images_of(job.sources):
            image = sample.images[place[2]]
            key = image_key(image)
            if key is not None:
                places.setdefault(job.work.key(key, sample), place)
            else:
                job.refuse(place, ImageError(f"cannot read image {image_name(image)}. Put the file there."))
                unreadable.add(image_name(image))
            progress(sum(sizes[: place[0]]) + place[1], sum(sizes))
    if unreadable:
        say(f"{len(unreadable):,} image files cannot be read; bad_images=skip leaves their rows out in training too")
    return places


def images_of(sources: Sequence[Sequence[Sample]]) -> Iterator[tuple[Sample, Place]]:
    """The place of every image of the rows, in order, with its row."""
    for number, source in enumerate(sources):
        for row in range(len(source)):
            sample = source[row]
            for place in range(len(sample.images)):
                yield sample, (number, row, place)


def has_images(sources: Sequence[Sequence[Sample]]) -> bool:
    """Whether any row has one; those of files are not read for it, their index knows."""
    return any(
        bool(rows.source.num_images[: len(rows)].any()) if isinstance(rows, Head) else any(row.images for row in rows)
        for rows in sources
    )


def sought(
    store: Store, sources: Sequence[Sequence[Sample]], progress: Callable[[int, int], None]
) -> tuple[set[str], set[str]]:
    """The keys of the rows' images, and those of them that a store lacks; images that cannot be read have none."""
    total = sum(len(source) for source in sources)
    keys: set[str] = set()
    for done, (sample, place) in enumerate(images_of(sources)):
        if (key := remembered_key(sample.images[place[2]])) is not None:
            keys.add(key)
        progress(min(done, total), total)
    return keys, {key for key in keys if key not in store}


def values_of(
    job: ImageJob, shard: Shard, places: Mapping[str, Place], progress: Callable[[int], None]
) -> list[dict[str, Tensor]]:
    """What comes out for a shard's images, in order; nothing for one that cannot be decoded and that its stage skips.

    Args:
        progress: called with how many are done.
    """
    work, counts = job.work, []
    none = no_views(work)
    given: list[dict[str, Tensor]] = []
    waiting = none

    def compute(views: dict[str, Tensor]) -> None:
        count = num_rows(views)
        given.append({name: value[:count] for name, value in work.encode(filled(views, work.batch)).items()})

    with ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // world_size())) as pool:
        for begin in range(0, len(shard.keys), work.batch):
            keys = shard.keys[begin : begin + work.batch]
            samples, numbers = [job.sample(places[key]) for key in keys], [places[key][2] for key in keys]
            found = pool.map(_views, [work] * len(keys), keys, samples, numbers)
            for key, views in zip(keys, found, strict=True):
                if isinstance(views, ImageError):
                    job.refuse(places[key], views)
                    views = none
                counts.append(num_rows(views))
                waiting = {name: torch.cat([value, views[name]]) for name, value in waiting.items()}
            while num_rows(waiting) >= work.batch:
                compute({name: value[: work.batch] for name, value in waiting.items()})
                waiting = {name: value[work.batch :] for name, value in waiting.items()}
            progress(len(counts))
    if num_rows(waiting) or not given:  # none at all still has its shape
        compute(waiting)
    columns = {name: torch.cat([part[name] for part in given]).split(counts) for name in given[0]}
    return [{name: parts[row] for name, parts in columns.items()} for row in range(len(counts))]


def num_rows(views: Mapping[str, Tensor]) -> int:
    """How many views these are."""
    return len(next(iter(views.values())))


def no_views(work: ImageWork) -> dict[str, Tensor]:
    """The views of no image."""
    return {name: value[:0] for name, value in work.views(Image.new("RGB", (8, 8)), "0").items()}


def filled(views: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Views, and black ones after them, so that there are `count`."""
    empty = count - num_rows(views)
    return {name: torch.cat([value, value.new_zeros(empty, *value.shape[1:])]) for name, value in views.items()}


def _views(work: ImageWork, key: str, sample: Sample, number: int) -> dict[str, Tensor] | ImageError:
    """The views of an image of a row, or why it cannot be decoded.

    Raises:
        SightlineError: if its bytes are no longer those of the key.
    """
    image = sample.images[number]
    data = image_bytes(image)
    if data is None or work.key(hashlib.sha256(data).hexdigest(), sample) != key:
        raise SightlineError(
            f"image {image_name(image)} changed while {work.noun} were computed. Leave the images alone, and run "
            "this again; the shards that were written stay."
        )
    try:
        return work.views(load_image(EmbeddedImage(image_name(image), data)), key, sample)
    except ImageError as error:
        return error


def _bytes_of(job: ImageJob, place: Place) -> int:
    """Bytes that an image takes in the store, by one of them."""
    work = job.work
    try:
        views = work.num_views(load_image(job.image(place)))
    except ImageError:
        views = 1
    values = work.encode(filled(no_views(work), work.batch))
    of_a_view = sum(value[:1].numel() * value.element_size() for value in values.values())
    return views * of_a_view + KEY_BYTES + len(values) * END_BYTES


def world_size() -> int:
    """How many processes share the work."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def size(count: int) -> str:
    """Bytes for people."""
    power = min(len(str(count)) - 1, 12) // 3
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
