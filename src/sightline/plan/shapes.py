"""What the cost of a model depends on, read from its modules on the meta device."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..config import LoRA
from ..methods.base import OneView, Size, Sizes
from ..models.modeling import SightlineForConditionalGeneration
from ..models.parts import named_parts, part_names
from ..models.scales import num_tiles


@dataclass(frozen=True)
class Linear:
    """A linear layer's name within its block, and its sizes."""

    name: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Stack:
    """A stack of equal transformer layers."""

    layers: int
    width: int
    heads: int
    head_dim: int
    hidden: int
    """Width inside the feed-forward part."""
    gated: bool
    """Whether the feed-forward part multiplies two projections (Llama's), or has one (CLIP's)."""
    linears: tuple[Linear, ...]
    """Of one layer."""
    parameters: int
    """Of one layer."""

    @property
    def attention(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim

    @cached_property
    def weights(self) -> int:
        """Weights of one layer's linears."""
        return sum(linear.weights for linear in self.linears)

    def adapted(self, lora: LoRA) -> tuple[Linear, ...]:
        """One layer's linears that get an adapter."""
        if lora.targets is None:
            return self.linears
        ends = tuple(f".{target}" for target in lora.targets)
        return tuple(linear for linear in self.linears if f".{linear.name}".endswith(ends))


@dataclass(frozen=True)
class Shapes:
    """A whole model's sizes."""

    parameters: Mapping[str, int]
    """By part."""
    vision: Stack
    deepest: int
    """The deepest of the tower's layers whose output is taken; no gradient goes beyond it."""
    patch_inputs: int
    """Numbers in a patch of pixels."""
    image_size: int
    """Of the tower."""
    scales: tuple[int, ...]
    """Multiples of that size at which the tower sees a view."""
    tiles: int
    """Images of that size that the tower sees of a view."""
    grid: int
    """Patches of a tile."""
    tower_tokens: int
    """Tokens of a tile inside the tower: its patches and what stands before them."""
    connector: tuple[Linear, ...]
    connector_tokens: tuple[int, ...]
    """How many vectors of a view each of the connector's linears sees."""
    image: Size
    """Width and height of the image that is planned for."""
    views: int
    """Views of it."""
    connected: int
    """Views that the connector sees of it: a method may have made one of several."""
    tokens: int
    """Visual tokens of an image in the language model."""
    slots: int
    """Positions that methods add to a row with images."""
    language: Stack
    vocabulary: int
    tied: bool


def shapes(model: SightlineForConditionalGeneration, image: Size | None = None) -> Shapes:
    """The sizes of a model.

    Args:
        image: width and height of an image; by default a square of the tower's size, or of twice that (four crops) for
            a model that sees several views.
    """
    config, inner = model.config, model.model
    parameters = dict.fromkeys(part_names(model), 0)
    for part, _, parameter in named_parts(model):
        parameters[part] += parameter.numel()
    tower, sizes, methods = config.tower, inner.sizes, inner.methods
    layers = config.vision_feature_layer
    states = [layers] if isinstance(layers, int) else list(layers)
    tower_config: Any = config.vision_config
    count = tower_config.num_hidden_layers
    side, cut = config.pixels_side, methods.views
    if image is None:
        image = (side, side) if isinstance(cut, OneView) else (2 * side, 2 * side)
    views, tokens = cut.count(image, side), cut.tokens(image, side, sizes.tokens)
    merged = any("patches" in method.needs.reshapes for method in methods.all)
    connector, connector_tokens = _connector(inner.multi_modal_projector, sizes)
    return Shapes(
        parameters=parameters,
        vision=_stack(inner.vision_tower, tower_config),
        deepest=max(state % (count + 1) for state in states),
        patch_inputs=3 * tower.patch_size**2,
        image_size=tower.image_size,
        scales=tuple(config.vision_scales or (1,)),
        tiles=num_tiles(config.vision_scales),
        grid=tower.num_patches("patch"),
        tower_tokens=tower.grid**2 + tower.prefix,
        connector=connector,
        connector_tokens=connector_tokens,
        image=image,
        views=views,
        connected=tokens // sizes.tokens if merged else views,
        tokens=tokens,
        slots=len(methods.slots),
        language=_stack(inner.language_model, config.llm),
        vocabulary=config.llm.vocab_size,
        tied=bool(config.tie_word_embeddings),
    )


def _stack(module: nn.Module, config: Any) -> Stack:
    """The layers of a tower or a decoder."""
    count = config.num_hidden_layers
    stacks = [m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    layer = stacks[0][0]
    heads = config.num_attention_heads
    linears = tuple(
        Linear(name, linear.in_features, linear.out_features)
        for name, linear in layer.named_modules()
        if isinstance(linear, nn.Linear)
    )
    down = linears[-1]
    into = sum(linear.outputs for linear in linears if linear.name.rpartition(".")[0] == down.name.rpartition(".")[0])
    hidden = max(linear.inputs for linear in linears)
    return Stack(
        layers=count,
        width=config.hidden_size,
        heads=heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        hidden=hidden,
        gated=into - down.outputs == 2 * hidden,
        linears=linears,
        parameters=sum(p.numel() for p in layer.parameters()),
    )


def _connector(connector: nn.Module, sizes: Sizes) -> tuple[tuple[Linear, ...], tuple[int, ...]]:
    """A connector's linears in the order in which a view runs through them, and how many vectors each one sees."""
    seen: list[tuple[Linear, int]] = []

    def watch(name: str, module: nn.Linear) -> Any:
        def see(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            layer = Linear(name, module.in_features, module.out_features)
            seen.append((layer, inputs[0].numel() // module.in_features))

        return module.register_forward_hook(see)

    hooks = [watch(name, m) for name, m in connector.named_modules() if isinstance(m, nn.Linear)]
    first = next(connector.parameters())
    with torch.no_grad():
        connector(torch.zeros(1, sizes.patches, sizes.d_vision, device=first.device, dtype=first.dtype))
    for hook in hooks:
        hook.remove()
    return tuple(layer for layer, _ in seen), tuple(tokens for _, tokens in seen)
