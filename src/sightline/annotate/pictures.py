"""Pictures to recover from visual tokens: of each image all that the model sees, at a resolution of its own.

As pixels, made when a row is read; or as latents of a frozen VAE, computed once and stored. With them comes a seed for
each image and epoch, of the noise that they are mixed with.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ..data.features import image_key, image_name
from ..data.images import blank_like, load_image
from ..data.order import generator
from ..data.store import Store
from ..data.view import Sight
from ..errors import ImageError, SightlineError
from ..methods.base import Annotation, Reader, Setting
from ..models.diffusion import Latents, part_config, shrinks_by
from ..models.digest import facts_name, frozen_facts, plain, sight_facts
from ..types import ImageSource, Sample
from .images import ImageJob, ImageWork, checked_store, run_images

FORMAT = 1
"""Raised when pictures are made in another way, or their latents kept in another."""
IMAGES = "reconstruct/images"
"""Column: what is to be recovered of a row's images, [images, 3, side, side] in bytes, or their latents."""
SEEDS = "reconstruct/seeds"
"""Column: a seed for each of a row's images in an epoch."""
FIX = "Run: sightline annotate RECIPE --method reconstruct"
BATCH = 16
"""Pictures that a frozen part sees at a time."""


@dataclass(frozen=True)
class Picture:
    """How a picture is made of an image. It can be pickled."""

    sight: Sight
    side: int
    """Pixels along the picture's side."""
    small: bool = False
    """Of no more than the tower's own resolution."""
    blank: bool = False
    """Of a grey image, for a model that sees no other."""

    def __call__(self, image: Image.Image) -> UInt8[Tensor, "3 side side"]:
        """All that the model sees of the image, its padding included."""
        image = blank_like(image) if self.blank else image
        seen = self.sight.drawn(image, self.sight.frame.side if self.small else self.side, pixelated=False)
        seen = seen if seen.width == self.side else seen.resize((self.side, self.side), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(seen)).permute(2, 0, 1)


class Pictures(Annotation):
    """The pictures of a stage's images, or their latents."""

    def __init__(self, setting: Setting, picture: Picture, vae: str | None) -> None:
        """
        Args:
            vae: of the latents that are stored; None for pixels, which are not.
        """
        self.setting, self.picture, self.vae = setting, picture, vae

    def compute(self) -> Path:
        if self.vae is None:
            raise SightlineError(
                "pictures are encoded in each step (latents: online), so there is nothing to compute. Train; or store "
                "them: latents=stored."
            )
        setting = self.setting
        job = ImageJob(Encoding(self.vae, self.picture, self.facts, setting.device))
        job.add(setting.stage.name, setting.sources, skip=setting.stage.bad_images == "skip")
        run_images(self.folder, job, setting.say)
        return self.folder

    def reader(self) -> Reader:
        seed = self.setting.recipe.seed
        if self.vae is None:
            return partial(read, seed=seed, value=FromPixels(self.picture))
        absent = "there are no latents of this stage's images"
        store = checked_store(self.folder, self.setting.sources, absent, FIX)
        config = part_config(self.vae, "vae")
        side = self.picture.side // shrinks_by(config)
        return partial(
            read, seed=seed, value=FromStore(Stored(store, Encoding.noun), (config["latent_channels"], side, side))
        )

    @cached_property
    def folder(self) -> Path:
        """Where latents made in this way are."""
        return Path(self.setting.recipe.annotations) / f"reconstruct-{facts_name(self.facts)}"

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """All that an image's latents depend on beside its bytes; nothing where none are stored."""
        if self.vae is None:
            return {}
        facts = {
            "format": FORMAT,
            "vae": frozen_facts(Latents(self.vae).vae, part_config(self.vae, "vae")),
            **sight_facts(self.picture.sight),
            "side": self.picture.side,
            "small": self.picture.small,
            "blank": self.picture.blank,
        }
        return plain(facts)


class PictureWork(ImageWork):
    """What a frozen part of diffusers makes of pictures, one of each image."""

    batch = BATCH
    part: str
    """What the provenance calls the model."""
    what: str
    values: str

    def __init__(self, model: str, picture: Picture, facts: Mapping[str, Any], device: torch.device) -> None:
        self.name, self.picture, self.facts, self.device = model, picture, facts, device

    def provenance(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "keys": "sha256 of the image's bytes, as its file or the file that embeds it has them",
            "values": f"{self.values}; an image that cannot be decoded has none",
            "batch": self.batch,
            self.part: self.name,
            "depends_on": dict(self.facts),
            "versions": {name: version(name) for name in ("sightline", "torch", "diffusers", "pillow")},
        }

    def num_views(self, image: Image.Image) -> int:
        return 1

    def views(self, image: Image.Image, key: str, sample: Sample | None = None) -> dict[str, Tensor]:
        return {"pixels": self.picture(image).unsqueeze(0)}


class Encoding(PictureWork):
    """Latents of pictures."""

    noun = "latents"
    part = "vae"
    what = "latents of what the model sees of an image, shifted and scaled as a denoiser expects them"
    values = "latents: [1, channels, height, width]"

    def __init__(self, vae: str, picture: Picture, facts: Mapping[str, Any], device: torch.device) -> None:
        super().__init__(vae, picture, facts, device)
        self.latents = Latents(vae, device)

    def encode(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": self.latents.encode(views["pixels"].to(self.device)).half().cpu()}


@dataclass(frozen=True)
class FromPixels:
    """The picture of an image, made now. It can be pickled."""

    picture: Picture

    def __call__(self, image: ImageSource) -> Tensor:
        return self.picture(load_image(image))

    @property
    def none(self) -> Tensor:
        """Those of no image."""
        return torch.zeros(0, 3, self.picture.side, self.picture.side, dtype=torch.uint8)


@dataclass(frozen=True)
class Stored:
    """What was computed of an image, from a store. It can be pickled."""

    store: Store
    noun: str

    def __call__(self, image: ImageSource) -> dict[str, Tensor]:
        """
        Raises:
            ImageError: if the image is not there, or could not be decoded when this was to be computed.
            SightlineError: if there is nothing of it: it changed after the stage began.
        """
        key = image_key(image)
        if key is None:
            load_image(image)
        try:
            values = self.store.read(key or "")
        except KeyError:
            raise SightlineError(
                f"image {image_name(image)} has no {self.noun} in {self.store.folder}: it was changed after this stage "
                "began. Run sightline annotate again, then train."
            ) from None
        if not all(map(len, values.values())):
            raise ImageError(
                f"image {image_name(image)} could not be decoded when its {self.noun} were to be computed."
            )
        return {name: value[0] for name, value in values.items()}


@dataclass(frozen=True)
class FromStore:
    """The latents of an image, from a store. It can be pickled."""

    stored: Stored
    shape: tuple[int, ...]

    def __call__(self, image: ImageSource) -> Tensor:
        return self.stored(image)["latents"]

    @property
    def none(self) -> Tensor:
        """Those of no image."""
        return torch.zeros(0, *self.shape, dtype=torch.float16)


def read(sample: Sample, epoch: int, *, seed: int, value: FromPixels | FromStore) -> dict[str, Tensor]:
    """The columns of a sample in an epoch."""
    pictures = [value(image) for image in sample.images]
    row = zlib.crc32(sample.id.encode())
    seeds = generator(seed, 6, epoch, row).integers(2**63 - 1, size=len(pictures))
    return {IMAGES: torch.stack(pictures) if pictures else value.none, SEEDS: torch.from_numpy(seeds)}
