"""A decoder asked token by token, from prompts that are embedded: what a model's own `generate` does not let in."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


@torch.no_grad()
def greedy(
    language: Any,
    head: Any,
    embed: Any,
    embeds: Float[Tensor, "batch seq d_llm"],
    attention_mask: Int[Tensor, "batch seq"],
    *,
    ends: Sequence[int],
    never: Sequence[int] = (),
    fill: int,
    max_new_tokens: int,
) -> Int[Tensor, "batch new"]:
    """The likeliest token after each row, and after that, whatever a model's own settings for generation say.

    Args:
        language, head, embed: the decoder, what makes logits of its states, and the input embeddings.
        ends: tokens that end a row; `fill` follows them.
        never: tokens that are not said.
    """
    mask, cache, place = attention_mask, None, positions(attention_mask)
    stops = torch.tensor(list(ends), device=mask.device)
    new, done = [], torch.zeros(len(mask), dtype=torch.bool, device=mask.device)
    for _ in range(max_new_tokens):
        out = language(
            inputs_embeds=embeds, attention_mask=mask, position_ids=place, past_key_values=cache, use_cache=True
        )
        cache = out.past_key_values
        logits = head(out.last_hidden_state[:, -1])
        logits[:, list(never)] = float("-inf")
        token = logits.argmax(-1)
        token = torch.where(done, fill, token)
        new.append(token)
        done = done | torch.isin(token, stops)
        if bool(done.all()):
            break
        embeds = embed(token[:, None])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        place = place[:, -1:] + 1
    return torch.stack(new, dim=1)


def positions(attention_mask: Int[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    """Positions that count from the first real token of each row."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def pad_left(
    rows: Sequence[Sequence[int]], fill: int, device: torch.device
) -> tuple[Int[Tensor, "batch seq"], Int[Tensor, "batch seq"]]:
    """Rows of token ids as one tensor, with `fill` before the shorter ones, and their attention mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([[fill] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids, mask
