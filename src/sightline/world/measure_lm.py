"""What a language model of the world knows of scenes described in words, and which facts: the numbers of its card."""

from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from ..evaluation.metrics import Estimate, proportion_interval
from .language import caption, questions
from .lexicon import world_facts
from .lm_data import Writer
from .scene import Split, sample_scene, stream
from .tokenizer import BOS_ID

BINDING = ("colour", "shape")
"""Both directions: the colour of the star, and the shape of the red one."""
GAP = 1000
"""Positions between description and question in `far`: an image of many tokens stands there in use."""
Asked = tuple[list[int], int, int, list[str]]
"""Tokens, how many of them are the description, the answer's token, and what the answer counts for."""


@torch.no_grad()
def measure_lm(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    split: Split = "validation",
    scenes: int = 300,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Accuracy of the first answer token, by ability.

    Each question stands alone in a `vicuna_v1` chat, with one caption where an image will stand. `colour_2` and
    `shape_2` are of scenes with two things, and so on. `far` is all of them with the questions a thousand positions
    further on. `fact` is of the world's facts, asked without a scene.
    """
    writer = Writer(tokenizer)
    asked: list[Asked] = []
    scene_of: list[str] = []
    for i in range(scenes):
        scene = sample_scene(seed, split, i)
        told = caption(scene, stream(seed, split, i, "caption"), view="high", places=True)
        lead = [BOS_ID, *writer.encode(f"{writer.lead}{told}\n")]
        for q in questions(scene, split, i, stream(seed, split, i, "questions"), view="high"):
            keys = [q.ability]
            if q.ability in BINDING:
                keys.append(f"{q.ability}_{len(scene.things)}")
            ids = [*lead, *writer.encode(q.text + writer.reply)]
            asked.append((ids, len(lead), writer.encode(f" {q.answer}")[0], keys))
            scene_of.append(str(i))
    facts: list[Asked] = [
        (
            [BOS_ID, *writer.encode(writer.lead + fact.question + writer.reply)],
            0,
            writer.encode(f" {fact.answer}")[0],
            ["fact"],
        )
        for fact in world_facts()
    ]
    right: dict[str, list[bool]] = {}
    near = answers_right(model, [*asked, *facts])
    for hit, (_, _, _, keys) in zip(near, [*asked, *facts], strict=True):
        for key in keys:
            right.setdefault(key, []).append(hit)
    scores = {key: proportion_interval(hits) for key, hits in right.items()}
    scores["far"] = proportion_interval(answers_right(model, asked, gap=GAP), scene_of)
    return dict(sorted(scores.items()))


@torch.no_grad()
def answers_right(model: LlamaForCausalLM, asked: Sequence[Asked], *, gap: int = 0, batch: int = 128) -> list[bool]:
    """Whether the likeliest token after each question is its answer's."""
    hits: list[bool] = []
    for start in range(0, len(asked), batch):
        rows = asked[start : start + batch]
        ends = torch.tensor([len(ids) - 1 for ids, _, _, _ in rows])
        ids = pad_sequence([torch.tensor(ids) for ids, _, _, _ in rows], batch_first=True)
        told = torch.tensor([length for _, length, _, _ in rows])
        positions = torch.arange(ids.shape[1]).expand_as(ids)
        positions = positions + gap * (positions >= told[:, None])
        hidden = model.model(input_ids=ids, position_ids=positions).last_hidden_state
        guesses = model.lm_head(hidden[torch.arange(len(rows)), ends]).argmax(-1).tolist()
        hits += [guess == answer for guess, (_, _, answer, _) in zip(guesses, rows, strict=True)]
    return hits
