"""What a network is, in a few facts: what was computed with one is known by them."""

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..data.view import Sight
from ..methods.base import OneView, Views

NO_MATTER = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "auto_map")
"""What a config says of who saved it, and how."""

NOT_THE_PIXELS = ("processor_class", "image_processor_type", "auto_map")


def digest(parameters: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over names, types, shapes and bytes, in the order given. It does not depend on the device."""
    found = hashlib.sha256()
    for name, parameter in parameters:
        value = parameter.detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def frozen_facts(part: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a part with these weights and this config is."""
    return {"weights": digest(sorted(part.state_dict().items())), "config": config}


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts as JSON would give them back, so that those kept and those computed anew can be compared."""
    return json.loads(json.dumps(facts, default=str))


def facts_name(facts: Mapping[str, Any]) -> str:
    """A short name of what something depends on: the same for the same facts, as JSON has them."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def pixel_facts(image_processor: Any) -> dict[str, Any]:
    """An image processor without what changes no pixel."""
    values = image_processor.to_dict().items()
    return {key: value for key, value in values if key not in NOT_THE_PIXELS and not key.startswith("_")}


def sight_facts(sight: Sight) -> dict[str, Any]:
    """All that decides which pixels of an image a model is first shown."""
    views = views_facts(sight.views)
    return {"preprocess": pixel_facts(sight.image_processor), **({"views": views} if views else {})}


def views_facts(views: Views) -> dict[str, Any]:
    """All that decides how images are cut into views; nothing where they are not."""
    if isinstance(views, OneView):
        return {}
    source = hashlib.sha256(inspect.getsource(type(views)).encode()).hexdigest()
    return {"name": type(views).__qualname__, "source": source, **views.facts}


def config_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """A config without what changes nothing of what comes out, as JSON would give it back."""
    values = {key: value for key, value in config.to_dict().items() if key not in NO_MATTER and key[0] != "_"}
    return plain(values)
