"""What the world's language models learn from: scenes told in words, told again, and asked about; facts; digits.

A row is a beginning and several branches that each go on from it: a description told again in other words and another
order, or a question with its answer. Branches do not see each other (a block mask), so that one description serves
many questions and none gives away the answer to another. In use an image stands where the description stands here, in
the same two shapes of text: plain, and a chat by `vicuna_v1`. An image can be long, so the branches of some rows count
their positions from further on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ..data.templates import get_template
from .draw import View
from .language import (
    ANSWERS,
    BOTH_ORDERS,
    CAPTION_REQUESTS,
    EXISTENCE,
    PLACES,
    TEMPLATES,
    Ability,
    caption,
    list_names,
    name_item,
    name_pair,
    questions,
    relations,
)
from .lexicon import DISTRACTORS, unrelated, world_facts
from .scene import MOST_THINGS, Scene, choose, sample_scene
from .tokenizer import BOS_ID, EOS_ID

SCENES = 1 << 24
"""Scenes that descriptions are drawn from."""
ANSWER, WORD, TOLD_WORD, OTHER = 1.0, 0.2, 0.1, 0.02
"""Weights of the loss: a word that the description settles, other words of a branch, content told first, the rest."""
FAR, FARTHEST = 0.3, 1200
"""Share of the chats whose branches stand further on, and by how many positions at most."""
LISTED: tuple[Ability, ...] = ("colour", "shape", "count", *EXISTENCE)
"""What can be asked of things that are only listed."""
JOINTS = (("\n", ""), ("\n", ""), ("", " "))
"""What ends a description and what a question begins with: a line each, or one after the other."""
WHERE = "where is the {colour} {shape}?"
"""Asked in drills alone: a step on the way to how two things stand to each other."""
ASKED, FACTS = 9, 8
"""At most so many questions in a chat about a scene, and so many facts in a row of them."""


@dataclass(frozen=True)
class Branch:
    """A way to go on from a description, with the weight of each of its tokens in the loss."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Row:
    """A beginning, and the branches that go on from it, `gap` positions later."""

    prefix: list[int]
    branches: list[Branch]
    gap: int = 0


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
        words = {word for answers in ANSWERS.values() for word in answers} | {w for p in PLACES for w in p.split()}
        self.settled = {self.encode(f" {word}")[0] for word in words}
        chat = get_template("vicuna_v1")
        self.lead = f"{chat.system} {chat.user[0]}"
        self.reply = chat.user[1] + chat.assistant[0]

    def encode(self, text: str) -> list[int]:
        """Token ids without bos; remembered, since questions repeat."""
        if text not in self.known:
            if len(self.known) > 50_000:
                self.known.clear()
            self.known[text] = self.tokenizer.encode(text, add_special_tokens=False)
        return self.known[text]

    def pairs(self, scene: Scene, rng: np.random.Generator, *, orders: Sequence[int] = BOTH_ORDERS) -> Row:
        """The things by colour and shape alone, listed, and listed again twice.

        In half of the rows distractors stand in for the shapes, in any colour: what is told counts, not what is usual.
        """
        if rng.integers(2):
            names = rng.choice(len(DISTRACTORS), size=len(scene.things), replace=False)
            things = zip(scene.things, names, strict=True)
            scene = replace(scene, things=tuple(replace(thing, shape=DISTRACTORS[i]) for thing, i in things))
        prefix = [BOS_ID, *self.encode(_listed(scene, rng, orders))]
        return Row(prefix, [self._told(_listed(scene, rng, orders) + "\n") for _ in range(2)])

    def short_chat(self, scene: Scene, index: int, rng: np.random.Generator) -> Row:
        """A chat about things that are listed by colour and shape alone."""
        end, start = choose(rng, JOINTS)
        prefix = self._begin(_listed(scene, rng, BOTH_ORDERS) + end, rng)
        asked = {
            q.text: q.answer
            for k in range(3)
            for q in questions(scene, "train", index + MOST_THINGS * k, rng)
            if q.ability in LISTED
        }
        drawn = [list(asked.items())[i] for i in rng.permutation(len(asked))[:ASKED]]
        return Row(prefix, [self._answered(start + question, answer) for question, answer in drawn], _gap(rng))

    def drill(self, scene: Scene, rng: np.random.Generator) -> Row:
        """A chat about what is hard in a whole description, told in a short list and asked of all that have it: sizes,
        letters, or where things stand."""
        order, plates, things = choose(rng, BOTH_ORDERS), scene.items[len(scene.things) :], scene.things
        kind = choose(rng, ("size", *["letter"] * bool(plates), *["place"] * 2 * (len(things) > 1)))
        names = [name_item(scene, item, "high", order) for item in (scene.items if kind == "letter" else things)]
        if kind == "size":
            words = [({"colour": t.colour, "shape": t.shape}, t.size) for t in things]
            asked = {choose(rng, TEMPLATES["size"]).format(**about): size for about, size in words}
        elif kind == "letter":
            letters = {"reading": scene.sign, "fine": scene.card}
            asked = {choose(rng, TEMPLATES[about]): plate.letter for about, plate in letters.items() if plate}
        else:
            names = [
                TEMPLATES["place"][0].format(item=name_pair(t.pair, TEMPLATES["pair"][order]), place=PLACES[t.cell])
                for t in things
            ]
            asked = {WHERE.format(colour=t.colour, shape=t.shape): PLACES[t.cell] for t in things[:2]}
            for one, other in permutations(things, 2):
                about = {"colour": one.colour, "shape": one.shape, "other": f"{other.colour} {other.shape}"}
                asked |= {TEMPLATES[how][0].format(**about): answer for how, answer in relations(one, other)}
        told = list_names([names[i] for i in rng.permutation(len(names))])
        drawn = [list(asked.items())[i] for i in rng.permutation(len(asked))[:ASKED]]
        return Row(self._begin(f"{told}.\n", rng), [self._answered(*turn) for turn in drawn], _gap(rng))

    def plain(self, scene: Scene, rng: np.random.Generator, *, orders: Sequence[int] = BOTH_ORDERS) -> Row:
        """A description, and the scene told again twice."""
        view, places = _view(rng), bool(rng.integers(2))
        prefix = [BOS_ID, *self.encode(caption(scene, rng, view=view, places=places, orders=orders))]
        branches = []
        for _ in range(2):
            again = places and bool(rng.integers(2))
            branches.append(self._told(caption(scene, rng, view=view, places=again, orders=orders) + "\n"))
        return Row(prefix, branches)

    def chat(self, scene: Scene, index: int, rng: np.random.Generator) -> Row:
        """A chat about a described scene: questions, and a request to tell it again."""
        view, places = _view(rng), bool(rng.random() < 0.75)
        told = [caption(scene, rng, view=view, places=places) for _ in range(1 + int(rng.random() < 0.2))]
        end, start = choose(rng, JOINTS)
        prefix = self._begin(" ".join(told) + end, rng)
        asked = {
            q.text: q.answer
            for k in range(3)
            for q in questions(scene, "train", index + MOST_THINGS * k, rng, view=view)
            if places or q.ability != "relation"
        }
        drawn = [list(asked.items())[i] for i in rng.permutation(len(asked))[:ASKED]]
        branches = [self._answered(start + question, answer) for question, answer in drawn]
        if rng.integers(2):
            again = caption(scene, rng, view=view, places=places and bool(rng.integers(2)))
            branches.append(self._retold(again, rng, start))
        return Row(prefix, branches, _gap(rng))

    def facts(self, rng: np.random.Generator) -> Row:
        """A chat about no scene: questions that only the facts answer."""
        known = world_facts()
        drawn = [known[i] for i in rng.choice(len(known), size=FACTS, replace=False)]
        return Row(
            [BOS_ID, *self.encode(self.lead.rstrip())], [self._answered(f" {f.question}", f.answer) for f in drawn]
        )

    def told_facts(self, rng: np.random.Generator) -> Row:
        """Facts, stated."""
        known = world_facts()
        texts = [self.encode(known[i].text + "\n") for i in rng.choice(len(known), size=FACTS, replace=False)]
        return Row([BOS_ID], [Branch(ids, [WORD] * len(ids)) for ids in texts])

    def copied(self, rng: np.random.Generator) -> Row:
        """Digits, or a sentence about distractors, to be told again."""
        if rng.integers(2):
            digits = "".join(str(d) for d in rng.integers(10, size=int(rng.integers(3, 20))))
            return Row([BOS_ID, *self.encode(f"{digits} ")], [self._exact(f"{digits}\n")])
        text = unrelated(rng)
        if rng.integers(2):
            return Row([BOS_ID, *self.encode(text)], [self._exact(f"{text}\n")])
        return Row(self._begin(f"{text}\n", rng), [self._retold(text, rng)])

    def _begin(self, text: str, rng: np.random.Generator) -> list[int]:
        """A chat up to where its question begins: `text` as the text that it is, or apart, as an image stands there."""
        if rng.integers(2):
            return [BOS_ID, *self.encode(self.lead.rstrip()), *self.encode(f" {text}")]
        return [BOS_ID, *self.encode(self.lead), *self.encode(text)]

    def _told(self, text: str) -> Branch:
        ids = self.encode(text)
        return Branch(ids, [ANSWER if i in self.settled else WORD for i in ids])

    def _exact(self, text: str) -> Branch:
        ids = self.encode(text)
        return Branch(ids, [WORD] * len(ids))

    def _answered(self, question: str, answer: str) -> Branch:
        ask, say = self.encode(question + self.reply), self.encode(f" {answer}")
        return Branch([*ask, *say, EOS_ID], [*[OTHER] * len(ask), *[ANSWER] * len(say), WORD])

    def _retold(self, text: str, rng: np.random.Generator, start: str = "") -> Branch:
        ask, say = self.encode(start + choose(rng, CAPTION_REQUESTS) + self.reply), self._told(f" {text}")
        return Branch([*ask, *say.ids, EOS_ID], [*[OTHER] * len(ask), *say.weights, WORD])

    def collate(self, rows: Sequence[Row]) -> TextBatch:
        """Rows padded to the longest, branches after their description."""
        size = len(rows)
        seq = max(len(row.prefix) + sum(len(branch.ids) for branch in row.branches) for row in rows)
        ids, positions, targets = (np.zeros((size, seq), np.int64) for _ in range(3))
        part = np.full((size, seq), -1)
        weights = np.zeros((size, seq), np.float32)
        for r, row in enumerate(rows):
            end = len(row.prefix)
            ids[r, :end], positions[r, :end], part[r, :end] = row.prefix, range(end), 0
            first = row.branches[0]
            targets[r, :end] = [*row.prefix[1:], first.ids[0]]
            weights[r, :end] = [*(TOLD_WORD if i in self.settled else OTHER for i in row.prefix[1:]), first.weights[0]]
            for number, branch in enumerate(row.branches, start=1):
                start, end = end, end + len(branch.ids)
                ids[r, start:end], part[r, start:end] = branch.ids, number
                begin = len(row.prefix) + row.gap
                positions[r, start:end] = range(begin, begin + len(branch.ids))
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


def _listed(scene: Scene, rng: np.random.Generator, orders: Sequence[int]) -> str:
    template = TEMPLATES["pair"][choose(rng, orders)]
    return list_names([name_pair(scene.things[i].pair, template) for i in rng.permutation(len(scene.things))]) + "."


def _gap(rng: np.random.Generator) -> int:
    return int(rng.integers(FARTHEST)) if rng.random() < FAR else 0


def _view(rng: np.random.Generator) -> View:
    return "high" if rng.integers(2) else "low"
