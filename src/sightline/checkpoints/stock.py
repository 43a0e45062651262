"""A model as transformers' own class, and back: `llava`, or `llava_next` where it has LLaVA-NeXT's any-resolution.

What they cannot express of a model is said by name; such a model is saved as our registered class (`model.py`).
"""

from typing import Any

import torch
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
)

from ..data.prefix import prefix_text
from ..data.templates import Template, to_jinja
from ..methods.abilities import BuiltIn
from ..methods.base import AlignmentMethod
from ..methods.compose import build_methods, load_method_class
from ..models.adapters import plain_state
from ..models.assemble import Assembly
from ..models.configuration import SightlineConfig, prefix_of, select_of, spec, stock_strategy
from ..models.connectors import LinearConnector, StockConnector, build_connector
from ..models.modeling import SightlineForConditionalGeneration

Stock = LlavaForConditionalGeneration | LlavaNextForConditionalGeneration

STOCK: dict[str, Any] = {"llava": LlavaForConditionalGeneration, "llava_next": LlavaNextForConditionalGeneration}
"""transformers' classes that a model of ours may be, by their type."""
CONFIGS: dict[str, Any] = {"llava": LlavaConfig, "llava_next": LlavaNextConfig}
PROCESSORS: dict[str, Any] = {"llava": LlavaProcessor, "llava_next": LlavaNextProcessor}
BUILT_IN = {"llava_next": "anyres"}
"""The method that such a class has built in."""
NEXT = ("image_grid_pinpoints", "use_image_newline_parameter")
"""Keys of LLaVA-NeXT's config that are not LLaVA's; the method's record has them."""
OURS = (
    "connector",
    "shuffle_factor",
    "pooled_grid",
    "vision_select",
    "vision_scales",
    "methods",
    "slot_token_ids",
    "prefix_tokens",
    "base",
    "model_type",
    "architectures",
    "sightline",
)
"""Keys of our config that are not LLaVA's."""


def why_not_stock(model: SightlineForConditionalGeneration, without: AlignmentMethod | None = None) -> list[str]:
    """What a stock `llava` checkpoint cannot express of this model; empty if it can express all of it.

    Args:
        without: a method that does not count.
    """
    methods = [method for method in model.model.methods.all if method is not without and method is not built_in(model)]
    changing = [method.name for method in methods if changes_forward(method)]
    return [f"method '{name}' changes the forward pass" for name in changing] + why_no_stock_trunk(model)


def why_no_stock_trunk(model: SightlineForConditionalGeneration) -> list[str]:
    """What a stock `llava` checkpoint cannot express of this model's tower and connector."""
    reasons = []
    if not isinstance(model.model.multi_modal_projector, StockConnector):
        reasons.append(f"connector '{model.config.connector}' is none of LLaVA's")
    if (scales := model.config.vision_scales) is not None:
        reasons.append(f"its tower sees an image at scales {scales}, and LLaVA's sees it at one")
    tower = spec(model.config)
    if built_in(model) is not None and tower.grid**2 != model.model.sizes.tokens:
        reasons.append(f"llava_next lays out crops of {tower.grid} x {tower.grid} tokens, the tower's patches alone")
    if stock_strategy(tower, model.config.vision_select) is None:
        reasons.append(f"its tower puts {tower.prefix} tokens before the patches, and LLaVA can only drop one")
    return reasons


def built_in(model: SightlineForConditionalGeneration) -> BuiltIn | None:
    """The method of a model that a class of transformers has built in."""
    return next((method for method in model.model.methods.all if isinstance(method, BuiltIn)), None)


def changes_forward(method: AlignmentMethod) -> bool:
    """Whether a model is another one with this method than without it, once it is trained."""
    kept = any(not name.startswith("train_only.") for name, _ in method.named_parameters())
    return bool(kept or method.needs.edits or method.needs.slots or method.needs.views)


