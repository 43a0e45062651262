"""Saving a backbone with its card: what it was trained on, how, and what it measures."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy
import PIL
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ..errors import SightlineError
from ..evaluation.metrics import Estimate
from ..files import atomic_folder, claim_empty, write_json
from ..models.hub import quiet
from . import Split
from .thresholds import Finding, judge

CARD = "card.json"
WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")
"""The weights' file, of transformers and of diffusers."""
MEASURED_ON: tuple[Split, ...] = ("validation", "novel")

Scores = Mapping[str, Estimate]
"""Shares between 0 and 1 by what was measured, each with its 95% interval and the number of cases."""
Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class Build:
    """A backbone being built.

    Raises:
        SightlineError: if its folder holds files already, or nothing can be written beside it.
    """

    out: Path
    recipe: Any

    def __post_init__(self) -> None:
        claim_empty(self.out, "a backbone")
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.out.parent):
                pass
        except OSError as error:
            raise SightlineError(
                f"nothing can be written beside '{self.out}' ({error.strerror}), so nothing was trained. Name another "
                "folder with --out."
            ) from None

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
    (weights,) = (path for name in WEIGHTS if (path := folder / name).is_file())
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def finish(
    build: Build,
    name: Literal["clip", "clip-contrast", "lm", "vae", "denoiser", "vq"],
    model: Any,
    text: PreTrainedTokenizerBase | ProcessorMixin | None,
    *,
    beside: Mapping[str, Mapping[str, Tensor]] | None = None,
    measure: Callable[[Path, Split], Scores],
    seconds: float,
    **about: Any,
) -> None:
    """Save a trained backbone in fp16, measure what was saved, and write its card; the folder appears with all of it.

    Args:
        name: whose thresholds stand beside its scores on `validation`.
        model: of transformers or diffusers.
        text: saved with it, for a model that reads.
        beside: further weights, by the name of their file.
        measure: the scores on a split of the model in a folder.
        seconds: wall time of the training, on one thread.
        about: data and objective, in words.
    """
    with atomic_folder(build.out) as partial:
        with quiet():
            model.half().save_pretrained(partial)
            if text is not None:
                text.save_pretrained(partial)
        for file, tensors in (beside or {}).items():
            save_file(dict(tensors), partial / file)
        card = {
            **about,
            "recipe": asdict(build.recipe),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "seconds": round(seconds),
            "device": "cpu, one thread",
            "scores": {split: _rows(name, split, measure(partial, split)) for split in MEASURED_ON},
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


def _rows(name: str, split: Split, scores: Scores) -> dict[str, dict[str, float | bool]]:
    """Scores as a card holds them."""
    found = {key: judge(name, key, e) if split == "validation" else Finding(name, key, e) for key, e in scores.items()}
    return {key: finding.as_row() for key, finding in found.items()}
