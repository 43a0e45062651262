"""Low-rank adapters on the language model, and how a stage holds what it does not train.

LoRA (Hu et al. 2021), PiSSA (Meng et al. 2024) and, over 4-bit weights, QLoRA (Dettmers et al. 2023), through peft. The
adapters are put into the language model in place; the trunk is not wrapped, and every parameter keeps its part.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..config import LoRA, Stage
from ..errors import SightlineError, did_you_mean
from .assemble import Assembly
from .modeling import SightlineForConditionalGeneration
from .origin import note_held, note_stage
from .parts import is_among, named_parts, owner_of
from .precision import base_linears, base_weight, check_nf4, float_linear, hold_part, is_adapter, is_nf4, require

NAME = "default"
"""peft's name for the one adapter that a layer has."""
EXACT_SVD = 1024
"""Up to this width PiSSA takes the exact decomposition; beyond it peft's fast one, which Meng et al. find as good."""


def prepare_stage(assembly: Assembly, stage: Stage, device: torch.device | str | None = None, *, seed: int = 0) -> None:
    """Make a model ready for a stage, in place: adapters, precisions, activation checkpointing.

    Before parts are frozen and the optimizer is built. Adapters of the stage before go on if this stage has the same
    record, and are folded into the weights if it has others or none. Connector and methods are always fp32: they are
    small.

    Args:
        device: where the stage runs; by default where the model is. 4-bit weights are made there, layer by layer, so a
            model on the CPU need not fit it in fp32.
        seed: what is fresh depends on it alone, so that a run taken up again begins a stage as the first one did.

    Raises:
        SightlineError: for what this model, this machine or this installation cannot do.
    """
    model = assembly.model
    if any(is_nf4(linear) for _, linear in base_linears(model.model.language_model)):
        check_stages([stage.model_copy(update={"name": "before", "frozen": "nf4", "lora": lora_of(model)}), stage])
    device = torch.device(device) if device is not None else model.lm_head.weight.device
    check_stage(model, stage, device)
    for parameter in model.parameters():
        parameter.grad = None
    trained_whole = [part for part in stage.trainable if part != "language" or stage.lora is None]
    note_stage(model, trained_whole, hashed=stage.lora is not None or stage.frozen != "fp32")

    if lora_of(model) != stage.lora:
        if lora_of(model) is not None:
            merge(assembly)
        if stage.lora is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                add_adapters(model, stage.lora)
    for part in ("vision", "language"):
        held = "fp32" if part in trained_whole else stage.frozen
        held = "bf16" if part == "vision" and held == "nf4" else held
        hold_part(model, part, held, device)
        note_held(model, "adapted" if part == "language" and stage.lora is not None else part, held)
    for part, _, parameter in named_parts(model):
        if part not in ("vision", "language"):
            parameter.data = parameter.data.float()
    model.model.checkpoint_decoder = stage.activation_checkpointing


def check_stage(
    model: SightlineForConditionalGeneration, stage: Stage, device: torch.device | str, *, sharded: bool = False
) -> None:
    """What `prepare_stage` would fail on, without changing anything.

    Args:
        sharded: whether the stage's parameters are shared out among processes (FSDP2).

    Raises:
        SightlineError: as `prepare_stage`.
    """
    language = model.model.language_model
    if stage.frozen == "nf4" or stage.lora is not None:
        if getattr(language.config, "quantization_config", None) is not None:
            raise SightlineError(
                f"stage '{stage.name}': the language model was loaded with weights that are quantised already. Use its "
                "original checkpoint, and frozen=nf4 for 4 bits."
            )
        if stage.lora is not None:
            require("peft", "peft", "lora")
            check_layers(model, stage.lora, stage.name)
        if stage.frozen == "nf4":
            if sharded:
                raise SightlineError(
                    f"stage '{stage.name}': 4-bit weights are not shared out by FSDP. Use parallel=ddp, which has them "
                    "whole in each process, or frozen=bf16."
                )
            check_nf4(device)
    if stage.activation_checkpointing and not language.supports_gradient_checkpointing:
        raise SightlineError(
            f"stage '{stage.name}': {type(language).__name__} does not support activation checkpointing. "
            "Set activation_checkpointing=false."
        )


