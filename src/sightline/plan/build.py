"""A recipe's model on torch's meta device, from configs alone: shapes without weights, tokenizers or image processors.

The configs of public backbones that the shipped recipes name are in `recipes/architectures`: sizes are facts. So a dry
run needs no network.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ..checkpoints.model import model_folder, read_config
from ..checkpoints.stock import STOCK, stock_config
from ..config import Model, Recipe, Stage
from ..errors import SightlineError
from ..methods.compose import build_methods
from ..models.assemble import check_options
from ..models.backbones import resolve
from ..models.configuration import SightlineConfig, stock_strategy
from ..models.connectors import resolve_options
from ..models.hub import UNREADABLE, found, quiet, reason
from ..models.modeling import SightlineForConditionalGeneration
from ..models.scales import check_scales
from ..models.towers import tower_spec

ARCHITECTURES = Path(__file__).parents[1] / "recipes" / "architectures"


def architecture(name: str) -> Any:
    """The config of a part: of its local folder or `world:` part, else the one that ships, else the hub's.

    Raises:
        SightlineError: if there is none, naming those that ship.
    """
    path = resolve(name)
    shipped = ARCHITECTURES / name.replace("/", "--")
    if Path(path).is_dir():
        return found(lambda: AutoConfig.from_pretrained(path), name)
    try:
        with quiet():
            if (shipped / "config.json").is_file():
                return AutoConfig.from_pretrained(shipped)
            return AutoConfig.from_pretrained(path)
    except UNREADABLE as error:
        known = ", ".join(folder.name.replace("--", "/") for folder in sorted(ARCHITECTURES.iterdir()))
        raise SightlineError(
            f"cannot read the sizes of '{name}': {reason(error)}. Give a local folder with its config.json, or go "
            f"online once. The sizes of these ship with Sightline: {known}."
        ) from None


def fresh_config(parts: Model, vision: Any, language: Any) -> SightlineConfig:
    """The config of a model that is assembled from a recipe's parts.

    Args:
        vision: the tower's config, or the whole CLIP's or SigLIP's.
    """
    tower = vision.vision_config if hasattr(vision, "vision_config") else vision
    spec = tower_spec(tower)
    return SightlineConfig(
        vision_config=tower,
        text_config=language,
        vision_feature_layer=parts.vision_layer,
        vision_feature_select_strategy=stock_strategy(spec, parts.vision_select) or "full",
        image_seq_length=spec.num_patches(parts.vision_select),
        tie_word_embeddings=language.tie_word_embeddings,
        connector=parts.connector,
        vision_select=parts.vision_select,
        vision_scales=check_scales(parts.vision_scales, parts.vision_select),
        **resolve_options(
            parts.connector,
            spec,
            parts.vision_select,
            shuffle_factor=parts.shuffle_factor,
            pooled_grid=parts.pooled_grid,
        ),
    )


def saved_config(path: str) -> SightlineConfig:
    """The config of a saved model, stock LLaVA or ours, as ours.

    Raises:
        SightlineError: if there is no such model.
    """
    folder = model_folder(path)
    kind = read_config(folder)["model_type"]
    if kind not in (*STOCK, "sightline"):
        raise SightlineError(f"'{path}' is a model of type '{kind}'; Sightline loads {', '.join(STOCK)}, sightline.")
    config: Any = found(lambda: AutoConfig.from_pretrained(folder), path)
    return config if kind == "sightline" else stock_config(config)


def meta_model(config: SightlineConfig, methods: Sequence[Mapping[str, Any]]) -> SightlineForConditionalGeneration:
    """The model of a config on the meta device, with a recipe's methods.

    Raises:
        SightlineError: for methods that cannot be built, or other ones than a saved model has.
    """
    wanted, have = [dict(record) for record in methods], config.methods or []
    layers = config.vision_feature_layer
    tower: Any = config.vision_config
    count = tower.num_hidden_layers + 1
    layers = [layers] if isinstance(layers, int) else list(layers)
    if not layers or any(not -count <= layer < count for layer in layers):
        raise SightlineError(
            f"vision_layer {config.vision_feature_layer} is not among the tower's {count} states (0 to {count - 1}, or "
            "-1 back)."
        )
    with torch.device("meta"):
        model = SightlineForConditionalGeneration(config)
        if have != wanted:
            built = build_methods(wanted, model.model.sizes, config.prefix_tokens)
            if have:
                check_options(have, wanted, model.model.methods, built)
            model.model.methods = built
    return model


def stage_models(recipe: Recipe) -> list[tuple[Stage, SightlineForConditionalGeneration]]:
    """The model that each stage trains.

    Raises:
        SightlineError: for parts whose sizes cannot be read, or that do not fit.
    """
    models: list[tuple[Stage, SightlineForConditionalGeneration]] = []
    for stage in recipe.stages:
        if stage.init_from is not None:
            model = meta_model(saved_config(stage.init_from), recipe.methods)
        elif models:
            model = models[-1][1]
        else:
            assert recipe.model is not None, "a recipe without parts starts from a saved model"
            parts = recipe.model
            config = fresh_config(parts, architecture(parts.vision), architecture(parts.language))
            model = meta_model(config, recipe.methods)
        models.append((stage, model))
    return models
