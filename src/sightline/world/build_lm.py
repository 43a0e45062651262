"""Builds the world's language model: a standard `LlamaForCausalLM`, trained on scenes told in words.

Trials taught what it takes for so small a model to bind a colour to its shape. Wide initial weights (.08) and the
weight of the loss on the words that the description settles: without them it sits on a plateau. Telling the scene
again: a dense task that needs the binding. One word order at first ("a red star"), then both ("a star in red").
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..files import claim_empty
from .cards import Scores, save_backbone, write_card
from .lm_data import BOTH_ORDERS, ONE_ORDER, Writer, draw_scene
from .scene import Split
from .tokenizer import BOS_ID, EOS_ID, PAD_ID, build_tokenizer
from .training import Progress, descend, one_thread, run

CONTEXT = 2048


@dataclass(frozen=True)
class LmRecipe:
    """How the language model is built."""

    steps: int = 2400
    seed: int = 0
    batch: int = 32
    plain_until: float = 0.12
    """Fraction of the steps with scenes only told again, in one word order; then every second step is a chat."""
    decay_from: float = 0.7
    """Fraction of the steps from which the learning rate falls to a fiftieth."""
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 50


def lm_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """0.7 M parameters: 4 layers of width 128, embeddings tied."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )


def train_lm(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: LmRecipe) -> Iterator[float]:
    """Trains `model` in place and yields the loss of each step."""
    rng = np.random.Generator(np.random.Philox(key=[recipe.seed, 2]))
    writer = Writer(tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)

    def rate(step: int) -> float:
        left = (1 - step / recipe.steps) / (1 - recipe.decay_from)
        return min((step + 1) / recipe.warmup, 1.0, max(left, 0.02))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    for step in range(recipe.steps):
        scenes = [draw_scene(recipe.seed, rng) for _ in range(recipe.batch)]
        if step < recipe.plain_until * recipe.steps:
            rows = [writer.plain(scene, rng, told=ONE_ORDER, retold=ONE_ORDER) for _, scene in scenes]
        elif step % 2:
            rows = [writer.plain(scene, rng, told=BOTH_ORDERS, retold=BOTH_ORDERS) for _, scene in scenes]
        else:
            rows = [writer.chat(scene, index, rng, told=BOTH_ORDERS) for index, scene in scenes]
        batch = writer.collate(rows)
        output = model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False)
        losses = F.cross_entropy(output.logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        loss = (losses * batch.weights.flatten()).sum() / batch.weights.sum()
        descend(model, loss, optimizer, schedule)
        yield loss.item()
    model.eval()


def build_lm(
    out: Path, recipe: LmRecipe | None = None, progress: Progress | None = None, *, measured: int = 300
) -> None:
    """Train the language model, save it to the folder `out`, measure what was saved, and write its card.

    Runs on one thread whatever the machine has, so that the weights depend on the recipe and torch's
    version alone.

    Args:
        measured: scenes of `validation` and of `novel` that the card's numbers are taken on.

    Raises:
        SightlineError: if `out` holds files already.
    """
    from .measure_lm import measure_lm

    recipe = recipe or LmRecipe()
    claim_empty(out, "a backbone")
    tokenizer = build_tokenizer(max_length=CONTEXT)
    with one_thread(recipe.seed) as clock:
        model = LlamaForCausalLM(lm_config(tokenizer))
        run(train_lm(model, tokenizer, recipe), recipe.steps, progress)
        seconds = clock()
        save_backbone(model, tokenizer, out)
        saved = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
        splits: tuple[Split, ...] = ("validation", "novel")
        scores = [
            Scores(split, measured, measure_lm(saved, tokenizer, split=split, scenes=measured)) for split in splits
        ]
    write_card(
        out,
        seconds=seconds,
        scores=scores,
        data="scenes of the world's train split told in captions, as plain text and in vicuna_v1 chats",
        objective="next token, weighted: telling a scene again, and questions about it",
        recipe=asdict(recipe),
    )
