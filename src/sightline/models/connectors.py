"""Connectors, from the vision tower's width to the language model's.

    linear          one matrix (LLaVA)
    mlp             two with a GELU between, LLaVA-1.5's mlp2x_gelu; transformers' own module
    pixel_shuffle   squares of patches side by side as one (space to depth, as InternVL 1.5 has it), then LLaVA's MLP
    pool            LLaVA's MLP, then averages over a smaller grid (the pool-adapter of InfMLLM, arXiv 2311.06791)

A linear connector is also an MLP with an identity for activation and second layer: that is how it is saved as a stock
`llava` checkpoint, exactly. The last two read the grid, keep its order (row by row), and give fewer tokens; LLaVA has
no word for them, so such a model is saved as ours. For their deviations from the papers see docs/papers.md.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from ..errors import SightlineError
from .towers import PatchSelect, TowerSpec, tower_spec

ConnectorName = Literal["linear", "mlp", "pixel_shuffle", "pool"]


def connector_width(config: Any) -> int:
    """The width that a connector reads: the tower's, for each layer that is taken, at each scale."""
    layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    return tower_spec(config.vision_config).width * layers * len(config.vision_scales or (1,))


class Connector(nn.Module):
    """Patches of each view to visual tokens of each view."""

    @abstractmethod
    def num_tokens(self, patches: int) -> int:
        """Visual tokens for a view of `patches` patches."""


