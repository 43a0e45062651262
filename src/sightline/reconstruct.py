"""Draw images again from a model's visual tokens alone: what they keep is seen, and what they lost (VLSA, Figure 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from .checkpoints.model import load_model
from .checkpoints.trainonly import read_train_only
from .config import Recipe
from .data.collate import collate
from .data.templates import get_template
from .errors import SightlineError
from .methods.abilities import Redraws
from .methods.compose import record_of
from .models.assemble import Assembly, attach_methods
from .models.sampling import psnr
from .runs import recipe_of
from .types import Turn

GAP = 8
"""Pixels between two pictures."""


@dataclass(frozen=True)
class Redrawn:
    """Pictures as the model was shown them, and as they were drawn again."""

    original: UInt8[Tensor, "images 3 side side"]
    drawn: UInt8[Tensor, "images 3 side side"]

    @property
    def psnr(self) -> list[float]:
        """Peak signal-to-noise ratio of each picture, in dB."""
        return psnr(self.drawn, self.original).tolist()

    def sheet(self) -> Image.Image:
        """All of them: a row for each image, the original on the left."""
        images, _, side, _ = self.original.shape
        page = Image.new("RGB", (2 * side + GAP, images * (side + GAP) - GAP), "white")
        for row, pair in enumerate(zip(self.original, self.drawn, strict=True)):
            for column, pixels in enumerate(pair):
                picture = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
                page.paste(picture, (column * (side + GAP), row * (side + GAP)))
        return page


def reconstruct(
    run: Path, images: Sequence[Image.Image], *, steps: int = 20, seed: int = 0, device: torch.device | str = "cpu"
) -> Redrawn:
    """Draw images from noise and the visual tokens that a run's model makes of them.

    Args:
        run: a run folder, or that of a stage in it (`runs/mine/stages/pretrain`).
        steps: of denoising.

    Raises:
        SightlineError: if the run did not train with the method `reconstruct`, or left none of its parts.
    """
    recipe, assembly = _opened(run)
    assembly.to(device)
    inner = assembly.model.model
    method = next(method for method in inner.methods.all if isinstance(method, Redraws))
    processor = assembly.processor(get_template(recipe.stages[-1].data[0].template), max_length=10**9)
    prompts = [processor.prompt([image], [Turn("user", "<image>")]) for image in images]
    batch = collate(prompts, pad_id=processor.pad_id).to(device)
    with torch.no_grad():
        trace, _ = inner.trace(batch, use_cache=False)
    drawn = method.redraw(trace, batch, steps=steps, seed=seed).cpu()
    return Redrawn(torch.stack([method.picture(assembly.sight, image) for image in images]), drawn)


def _opened(run: Path) -> tuple[Recipe, Assembly]:
    """The recipe of a run, and its model with what served training alone."""
    recipe = recipe_of(run)
    if recipe is None:
        raise SightlineError(
            f"'{run}' is no run folder: it has no recipe.yaml, which says how images were reconstructed. Give the "
            "folder that `sightline train` wrote."
        )
    if record_of(recipe.methods, Redraws) is None:
        raise SightlineError(
            f"'{run}' was trained without reconstruction, so nothing can draw what its tokens keep. Train with the "
            "method `reconstruct`: methods=[..., {name: reconstruct}]"
        )
    left = read_train_only(run)
    if not left.tensors:
        raise SightlineError(
            f"'{run}' has no train_only.safetensors, where the parts that draw are: a run writes it at its end. Give a "
            "finished run, or a stage of it that says save=true."
        )
    assembly = load_model(run)
    attach_methods(assembly, recipe.methods, left)
    return recipe, assembly