def to_stock(model: SightlineForConditionalGeneration) -> Stock:
    """The same model, sharing its weights, as transformers' own class. Adapters are folded in."""
    method = built_in(model)
    values = {key: value for key, value in model.config.to_dict().items() if key not in OURS}
    values |= {"vision_config": model.config.vision_config, "text_config": model.config.text_config}
    if method is not None:
        values |= method.stock_config(model.config.tower.image_size)
    config: Any = CONFIGS[method.model_type if method else "llava"](**values)
    if model.config.connector == "linear":
        config.projector_hidden_act = "linear"
    if config.vision_feature_layer == 0:
        config.vision_feature_layer = [0]  # transformers takes a bare 0 for "no hidden states" and fails
    with torch.device("meta"):
        stock = STOCK[config.model_type](config)
    prefix = "model.multi_modal_projector."
    state = {k: v for k, v in plain_state(model).items() if not k.startswith((prefix, "model.methods."))}
    connector = model.model.multi_modal_projector
    assert isinstance(connector, StockConnector), "why_not_stock names every other one"
    state |= {prefix + k: v for k, v in connector.stock_state().items()}
    state |= method.stock_state() if method is not None else {}
    stock.load_state_dict(state, assign=True, strict=True)
    stock.tie_weights()
    _take_buffers(stock, model)
    stock.generation_config = model.generation_config
    return stock.eval()


def from_stock(stock: Any) -> SightlineForConditionalGeneration:
    """A stock model, sharing its weights, as ours."""
    config = stock_config(stock.config)
    with torch.device("meta"):
        model = SightlineForConditionalGeneration(config)
    model.model.vision_tower = stock.model.vision_tower
    model.model.language_model = stock.model.language_model
    projector = stock.model.multi_modal_projector.state_dict()
    if config.connector == "linear" and not LinearConnector.expresses(projector):
        config.connector = "mlp"  # trained on by others, as the two layers that the checkpoint shows
    fresh = build_connector(config)
    assert isinstance(fresh, StockConnector)
    fresh.load_stock_state(projector)
    model.model.multi_modal_projector = fresh
    model.model.methods = build_methods(config.methods or [], model.model.sizes, config.prefix_tokens)
    if (method := built_in(model)) is not None:
        method.load_stock_state(stock.state_dict())
    model.lm_head = stock.lm_head
    model.generation_config = stock.generation_config
    return model


def stock_config(config: Any) -> SightlineConfig:
    """The config of a stock model, as ours."""
    values = {key: value for key, value in config.to_dict().items() if key not in ("model_type", "architectures")}
    note = values.pop("sightline", None) or {}
    values |= {"vision_config": config.vision_config, "text_config": config.text_config}
    methods: list[dict[str, Any]] = []
    if config.model_type in BUILT_IN:
        cls = load_method_class(BUILT_IN[config.model_type])
        assert issubclass(cls, BuiltIn)
        methods = [cls.record_of(values, spec(config).image_size)]
        values = {key: value for key, value in values.items() if key not in NEXT}
    connector = note.get("connector", "mlp")
    return SightlineConfig(
        **values | prefix_of(note), connector=connector, vision_select=select_of(config), methods=methods
    )


def stock_processor(assembly: Assembly, template: Template) -> LlavaProcessor | LlavaNextProcessor:
    """transformers' processor for this model: what a server needs to feed it as it was trained.

    It counts an image's tokens as squares of `patch_size` plus others. Where a connector gives another number, a tower
    has registers, or an image has several scales, the whole image is its one square, and the rest are others: the sum
    is right.
    """
    config, tokens = assembly.model.config, assembly.model.model.sizes.tokens
    tower, method = spec(config), built_in(assembly.model)
    counted, strategy = (tower.patch_size, tower.prefix), config.vision_feature_select_strategy
    side = config.pixels_side
    if (side // tower.patch_size) ** 2 + tower.prefix - (strategy == "default") != tokens:
        counted, strategy = (side, tokens - 1), "full"
    tokenizer, image_processor = assembly.tokenizer, assembly.image_processor
    tokenizer.padding_side = "left"
    tokenizer.init_kwargs["padding_side"] = "left"  # what is saved; the attribute alone is not
    if method is not None:
        image_processor = method.image_processor(image_processor)
    return PROCESSORS[method.model_type if method else "llava"](
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=counted[0],
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=counted[1],
        chat_template=to_jinja(template, prefix_text(tokenizer, template, config.prefix_tokens or [])),
    )


def _take_buffers(to: torch.nn.Module, source: torch.nn.Module) -> None:
    """Give `to`, built on the meta device, the buffers that no state dict carries (rotary frequencies)."""
    have = dict(source.named_buffers())
    for name, buffer in list(to.named_buffers()):
        if buffer.is_meta:
            parent, _, leaf = name.rpartition(".")
            to.get_submodule(parent).register_buffer(leaf, have[name], persistent=False)
