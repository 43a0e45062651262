"""A model with adapters on disk, without the weights that it shares with its base.

    adapter_config.json, adapter_model.safetensors   peft's own files, which peft alone loads over the base
    trained.safetensors                              connector, methods, and parts that trained whole
    config.json                                      the model's config, and in `base` where the rest comes from
    tokenizer, image processor, chat template        as with any model

PiSSA moves part of the base's weights into its adapters. It is saved as the LoRA of twice the rank that is the
difference (as Meng et al. 2024 do), so that peft needs no more than the base. Loading takes the halves apart and
ends with the very weights that were trained.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

from ..errors import SightlineError
from ..models.adapters import NAME, adapted_layers, add_adapters, keep_start, lora_of, peft_config, record_of
from ..models.assemble import Assembly, assemble, attach_methods
from ..models.backbones import resolve
from ..models.configuration import SightlineConfig
from ..models.hub import found, reason
from ..models.modeling import SightlineForConditionalGeneration
from ..models.origin import part_hash
from ..models.parts import named_parts
from ..models.precision import hold_part, require

ADAPTERS, CONFIG, TRAINED = "adapter_model.safetensors", "adapter_config.json", "trained.safetensors"


def saves_as_adapters(model: SightlineForConditionalGeneration) -> bool:
    """Whether base and adapters say all of a model: not once the language model's own weights have trained."""
    base = model.config.base or {}
    return lora_of(model) is not None and "language" not in base["trained"] and ("model" in base or "language" in base)


def has_adapters(path: str | Path) -> bool:
    """Whether a folder is one that `write_adapters` wrote."""
    return (Path(path) / CONFIG).is_file() and (Path(path) / TRAINED).is_file()


def write_adapters(model: SightlineForConditionalGeneration, folder: Path) -> None:
    """Write a model's config, adapters, and what else trained, into an existing folder."""
    lora = lora_of(model)
    assert lora is not None, "a model without adapters"
    pissa = lora.init == "pissa"
    base = model.config.base or {}
    whole, inside = base.get("model"), _place(model)
    targets: dict[str, Any] = {}
    if whole is not None:  # the tower's layers may have the same names
        names = [name for name, _ in adapted_layers(model)]
        targets = {"target_modules": [f"{inside}.{name}" for name in names]}
    config = peft_config(
        model,
        lora,
        r=lora.rank * (1 + pissa),
        lora_alpha=lora.alpha * (1 + pissa),
        task_type=None if whole else "CAUSAL_LM",
        base_model_name_or_path=whole or resolve(base["language"]),
        **targets,
    )
    config.save_pretrained(str(folder))
    tensors = {}
    for name, layer in adapted_layers(model):
        first, second = layer.lora_A[NAME].weight.detach(), layer.lora_B[NAME].weight.detach()
        if pissa:
            first, second = torch.cat([first, layer.start_A]), torch.cat([second, -layer.start_B], dim=1)
        tensors[f"base_model.model.{inside}.{name}.lora_A.weight"] = first.contiguous()
        tensors[f"base_model.model.{inside}.{name}.lora_B.weight"] = second.contiguous()
    save_file(tensors, folder / ADAPTERS, metadata={"format": "pt"})
    save_file(_beside(model), folder / TRAINED, metadata={"format": "pt"})
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def read_adapters(path: str, load_base: Callable[[str], Assembly]) -> SightlineForConditionalGeneration:
    """The model of such a folder, in fp32: base, rounding, adapters and what trained, as they were put together.

    Args:
        load_base: `load_model`, for a base that is a whole model.

    Raises:
        SightlineError: if the base is not there or is another one, or any weight is missing or unexpected.
    """
    require("peft", "peft", f"'{path}' has adapters, and loading them")
    config = found(lambda: SightlineConfig.from_pretrained(path), path)
    base, lora = config.base or {}, record_of(config)
    if lora is None:
        raise SightlineError(f"'{path}' has adapters, and its config.json says nothing of them in `base`.")
    model = _base(path, config, load_base).model
    for part, known in base["hash"].items():
        if part not in base["trained"] and part_hash(model, part) != known:
            name = base.get(part, base.get("model"))
            raise SightlineError(
                f"the adapters in '{path}' were trained on another {part} model than '{name}' is now: its weights have "
                "another hash. Put the original there, or change `base` in config.json."
            )
    model.config.base = {key: value for key, value in base.items() if key != "lora"}
    for part in ("vision", "language"):
        _round(model, part, base["held"].get(part, []))

    tensors = found(lambda: load_file(Path(path) / ADAPTERS), path)
    plain = lora.model_copy(update={"init": "lora"})
    with torch.random.fork_rng():
        add_adapters(model, plain)
    model.config.base = base
    inside = _place(model)
    for name, layer in adapted_layers(model):
        keys = [f"base_model.model.{inside}.{name}.lora_{letter}.weight" for letter in "AB"]
        shapes = [layer.lora_A[NAME].weight.shape, layer.lora_B[NAME].weight.shape]
        first, second = (_take(tensors, key, path) for key in keys)
        if lora.init == "pissa":
            (first, start_A), (second, start_B) = first.chunk(2), second.chunk(2, dim=1)
            keep_start(layer, start_A, -start_B)
            weight = layer.get_base_layer().weight
            weight.data = weight.data - layer.scaling[NAME] * layer.start_B @ layer.start_A  # as peft took it out
        if [first.shape, second.shape] != shapes:
            raise SightlineError(f"'{path}': the adapter of {name} has another shape than its config says.")
        layer.lora_A[NAME].weight.data, layer.lora_B[NAME].weight.data = first.contiguous(), second.contiguous()
    _refuse_more(tensors, ADAPTERS, path)
    _round(model, "language", base["held"].get("adapted", []))

    tensors = found(lambda: load_file(Path(path) / TRAINED), path)
    for key, value in _beside(model).items():
        given = _take(tensors, key, path)
        if given.shape != value.shape:
            raise SightlineError(
                f"'{path}': {key} in {TRAINED} has shape {tuple(given.shape)}; the model's has another."
            )
        value.copy_(given)
    _refuse_more(tensors, TRAINED, path)
    model.generation_config = found(lambda: GenerationConfig.from_pretrained(path), path)
    return model


