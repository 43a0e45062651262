"""Saving a backbone with its card: what it was trained on, how, and what it measures."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy
import PIL
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..errors import SightlineError

CARD = "card.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Scores:
    """What was measured, on which split, on how many pictures or scenes."""

    split: str
    n: int
    values: Mapping[str, float]


def refuse_files(out: Path) -> None:
    """Check that a backbone can be written to `out` before time is spent on it.

    Raises:
        SightlineError: if there is something already.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SightlineError(
            f"'{out}' exists and is not an empty folder. A backbone is not written over other files, so nothing "
            f"was built. Name another folder with --out, or remove this one: rm -r '{out}'"
        )


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights in `folder`."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def save_backbone(model: PreTrainedModel, text: PreTrainedTokenizerBase | ProcessorMixin, out: Path) -> None:
    """Write weights in fp16 with the tokenizer or processor; the folder appears whole or not at all."""
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        partial.chmod(0o755)
        model.half().save_pretrained(partial)
        text.save_pretrained(partial)
        for path in partial.iterdir():
            path.chmod(0o644)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


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
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
