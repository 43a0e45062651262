"""Scores of answers, each with an interval. Pure functions: text and numbers in, numbers out.

Intervals answer one question: had other questions of the same kind been asked, where would the score lie?
Questions on one image are not independent, so every interval takes `clusters`, the image each question is
about, and resamples or counts images. What intervals do not cover is training again with another seed.

Sources: LLaVA's `eval_pope.py` (yes/no), E. B. Wilson 1927 (proportions), Korn and Graubard 1998 (proportions
of clustered answers), Efron 1979 and Field and Welsh 2007 (the bootstrap, and the bootstrap by cluster).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Array = np.ndarray
YesNo = Literal["yes", "no"]

ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ".,;:!?\"'`()[]{}“”‘’"
Z95 = 1.959963984540054
"""The normal deviate that leaves 2.5% above it."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A score with its 95% interval."""

    value: float
    low: float
    high: float
    n: int
    """Questions it rests on."""


@dataclass(frozen=True)
class YesNoScores:
    """Scores of yes/no answers, where yes is the positive class."""

    accuracy: Estimate
    precision: Estimate
    recall: Estimate
    f1: Estimate
    yes_ratio: Estimate
    """Share of answers read as yes."""
    true_yes_ratio: float
    """Share of questions whose truth is yes: what `yes_ratio` would be without a bias."""
    unread: int
    """Answers whose first sentence has neither yes, no nor not, and which count as yes all the same."""


def normalise(text: str) -> str:
    """`text` in lower case, with single spaces, without punctuation around its words and without articles.

    `"A  Red."` and `"the red"` both become `red`. Signs, percents and decimals stay (`-5`, `50%`, `0.5`).
    Where only articles are left they stay, since `A` is also an option's letter; where only punctuation is
    left, so does that. Looser than GQA's rule (lower case, no final period), stricter than VQA's (no number
    words, no contractions).
    """
    words = [word.strip(PUNCTUATION) for word in text.lower().split()]
    words = [word for word in words if word]
    content = [word for word in words if word not in ARTICLES]
    return " ".join(content or words or text.lower().split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Whether `prediction` and one of `answers` are the same after `normalise`."""
    return normalise(prediction) in {normalise(answer) for answer in answers}


def parse_yes_no(text: str) -> YesNo:
    """How LLaVA reads an answer for POPE: `no` where the first sentence has the word no or not, else `yes`.

    So an empty or an unrelated answer counts as yes (`says_yes_or_no` finds those). Two deviations from
    `eval_pope.py`, both where it misses a plain no: case does not matter (`NO`), and any punctuation may
    touch the word (`No!`).
    """
    return "no" if {"no", "not"} & _first_sentence(text) else "yes"


def says_yes_or_no(text: str) -> bool:
    """Whether the sentence that `parse_yes_no` reads has one of the words yes, no, not at all."""
    return bool({"yes", "no", "not"} & _first_sentence(text))


def yes_no_truth(answers: Sequence[str]) -> YesNo | None:
    """The truth of a yes/no question; `None` for any other, whose `answers` are not all yes or all no."""
    match {normalise(answer) for answer in answers}:
        case words if words == {"yes"}:
            return "yes"
        case words if words == {"no"}:
            return "no"
        case _:
            return None


def is_correct(prediction: str, answers: Sequence[str]) -> bool:
    """Whether an answer is right: an exact match, or for a yes/no question the right word in its first sentence.

    Stricter than the scores of `yes_no_scores`, which follow POPE and count an answer that says neither as yes: babble
    is never right here.
    """
    truth = yes_no_truth(answers)
    if truth is None:
        return exact_match(prediction, answers)
    return says_yes_or_no(prediction) and parse_yes_no(prediction) == truth


def yes_no_scores(
    predictions: Sequence[str], truths: Sequence[YesNo], clusters: Sequence[str] | None = None
) -> YesNoScores:
    """Accuracy, precision, recall, F1 and yes-ratio of answers read by `parse_yes_no` (POPE, Li et al. 2023).

    Where nothing was answered yes there is no precision, and where no truth is yes no recall: both are 0
    then, with n = 0 and the interval 0 to 1, and F1 is 0 (`eval_pope.py` divides by zero there).

    Args:
        predictions: what the model said.
        truths: what is true, at least one.
        clusters: the image of each question; see `proportion_interval`.
    """
    said = np.array([parse_yes_no(text) == "yes" for text in predictions])
    true = np.array([truth == "yes" for truth in truths])
    names = np.array(clusters if clusters is not None else range(len(true))).astype(str)

    def share(hits: Array, among: Array) -> Estimate:
        return proportion_interval(hits[among].tolist(), names[among].tolist())

    every = np.ones_like(true)
    counts = np.stack([said & true, said, true], axis=1)
    return YesNoScores(
        accuracy=share(said == true, every),
        precision=share(true, said),
        recall=share(said, true),
        f1=bootstrap_interval(counts, _f1_of_totals, names.tolist(), bounds=(0.0, 1.0)),
        yes_ratio=share(said, every),
        true_yes_ratio=float(true.mean()),
        unread=sum(not says_yes_or_no(text) for text in predictions),
    )


def proportion_interval(correct: Sequence[bool], clusters: Sequence[str] | None = None) -> Estimate:
    """A share with Wilson's 95% interval, widened where questions share an image.

    Wilson's interval stays inside [0, 1] and is not empty at 0 or 1. With `clusters` (the image of each
    question) the sample size in it is the effective one, n / deff: deff is the variance of the share between
    clusters over the binomial variance, never below 1, so that sharing images can widen the interval and
    never narrow it.
    """
    hits = np.asarray(correct, dtype=np.float64)
    n, share = len(hits), float(hits.mean()) if len(hits) else 0.0
    if n == 0:
        return Estimate(0.0, 0.0, 1.0, 0)
    size = n / _design_effect(hits, clusters)
    z2 = Z95**2 / size
    middle = (share + z2 / 2) / (1 + z2)
    half = Z95 / (1 + z2) * np.sqrt(share * (1 - share) / size + z2 / (4 * size))
    low = 0.0 if share == 0 else float(middle - half)
    high = 1.0 if share == 1 else float(middle + half)
    return Estimate(share, low, high, n)


def bootstrap_interval(
    columns: Array,
    statistic: Callable[[Array], Array],
    clusters: Sequence[str] | None = None,
    *,
    bounds: tuple[float, float],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """A statistic of column totals with its 95% percentile bootstrap interval.

    Whole clusters are drawn with replacement, each question being its own where `clusters` is not given. The
    interval is too narrow below some twenty clusters, and says nothing when all of them agree.

    Args:
        columns: `[questions, columns]`, numbers that add up over questions.
        statistic: from totals `[draws, columns]` to values `[draws]`: a mean is one total over another.
        clusters: the image of each question.
        bounds: the statistic's range, given back as the interval where fewer than two clusters can be drawn.
        seed: of the draws; the same input gives the same interval.
        resamples: number of draws.
    """
    columns = np.asarray(columns, dtype=np.float64)
    sums = _sum_by_cluster(columns, clusters)
    value = float(statistic(columns.sum(axis=0, keepdims=True))[0]) if len(columns) else bounds[0]
    if len(sums) < 2:
        return Estimate(value, bounds[0], bounds[1], len(columns))
    rng = np.random.default_rng(seed)
    chunk = max(1, 2**22 // len(sums))
    values: list[Array] = []
    for start in range(0, resamples, chunk):
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=min(chunk, resamples - start))
        values.append(statistic(drawn @ sums))
    low, high = np.quantile(np.concatenate(values), (0.025, 0.975)).tolist()
    return Estimate(value, low, high, len(columns))


def paired_difference(
    correct_a: Sequence[bool],
    correct_b: Sequence[bool],
    clusters: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Accuracy of a minus accuracy of b on the same questions, with a paired bootstrap 95% interval.

    Each question gives one difference (1, 0 or -1), so what makes a question hard for both drops out. Several
    questions on one image stand or fall together: with `clusters` whole images are drawn, because a draw of
    single questions would take forty questions on one image for forty facts.
    """
    difference = np.asarray(correct_a, dtype=np.float64) - np.asarray(correct_b, dtype=np.float64)
    columns = np.stack([difference, np.ones_like(difference)], axis=1)
    return bootstrap_interval(columns, _mean_of_totals, clusters, bounds=(-1.0, 1.0), seed=seed, resamples=resamples)


