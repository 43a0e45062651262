"""Connectors, from the vision tower's width to the language model's.

    linear   one matrix (LLaVA)
    mlp      two with a GELU between, LLaVA-1.5's mlp2x_gelu; transformers' own module, so a checkpoint stays stock

A linear connector is also an MLP with an identity for activation and second layer: that is how it is saved as a stock
`llava` checkpoint, exactly.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from .towers import tower_spec

ConnectorName = Literal["linear", "mlp"]


def connector_width(config: Any) -> int:
    """The width that a connector reads: the tower's, for each layer that is taken."""
    layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    return tower_spec(config.vision_config).width * layers


class Connector(nn.Module):
    """Patches of each view to visual tokens of each view."""

    @abstractmethod
    def num_tokens(self, patches: int) -> int:
        """Visual tokens for a view of `patches` patches."""

    @abstractmethod
    def stock_state(self) -> Mapping[str, Tensor]:
        """The same function as the weights of transformers' LLaVA projector."""


class LinearConnector(Connector):
    """One linear layer."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(connector_width(config), config.text_config.hidden_size)

    def forward(self, patches: Float[Tensor, "views patches d_vision"]) -> Float[Tensor, "views patches d_llm"]:
        return self.linear(patches)

    def num_tokens(self, patches: int) -> int:
        return patches

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
        """The inverse of `stock_state`."""
        self.linear.load_state_dict({"weight": state["linear_1.weight"], "bias": state["linear_1.bias"]})


class MLPConnector(Connector, LlavaMultiModalProjector):
    """LLaVA-1.5's two layers with a GELU."""

    def __init__(self, config: Any) -> None:
        LlavaMultiModalProjector.__init__(self, config)

    def forward(self, patches: Float[Tensor, "views patches d_vision"]) -> Float[Tensor, "views patches d_llm"]:
        return LlavaMultiModalProjector.forward(self, patches)

    def num_tokens(self, patches: int) -> int:
        return patches

    def stock_state(self) -> Mapping[str, Tensor]:
        return self.state_dict()

    def load_stock_state(self, state: Mapping[str, Tensor]) -> None:
        self.load_state_dict(dict(state))


CONNECTORS: dict[ConnectorName, type[LinearConnector] | type[MLPConnector]] = {
    "linear": LinearConnector,
    "mlp": MLPConnector,
}