def _base(path: str, config: Any, load_base: Callable[[str], Assembly]) -> Assembly:
    """The model under the adapters, with fresh weights where the folder has its own."""
    base = config.base
    try:
        with torch.random.fork_rng():
            if "model" in base:
                assembly = load_base(base["model"])
                attach_methods(assembly, config.methods or [])
                return assembly
            return assemble(
                base["vision"],
                base["language"],
                connector=config.connector,
                shuffle_factor=config.shuffle_factor,
                pooled_grid=config.pooled_grid,
                vision_layer=config.vision_feature_layer,
                vision_select=config.vision_select,
                vision_scales=config.vision_scales,
                methods=config.methods or [],
            )
    except SightlineError as error:
        raise SightlineError(f"'{path}' holds adapters, and the model under them: {reason(error)}.") from None


def _place(model: SightlineForConditionalGeneration) -> str:
    """Where the language model is inside the base that peft loads: a whole LLaVA, or a language model with its head."""
    if "model" in (model.config.base or {}):
        return "model.language_model"
    return model.model.language_model.base_model_prefix


def _beside(model: SightlineForConditionalGeneration) -> dict[str, Tensor]:
    """What is saved beside the adapters: connector, methods without what serves training alone, parts trained whole."""
    trained = set((model.config.base or {})["trained"])
    owner = {name: part for part, name, _ in named_parts(model)}
    shared = {"vision", "language"} - trained
    return {
        name: value.contiguous()
        for name, value in model.state_dict().items()
        if not name.startswith(("model.language_model.", "lm_head."))
        and owner.get(name, "vision" if name.startswith("model.vision_tower.") else "") not in shared
        and ".train_only." not in name
    }


def _round(model: SightlineForConditionalGeneration, part: Any, held: list[Any]) -> None:
    """Give a part's weights the values that they had after being held so, in fp32."""
    for how in held:
        hold_part(model, part, how)
    hold_part(model, part, "fp32")


def _take(tensors: dict[str, Tensor], key: str, path: str) -> Tensor:
    if key not in tensors:
        raise SightlineError(f"'{path}' lacks the weight {key}. Use an intact folder.")
    return tensors.pop(key)


def _refuse_more(tensors: dict[str, Tensor], file: str, path: str) -> None:
    if tensors:
        raise SightlineError(
            f"'{path}': {file} has {len(tensors)} weights that the model has no place for ({min(tensors)}). "
            "Use an intact folder."
        )