def changed_names(model: SightlineForConditionalGeneration) -> set[str]:
    """Entries of the state dict that parts and recipe do not give again, beside what a stage trains as it stands.

    Parts that trained whole before, also under a later name or in 4 bits, and what PiSSA took apart.
    """
    trained = set((model.config.base or {}).get("trained", ()))
    pissa = {f"model.language_model.{name}." for name, layer in adapted_layers(model) if hasattr(layer, "start_A")}
    return {
        name
        for name in model.state_dict()
        if owner_of(name) in trained or any(name.startswith(prefix) for prefix in pissa)
    }


def check_stages(stages: Sequence[Stage]) -> None:
    """What one stage makes impossible for a later one: rounding to 4 bits is for good.

    Raises:
        SightlineError: naming both stages.
    """
    rounded = None
    for before, stage in pairwise(stages):
        rounded = before.name if before.frozen == "nf4" else rounded
        rounded = None if stage.init_from is not None else rounded
        if rounded and "language" in stage.trainable and stage.lora is None:
            raise SightlineError(
                f"stage '{stage.name}' trains the language model's own weights, which stage '{rounded}' rounds to 4 "
                f"bits for good. Set frozen=bf16 in '{rounded}', or give '{stage.name}' lora."
            )
        if rounded and stage.lora is not None and stage.lora.init == "pissa" and stage.lora != before.lora:
            raise SightlineError(
                f"stage '{stage.name}' begins PiSSA, which takes what is principal out of the weights before they are "
                f"rounded, and stage '{rounded}' has rounded them. Set frozen=bf16 in '{rounded}', or use init=lora."
            )


def is_trained(part: str, name: str, stage: Stage) -> bool:
    """Whether a stage trains a parameter: of a language model with adapters, only those."""
    return is_among(part, stage.trainable) and (part != "language" or stage.lora is None or is_adapter(name))


def lora_of(model: SightlineForConditionalGeneration) -> LoRA | None:
    """The record of the adapters that a model has."""
    return record_of(model.config)


def record_of(config: Any) -> LoRA | None:
    """The record of adapters in a model's config."""
    record = (config.base or {}).get("lora")
    return LoRA.model_validate(record) if record is not None else None


def adapted_layers(model: SightlineForConditionalGeneration) -> Iterator[tuple[str, Any]]:
    """The language model's layers that have adapters (peft's own), with their names in it."""
    if lora_of(model) is None:
        return
    from peft.tuners.lora import LoraLayer

    for name, module in model.model.language_model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def peft_config(model: SightlineForConditionalGeneration, lora: LoRA, **options: Any) -> Any:
    """A recipe's record in peft's words."""
    from peft import LoraConfig

    return LoraConfig(
        **{
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": lora.dropout,
            "target_modules": sorted(_targets(model, lora)),
            "init_lora_weights": True,
            **options,
        }
    )


def add_adapters(model: SightlineForConditionalGeneration, lora: LoRA) -> None:
    """Put fresh adapters into the language model. The function that it computes stays, for PiSSA to rounding."""
    from peft import inject_adapter_in_model

    language = model.model.language_model
    init: bool | str = True
    if lora.init == "pissa":
        language.float()
        widest = max(max(linear.weight.shape) for _, linear in base_linears(language))
        init = "pissa" if widest <= EXACT_SVD else "pissa_niter_16"
    inject_adapter_in_model(peft_config(model, lora, init_lora_weights=init), language)
    model.config.base = {**(model.config.base or {}), "lora": lora.model_dump(mode="json")}
    for name, parameter in language.named_parameters():
        if is_adapter(name):  # peft makes them in the precision of the layers under them
            parameter.data = parameter.data.float()
    if lora.init == "pissa":
        for _, layer in adapted_layers(model):
            keep_start(layer, layer.lora_A[NAME].weight.data, layer.lora_B[NAME].weight.data)


