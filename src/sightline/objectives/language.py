"""The language loss: next-token cross-entropy, as sums and counts for each kind of token."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..types import IGNORE


def language_sums(
    hidden: Float[Tensor, "batch seq d_llm"],
    head: nn.Module,
    labels: Int[Tensor, "batch seq"],
    kinds: Int[Tensor, "batch seq"],
    wanted: Sequence[int],
) -> dict[int, Float[Tensor, ""]]:
    """Summed cross-entropy in nats of the supervised tokens of each kind in `wanted`.

    Position t predicts label t+1. Logits are computed only where there is a label, in fp32 or better: at 32,000 words
    they are most of the memory of a step, and most positions have none.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORE
    logits = head(hidden[:, :-1][supervised])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets[supervised], reduction="none")
    token_kinds = kinds[:, 1:][supervised]
    return {kind: (losses * (token_kinds == kind)).sum() for kind in wanted}


def supervised_counts(
    labels: Int[Tensor, "batch seq"], kinds: Int[Tensor, "batch seq"], wanted: Sequence[int]
) -> dict[int, Int[Tensor, ""]]:
    """How many supervised tokens of each kind there are; known before the forward pass."""
    supervised = labels[:, 1:] != IGNORE
    return {kind: (supervised & (kinds[:, 1:] == kind)).sum() for kind in wanted}
