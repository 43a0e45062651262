"""VLSA's SA-Perceiver: the tokens of a small view gather what the crops show, then one another.

    Q = [V_lo; q] W_q    K = V = V_hi W_kv
    V1 = a(Q K^T) V W_o1 + [V_lo; q]            a(x) = SiLU(x / sqrt(d)) / keys
    V2 = a(V1 (V1 W_k)^T) V1 W_o2 + V1

as docs/papers.md repairs equations 1 and 2, whose second one cannot be computed as it is printed. With W_o1 = W_o2 = 0,
where training begins, it gives V_lo and q themselves.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

Activation = Literal["silu", "softmax"]


@dataclass(frozen=True)
class Attention:
    """How weights are made of scores."""

    activation: Activation = "silu"
    scale: bool = True
    """Whether scores are divided by the root of the width of a head."""
    normalise: bool = True
    """Whether SiLU's weights are divided by the number of keys; softmax's sum to 1 as they are."""
    heads: int = 1

    def __call__(
        self,
        queries: Float[Tensor, "images queries d"],
        keys: Float[Tensor, "images keys d"],
        values: Float[Tensor, "images keys d"],
        seen: Bool[Tensor, "images queries_or_1 keys"],
    ) -> Float[Tensor, "images queries d"]:
        """What each query takes of the values.

        Args:
            seen: which keys a query sees; there is one at least.
        """
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (queries, keys, values))
        scores = q @ k.transpose(2, 3)
        if self.scale:
            scores = scores / math.sqrt(q.shape[-1])
        seen = seen.unsqueeze(1)
        if self.activation == "softmax":
            weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        else:
            weights = F.silu(scores).masked_fill(~seen, 0)
            if self.normalise:
                weights = weights / seen.sum(-1, keepdim=True)
        return (weights @ v).transpose(1, 2).flatten(2)


class SAPerceiver(nn.Module):
    """Five matrices and a query. Memory is linear in the crops."""

    def __init__(self, width: int, attention: Attention | None = None, *, separate_values: bool = False) -> None:
        """
        Args:
            separate_values: a matrix of its own for the values, which share the keys' in the paper.
        """
        super().__init__()
        self.attend = attention or Attention()
        self.query = nn.Parameter(torch.randn(1, width) * 0.02)
        self.w_q, self.w_kv, self.w_k, self.w_o1, self.w_o2 = (nn.Linear(width, width, bias=False) for _ in range(5))
        self.w_v = nn.Linear(width, width, bias=False) if separate_values else None
        for last in (self.w_o1, self.w_o2):
            nn.init.zeros_(last.weight)

    def forward(
        self,
        low: Float[Tensor, "images patches d"],
        high: Float[Tensor, "images keys d"],
        low_shown: Bool[Tensor, "images patches"],
        high_seen: Bool[Tensor, "images queries_or_1 keys"],
        low_places: Float[Tensor, "images patches d"] | None = None,
        high_places: Float[Tensor, "images keys d"] | None = None,
    ) -> Float[Tensor, "images patches+1 d"]:
        """The small view's tokens, and the one that stands for the whole image after them.

        Args:
            low: patches of the small view.
            high: patches of all crops of an image, filled up to the same number.
            low_shown: those of `low` that are more than padding: what is in the others is taken by none.
            high_seen: those of `high` that each query, or every one, sees.
            low_places, high_places: added to queries and keys of the first attention; not to what is taken.
        """
        first = torch.cat([low, self.query.to(low.dtype).expand(len(low), 1, -1)], dim=1)
        asking = first if low_places is None else first + F.pad(low_places, (0, 0, 0, 1))
        keys = self.w_kv(high if high_places is None else high + high_places)
        shared = keys if high_places is None or self.w_v is not None else self.w_kv(high)
        values = shared if self.w_v is None else self.w_v(high)
        gathered = self.attend(self.w_q(asking), keys, values, high_seen)
        second = self.w_o1(gathered) + first
        seen = F.pad(low_shown, (0, 1), value=True).unsqueeze(1)
        return self.w_o2(self.attend(second, self.w_k(second), second, seen)) + second


def sincos(places: Float[Tensor, "... 2"], width: int) -> Float[Tensor, "... width"]:
    """Sines and cosines of places in the unit square, a quarter of `width` for each of them and each direction, with
    wavelengths from 2 down to a hundredth of it."""
    count = -(-width // 4)
    frequencies = math.pi * 100.0 ** (torch.arange(count, device=places.device) / max(1, count - 1))
    angles = (places.unsqueeze(-1) * frequencies).flatten(-2)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width]
