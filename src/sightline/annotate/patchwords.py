"""The words of patches: those that an image-text encoder finds nearest to each patch of an image.

SEA (Yin et al. 2024), equations 4 to 6: cosines of every patch with every word of a list, the best of them, those
above 0 alone. Patches and words are in the encoder's joint space (`models/joint.py`); whether its patches point to
their words or away from them differs between encoders, so the sign is measured on captions. An encoder that is not the
model's own tower sees the same part of the image, and its patches are laid on the grid of the model's visual tokens.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..data.order import Order
from ..data.view import Sight
from ..data.words import word_list
from ..errors import SightlineError
from ..files import write_json, write_text
from ..methods.base import Setting
from ..models.backbones import location
from ..models.digest import facts_name, plain, sight_facts
from ..models.joint import Extractor, JointEncoder, load_joint
from ..models.scales import resize
from ..types import Sample
from .drawing import How, seed_of
from .images import ImageJob, ImageWork, checked_store, run_images
from .labels import DRAWN_VALUES, LABEL_VALUES, Drawn, Labels, id_type, packed, packed_draws
from .nearest import WordTable
from .sign import measure_signs

FORMAT = 1
"""Raised when labels are computed or kept in another way."""
BATCH = 16
"""Views that the encoder sees at a time."""


@dataclass(frozen=True)
class PatchWords:
    """How the patches of a stage's images get their words."""

    encoder: str
    """A CLIP or SigLIP: hub id, folder, `world:clip`."""
    extractor: Extractor
    sign: int | str
    """1, -1 or `auto`."""
    words: str
    templates: tuple[str, ...]
    top: int
    setting: Setting
    how: How
    """How labels are drawn from."""
    drawn_epochs: int | None = None
    """Keep what is drawn in so many epochs, and not the labels themselves."""

    def compute(self) -> Path:
        """Label what is not labelled yet; gives the folder.

        Raises:
            SightlineError: for what stops it.
        """
        self._check_epochs()
        labelling, setting = Labelling(self, self.vocabulary), self.setting
        labelling.sign = self.settle_sign(labelling)
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "words.txt", "\n".join(self.vocabulary) + "\n")
        job = ImageJob(labelling)
        job.add(setting.stage.name, setting.sources, skip=setting.stage.bad_images == "skip")
        run_images(folder, job, setting.say)
        return folder

    def settle_sign(self, labelling: "Labelling") -> int:
        """The sign of the cosine: measured on the stage's captions the first time, where it is to be, and kept."""
        record = self._sign_record()
        if not self._is_settled:
            signs = measure_signs(labelling, self.setting.sources, self.vocabulary, progress=True)
            self.setting.say(signs.told())
            record.parent.mkdir(parents=True, exist_ok=True)
            write_json(record, signs.record())
        return self._sign()

    def open(self) -> Labels | Drawn:
        """The labels of the stage's images, or what was drawn of them.

        Raises:
            SightlineError: if some are not there, with the command that computes them, or files are damaged.
        """
        self._check_epochs()
        fix = "Run: sightline annotate RECIPE --method sea"
        absent = "SEA has no labels for the patches of this stage's images"
        if not self._is_settled:
            raise SightlineError(f"{absent}: none were made with this encoder, list and transform. {fix}")
        store = checked_store(self.folder, self.setting.sources, absent, fix)
        return Labels(store) if self.drawn_epochs is None else Drawn(store, self.how)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """The words to choose from."""
        return word_list(self.words)

    @cached_property
    def folder(self) -> Path:
        """Where labels made in this way are."""
        return Path(self.setting.recipe.annotations) / f"sea-{facts_name(self.facts | {'sign': self._sign()})}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that the labels of an image depend on beside its bytes and the sign."""
        facts = {
            "format": FORMAT,
            "encoder": encoder_facts(self.encoder, self.extractor),
            "own tower": self.is_own,
            **sight_facts(self.setting.assembly.sight),
            "words": hashlib.sha256("\n".join(self.vocabulary).encode()).hexdigest(),
            "templates": self.templates,
            "top": self.top,
            "grid": self.how.grid,
            "drawn": None if self.drawn_epochs is None else [asdict(self.how), self.drawn_epochs],
        }
        return plain(facts)

    @property
    def is_own(self) -> bool:
        """Whether the encoder is what the model's tower was taken from, and sees the very same pixels."""
        return is_own_tower(self.encoder, self.setting)

    def settled_sign(self) -> dict[str, int]:
        """The sign of the cosine by its name; nothing while it is still to be measured."""
        return {"sign": self._sign()} if self._is_settled else {}

    @property
    def _is_settled(self) -> bool:
        return self.sign != "auto" or self._sign_record().is_file()

    def _check_epochs(self) -> None:
        """That what is drawn beforehand lasts to the end of the stage.

        Raises:
            SightlineError: if it sees its rows in more epochs.
        """
        stage = self.setting.stage
        epochs = math.ceil(stage.epochs)
        if stage.steps is not None:
            sizes = tuple(len(source) for source in self.setting.sources[: len(stage.data)])
            weights = tuple(data.weight for data in stage.data)
            order = Order(0, sizes, batch_size=stage.batch_size, accumulate=stage.accumulate, weights=weights)
            epochs = math.ceil(stage.steps / order.steps_per_epoch)
        if self.drawn_epochs is not None and self.drawn_epochs < epochs:
            raise SightlineError(
                f"stage '{stage.name}' sees its rows in {epochs} epochs, and drawn_epochs is {self.drawn_epochs}, so "
                f"it would stop before its end. Say drawn_epochs: {epochs} in the method's options."
            )

    def _sign(self) -> int:
        if self.sign != "auto":
            return int(self.sign)
        record = self._sign_record()
        try:
            return int(json.loads(record.read_text(encoding="utf-8"))["sign"])
        except (ValueError, KeyError, TypeError):
            raise SightlineError(f"{record} is damaged. Remove it, and run sightline annotate again.") from None

    def _sign_record(self) -> Path:
        return Path(self.setting.recipe.annotations) / f"sea-sign-{facts_name(self.facts)}.json"


