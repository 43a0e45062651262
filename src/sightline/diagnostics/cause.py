"""The causal question behind Figure 2 of SEA (Yin et al. 2024): a visual token whose nearest word is wrong, and an
answer that is wrong. Do they go together, and does the answer come right when the tokens are given the right word?

    1. The word of an item: of the words that could answer the question (all colours, say), the one whose embedding has
       the largest mean cosine with the visual tokens that cover the item. Is it the true one?
    2. A table of words, right or wrong, against answers, right or wrong, and its odds ratio. This is correlation: an
       item that is hard to see spoils both.
    3. The cause: the tokens of the item are turned towards the embedding of the true word, or, as the control, towards
       another wrong one; nothing else is changed. If words at tokens are what is read, answers follow them both ways.
       If only the damage matters, both do the same.

A token that is turned whole towards "red" no longer says "star", so a question that finds its item by its shape can
fail for that; the control suffers it too. Towers spread what they see, so tokens beside the item may still tell of it.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ..data.images import load_image
from ..errors import SightlineError
from ..evaluation.metrics import Z95, Estimate, is_correct, paired_difference, proportion_interval
from ..evaluation.questions import Question
from ..progress import watched
from .geometry import unit
from .material import Material, TokenTruth
from .subject import Subject

MUCH = 0.5
"""Share of an item's best covered token that a token must be covered to count as the item's."""


@dataclass(frozen=True)
class Table:
    """Questions by whether the word at the item's tokens is right, and whether the answer is."""

    both_right: int
    word_right: int
    """And the answer wrong."""
    answer_right: int
    """And the word wrong."""
    both_wrong: int


@dataclass(frozen=True)
class Correction:
    """What answers become when the tokens of the item are turned to another word."""

    amount: float
    """How far: 1 puts the word in their place."""
    true_word: Estimate
    """Accuracy with the true word there."""
    wrong_word: Estimate
    """Accuracy with a wrong word there, the control."""
    difference: Estimate
    """True word less wrong word, paired by question."""
    corrected: Estimate
    """Of the questions that were answered wrong: the share that the true word puts right."""
    corrected_by_control: Estimate
    """The same with the wrong word."""
    followed: Estimate
    """The share of all answers that say the wrong word that was put there."""


@dataclass(frozen=True)
class Cause:
    """Words at tokens, and answers."""

    accuracy: Estimate
    """As the tokens are."""
    words_right: Estimate
    table: Table
    odds_ratio: Estimate
    """Above 1 where right words go with right answers."""
    corrections: tuple[Correction, ...]
    """By amount."""
    left_out: int
    """Questions about an item that covers no visual token most."""


@dataclass(frozen=True)
class _Item:
    """The item of a question: its row in the batch, its tokens, and numbers of words in the group that could answer."""

    question: Question
    row: int
    places: list[int]
    group: tuple[str, ...]
    true: int
    nearest: int
    draw: float

    @property
    def wrong(self) -> int:
        """A wrong word, if there is one that is not the nearest already."""
        others = [word for word in range(len(self.group)) if word != self.true]
        others = [word for word in others if word != self.nearest] or others
        return others[int(self.draw * len(others))]


