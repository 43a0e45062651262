"""A finished model on disk, as the simplest standard model that can express it.

A model whose methods leave nothing behind at inference is a stock `llava` checkpoint (`llava_next` with any-resolution,
see `stock`) with its processor and chat template: transformers loads it without Sightline. What these cannot express is
saved as our registered class.
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
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from .. import __version__
from ..data.templates import Template, to_jinja
from ..errors import SightlineError
from ..files import atomic_folder
from ..methods.compose import build_methods
from ..models.adapters import plain_state
from ..models.assemble import Assembly
from ..models.backbones import fit_image_processor, location
from ..models.hub import UNREADABLE, found, load_weights, quiet, reason, weight_name
from ..models.modeling import SightlineForConditionalGeneration
from ..models.processing import SightlineProcessor
from .adapters import has_adapters, read_adapters, saves_as_adapters, write_adapters
from .stock import STOCK, changes_forward, from_stock, stock_processor, to_stock, why_not_stock


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
    records = zip(methods or [], model.model.methods.all, strict=True)  # those that serve training alone are left out
    model.config.methods = [record for record, method in records if changes_forward(method)]
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
            own = inexpressible or (adapted and model.config.methods)
            processor = own_processor if own else stock_processor
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
    classes = {"sightline": SightlineForConditionalGeneration, **STOCK}
    if kind not in classes:
        raise SightlineError(f"'{path}' is a model of type '{kind}'; Sightline loads {', '.join(classes)}.")
    if has_adapters(path):
        model = read_adapters(path, load_model)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
    else:
        model, info = found(lambda: load_weights(classes[kind], path, dtype), path)
        check_loading(path, info)
        model = from_stock(model) if kind in STOCK else model
        begin_train_only(model, info["missing_keys"])
        own_head(model)
        model.config.base = {"model": location(path)}
    tokenizer = found(lambda: AutoTokenizer.from_pretrained(path), path)
    image_processor: Any = found(lambda: AutoImageProcessor.from_pretrained(path, backend="pil"), path)
    if isinstance(image_processor, LlavaNextImageProcessorPil):  # which would cut every view into views again
        image_processor = fit_image_processor(str(path), image_processor, model.config.tower, "pad")
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
        built = build_methods(model.config.methods or [], model.model.sizes)
        for method in built.all:
            for part in method.pretrained:
                if any(name.startswith(f"{method.name}.train_only.{part}.") for name in names):
                    method.load_pretrained(part)
        fresh, state = built.state_dict(), model.model.methods.state_dict()
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