class StockConnector(Connector):
    """A connector that LLaVA's projector can express."""

    def num_tokens(self, patches: int) -> int:
        return patches

    @abstractmethod
    def stock_state(self) -> Mapping[str, Tensor]:
        """The same function as the weights of transformers' LLaVA projector."""

    @abstractmethod
    def load_stock_state(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `stock_state`."""


class LinearConnector(StockConnector):
    """One linear layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(connector_width(config), config.text_config.hidden_size)

    def forward(self, patches: Float[Tensor, "views patches d_vision"]) -> Float[Tensor, "views patches d_llm"]:
        return self.linear(patches)

    def stock_state(self) -> Mapping[str, Tensor]:
        weight, bias = self.linear.weight, self.linear.bias
        return {
            "linear_1.weight": weight,
            "linear_1.bias": bias,
            "linear_2.weight": torch.eye(len(weight), dtype=weight.dtype, device=weight.device),
            "linear_2.bias": torch.zeros_like(bias),
        }

    @staticmethod
    def expresses(state: Mapping[str, Tensor]) -> bool:
        """Whether a stock state is that of a linear connector: its second layer is the identity."""
        weight, bias = state["linear_2.weight"], state["linear_2.bias"]
        return torch.equal(weight, torch.eye(len(weight)).to(weight)) and not bool(bias.any())

    def load_stock_state(self, state: Mapping[str, Tensor]) -> None:
        self.linear.load_state_dict({"weight": state["linear_1.weight"], "bias": state["linear_1.bias"]})


class MLPConnector(StockConnector, LlavaMultiModalProjector):
    """LLaVA-1.5's two layers with a GELU."""

    def __init__(self, config: Any) -> None:
        LlavaMultiModalProjector.__init__(self, config)
        if self.linear_1.in_features != connector_width(config):  # several scales, which LLaVA does not know
            bias = self.linear_1.bias is not None
            self.linear_1 = nn.Linear(connector_width(config), self.linear_1.out_features, bias=bias)

    def forward(self, patches: Float[Tensor, "views patches d_vision"]) -> Float[Tensor, "views patches d_llm"]:
        return LlavaMultiModalProjector.forward(self, patches)

    def stock_state(self) -> Mapping[str, Tensor]:
        return self.state_dict()

    def load_stock_state(self, state: Mapping[str, Tensor]) -> None:
        self.load_state_dict(dict(state))


class TwoLayers(nn.Sequential):
    """LLaVA's MLP at any width."""

    def __init__(self, width: int, config: Any) -> None:
        d_llm = config.text_config.hidden_size
        super().__init__(nn.Linear(width, d_llm), ACT2FN[config.projector_hidden_act], nn.Linear(d_llm, d_llm))


class PixelShuffleConnector(Connector):
    """A grid of g x g patches becomes (g/r)^2 tokens of r^2 d_vision, then LLaVA's MLP."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.factor: int = config.shuffle_factor
        self.mlp = TwoLayers(self.factor**2 * connector_width(config), config)

    def forward(self, patches: Float[Tensor, "views patches d_vision"]) -> Float[Tensor, "views tokens d_llm"]:
        return self.mlp(pixel_shuffle(patches, self.factor))

    def num_tokens(self, patches: int) -> int:
        return patches // self.factor**2


class PoolConnector(Connector):
    """LLaVA's MLP on every patch, then the average over each cell of a smaller grid."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.grid: int = config.pooled_grid
        self.mlp = TwoLayers(connector_width(config), config)

    def forward(self, patches: Float[Tensor, "views patches d_vision"]) -> Float[Tensor, "views tokens d_llm"]:
        return pool_grid(self.mlp(patches), self.grid)

    def num_tokens(self, patches: int) -> int:
        return self.grid**2


def pixel_shuffle(patches: Float[Tensor, "views patches d"], factor: int) -> Float[Tensor, "views tokens wide"]:
    """Each square of `factor` x `factor` patches as one token: its patches side by side, row by row."""
    views, count, width = patches.shape
    side = round(count**0.5)
    cells = patches.view(views, side // factor, factor, side // factor, factor, width).transpose(2, 3)
    return cells.reshape(views, (side // factor) ** 2, factor**2 * width)


def pool_grid(patches: Float[Tensor, "views patches d"], grid: int) -> Float[Tensor, "views tokens d"]:
    """Averages over the cells of a `grid` x `grid`, the cells of torch's `adaptive_avg_pool2d`: they overlap by a patch
    where the grid does not divide. Written as products, whose gradient is the same on each call also on a GPU."""
    side = round(patches.shape[1] ** 0.5)
    cell, patch = torch.arange(grid, device=patches.device), torch.arange(side, device=patches.device)
    starts, ends = cell * side // grid, -(-(cell + 1) * side // grid)
    inside = ((patch >= starts[:, None]) & (patch < ends[:, None])).to(patches.dtype)
    weights = inside / inside.sum(1, keepdim=True)
    return torch.einsum("kr,lc,vrcd->vkld", weights, weights, patches.unflatten(1, (side, side))).flatten(1, 2)


def resolve_options(
    connector: ConnectorName,
    tower: TowerSpec,
    select: PatchSelect,
    *,
    shuffle_factor: int | None = None,
    pooled_grid: int | None = None,
) -> dict[str, Any]:
    """The options of a connector with its defaults, checked against the tower's grid.

    Raises:
        SightlineError: for an option of another connector, tokens beside the grid, or a size that does not fit it.
    """
    for option, value, owner in (
        ("shuffle_factor", shuffle_factor, "pixel_shuffle"),
        ("pooled_grid", pooled_grid, "pool"),
    ):
        if value is not None and connector != owner:
            raise SightlineError(f"{option} belongs to connector '{owner}', and the connector is '{connector}'.")
    if connector not in ("pixel_shuffle", "pool"):
        return {}
    grid = tower.grid
    if select == "full":
        raise SightlineError(
            f"connector '{connector}' reads a grid, and vision_select=full has {tower.prefix} tokens beside it. "
            "Say vision_select=patch."
        )
    if connector == "pool":
        pooled = (grid + 1) // 2 if pooled_grid is None else pooled_grid
        if not 0 < pooled <= grid:
            raise SightlineError(
                f"pooled_grid is {pooled}, and the tower's grid has {grid} patches along a side. Use 1 to {grid}."
            )
        return {"pooled_grid": pooled}
    factor = 2 if shuffle_factor is None else shuffle_factor
    if factor < 1 or grid % factor:
        fits = ", ".join(str(number) for number in range(2, grid + 1) if grid % number == 0)
        raise SightlineError(
            f"shuffle_factor {factor} does not divide the tower's grid of {grid} x {grid} patches. Factors that do: "
            f"{fits}. Or use connector=pool, which takes any grid."
        )
    return {"shuffle_factor": factor}


CONNECTORS: dict[ConnectorName, type[Connector]] = {
    "linear": LinearConnector,
    "mlp": MLPConnector,
    "pixel_shuffle": PixelShuffleConnector,
    "pool": PoolConnector,
}


def build_connector(config: Any) -> Connector:
    """The connector that a config names, with fresh weights."""
    return CONNECTORS[config.connector](config)
