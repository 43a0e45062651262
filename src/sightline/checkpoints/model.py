"""A finished model on disk, as the simplest standard model that can express it.

A model whose methods leave nothing behind at inference is a stock `llava` checkpoint with its processor and chat
template: transformers loads it without Sightline. What stock LLaVA cannot express is saved as our registered class.
A model with adapters is saved as those, over its base (see `adapters`). Every load checks that no weight is missing or
unexpected.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from .. import __version__
from ..data.prefix import prefix_text
from ..data.templates import Template, to_jinja
from ..errors import SightlineError
from ..files import atomic_folder
from ..methods.base import AlignmentMethod
from ..methods.compose import Methods, build_methods
from ..models.adapters import plain_state
from ..models.assemble import Assembly
from ..models.backbones import location
from ..models.configuration import SightlineConfig, prefix_of, select_of, spec, stock_strategy
from ..models.connectors import LinearConnector, StockConnector, build_connector
from ..models.hub import UNREADABLE, found, load_weights, quiet, reason, weight_name
from ..models.modeling import SightlineForConditionalGeneration
from ..models.processing import SightlineProcessor
from .adapters import has_adapters, read_adapters, saves_as_adapters, write_adapters


def why_not_stock(model: SightlineForConditionalGeneration, without: AlignmentMethod | None = None) -> list[str]:
    """What a stock `llava` checkpoint cannot express of this model; empty if it can express all of it.

    Args:
        without: a method that does not count.
    """
    methods = [method for method in model.model.methods.all if method is not without]
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
    if stock_strategy(tower, model.config.vision_select) is None:
        reasons.append(f"its tower puts {tower.prefix} tokens before the patches, and LLaVA can only drop one")
    return reasons


def changes_forward(method: AlignmentMethod) -> bool:
    """Whether a model is another one with this method than without it, once it is trained."""
    kept = any(not name.startswith("train_only.") for name, _ in method.named_parameters())
    return bool(kept or method.needs.edits or method.needs.slots or method.needs.views)


def save_model(assembly: Assembly, path: Path, template: Template) -> list[str]:
    """Save a model with its tokenizer, image processor and chat template into `path`, atomically.

    Adapters are saved as adapters, without their base. Where the language model under them is no base that can be
    loaded again (it trained itself before), they are folded into it; 4-bit weights are saved as what they stand for.

    Returns:
        What kept it from being a stock `llava` checkpoint; empty if it is one.

    Raises:
        SightlineError: if it cannot be written.
    """
    model = assembly.model
    adapted = saves_as_adapters(model)
    inexpressible = why_not_stock(model)
    reasons = ["adapters over its base"] if adapted else inexpressible
    ends = [*template.tokens[:1], str(assembly.tokenizer.eos_token)]
    ids = list(dict.fromkeys(assembly.tokenizer.convert_tokens_to_ids(ends)))
    if model.generation_config is not None:
        model.generation_config.eos_token_id = ids if len(ids) > 1 else ids[0]
    note: dict[str, Any] = {"version": __version__, "connector": model.config.connector, "template": template.name}
    if model.config.prefix_tokens:
        ids = model.config.slot_token_ids or {}
        note["prefix_tokens"] = {token: ids[token] for token in model.config.prefix_tokens}
    methods = model.config.methods
    if not any(map(changes_forward, model.model.methods.all)):
        model.config.methods = []  # they served training alone
    try:
        with quiet(), atomic_folder(path) as folder:
            if adapted:
                model.config.sightline = note
                write_adapters(model, folder)
            elif reasons:
                _save_own(model, folder, note)
            else:
                stock = to_stock(model)
                stock.config.sightline = note
                stock.save_pretrained(folder)
            processor = own_processor if inexpressible else stock_processor
            processor(assembly, template).save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise SightlineError(
            f"cannot save the model to '{path}': {reason(error)}. What was there before is untouched. Make room, or "
            "choose another `out`."
        ) from None
    finally:
        model.config.methods = methods
    return reasons


def _save_own(model: SightlineForConditionalGeneration, folder: Path, note: dict[str, Any]) -> None:
    """A whole model as our registered class: without what serves training alone, and with nothing said of a base."""
    base, model.config.base = model.config.base, None
    model.config.sightline = note
    try:
        kept = {k: v.contiguous() for k, v in plain_state(model).items() if ".train_only." not in k}
        model.save_pretrained(folder, state_dict=kept, save_original_format=False)
    finally:
        model.config.base = base


def to_stock(model: SightlineForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The same model, sharing its weights, as transformers' own class. Adapters are folded in."""
    values = model.config.to_dict()
    for ours in (
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
    ):
        values.pop(ours, None)
    config = LlavaConfig(
        **{**values, "vision_config": model.config.vision_config, "text_config": model.config.text_config}
    )
    if model.config.connector == "linear":
        config.projector_hidden_act = "linear"
    if config.vision_feature_layer == 0:
        config.vision_feature_layer = [0]  # transformers takes a bare 0 for "no hidden states" and fails
    with torch.device("meta"):
        stock = LlavaForConditionalGeneration(config)
    prefix = "model.multi_modal_projector."
    state = {k: v for k, v in plain_state(model).items() if not k.startswith((prefix, "model.methods."))}
    connector = model.model.multi_modal_projector
    assert isinstance(connector, StockConnector), "why_not_stock names every other one"
    state |= {prefix + k: v for k, v in connector.stock_state().items()}
    stock.load_state_dict(state, assign=True, strict=True)
    stock.tie_weights()
    _take_buffers(stock, model)
    stock.generation_config = model.generation_config
    return stock.eval()