def keep_start(layer: Any, first: Tensor, second: Tensor) -> None:
    """Keep where PiSSA started: what the layer's own weights lack. Buffers, so that checkpoints have them."""
    layer.register_buffer("start_A", first.clone())
    layer.register_buffer("start_B", second.clone())


def merge(assembly: Assembly) -> None:
    """Fold the adapters into the language model's weights, in fp32, leaving a plain model that computes the same.

    4-bit weights under adapters become what they stand for: the adapters were trained over that, rounding them again
    would change the model.
    """
    model = assembly.model
    for name, layer in list(adapted_layers(model)):
        model.model.language_model.set_submodule(name, folded(layer))
    if lora_of(model) is not None:
        del model.model.language_model.peft_config
        base = {key: value for key, value in (model.config.base or {}).items() if key != "lora"}
        model.config.base = base | {"trained": sorted({*base["trained"], "language"})}


def folded(layer: Any) -> nn.Linear:
    """A plain layer that computes what an adapted or a 4-bit layer does."""
    if is_nf4(layer):
        return float_linear(base_weight(layer), layer.bias)
    base = layer.get_base_layer()
    return float_linear(base_weight(base) + layer.get_delta_weight(NAME).detach(), base.bias)


def plain_state(model: SightlineForConditionalGeneration) -> dict[str, Tensor]:
    """The state dict of the model that `merge` and fp32 would leave; weights that stay as they are, are shared."""
    state = model.state_dict()
    language = model.model.language_model
    layers = dict(adapted_layers(model))
    layers |= {name: m for name, m in base_linears(language) if is_nf4(m) and not name.endswith(".base_layer")}
    for name, layer in layers.items():
        prefix = f"model.language_model.{name}."
        state = {key: value for key, value in state.items() if not key.startswith(prefix)}
        state |= {prefix + key: value.detach() for key, value in folded(layer).state_dict().items()}
    return state


def _targets(model: SightlineForConditionalGeneration, lora: LoRA) -> set[str]:
    """The names of the layers to adapt: the recipe's, or those of every linear layer of the decoder."""
    names = (name.removesuffix(".base_layer") for name, _ in base_linears(model.model.language_model))
    return set(lora.targets) if lora.targets is not None else {name.rpartition(".")[2] for name in names}


def check_layers(model: SightlineForConditionalGeneration, lora: LoRA, stage: str) -> None:
    """Every target is the name of some linear layer, and PiSSA's rank is one that it has."""
    layers = {n.removesuffix(".base_layer"): m for n, m in base_linears(model.model.language_model)}
    known = sorted({name.rpartition(".")[2] for name in layers})
    adapted = set()
    for target in sorted(_targets(model, lora)):
        matched = {name for name in layers if f".{name}".endswith(f".{target}")}
        if not matched:
            raise SightlineError(
                f"stage '{stage}': lora.targets names '{target}', and the decoder has no linear layer of that name"
                f"{did_you_mean(target, known) or '.'} It has: {', '.join(known)}. Embeddings and the output layer "
                "take no adapters, as they may be one table."
            )
        adapted |= matched
    if not adapted:
        raise SightlineError(f"stage '{stage}': lora.targets is empty. Name layers, or leave it out to adapt all.")
    smallest = min(min(layers[name].in_features, layers[name].out_features) for name in adapted)
    if lora.init == "pissa" and lora.rank > smallest:
        raise SightlineError(
            f"stage '{stage}': PiSSA of rank {lora.rank} needs layers of that rank, and the narrowest has {smallest}. "
            "Lower lora.rank, or use init=lora."
        )
