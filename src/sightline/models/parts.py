"""The parts of a model that a stage can train: vision, connector, language, and each method by its name.

A method may name parts of its own (`aligngpt.gate`): a stage trains one of them, or all by the method's name.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

from torch import nn

from .modeling import SightlineForConditionalGeneration

TRUNK = {
    "model.vision_tower.": "vision",
    "model.multi_modal_projector.": "connector",
    "model.language_model.": "language",
    "lm_head.": "language",
}
METHODS = "model.methods."

T = TypeVar("T")


def part_names(model: SightlineForConditionalGeneration) -> list[str]:
    """The parts, in the order of tables."""
    methods = model.model.methods.all
    own = [f"{method.name}.{part}" if part else method.name for method in methods for part in method.parts]
    return ["vision", "connector", "language", *own]


def named_parts(model: SightlineForConditionalGeneration) -> Iterator[tuple[str, str, nn.Parameter]]:
    """(part, name, parameter) for every parameter of the model."""
    own = [part for part in part_names(model) if "." in part]
    for name, parameter in model.named_parameters():
        place = name.replace(".train_only.", ".")
        inside = (part for part in own if place.startswith(f"{METHODS}{part}."))
        yield next(inside, owner_of(name)), name, parameter


def owner_of(name: str) -> str:
    """What a parameter belongs to, from its name in the model: of the trunk its part, else its method."""
    for prefix, part in TRUNK.items():
        if name.startswith(prefix):
            return part
    method = name.removeprefix(METHODS)
    assert method != name, f"parameter '{name}' belongs to no part"
    return method.split(".")[0]


def is_among(part: str, parts: Collection[str]) -> bool:
    """Whether a list of parts has this one, by its own name or its method's."""
    return part in parts or part.partition(".")[0] in parts


def value_of(part: str, values: Mapping[str, T], default: T) -> T:
    """What is said of a part, or of its method."""
    return values.get(part, values.get(part.partition(".")[0], default))