def majority_baseline(answers: Sequence[Sequence[str]]) -> float:
    """The accuracy of always giving the answer that is most often right: what can be had without looking.

    Each entry lists the answers that count for one question. Ties do not matter.
    """
    counts = Counter(word for accepted in answers for word in {normalise(answer) for answer in accepted})
    return counts.most_common(1)[0][1] / len(answers) if counts else 0.0


def _first_sentence(text: str) -> set[str]:
    return set(re.findall(r"\w+(?:['’-]\w+)*", text.split(".")[0].lower()))


def _f1_of_totals(totals: Array) -> Array:
    """2 TP / (predicted yes + true yes), and 0 where there is no yes at all."""
    return 2 * totals[:, 0] / np.maximum(totals[:, 1] + totals[:, 2], 1)


def _mean_of_totals(totals: Array) -> Array:
    return totals[:, 0] / totals[:, 1]


def _sum_by_cluster(
    columns: Float[Array, "questions columns"], clusters: Sequence[str] | None
) -> Float[Array, "clusters columns"]:
    if clusters is None:
        return columns
    _, index = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    sums = np.zeros((int(index.max(initial=-1)) + 1, columns.shape[1]))
    np.add.at(sums, index, columns)
    return sums


def _design_effect(hits: Float[Array, " questions"], clusters: Sequence[str] | None) -> float:
    """Variance of the mean between clusters over its variance if questions were independent; at least 1."""
    share, n = hits.mean(), len(hits)
    binomial = share * (1 - share) / n
    if clusters is None or binomial == 0:
        return 1.0
    residuals = _sum_by_cluster((hits - share)[:, None], clusters)[:, 0]
    groups = len(residuals)
    if groups == n:
        return 1.0
    if groups < 2:
        return float(n)
    between = groups / (groups - 1) * (residuals**2).sum() / n**2
    return max(1.0, float(between / binomial))
