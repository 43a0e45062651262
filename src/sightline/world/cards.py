"""Saving a backbone with its card: what it was trained on, how, and what it measures."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy
import PIL
import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..evaluation.metrics import Estimate
from ..files import atomic_folder, claim_empty, write_json
from ..models.hub import quiet
from .scene import Split

CARD = "card.json"
WEIGHTS = "model.safetensors"
MEASURED_ON: tuple[Split, ...] = ("validation", "novel")

Scores = Mapping[str, Estimate]
"""Shares between 0 and 1 by what was measured, each with its 95% interval and the number of cases."""
Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Build:
    """A backbone being built.

    Raises:
        SightlineError: if its folder holds files already.
    """

    out: Path
    recipe: Any

    def __post_init__(self) -> None:
        claim_empty(self.out, "a backbone")

    @property
    def state(self) -> Path:
        """The file that holds its training while it is under way."""
        return self.out.with_name(f"{self.out.name}.training.safetensors")


def load(kind: type[Model], folder: Path) -> Model:
    """What was saved, in fp32."""
    with quiet():
        return kind.from_pretrained(folder, dtype=torch.float32).eval()


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights in `folder`."""
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def finish(
    build: Build,
    model: PreTrainedModel,
    text: PreTrainedTokenizerBase | ProcessorMixin,
    *,
    measure: Callable[[Path, Split], Scores],
    seconds: float,
    **about: Any,
) -> None:
    """Save a trained backbone in fp16, measure what was saved, and write its card; the folder appears with all of it.

    Args:
        measure: the scores on a split of the model in a folder.
        seconds: wall time of the training, on one thread.
        about: data and objective, in words.
    """
    with atomic_folder(build.out) as partial:
        model.half().save_pretrained(partial)
        text.save_pretrained(partial)
        card = {
            **about,
            "recipe": asdict(build.recipe),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": round(seconds),
            "device": "cpu, one thread",
            "scores": {split: as_json(measure(partial, split)) for split in MEASURED_ON},
            "weights_sha256": weights_hash(partial),
            "bytes": sum(path.stat().st_size for path in partial.iterdir()),
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "numpy": numpy.__version__,
                "pillow": PIL.__version__,
            },
        }
        write_json(partial / CARD, card)
    build.state.unlink(missing_ok=True)


def as_json(scores: Scores) -> dict[str, dict[str, float]]:
    """Scores as a card holds them."""
    return {
        name: {"share": round(e.value, 4), "low": round(e.low, 4), "high": round(e.high, 4), "n": e.n}
        for name, e in scores.items()
    }
