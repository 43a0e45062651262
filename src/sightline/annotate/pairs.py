"""Scores of pairs: the cosine of an image and its caption in an image-text encoder's joint space.

The image is what the stage's transform shows the model, the caption all that the row answers. A caption that is longer
than the encoder's text side goes in chunks of whole sentences, each with a cosine of its own; the pair's score is their
mean. An image and a caption are scored once, however many rows have both.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from threading import Lock
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from ..data.features import image_key, image_name, remembered_key
from ..data.images import load_image
from ..data.store import Store
from ..errors import ImageError, SightlineError
from ..methods.base import Setting
from ..models.joint import JointEncoder, load_joint
from ..types import Sample
from .images import ImageWork
from .patchwords import is_own_tower, seen_pixels

BATCH = 32
"""Chunks, with their images, that the encoder sees at a time."""
SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])|\n+")
"""Where one sentence, or one answer, ends and the next begins."""


def caption(sample: Sample) -> str:
    """What a row says of its images: its answers, one after the other."""
    return "\n".join(turn.text.strip() for turn in sample.turns if turn.role == "assistant")


def pair_key(image: str, text: str) -> str:
    """The key of a caption with an image, by the image's key."""
    return hashlib.sha256(f"{image}\n{text}".encode()).hexdigest()


def chunks(text: str, fits: Callable[[str], bool]) -> list[str]:
    """A text in stretches that fit: of whole sentences, or of whole words where a sentence does not fit by itself.

    White space becomes single spaces. A word that does not fit stands alone.
    """
    whole = " ".join(text.split())
    if fits(whole):
        return [whole]
    found: list[str] = []
    current = ""
    for part in SENTENCE.split(text):
        sentence = " ".join(part.split())
        for piece in [sentence] if fits(sentence) else sentence.split():
            joined = f"{current} {piece}".strip()
            if current and not fits(joined):
                found.append(current)
                joined = piece
            current = joined
    return [*found, current]