def from_stock(stock: LlavaForConditionalGeneration) -> SightlineForConditionalGeneration:
    """A stock LLaVA model, sharing its weights, as ours."""
    values = stock.config.to_dict()
    note = values.pop("sightline", None) or {}
    for key in ("model_type", "architectures"):
        values.pop(key, None)
    values |= {"vision_config": stock.config.vision_config, "text_config": stock.config.text_config}
    projector = stock.model.multi_modal_projector.state_dict()
    connector = note.get("connector", "mlp")
    if connector == "linear" and not LinearConnector.expresses(projector):
        connector = "mlp"  # trained on by others, as the two layers that the checkpoint shows
    values |= prefix_of(note)
    config = SightlineConfig(**values, connector=connector, vision_select=select_of(stock.config), methods=[])
    with torch.device("meta"):
        model = SightlineForConditionalGeneration(config)
    model.model.vision_tower = stock.model.vision_tower
    model.model.language_model = stock.model.language_model
    fresh = build_connector(config)
    assert isinstance(fresh, StockConnector)
    fresh.load_stock_state(projector)
    model.model.multi_modal_projector = fresh
    model.model.methods = Methods(prefix_tokens=config.prefix_tokens or ())
    model.lm_head = stock.lm_head
    model.generation_config = stock.generation_config
    return model


