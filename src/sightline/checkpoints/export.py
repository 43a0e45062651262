"""A trained model as a standalone standard one, proved to compute what it computed before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from ..data.collate import collate
from ..data.templates import IMAGE, Template, get_template
from ..errors import SightlineError
from ..files import atomic_folder, claim_empty
from ..models.adapters import lora_of
from ..models.adapters import merge as merge_adapters
from ..models.assemble import Assembly
from ..models.processing import PROMPT_FIELDS
from ..types import Turn
from .bake import bake, constant_vectors, hold_constant
from .model import load_model, model_folder, read_config, save_model, template_of

ExportType = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[ExportType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCES: dict[ExportType, float] = {"fp32": 1e-4, "bf16": 5e-2, "fp16": 1e-2}
"""How far logits may move, as a share of the largest one. fp32 is of merging, which rounds sums in another order, and
of a baked vector where a language model scales its embeddings; without those nothing may move at all. The others are of
rounding the weights, to 8 and 11 bits; computed in fp32."""


@dataclass(frozen=True)
class Exported:
    """What an export wrote, and how far it is from what it was made of."""

    folder: Path
    kind: str
    difference: float
    """The largest difference of a logit, as a share of the largest logit."""
    tolerance: float


def export_model(
    path: str | Path,
    out: Path,
    *,
    merge: bool = False,
    dtype: ExportType = "fp32",
    template: str | None = None,
    level: str | None = None,
    live: bool = False,
) -> Exported:
    """Write a model as the simplest standard one that can express it, and compare the two on a fixed probe.

    The probe is a question with a picture and one without. What was written is loaded again and compared, and takes
    its place only if it agrees.

    A method that fills its slot with one vector for all rows (AlignGPT in mode `fixed:3`, `average` or `global`) is
    baked in as the embedding of the slot's token, and all logits but this token's are compared. One that computes it
    for each row (AlignGPT's gate) is not silently written as another class than most others are: say `level` or `live`.
    Baking is for export alone: a run saves its model with its methods, so that training can go on from it.

    Args:
        path: a model or run folder, or the hub id of a LLaVA model.
        out: a new or empty folder.
        merge: fold adapters into the weights. Without it, they are written as adapters.
        dtype: of the weights that are written.
        template: for a model that does not say how turns become text.
        level: hold constant what AlignGPT's gate computes: a level by its number, or `average`. This changes what the
            model computes, and the model so changed is what the export is compared with.
        live: keep methods as they are, in Sightline's own class.

    Raises:
        SightlineError: if it cannot be written, or what was written computes something else; nothing is left then.
    """
    claim_empty(out, "the export")
    path = model_folder(path)
    name = template or template_of(read_config(path))
    if name is None:
        raise SightlineError(f"'{path}' does not say how turns become text. Name its template: --template vicuna_v1")
    turns = get_template(name)
    assembly = load_model(path)
    model = assembly.model
    adapted = lora_of(model) is not None
    if adapted and not merge and dtype != "fp32":
        raise SightlineError(
            f"'{path}' has adapters over a base, whose weights an export of the adapters does not hold: there is "
            f"nothing to write in {dtype}. Add --merge."
        )
    if level is not None and (live or (adapted and not merge)):
        raise SightlineError(
            f"level {level} is held to bake it into a stock checkpoint, and what is asked for is none. "
            f"{'Leave --live out' if live else 'Add --merge'}, or leave --level out."
        )
    if level is not None:
        hold_constant(model, level)
    baked = {} if live or (adapted and not merge) else constant_vectors(model, path)
    before = probe(assembly, turns)
    if merge:
        merge_adapters(assembly)
    exact = bake(assembly, baked) if baked else True
    ours = torch.ones(before[0].shape[1], dtype=torch.bool)
    ours[[(model.config.slot_token_ids or {})[token] for token in baked]] = False
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
    tolerance = TOLERANCES[dtype] if dtype != "fp32" or (adapted and merge) or not exact else 0.0
    with atomic_folder(out) as work:
        reasons = save_model(assembly, work, turns)
        del assembly, model
        after = probe(load_model(work), turns)
        difference = largest_difference([x[:, ours] for x in before], [x[:, ours] for x in after])
        if not difference <= tolerance:  # what is not a number is not equal either
            raise SightlineError(
                f"the exported model computes other logits than '{path}': they differ by {difference:.2g} of the "
                f"largest, and {tolerance:g} is allowed. Nothing was written. Use --dtype fp32, or report this."
            )
    stock = "a stock llava checkpoint" + (f" with {' and '.join(baked)} baked in" if baked else "")
    kind = stock if not reasons else f"a Sightline model ({'; '.join(reasons)})"
    return Exported(out, kind, difference, tolerance)


@torch.no_grad()
def probe(assembly: Assembly, template: Template) -> list[Float[Tensor, "_ vocabulary"]]:
    """The logits, in fp32, of a question about a fixed picture and of one without a picture."""
    ramp = np.linspace(0, 255, 48, dtype=np.uint8)
    pixels = np.stack([np.tile(ramp, (32, 1)), np.tile(ramp[::-1], (32, 1)), np.full((32, 48), 90, np.uint8)], axis=-1)
    process = assembly.processor(template, max_length=10**9)
    logits = []
    for images, question in (((Image.fromarray(pixels),), f"{IMAGE}\nWhat is this?"), ((), "Is snow white?")):
        batch = collate([process.prompt(images, [Turn("user", question)])], pad_id=process.pad_id)
        inputs = {name: getattr(batch, name) for name in PROMPT_FIELDS}
        inputs |= {"pixel_values": batch.pixel_values} if images else {}
        logits.append(assembly.model(**inputs).logits[0].float())
    return logits


def largest_difference(
    before: list[Float[Tensor, "_ vocabulary"]], after: list[Float[Tensor, "_ vocabulary"]]
) -> float:
    """The largest difference of any logit, as a share of the largest logit; not a number if some logit is none."""
    moved = torch.stack([(x - y).abs().max() for x, y in zip(before, after, strict=True)])
    return float(moved.max() / torch.stack([x.abs().max() for x in before]).max())
