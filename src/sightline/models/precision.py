"""How the weights that a stage does not train are held: in fp32, in bfloat16, or in 4 bits (nf4, Dettmers et al. 2023).

Rounding is for good: what has been held in fewer bits keeps their values when it is held in fp32 again. nf4 is
bitsandbytes' own layer, put in the place of the language model's linear layers; norms, embeddings and the output layer
are bfloat16 then. Its scales are not quantised a second time, so that rounding what is rounded already changes nothing.
"""

import copy
import importlib.util
from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import SightlineError
from .modeling import SightlineForConditionalGeneration

Held = Literal["fp32", "bf16", "nf4"]
ADAPTERS = (".lora_A.", ".lora_B.")
"""What peft puts into the names of an adapter's parameters."""


def is_adapter(name: str) -> bool:
    """Whether a parameter, by its name in the model, is an adapter's."""
    return any(mark in name for mark in ADAPTERS)


def hold_part(
    model: SightlineForConditionalGeneration,
    part: Literal["vision", "language"],
    held: Held,
    device: torch.device | str = "cpu",
) -> None:
    """Hold a part's weights in another precision, in place; adapters stay in fp32.

    Args:
        device: where nf4 layers are made, one after another, so that no whole copy in fp32 is ever there.
    """
    if part == "language":
        for name, linear in list(base_linears(model.model.language_model)):
            if held == "nf4" and not is_nf4(linear):
                model.model.language_model.set_submodule(name, nf4_linear(linear, device))
            elif held != "nf4" and is_nf4(linear):
                model.model.language_model.set_submodule(name, float_linear(base_weight(linear), linear.bias))
    roots = [model.model.vision_tower] if part == "vision" else [model.model.language_model, model.lm_head]
    dtype = torch.float32 if held == "fp32" else torch.bfloat16
    for root in roots:
        for name, parameter in root.named_parameters():
            if parameter.is_floating_point() and not is_adapter(name):
                parameter.data = parameter.data.to(dtype)  # buffers stay: rotary frequencies need fp32


def base_linears(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """The linear layers of a model with their names, adapters' own left out."""
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear) and not is_adapter(f"{name}."):
            yield name, child


def is_nf4(linear: nn.Module) -> bool:
    """Whether a layer holds its weight in 4 bits."""
    return type(linear).__name__ == "NF4Linear"


def base_weight(linear: Any) -> Float[Tensor, "out_features in_features"]:
    """A layer's weight in fp32: what its 4 bits stand for, where it holds those."""
    if not is_nf4(linear):
        return linear.weight.data.float()
    from bitsandbytes.functional import dequantize_4bit  # pyright: ignore[reportMissingImports]

    state = copy.copy(linear.weight.quant_state)
    state.dtype = torch.float32
    return dequantize_4bit(linear.weight.data, state)


def num_weights(parameter: nn.Parameter) -> int:
    """How many weights a parameter stands for: two for each byte in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def float_linear(weight: Float[Tensor, "out_features in_features"], bias: nn.Parameter | None) -> nn.Linear:
    """A plain layer of these weights."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    linear.bias = bias  # pyright: ignore[reportAttributeAccessIssue]
    return linear


def nf4_linear(linear: nn.Linear, device: torch.device | str) -> nn.Linear:
    """The same layer with its weight in 4 bits, on `device`."""
    bitsandbytes = _bitsandbytes()
    with torch.device("meta"):
        made = nf4_class()(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=torch.bfloat16,
            compress_statistics=False,
            quant_type="nf4",
        )
    weight = linear.weight.data.float().contiguous()
    options = {"quant_type": "nf4", "compress_statistics": False, "module": made}
    made.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, **options).to(device)
    made.weight.quant_state.dtype = torch.bfloat16  # what the forward pass unpacks to
    made.bias = None if linear.bias is None else nn.Parameter(linear.bias.data.to(device), requires_grad=False)
    return made


@cache
def nf4_class() -> Any:
    """bitsandbytes' 4-bit layer, which can read its own state dict back; made here, as bitsandbytes is an extra."""
    bitsandbytes = _bitsandbytes()

    class NF4Linear(bitsandbytes.nn.Linear4bit):
        """A frozen linear layer in nf4."""

        def __init__(self, *sizes: int, **options: Any) -> None:
            super().__init__(*sizes, **options)
            # On some CPUs it would repack its weights when it is first used without gradients, and fail on small ones.
            self.support_avx512bf16_for_cpu = False

        def _load_from_state_dict(
            self, state: dict[str, Tensor], prefix: str, metadata: Any, strict: bool, missing: list[str], *rest: Any
        ) -> None:
            marks = {key: state.pop(key) for key in list(state) if key.startswith(f"{prefix}weight.")}
            packed = state.pop(f"{prefix}weight", None)
            if packed is None or not marks:
                missing.append(f"{prefix}weight")
            else:
                stats = {key.removeprefix(prefix): value for key, value in marks.items()}
                make = bitsandbytes.nn.Params4bit.from_prequantized
                self.weight = make(packed, stats, device=self.weight.device, module=self)
            if self.bias is not None:
                self.bias.data.copy_(state.pop(f"{prefix}bias"))

    return NF4Linear


def check_nf4(device: torch.device | str) -> None:
    """Try a small layer in 4 bits, forward and backward.

    Raises:
        SightlineError: if bitsandbytes is not installed, or does not work on this device.
    """
    _bitsandbytes()
    try:
        layer = nf4_linear(nn.Linear(64, 64, bias=False), device)
        given = torch.ones(1, 64, dtype=torch.bfloat16, device=device, requires_grad=True)
        layer(given).sum().backward()
    except Exception as error:  # whatever bitsandbytes raises for a device that it was not built for
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SightlineError(
            f"bitsandbytes cannot hold weights in 4 bits on device '{device}': {lines[0].rstrip('. ')}. "
            "Use frozen=bf16, or another device."
        ) from None


def require(package: str, extra: str, what: str) -> None:
    """Refuse to go on without an optional package.

    Raises:
        SightlineError: with the command that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise SightlineError(f"{what} needs {package}, which is not installed. Run: pip install 'sightline[{extra}]'")


def _bitsandbytes() -> Any:
    require("bitsandbytes", "qlora", "frozen=nf4 (QLoRA)")
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    return bitsandbytes
