"""Where a model's weights come from, so that what was trained can be saved without them.

The record is `config.base`, so it travels with the model and is saved with adapters:

    vision, language   the parts' names, or
    model              the folder of a whole model
    hash               of each of those parts, as it was before the run changed anything
    trained            parts whose own weights have been trained since
    held               how each part has been rounded since; `adapted` is the language model under its adapters
    lora               the adapters' record, while there are any
"""

import hashlib
from collections.abc import Sequence

import torch

from .modeling import SightlineForConditionalGeneration
from .parts import named_parts

BACKBONES = ("vision", "language")
"""The parts that come from elsewhere."""


def part_hash(model: SightlineForConditionalGeneration, part: str) -> str:
    """A hash of a part's weights, whatever floating type holds them. For 28 GB it takes some seconds."""
    digest = hashlib.sha256()
    for owner, name, parameter in named_parts(model):
        if owner == part:
            number = torch.hash_tensor(parameter.data).view(torch.int64).item()
            digest.update(f"{name} {tuple(parameter.shape)} {number}\n".encode())
    return digest.hexdigest()


def note_stage(model: SightlineForConditionalGeneration, trained_whole: Sequence[str], *, hashed: bool) -> None:
    """Bring the record up to date before a stage changes anything.

    Args:
        trained_whole: parts whose own weights the stage trains.
        hashed: whether the stage rounds weights or puts adapters over them, so that they must be known later.
    """
    base = {"trained": [], "held": {}, **(model.config.base or {})}
    if hashed and "hash" not in base:
        base["hash"] = {part: part_hash(model, part) for part in BACKBONES if part not in base["trained"]}
    trained = {part for part in trained_whole if part in BACKBONES}
    model.config.base = base | {"trained": sorted({*base["trained"], *trained})}


def note_held(model: SightlineForConditionalGeneration, part: str, held: str) -> None:
    """Note how a part is held now, if that rounds it."""
    base = model.config.base or {}
    before = base["held"].get(part, [])
    if held != "fp32" and before[-1:] != [held]:
        model.config.base = base | {"held": base["held"] | {part: [*before, held]}}
