"""The parts a model is assembled from: a vision tower with its image processor, a language model with its tokenizer.

A part is named by a local folder, a hub id, or `world:clip` and `world:lm` for the tiny ones that ship with Sightline.
"""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AddedToken, AutoConfig, AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from ..data.view import output_size
from ..errors import SightlineError
from ..world import backbone_path
from .hub import found, load_weights, weight_name
from .scales import Scales, pixels_side
from .towers import TowerSpec, tower_spec

ImageFit = Literal["pad", "crop"]


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model that is loaded already."""

    name: str
    """What errors call it, and the record of where weights come from."""
    model: Any
    tokenizer: Any


def load_tower(name: str, image_fit: ImageFit = "pad", scales: Scales | None = None) -> tuple[Any, Any]:
    """A vision tower in fp32, and the image processor that feeds it (Pillow's, so that pixels agree everywhere).

    Args:
        scales: multiples of its size at which it will see an image; the image is then made at the largest.

    Raises:
        SightlineError: if it cannot be found, is no tower that we know, lacks weights, or disagrees with its processor.
    """
    path = resolve(name)
    config: Any = found(lambda: AutoConfig.from_pretrained(path), name)
    config = config.vision_config if hasattr(config, "vision_config") else config
    spec = tower_spec(config)
    tower, info = found(lambda: load_weights(MODEL_MAPPING[type(config)], path), name)
    check_complete(name, info, "vision tower")
    image_processor: Any = found(lambda: AutoImageProcessor.from_pretrained(path, backend="pil"), name)
    return tower, fit_image_processor(name, image_processor, spec, image_fit, scales)


def fit_image_processor(
    name: str, image_processor: Any, spec: TowerSpec, image_fit: ImageFit, scales: Scales | None = None
) -> Any:
    """A tower's own image processor, made to fit images as a recipe says, at the largest of its scales.

    Raises:
        SightlineError: if what it gives is not what the tower takes.
    """
    side = pixels_side(spec, scales)
    if image_fit == "pad":
        return LlavaImageProcessorPil(
            do_pad=True,
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            resample=image_processor.resample,
            image_mean=image_processor.image_mean,
            image_std=image_processor.image_std,
            rescale_factor=image_processor.rescale_factor,
        )
    if output_size(image_processor) != (spec.image_size, spec.image_size):
        raise SightlineError(
            f"'{name}': its image processor gives {output_size(image_processor)} pixels and its tower takes "
            f"{spec.image_size}x{spec.image_size}. Use model.image_fit=pad, or mend preprocessor_config.json."
        )
    for sizes in ("size", "crop_size"):
        if scales is not None and (given := getattr(image_processor, sizes, None)):
            larger = {key: value * max(scales) for key, value in dict(given).items() if value}
            setattr(image_processor, sizes, type(given)(**larger))
    return image_processor


def load_language_model(name: str) -> tuple[Any, Any]:
    """A causal language model in fp32 and its tokenizer.

    Raises:
        SightlineError: if it cannot be found or lacks weights.
    """
    path = resolve(name)
    lm, info = found(lambda: load_weights(AutoModelForCausalLM, path), name)
    check_complete(name, info, "language model")
    return lm, found(lambda: AutoTokenizer.from_pretrained(path), name)


def add_tokens(model: Any, tokenizer: Any, tokens: Collection[str], said: Collection[str] = ()) -> None:
    """Give the tokenizer `tokens` and a pad token where it lacks them; new embedding rows are the mean of the old.

    Args:
        said: further ones, which are part of what is said and are not special.
    """
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    rows = model.get_input_embeddings().weight.shape[0]
    used = min(rows, len(tokenizer))  # a table may have spare rows (Qwen's has), which nothing has trained
    if new:
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    if spoken := [AddedToken(token, normalized=False) for token in said if token not in known]:
        tokenizer.add_tokens(spoken)
    if len(tokenizer) > rows:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if len(tokenizer) > used:
        with torch.no_grad():
            for table in {model.get_input_embeddings(), model.get_output_embeddings()}:
                table.weight[used : len(tokenizer)] = table.weight[:used].mean(0)


def resolve(name: str) -> str:
    """Where a part is: the shipped folder for `world:...`, else the folder or hub id as it is.

    Raises:
        SightlineError: for an unknown `world:` part, or something that looks like a path and is not there.
    """
    if name.startswith("world:"):
        return str(backbone_path(name.removeprefix("world:")))
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise SightlineError(f"no folder '{name}'. Give a local folder, a hub id, or world:clip and world:lm.")
    return name


def location(name: str) -> str:
    """A part's or a model's name as it is noted for later: a local folder by its whole path."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def check_complete(name: str, info: dict[str, Any], what: str) -> None:
    """What a part brings beside (a CLIP's text side) is left; what it lacks is an error.

    Raises:
        SightlineError: with the weights that transformers' account of a loading misses.
    """
    for trouble in ("missing_keys", "mismatched_keys"):
        if info[trouble]:
            keys = sorted(weight_name(key) for key in info[trouble])
            raise SightlineError(
                f"'{name}' does not hold its whole {what}: {trouble.removesuffix('_keys')} {', '.join(keys[:3])}"
                f"{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}. Those weights would be random. "
                "Use an intact checkpoint."
            )
