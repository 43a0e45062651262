"""Saving a backbone with its card: what it was trained on, how, and what it measures."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import PIL
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..files import atomic_folder, write_json

CARD = "card.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Scores:
    """What was measured, on which split, on how many pictures or scenes."""

    split: str
    n: int
    values: Mapping[str, float]


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights in `folder`."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def save_backbone(model: PreTrainedModel, text: PreTrainedTokenizerBase | ProcessorMixin, out: Path) -> None:
    """Write weights in fp16 with the tokenizer or processor; the folder appears whole or not at all."""
    with atomic_folder(out) as partial:
        model.half().save_pretrained(partial)
        text.save_pretrained(partial)


def write_card(folder: Path, *, seconds: float, scores: list[Scores], **about: Any) -> None:
    """Write the card of a saved backbone.

    Args:
        seconds: wall time of the training, on one thread.
        about: data, objective and recipe, in words and numbers.
    """
    card = {
        **about,
        "seconds": round(seconds),
        "threads": 1,
        "scores": [{"split": s.split, "n": s.n, **s.values} for s in scores],
        "weights_sha256": weights_hash(folder),
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": numpy.__version__,
            "pillow": PIL.__version__,
        },
    }
    write_json(folder / CARD, card)