def stock_processor(assembly: Assembly, template: Template) -> LlavaProcessor:
    """transformers' processor for this model: what a server needs to feed it as it was trained.

    It counts an image's tokens as squares of `patch_size` plus others. Where a connector gives another number, a tower
    has registers, or an image has several scales, the whole image is its one square, and the rest are others: the sum
    is right.
    """
    config, tokens = assembly.model.config, assembly.model.model.sizes.tokens
    tower = spec(config)
    counted, strategy = (tower.patch_size, tower.prefix), config.vision_feature_select_strategy
    side = config.pixels_side
    if (side // tower.patch_size) ** 2 + tower.prefix - (strategy == "default") != tokens:
        counted, strategy = (side, tokens - 1), "full"
    tokenizer = assembly.tokenizer
    tokenizer.padding_side = "left"
    tokenizer.init_kwargs["padding_side"] = "left"  # what is saved; the attribute alone is not
    return LlavaProcessor(
        image_processor=assembly.image_processor,
        tokenizer=tokenizer,
        patch_size=counted[0],
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=counted[1],
        chat_template=to_jinja(template, prefix_text(tokenizer, template, config.prefix_tokens or [])),
    )


def own_processor(assembly: Assembly, template: Template) -> SightlineProcessor:
    """The processor to save with a model that is saved as our class."""
    return SightlineProcessor(
        image_processor=assembly.image_processor,
        tokenizer=assembly.tokenizer,
        chat_template=to_jinja(template),
        template=template.name,
        sizes=asdict(assembly.model.model.sizes),
        methods=assembly.model.config.methods or (),
        prefix_tokens=assembly.model.config.prefix_tokens or (),
    )


def load_model(path: str | Path, dtype: torch.dtype = torch.float32) -> Assembly:
    """A saved model, stock LLaVA, ours, or adapters over a base, as an `Assembly` to train, ask or measure.

    Args:
        dtype: of its weights. Training and exact comparisons want fp32.

    Raises:
        SightlineError: if there is no such model, or any weight is missing or unexpected.
    """
    path = model_folder(path)
    config = read_config(path)
    kind = config["model_type"]
    classes = {"sightline": SightlineForConditionalGeneration, "llava": LlavaForConditionalGeneration}
    if kind not in classes:
        raise SightlineError(f"'{path}' is a model of type '{kind}'; Sightline loads {', '.join(classes)}.")
    if has_adapters(path):
        model = read_adapters(path, load_model)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    else:
        model, info = found(lambda: load_weights(classes[kind], path, dtype), path)
        check_loading(path, info)
        model = from_stock(model) if kind == "llava" else model
        begin_train_only(model, info["missing_keys"])
        own_head(model)
        model.config.base = {"model": location(path)}
    tokenizer = found(lambda: AutoTokenizer.from_pretrained(path), path)
    image_processor = found(lambda: AutoImageProcessor.from_pretrained(path, backend="pil"), path)
    return Assembly(model.eval(), tokenizer, image_processor)


def model_folder(path: str | Path) -> str:
    """`path`, or the `model` inside it where it is a run folder."""
    inside = Path(path) / "model"
    return str(inside if (inside / "config.json").is_file() else path)


def read_config(path: str | Path) -> dict[str, Any]:
    """The `config.json` of a model: a local folder's, or a hub id's.

    Raises:
        SightlineError: if there is none.
    """
    folder = Path(path)
    try:
        if folder.is_dir():
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        else:
            with quiet():
                config = AutoConfig.from_pretrained(str(path)).to_dict()
    except UNREADABLE as error:
        raise SightlineError(
            f"no model at '{path}': {reason(error)}. Give a run or model folder, or a hub id that can be reached."
        ) from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise SightlineError(f"the config.json of '{path}' names no model_type; it is not a model of transformers.")
    return config


def template_of(config: Mapping[str, Any]) -> str | None:
    """The template that a checkpoint's config names, where Sightline saved it."""
    return (config.get("sightline") or {}).get("template")


def check_loading(path: str | Path, info: dict[str, Iterable[Any]]) -> None:
    """Refuse a checkpoint that does not fill the model exactly. What serves training alone may be absent.

    Raises:
        SightlineError: naming the first weights that are missing, unexpected or of another shape.
    """
    missing = sorted(str(key) for key in info["missing_keys"] if ".train_only." not in str(key))
    unexpected = sorted(str(key) for key in info["unexpected_keys"])
    mismatched = sorted(weight_name(key) for key in info.get("mismatched_keys", ()))
    for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched)):
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise SightlineError(
                f"'{path}' does not fit its config: {len(keys)} weights are {what} ({', '.join(keys[:3])}{more}). "
                "Loading it would leave parts of the model random or unused. Use an intact checkpoint."
            )


@torch.no_grad()
def begin_train_only(model: SightlineForConditionalGeneration, missing: Iterable[Any]) -> None:
    """Give what serves training alone, and is saved with no model, the values that it begins with."""
    inside = "model.methods."
    names = [str(key).removeprefix(inside) for key in missing if ".train_only." in str(key)]
    if names:
        fresh = build_methods(model.config.methods or [], model.model.sizes).state_dict()
        state = model.model.methods.state_dict()
        for name in names:
            state[name].copy_(fresh[name])


@torch.no_grad()
def own_head(model: SightlineForConditionalGeneration) -> None:
    """Untie the head of a model with baked tokens: tied, it would give them the logits of their vectors, and every
    other token less than the model did before its export. In the new head their rows are 0."""
    ids = [(model.config.slot_token_ids or {})[token] for token in model.config.prefix_tokens or ()]
    table: Any = model.get_input_embeddings()
    if not ids or model.lm_head.weight is not table.weight:
        return
    head = torch.nn.Linear(table.weight.shape[1], table.weight.shape[0], bias=False, device="meta")
    head.weight = torch.nn.Parameter(table.weight.detach().clone())
    head.weight[ids] = 0
    model.lm_head = head
    model.config.tie_word_embeddings = model.config.llm.tie_word_embeddings = False


def _take_buffers(to: torch.nn.Module, source: torch.nn.Module) -> None:
    """Give `to`, built on the meta device, the buffers that no state dict carries (rotary frequencies)."""
    have = dict(source.named_buffers())
    for name, buffer in list(to.named_buffers()):
        if buffer.is_meta:
            parent, _, leaf = name.rpartition(".")
            to.get_submodule(parent).register_buffer(leaf, have[name], persistent=False)