class Labelling(ImageWork):
    """Labels of an image's patches, by an encoder and a list of words."""

    noun = "labels"

    def __init__(self, words: PatchWords, vocabulary: Sequence[str]) -> None:
        self.words, self.batch, self.sign = words, BATCH, 1
        self.id_type = id_type(len(vocabulary))
        self.grid, self.device = words.how.grid, words.setting.device
        self.sight = words.setting.assembly.sight
        self.joint: JointEncoder = load_joint(words.encoder, words.extractor).to(self.device)
        self.table = WordTable(self.joint.words(vocabulary, templates=words.templates, progress=True))

    def provenance(self) -> dict[str, Any]:
        values = DRAWN_VALUES if self.words.drawn_epochs is not None else LABEL_VALUES
        return {
            "what": "words for each patch, the nearest of a list in an image-text encoder's joint space",
            "keys": "sha256 of the image's bytes, as its file or the file that embeds it has them",
            "values": values.format(none=torch.iinfo(self.id_type).max),
            "batch": self.batch,
            "encoder": self.words.encoder,
            "word list": self.words.words,
            "depends_on": self.words.facts | {"sign": self.sign},
            "versions": {name: version(name) for name in ("sightline", "torch", "transformers", "pillow")},
        }

    def num_views(self, image: Image.Image) -> int:
        return 1

    def views(self, image: Image.Image, key: str, sample: Sample | None = None) -> dict[str, Tensor]:
        box, grid = self.sight.box(image.size), self.grid
        pixels = seen_pixels(image, self.sight, self.joint, own=self.words.is_own)
        places = [divmod(place, grid) for place in range(grid**2)]
        inside = [not box.cell(row, column, grid).is_outside(image.size) for row, column in places]
        return {"pixels": pixels, "inside": torch.tensor([inside]), "seed": torch.tensor([seed_of(key)])}

    def encode(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        ids, scores = self.best(views["pixels"])
        labels = packed(ids, scores.masked_fill(~views["inside"].unsqueeze(-1), 0.0), self.id_type)
        if self.words.drawn_epochs is None:
            return labels
        return packed_draws(labels, views["seed"].tolist(), self.words.how, self.words.drawn_epochs)

    @torch.no_grad()
    def best(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The best words of each patch, [views, patches, top], and their cosines times the sign."""
        return self.best_of(self.joint.states(pixels.to(self.device)))

    @torch.no_grad()
    def best_of(self, states: Mapping[int, Tensor]) -> tuple[Tensor, Tensor]:
        """The same, from hidden states of the tower."""
        patches = self.sign * on_grid(self.joint.patches(states), self.grid)
        found = self.table.top(patches.flatten(0, 1), self.words.top)
        ids, scores = (part.unflatten(0, (len(patches), -1)).cpu() for part in (found.ids, found.scores))
        return ids, scores


def on_grid(patches: Float[Tensor, "views patches d"], grid: int) -> Float[Tensor, "views tokens d"]:
    """Patches on another grid: bilinear, over the area that a token covers where the grid is coarser."""
    side = round(patches.shape[1] ** 0.5)
    if side == grid:
        return patches
    image = patches.transpose(1, 2).unflatten(2, (side, side))
    image = F.interpolate(image, size=(grid, grid), mode="bilinear", antialias=grid < side, align_corners=False)
    return F.normalize(image.flatten(2).transpose(1, 2), dim=-1)


def is_own_tower(encoder: str, setting: Setting) -> bool:
    """Whether an encoder is what the model's tower was taken from, and sees the very same pixels."""
    return (setting.assembly.model.config.base or {}).get("vision") == location(encoder)


def seen_pixels(image: Image.Image, sight: Sight, joint: JointEncoder, *, own: bool) -> Tensor:
    """What the model sees of an image, as an encoder takes it: [1, 3, side, side].

    Args:
        own: whether the encoder is the model's own tower.
    """
    if own:
        large = sight.image_processor([sight.first(image)], return_tensors="pt")["pixel_values"].float()
        return resize(large, joint.image_size)  # of several scales the base, whose grid it is
    return normalised(sight.drawn(image, joint.image_size, pixelated=False), joint.image_processor)


def normalised(image: Image.Image, image_processor: Any) -> Tensor:
    """An image of the encoder's size as the encoder takes it: [1, 3, side, side]."""
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)) * image_processor.rescale_factor
    mean, std = torch.tensor(image_processor.image_mean), torch.tensor(image_processor.image_std)
    return ((pixels - mean) / std).permute(2, 0, 1).unsqueeze(0)


@lru_cache(maxsize=4)
def encoder_facts(encoder: str, extractor: Extractor) -> dict[str, Any]:
    """What an encoder is, by its weights; read once in a process."""
    return load_joint(encoder, extractor).facts()