class PairScoring(ImageWork):
    """Cosines of images with their captions; a view for each chunk of the caption."""

    noun = "scores"
    things = "pairs"

    def __init__(self, encoder: str, setting: Setting, facts: dict[str, Any]) -> None:
        """
        Args:
            facts: what scores depend on beside image and caption.
        """
        self.batch, self.encoder, self.facts = BATCH, encoder, facts
        self.sight = setting.assembly.sight
        self.is_own, self.device = is_own_tower(encoder, setting), setting.device
        self.joint: JointEncoder = load_joint(encoder).to(self.device)
        self.text = TextSide(self.joint)

    def provenance(self) -> dict[str, Any]:
        return {
            "what": "cosines of images with their captions in an image-text encoder's joint space",
            "keys": "sha256 of the image bytes' sha256 in hex, a newline, and the row's answers joined by newlines",
            "values": "cosines: [chunks of the caption], truncated: [chunks]; none for an image that cannot be decoded",
            "batch": self.batch,
            "encoder": self.encoder,
            "depends_on": self.facts,
            "versions": {name: version(name) for name in ("sightline", "torch", "transformers", "pillow")},
        }

    def key(self, image: str, sample: Sample) -> str:
        return pair_key(image, caption(sample))

    def num_views(self, image: Image.Image) -> int:
        return 1

    def views(self, image: Image.Image, key: str, sample: Sample | None = None) -> dict[str, Tensor]:
        texts = self.text.read("" if sample is None else caption(sample))
        pixels = seen_pixels(image, self.sight, self.joint, own=self.is_own)
        pair = torch.tensor(int(key[:15], 16))  # 60 bits: what tells a pair from the next one
        return {**texts, "pixels": pixels.expand(len(texts["ids"]), -1, -1, -1), "pair": pair.expand(len(texts["ids"]))}

    @torch.no_grad()
    def encode(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        pair = views["pair"]
        first = torch.cat([torch.ones(1, dtype=torch.bool), pair[1:] != pair[:-1]])
        images = pooled_images(self.joint, views["pixels"][first].to(self.device))[first.cumsum(0) - 1]
        texts = pooled_texts(self.joint, views["ids"].to(self.device), views["mask"].to(self.device))
        return {"cosines": (images * texts).sum(-1).cpu(), "truncated": views["truncated"]}


class TextSide:
    """How the text side of an encoder reads captions. Threads may share it."""

    def __init__(self, joint: JointEncoder) -> None:
        self.tokenizer, self.lower = joint.tokenizer, not joint.is_clip
        self.room: int = joint.model.config.text_config.max_position_embeddings
        self._lock = Lock()
        """A fast tokenizer is not to be told to truncate by one thread while it is read by another."""

    def read(self, text: str) -> dict[str, Tensor]:
        """A text in chunks: their `ids` and `mask`, each as long as the text side, and which are `truncated`."""
        with self._lock:
            texts = chunks(text, lambda part: self._length(part) <= self.room)
            inputs = self.tokenizer(
                [self._cased(part) for part in texts],
                padding="max_length",
                padding_side="right",
                truncation=True,
                max_length=self.room,
                return_tensors="pt",
                return_attention_mask=True,
            )
            truncated = [self._length(part) > self.room for part in texts]
        return {
            "ids": inputs["input_ids"],
            "mask": inputs["attention_mask"],
            "truncated": torch.tensor(truncated),
        }

    def _length(self, text: str) -> int:
        return len(self.tokenizer(self._cased(text), verbose=False).input_ids)

    def _cased(self, text: str) -> str:
        return text.lower() if self.lower else text  # SigLIP was trained on lower case


@torch.no_grad()
def pooled_images(
    joint: JointEncoder, pixels: Float[Tensor, "images 3 height width"]
) -> Float[Tensor, "images d_joint"]:
    """The encoder's vectors of images, of unit length."""
    with torch.autocast(pixels.device.type, enabled=False):
        return F.normalize(joint.model.get_image_features(pixels.to(joint.model.dtype)).pooler_output, dim=-1)


@torch.no_grad()
def pooled_texts(
    joint: JointEncoder, ids: Int[Tensor, "texts room"], mask: Int[Tensor, "texts room"]
) -> Float[Tensor, "texts d_joint"]:
    """The encoder's vectors of texts, of unit length; SigLIP reads its padding too, as in training."""
    with torch.autocast(ids.device.type, enabled=False):
        given = mask if joint.is_clip else None
        return F.normalize(joint.model.get_text_features(ids, attention_mask=given).pooler_output, dim=-1)


class RowScore(NamedTuple):
    """The score of a row, and how its caption was read."""

    score: float
    chunks: int
    """The most that its caption had; 0 where the score was given."""
    truncated: bool


@dataclass(frozen=True)
class StoredScores:
    """Scores of rows, from a store. It can be pickled."""

    store: Store

    def __call__(self, sample: Sample) -> float:
        """The score of a row with images: the mean over them.

        Raises:
            ImageError: if an image is not there, or could not be decoded when it was to be scored.
            SightlineError: if the store has no score of it: image or caption changed after the stage began.
        """
        keys = pair_keys(sample)
        if keys is None:
            for image in sample.images:
                load_image(image)
            raise ImageError(f"sample '{sample.id}': images in memory have no scores. Put them into files.")
        if absent := [image for key, image in zip(keys, sample.images, strict=True) if key not in self.store]:
            raise SightlineError(
                f"sample '{sample.id}': its caption with image {image_name(absent[0])} has no score in "
                f"{self.store.folder}: one of them changed after this stage began. Run sightline annotate again, then "
                "train."
            )
        found = self.of_keys(keys)
        if found is None:
            raise ImageError(
                f"sample '{sample.id}': an image of it could not be decoded when its caption was to be scored. Remove "
                f"{self.store.folder} if it can be now, and run sightline annotate again."
            )
        return found.score

    def of_keys(self, keys: Sequence[str]) -> RowScore | None:
        """The score of a row's pairs; None if one of its images could not be decoded."""
        values = [self.store.read(key) for key in keys]
        cosines: list[Float[Tensor, " chunks"]] = [value["cosines"] for value in values]
        truncated: list[Bool[Tensor, " chunks"]] = [value["truncated"] for value in values]
        if not all(len(some) for some in cosines):
            return None
        means = [float(some.double().mean()) for some in cosines]
        return RowScore(sum(means) / len(means), max(map(len, cosines)), any(bool(some.any()) for some in truncated))


def pair_keys(sample: Sample, *, remembered: bool = False) -> tuple[str, ...] | None:
    """The keys of a row's pairs, one for each image; None if an image cannot be read.

    Args:
        remembered: do not hash again a file that has not changed since this process did.
    """
    key_of, text = remembered_key if remembered else image_key, caption(sample)
    keys = [key_of(image) for image in sample.images]
    there = tuple(pair_key(key, text) for key in keys if key is not None)
    return there if len(there) == len(keys) else None
