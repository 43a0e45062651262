"""The language loss: next-token cross-entropy, as sums and counts for each kind of token."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..types import IGNORE

CHUNK = 2**26
"""Logits that the chunked loss holds at once: 256 MiB in fp32."""
LARGE_ON_CPU = 2**29
"""Logits from which the loss is chunked on a CPU: 2 GiB in fp32. There it saves memory only, and costs time."""


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
    losses = token_losses(hidden[:, :-1][supervised], head, targets[supervised])
    token_kinds = kinds[:, 1:][supervised]
    return {kind: (losses * (token_kinds == kind)).sum() for kind in wanted}


def token_losses(
    hidden: Float[Tensor, "tokens d_llm"], head: nn.Module, targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Cross-entropy in nats of each token.

    Where all logits together would be more than `CHUNK` (on a CPU: `LARGE_ON_CPU`), they are computed `CHUNK` at a time
    and again in the backward pass, so that they are never held together. The numbers are the same. The head is called
    as a module each time, so that it may be frozen, sharded or wrapped.
    """
    words = int(head.out_features)  # pyright: ignore[reportArgumentType]
    limit = LARGE_ON_CPU if hidden.device.type == "cpu" else CHUNK
    if len(hidden) * words <= limit:
        return _losses_of(hidden, head, targets)
    size = max(1, CHUNK // words)
    chunks = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat(
        [
            checkpoint(_losses_of_chunk, some, head, wanted, use_reentrant=False, preserve_rng_state=False)
            for some, wanted in chunks
        ]
    )


def rows_right(
    hidden: Float[Tensor, "batch seq d_llm"], head: nn.Module, labels: Int[Tensor, "batch seq"], *, chunk: int = 1024
) -> tuple[Int[Tensor, ""], Int[Tensor, ""]]:
    """In how many rows every supervised token is the likeliest one, and how many rows have any.

    For rows with one answer it is the share that greedy decoding would give word for word, without decoding.
    """
    targets = labels[:, 1:]
    supervised = targets != IGNORE
    states, wanted = hidden[:, :-1][supervised], targets[supervised]
    parts = zip(states.split(chunk), wanted.split(chunk), strict=True)
    hits = torch.cat([head(some).argmax(-1) == target for some, target in parts])
    missed = torch.zeros_like(supervised).masked_scatter(supervised, ~hits).any(dim=1)
    asked = supervised.any(dim=1)
    return (asked & ~missed).sum(), asked.sum()


def _losses_of_chunk(
    hidden: Float[Tensor, "some d_llm"], head: nn.Module, targets: Int[Tensor, " some"]
) -> Float[Tensor, " some"]:
    """A chunk casts the head for itself under autocast. With one cast for all, their gradients would add up in bf16."""
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, dtype=dtype, enabled=torch.is_autocast_enabled(device), cache_enabled=False):
        return _losses_of(hidden, head, targets)


def _losses_of(
    hidden: Float[Tensor, "some d_llm"], head: nn.Module, targets: Int[Tensor, " some"]
) -> Float[Tensor, " some"]:
    logits = head(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, reduction="none")


def supervised_counts(
    labels: Int[Tensor, "batch seq"], kinds: Int[Tensor, "batch seq"], wanted: Sequence[int]
) -> dict[int, Int[Tensor, ""]]:
    """How many supervised tokens of each kind there are; known before the forward pass."""
    supervised = labels[:, 1:] != IGNORE
    return {kind: (supervised & (kinds[:, 1:] == kind)).sum() for kind in wanted}
