"""Builds the world's language models: standard `LlamaForCausalLM`s of two sizes, trained on scenes told in words.

Trials taught what it takes for so small a model to bind a colour to its shape. Wide initial weights (.08) and the
weight of the loss on the words that the description settles: without them it sits on a plateau. Telling again what was
told: a dense task that needs the binding. And short lists first ("a red star and a blue ring"), in one word order,
then in both ("a star in red"): whole descriptions from the start, with sizes, places and signs, had not taught it
after 2,600 steps.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from .cards import Build, finish, load
from .language import BOTH_ORDERS, ONE_ORDER
from .lm_data import Row, Writer, draw_scene
from .scene import Scene
from .tokenizer import BOS_ID, EOS_ID, PAD_ID, build_tokenizer
from .training import Descent, Progress, descend, one_thread

CONTEXT = 2048


@dataclass(frozen=True)
class LmRecipe:
    """How a language model is built."""

    steps: int = 4000
    seed: int = 0
    width: int = 128
    feed_forward: int = 384
    layers: int = 4
    heads: int = 4
    batch: int = 28
    """Scenes in a step, half as many again in a step of short rows; one row of facts asked, one of facts told and two
    to copy stand beside them."""
    one_order_until: float = 0.08
    """Fraction of the steps with things listed by colour and shape alone, in one word order."""
    listed_until: float = 0.23
    """Fraction of the steps with such lists in both orders; then chats, whole descriptions and short rows take
    turns."""
    decay_from: float = 0.6
    """Fraction of the steps from which the learning rate falls to a fiftieth."""
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 50


SMALL = LmRecipe(width=80, feed_forward=224)
"""The smaller language model: about a third of the parameters."""


def lm_config(tokenizer: PreTrainedTokenizerFast, recipe: LmRecipe) -> LlamaConfig:
    """A Llama, its embeddings tied."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.08,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )


def rows_of(step: int, writer: Writer, recipe: LmRecipe) -> list[Row]:
    """The rows of a step."""
    rng = np.random.Generator(np.random.Philox(key=[recipe.seed, 2], counter=[0, 0, 0, step]))
    done = step / recipe.steps
    short = done < recipe.listed_until or step % 3 == 2
    scenes = [draw_scene(recipe.seed, rng) for _ in range(recipe.batch + recipe.batch // 2 * short)]
    if done < recipe.listed_until:
        orders = ONE_ORDER if done < recipe.one_order_until else BOTH_ORDERS
        rows = [writer.pairs(scene, rng, orders=orders) for _, scene in scenes]
    elif short:
        rows = [_short(k, writer, scene, index, rng) for k, (index, scene) in enumerate(scenes)]
    elif step % 3:
        rows = [writer.plain(scene, rng) for _, scene in scenes]
    else:
        rows = [writer.chat(scene, index, rng) for index, scene in scenes]
    return [*rows, writer.facts(rng), writer.told_facts(rng), writer.copied(rng), writer.copied(rng)]


def _short(number: int, writer: Writer, scene: Scene, index: int, rng: np.random.Generator) -> Row:
    """Drills every second time; lists told again and lists asked about share the rest."""
    if number % 2:
        return writer.drill(scene, rng)
    return writer.short_chat(scene, index, rng) if number % 4 else writer.pairs(scene, rng)


def lm_loss(model: LlamaForCausalLM, writer: Writer, rows: list[Row]) -> torch.Tensor:
    """Cross-entropy of the next token, a weighted mean."""
    batch = writer.collate(rows)
    hidden = model.model(
        input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask, use_cache=False
    ).last_hidden_state
    counted = batch.weights > 0
    losses = F.cross_entropy(model.lm_head(hidden[counted]), batch.targets[counted], reduction="none")
    weights = batch.weights[counted]
    return (losses * weights).sum() / weights.sum()


def build_lm(
    out: Path, recipe: LmRecipe | None = None, progress: Progress | None = None, *, measured: int = 300
) -> None:
    """Train a language model, save it to the folder `out`, measure what was saved, and write its card.

    A build that was stopped goes on when it is run again.

    Args:
        measured: scenes of `validation` and of `novel` that the card's numbers are taken on.

    Raises:
        SightlineError: if `out` holds files already, or a build of other settings is under way there.
    """
    from .measure_lm import measure_lm

    recipe = recipe or LmRecipe()
    build = Build(out, recipe)
    tokenizer = build_tokenizer(max_length=CONTEXT)
    writer = Writer(tokenizer)

    def rate(step: int) -> float:
        left = (1 - step / recipe.steps) / (1 - recipe.decay_from)
        return min((step + 1) / recipe.warmup, 1.0, max(left, 0.02))

    with one_thread(recipe.seed):
        model = LlamaForCausalLM(lm_config(tokenizer, recipe))
        seconds = descend(
            model,
            lambda step: lm_loss(model, writer, rows_of(step, writer, recipe)),
            Descent(recipe.steps, recipe.lr, recipe.weight_decay, rate),
            state=build.state,
            recipe=recipe,
            progress=progress,
        )
        finish(
            build,
            "lm",
            model,
            tokenizer,
            measure=lambda folder, split: measure_lm(
                load(LlamaForCausalLM, folder), tokenizer, split=split, scenes=measured
            ),
            seconds=seconds,
            data="scenes of the world's train split told in lists and captions, as plain text and in vicuna_v1 chats; "
            "the world's facts; digits and sentences to copy",
            objective="next token, weighted: telling a scene again, questions about it, facts",
        )
