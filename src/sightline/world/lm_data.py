"""What the world's language model learns from: scenes told in words, told again, and asked about.

A row is a description and several branches that each go on from it: the scene told again in other words and
another order, or a question with its answer. Branches do not see each other (a block mask), so that one
description serves many questions and none gives away the answer to another. In use an image stands where
the description stands here, in the same two
shapes of text: plain, and a chat by `vicuna_v1`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..data.templates import get_template
from .language import ABILITIES, ANSWERS, CAPTION_REQUESTS, TEMPLATES, caption, questions
from .scene import MOST_THINGS, Scene, sample_scene
from .tokenizer import BOS_ID, EOS_ID

SCENES = 1 << 24
"""Scenes that descriptions are drawn from."""
ANSWER, WORD, TOLD_WORD, OTHER = 1.0, 0.2, 0.1, 0.02
"""Weights of the loss: a word that the description settles, other words of a branch, content told first, the rest."""


@dataclass(frozen=True)
class Branch:
    """A way to go on from a description, with the weight of each of its tokens in the loss."""

    ids: list[int]
    weights: list[float]


Row = tuple[list[int], list[Branch]]
"""A description, and the branches that go on from it."""


@dataclass(frozen=True)
class TextBatch:
    """Rows of a description with its branches, padded."""

    ids: Int[Tensor, "batch seq"]
    positions: Int[Tensor, "batch seq"]
    """A branch counts on from the end of its description."""
    mask: Bool[Tensor, "batch 1 seq seq"]
    """Who sees whom: a branch itself and the description."""
    targets: Int[Tensor, "batch seq"]
    weights: Float[Tensor, "batch seq"]


@dataclass
class Writer:
    """Writes rows of text as token ids."""

    tokenizer: PreTrainedTokenizerFast
    known: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.settled = {self.encode(f" {a}")[0] for ability in ABILITIES for a in ANSWERS[ability]}
        chat = get_template("vicuna_v1")
        self.lead = chat.system + " " + chat.user[0]
        self.reply = chat.user[1] + chat.assistant[0]

    def encode(self, text: str) -> list[int]:
        """Token ids without bos; remembered, since questions repeat."""
        if text not in self.known:
            if len(self.known) > 50_000:
                self.known.clear()
            self.known[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.known[text]

    def plain(self, scene: Scene, rng: np.random.Generator, *, told: Sequence[str], retold: Sequence[str]) -> Row:
        """A description, and the scene told again twice."""
        prefix = [BOS_ID, *self.encode(caption(scene, rng, told))]
        texts = [self.encode(caption(scene, rng, retold) + "\n") for _ in range(2)]
        return prefix, [Branch(ids, self._weights(ids)) for ids in texts]

    def chat(self, scene: Scene, index: int, rng: np.random.Generator, *, told: Sequence[str]) -> Row:
        """A chat about a described scene: questions, and a request to tell it again."""
        text = " ".join(caption(scene, rng, told) for _ in range(1 + int(rng.random() < 0.2)))
        prefix = [BOS_ID, *self.encode(self.lead), *self.encode(text), *self.encode("\n")]
        asked = {q.text: q.answer for k in range(3) for q in questions(scene, "train", index + MOST_THINGS * k, rng)}
        branches = []
        for question, answer in asked.items():
            ask, say = self.encode(question + self.reply), self.encode(f" {answer}")
            branches.append(Branch([*ask, *say, EOS_ID], [*[OTHER] * len(ask), ANSWER, WORD]))
        request = CAPTION_REQUESTS[int(rng.integers(len(CAPTION_REQUESTS)))]
        ask, say = self.encode(request + self.reply), self.encode(f" {caption(scene, rng)}")
        branches.append(Branch([*ask, *say, EOS_ID], [*[OTHER] * len(ask), *self._weights(say), WORD]))
        return prefix, branches

    def _weights(self, ids: list[int]) -> list[float]:
        return [ANSWER if i in self.settled else WORD for i in ids]

    def collate(self, rows: Sequence[Row]) -> TextBatch:
        """Rows padded to the longest, branches after their description."""
        size, seq = (
            len(rows),
            max(len(prefix) + sum(len(b.ids) for b in branches) for prefix, branches in rows),
        )
        ids, positions, targets = (np.zeros((size, seq), np.int64) for _ in range(3))
        part = np.full((size, seq), -1)
        weights = np.zeros((size, seq), np.float32)
        for r, (prefix, branches) in enumerate(rows):
            end = len(prefix)
            ids[r, :end], positions[r, :end], part[r, :end] = prefix, range(end), 0
            first = branches[0]
            targets[r, :end] = [*prefix[1:], first.ids[0]]
            weights[r, :end] = [
                *(TOLD_WORD if i in self.settled else OTHER for i in prefix[1:]),
                first.weights[0],
            ]
            for number, branch in enumerate(branches, start=1):
                start, end = end, end + len(branch.ids)
                ids[r, start:end], part[r, start:end] = branch.ids, number
                positions[r, start:end] = range(len(prefix), len(prefix) + len(branch.ids))
                targets[r, start : end - 1], weights[r, start : end - 1] = branch.ids[1:], branch.weights[1:]
        parts = torch.from_numpy(part)
        sees = (parts[:, :, None] == parts[:, None, :]) | (parts[:, None, :] == 0)
        mask = (sees & torch.ones(seq, seq, dtype=torch.bool).tril()).unsqueeze(1)
        ids, positions, targets, weights = (torch.from_numpy(x) for x in (ids, positions, targets, weights))
        return TextBatch(ids, positions, mask, targets, weights)


def draw_scene(seed: int, rng: np.random.Generator) -> tuple[int, Scene]:
    """A training scene and its number."""
    index = int(rng.integers(SCENES))
    return index, sample_scene(seed, "train", index)


ONE_ORDER = TEMPLATES["thing"][:1]
BOTH_ORDERS = TEMPLATES["thing"]
"""How things are named: at first always colour before shape, later in both orders."""
