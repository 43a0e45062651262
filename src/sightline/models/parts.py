"""The parts of a model that a stage can train: vision, connector, language, and each method by its name."""

from collections.abc import Iterator

from torch import nn

from .modeling import SightlineForConditionalGeneration

TRUNK = {
    "model.vision_tower.": "vision",
    "model.multi_modal_projector.": "connector",
    "model.language_model.": "language",
    "lm_head.": "language",
}


def named_parts(model: SightlineForConditionalGeneration) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(part, name, parameter) for every parameter of the model."""
    for name, parameter in model.named_parameters():
        yield part_of(name), name, parameter


def part_of(name: str) -> str:
    """The part that a parameter belongs to, from its name in the model."""
    for prefix, part in TRUNK.items():
        if name.startswith(prefix):
            return part
    method = name.removeprefix("model.methods.")
    assert method != name, f"parameter '{name}' belongs to no part"
    return method.split(".")[0]
