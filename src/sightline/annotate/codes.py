"""What an image is made of, cell by cell: the codes of a frozen VQ model, and the colours of a thumbnail.

Both are of one picture, all that the model sees of the image. They are computed once for each image and take five bytes
a cell.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ..methods.base import Annotation, Reader, Setting
from ..models.codes import Codes
from ..models.diffusion import part_config
from ..models.digest import facts_name, frozen_facts, plain, sight_facts
from ..types import Sample
from .images import ImageJob, checked_store, has_images, run_images
from .pictures import Picture, PictureWork, Stored

FORMAT = 1
"""Raised when cells are made in another way, or kept in another."""
CODES = "cognition/codes"
"""Column: the codes of a row's images, [images, rows, columns]."""
PIXELS = "cognition/pixels"
"""Column: their thumbnails, [images, rows, columns, 3] in bytes."""
FIX = "Run: sightline annotate RECIPE --method cognition"


class Cells(Annotation):
    """The cells of a stage's images."""

    def __init__(self, setting: Setting, picture: Picture, vq: str, grid: int, columns: Sequence[str]) -> None:
        """
        Args:
            grid: cells along a picture.
            columns: those that the stage reads.
        """
        self.setting, self.picture, self.vq, self.grid, self.columns = setting, picture, vq, grid, tuple(columns)

    def compute(self) -> Path | None:
        setting = self.setting
        if not self.facts:
            setting.say(f"stage '{setting.stage.name}' has no images, so there is nothing to compute of them")
            return None
        job = ImageJob(Encoding(self.vq, self.picture, self.grid, self.facts, setting.device))
        job.add(setting.stage.name, setting.sources, skip=setting.stage.bad_images == "skip")
        run_images(self.folder, job, setting.say)
        return self.folder

    def reader(self) -> Reader:
        if not self.facts:
            return partial(read, stored=None, grid=self.grid, columns=self.columns)
        absent = "there are no codes of this stage's images"
        store = checked_store(self.folder, self.setting.sources, absent, FIX)
        return partial(read, stored=Stored(store, Encoding.noun), grid=self.grid, columns=self.columns)

    @cached_property
    def folder(self) -> Path:
        """Where cells made in this way are."""
        return Path(self.setting.recipe.annotations) / f"cognition-{facts_name(self.facts)}"

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """All that an image's cells depend on beside its bytes; nothing where there are none."""
        if not has_images(self.setting.sources):
            return {}
        facts = {
            "format": FORMAT,
            "vq": vq_facts(self.vq),
            **sight_facts(self.picture.sight),
            "side": self.picture.side,
            "blank": self.picture.blank,
        }
        return plain(facts)


def vq_facts(vq: str) -> dict[str, Any]:
    """What a VQ model is: others have other codes."""
    return frozen_facts(Codes(vq).vq, part_config(vq, "vqvae"))


class Encoding(PictureWork):
    """Codes and colours of pictures."""

    noun = "codes"
    part = "vq"
    what = "codes of what the model sees of an image, and the mean colours of the same cells"
    values = "codes: [1, rows, columns], u16; pixels: [1, rows, columns, 3], u8"

    def __init__(self, vq: str, picture: Picture, grid: int, facts: Mapping[str, Any], device: torch.device) -> None:
        super().__init__(vq, picture, facts, device)
        self.grid, self.codes = grid, Codes(vq, device)

    def encode(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels = views["pixels"].to(self.device)
        return {
            "codes": self.codes.encode(pixels).to(torch.uint16).cpu(),
            "pixels": thumbnails(pixels.float(), self.grid).cpu(),
        }


def thumbnails(pixels: Float[Tensor, "images 3 side side"], grid: int) -> UInt8[Tensor, "images grid grid 3"]:
    """The mean colour of each of `grid` by `grid` cells."""
    means = torch.nn.functional.adaptive_avg_pool2d(pixels, grid)
    return means.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def read(sample: Sample, epoch: int, *, stored: Stored | None, grid: int, columns: Sequence[str]) -> dict[str, Tensor]:
    """The columns of a sample, the same in every epoch; nothing is stored where no row has an image."""
    cells = [stored(image) for image in sample.images if stored is not None]
    codes, pixels = [cell["codes"].long() for cell in cells], [cell["pixels"] for cell in cells]
    values = {
        CODES: torch.stack(codes) if cells else torch.zeros(0, grid, grid, dtype=torch.long),
        PIXELS: torch.stack(pixels) if cells else torch.zeros(0, grid, grid, 3, dtype=torch.uint8),
    }
    return {name: values[name] for name in columns}