def measure_cause(
    subject: Subject,
    material: Material,
    *,
    attributes: Sequence[str] = ("colour", "shape"),
    amounts: Sequence[float] = (0.5, 1.0),
    batch_size: int = 16,
    max_new_tokens: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> Cause:
    """The table and the corrections for the questions about one item, as `material.asked` knows them.

    Args:
        attributes: what is asked for.
        amounts: how far tokens are turned; see `toward`.
        seed: of the wrong words.

    Raises:
        SightlineError: if no question is about one item whose tokens are known.
    """
    cases = {case.image: case for case in material.cases}
    asked = [q for q in material.questions if q.id in material.asked and material.asked[q.id].attribute in attributes]
    words = {name: subject.words(material.groups[name]) for name in attributes if name in material.groups}
    rng = random.Random(seed)
    items: list[_Item] = []
    right: list[bool] = []
    turned: dict[tuple[float, str], list[bool]] = {(a, way): [] for a in amounts for way in ("true", "wrong", "said")}
    for batch in watched(asked, "cause", batch_size=batch_size, progress=progress):
        images = [load_image(q.images[0]) for q in batch]
        prompt = subject.prompted([[image] for image in images], [q.text for q in batch])
        visual = [prompt.visual_of(row) for row in range(len(batch))]
        here: list[_Item] = []
        for row, question in enumerate(batch):
            about = material.asked[question.id]
            truth = subject.truth(cases[question.images[0]], images[row], visual[row])
            places = [subject.beside_grid + place for place in tokens_of(truth, about.item)]
            if places:
                nearest = nearest_word(visual[row][places], words[about.attribute])
                group = material.groups[about.attribute]
                here.append(
                    _Item(question, row, places, group, group.index(question.answers[0]), nearest, rng.random())
                )
        items += here
        said = subject.answers(prompt, max_new_tokens=max_new_tokens)
        right += [is_correct(said[item.row], item.question.answers) for item in here]
        for amount in amounts:
            for way in ("true", "wrong"):
                new = [tokens.clone() for tokens in visual]
                for item in here:
                    word = words[material.asked[item.question.id].attribute][item.true if way == "true" else item.wrong]
                    new[item.row][item.places] = toward(visual[item.row][item.places], word, amount)
                said = subject.answers(prompt.with_visual(new), max_new_tokens=max_new_tokens)
                turned[amount, way] += [is_correct(said[item.row], item.question.answers) for item in here]
                if way == "wrong":
                    turned[amount, "said"] += [is_correct(said[item.row], [item.group[item.wrong]]) for item in here]
    if not right:
        raise SightlineError(
            f"{material.name} has no question about one item ({', '.join(attributes)}) whose visual tokens are known, "
            "so nothing can be corrected. Use a world folder, and a model whose visual tokens are a grid."
        )

    clusters = [item.question.cluster for item in items]
    word_right = [item.nearest == item.true for item in items]

    def correction(amount: float) -> Correction:
        true, wrong = turned[amount, "true"], turned[amount, "wrong"]
        failed = [row for row, fine in enumerate(right) if not fine]
        return Correction(
            amount=amount,
            true_word=proportion_interval(true, clusters),
            wrong_word=proportion_interval(wrong, clusters),
            difference=paired_difference(true, wrong, clusters),
            corrected=proportion_interval([true[row] for row in failed], [clusters[row] for row in failed]),
            corrected_by_control=proportion_interval([wrong[row] for row in failed], [clusters[row] for row in failed]),
            followed=proportion_interval(turned[amount, "said"], clusters),
        )

    return Cause(
        accuracy=proportion_interval(right, clusters),
        words_right=proportion_interval(word_right, clusters),
        table=cross_table(word_right, right),
        odds_ratio=odds_ratio(word_right, right, clusters),
        corrections=tuple(correction(amount) for amount in amounts),
        left_out=len(asked) - len(right),
    )


def tokens_of(truth: Sequence[TokenTruth], item: int) -> list[int]:
    """The visual tokens that show an item: those it covers most, and at least `MUCH` as far as its best one."""
    best = max((token.coverage for token in truth if token.item == item), default=0.0)
    return [i for i, token in enumerate(truth) if token.item == item and token.coverage >= MUCH * best]


def nearest_word(tokens: Float[Tensor, "tokens d_llm"], words: Float[Tensor, "words d_llm"]) -> int:
    """The word with the largest mean cosine with the tokens."""
    return int((unit(tokens.float()) @ unit(words.float()).T).mean(0).argmax())


def toward(
    tokens: Float[Tensor, "tokens d_llm"], word: Float[Tensor, " d_llm"], amount: float
) -> Float[Tensor, "tokens d_llm"]:
    """Tokens turned towards a word, each as long as before: 0 leaves them, 1 gives them the word's direction.

    Directions are mixed as unit vectors, `(1 - amount) token + amount word`, and the sum is given the token's length.
    """
    mixed = (1 - amount) * unit(tokens) + amount * unit(word)
    return unit(mixed) * tokens.norm(dim=1, keepdim=True)


def cross_table(word_right: Sequence[bool], answer_right: Sequence[bool]) -> Table:
    """The four counts."""
    pairs = list(zip(word_right, answer_right, strict=True))
    return Table(*(pairs.count(cell) for cell in ((True, True), (True, False), (False, True), (False, False))))


def odds_ratio(
    word_right: Sequence[bool], answer_right: Sequence[bool], clusters: Sequence[str] | None = None
) -> Estimate:
    """The odds of a right answer where the word is right, over those where it is wrong, with a 95% interval.

    Half a question is added to each cell, so that an empty one does no harm (Haldane 1956, Anscombe 1956); the interval
    is Woolf's (1955) on the logarithm, its variance taken between clusters where that is larger, as in
    `proportion_interval`.
    """
    word, answer = np.asarray(word_right, dtype=bool), np.asarray(answer_right, dtype=bool)
    cells = [word & answer, word & ~answer, ~word & answer, ~word & ~answer]
    counts = [cell.sum() + 0.5 for cell in cells]
    log = math.log(counts[0] * counts[3] / (counts[1] * counts[2]))
    variance = sum(1 / count for count in counts)
    if clusters is not None:
        influence = sum(sign * cell / count for sign, cell, count in zip((1, -1, -1, 1), cells, counts, strict=True))
        _, number = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        sums = np.bincount(number, weights=influence)
        if 1 < len(sums) < len(word):
            variance = max(variance, len(sums) / (len(sums) - 1) * float((sums**2).sum()))
    half = Z95 * math.sqrt(variance)
    return Estimate(math.exp(log), math.exp(log - half), math.exp(log + half), len(word))
