import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from sightline.evaluation.metrics import (
    Z95,
    bootstrap_interval,
    exact_match,
    is_correct,
    majority_baseline,
    normalise,
    paired_difference,
    parse_yes_no,
    proportion_interval,
    says_yes_or_no,
    yes_no_scores,
    yes_no_truth,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  A  Red. ", "red"),
        ("“The red, and the blue!”", "red and blue"),
        ("An apple", "apple"),
        ("A", "a"),  # an option's letter
        ("A.", "a"),
        ("-5", "-5"),
        ("50%", "50%"),
        ("0.5", "0.5"),
        ("?", "?"),
        ("", ""),
    ],
)
def test_normalise(text, normal):
    assert normalise(text) == normal


@given(st.text())
def test_normalise_is_idempotent(text):
    assert normalise(normalise(text)) == normalise(text)


def test_exact_match_takes_any_of_the_answers():
    assert exact_match("The Star.", ["circle", "star"])
    assert not exact_match("a red star", ["star"])
    assert not exact_match("", ["?"])


# LLaVA's eval_pope.py (its rule, run on these texts, at commit 4241f08) reads the first seven alike; the last
# three are the documented deviations, and it reads them as yes.
@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes", "yes"),
        ("No, there is none.", "no"),
        ("There is not a dog. Yes.", "no"),
        ("Yes. There is no cat.", "yes"),
        ("Nothing stands there", "yes"),
        ("banana", "yes"),
        ("", "yes"),
        ("NO", "no"),
        ("No!", "no"),
        ('"no"', "no"),
    ],
)
def test_parse_yes_no(text, answer):
    assert parse_yes_no(text) == answer


def test_an_answer_that_is_neither_can_be_told():
    assert says_yes_or_no("Yes, it is") and says_yes_or_no("It is not")
    assert not says_yes_or_no("banana") and not says_yes_or_no("")


def test_yes_no_truth_needs_answers_that_agree():
    assert yes_no_truth(["Yes."]) == "yes"
    assert yes_no_truth(["no", "No"]) == "no"
    assert yes_no_truth(["yes", "no"]) is None
    assert yes_no_truth(["red"]) is None


def test_correct_reads_sentences_for_yes_no_questions_only():
    assert is_correct("No, there is none.", ["no"])
    assert not is_correct("It is red, no doubt", ["red"])


def test_babble_is_never_right():
    """POPE reads an answer that says neither as yes; that is a convention for its table, not a right answer."""
    assert parse_yes_no("de de de") == "yes"
    assert not is_correct("de de de", ["yes"])
    assert not is_correct("", ["yes"])


def test_yes_no_scores_by_hand():
    # TP 2 (first two), FP 1 (third), FN 1 (fourth), TN 1 (last): accuracy 3/5, precision 2/3, recall 2/3,
    # F1 2*2 / (3 + 3) = 2/3, answered yes 3/5, truly yes 3/5; "hm" is read as yes, and counted as unread.
    scores = yes_no_scores(["yes", "Yes.", "hm", "no", "no"], ["yes", "yes", "no", "yes", "no"])
    assert scores.accuracy.value == pytest.approx(3 / 5)
    assert scores.precision.value == pytest.approx(2 / 3) and scores.precision.n == 3
    assert scores.recall.value == pytest.approx(2 / 3) and scores.recall.n == 3
    assert scores.f1.value == pytest.approx(2 / 3)
    assert scores.yes_ratio.value == pytest.approx(3 / 5)
    assert scores.true_yes_ratio == pytest.approx(3 / 5)
    assert scores.unread == 1


def test_yes_no_scores_without_any_yes():
    scores = yes_no_scores(["no", "no"], ["no", "no"])
    assert scores.accuracy.value == 1
    assert (scores.precision.value, scores.recall.value, scores.f1.value) == (0, 0, 0)
    assert (scores.precision.low, scores.precision.high, scores.precision.n) == (0, 1, 0)


@pytest.mark.parametrize(("hits", "n"), [(0, 7), (7, 7), (3, 10), (180, 200)])
def test_proportion_interval_is_scipys_wilson(hits, n):
    ours = proportion_interval([True] * hits + [False] * (n - hits))
    theirs = binomtest(hits, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert (ours.value, ours.n) == (hits / n, n)


def test_proportion_interval_widens_for_questions_that_share_an_image():
    # Four images of two questions, alike within each. Residual sums are +1, +1, -1, -1, so the variance
    # between images is 4/3 * 4 / 8**2 = 1/12, against 1/32 for independent answers: deff = 8/3, and the
    # effective size is 8 / deff = 3.
    # Wilson's half width at a share of 1/2 is z / (2 sqrt(size + z**2)).
    shared = proportion_interval([True] * 4 + [False] * 4, ["a", "a", "b", "b", "c", "c", "d", "d"])
    assert shared.high - shared.value == pytest.approx(Z95 / (2 * math.sqrt(3 + Z95**2)))
    assert shared.n == 8
    alone = proportion_interval([True] * 4 + [False] * 4, list("abcdefgh"))
    plain = proportion_interval([True] * 4 + [False] * 4)
    assert alone == plain


def test_one_image_is_worth_one_question():
    one = proportion_interval([True, False, True, False], ["a"] * 4)
    assert one.high - one.value == pytest.approx(Z95 / (2 * math.sqrt(1 + Z95**2)))


def _simulate(rng, images, questions, spread):
    """Answers that are right with a chance of .7, which varies between images by `spread`."""
    chance = np.clip(0.7 + spread * rng.choice([-1, 1], size=(images, 1)), 0, 1)
    return (rng.random((images, questions)) < chance).ravel().tolist()


@pytest.mark.parametrize(("questions", "spread"), [(1, 0.0), (4, 0.25)])
def test_proportion_interval_covers_the_truth(questions, spread):
    rng = np.random.default_rng(0)
    clusters = [str(image) for image in range(60) for _ in range(questions)]
    intervals = [proportion_interval(_simulate(rng, 60, questions, spread), clusters) for _ in range(600)]
    assert 0.92 < np.mean([i.low <= 0.7 <= i.high for i in intervals]) < 0.98


def test_paired_difference_covers_the_truth_only_by_image():
    rng = np.random.default_rng(1)
    clusters = [str(image) for image in range(50) for _ in range(6)]
    by_image, by_question = [], []
    for _ in range(200):
        a = _simulate(rng, 50, 6, 0.25)
        b = _simulate(rng, 50, 6, 0.25)
        by_image.append(paired_difference(a, b, clusters, resamples=400))
        by_question.append(paired_difference(a, b, resamples=400))
    assert 0.90 < np.mean([i.low <= 0 <= i.high for i in by_image]) < 0.99
    assert np.mean([i.low <= 0 <= i.high for i in by_question]) < 0.90


def test_paired_difference_by_hand():
    # a is right on 3 of 4, b on 1 of 4; they differ on two questions, both for a: 2/4.
    difference = paired_difference([True, True, True, False], [True, False, False, False])
    assert difference.value == pytest.approx(0.5)
    assert 0 <= difference.low <= 0.5 <= difference.high <= 1
    assert paired_difference([True] * 3, [True] * 3).low == 0


def test_paired_difference_of_one_image_says_nothing():
    one = paired_difference([True] * 40, [False] * 40, ["the image"] * 40)
    assert (one.value, one.low, one.high) == (1, -1, 1)


def test_paired_difference_with_two_images_can_only_be_their_mixtures():
    # Image x: all for a; image y: all for b. A draw of two images has a mean of 1 (1/4), 0 (1/2) or -1 (1/4).
    difference = paired_difference([True, True, False, False], [False, False, True, True], ["x", "x", "y", "y"])
    assert (difference.value, difference.low, difference.high) == (0, -1, 1)


def test_bootstrap_interval_is_repeatable_and_near_the_normal_one():
    values = np.random.default_rng(2).normal(3, 1, size=400)
    columns = np.stack([values, np.ones(400)], axis=1)

    def mean(totals):
        return totals[:, 0] / totals[:, 1]

    first = bootstrap_interval(columns, mean, bounds=(-9.0, 9.0), resamples=4000)
    again = bootstrap_interval(columns, mean, bounds=(-9.0, 9.0), resamples=4000)
    half = Z95 * values.std() / 20
    assert first == again
    assert (first.low, first.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.01)


def test_majority_baseline_by_hand():
    assert majority_baseline([["red"], ["Red."], ["blue"], ["red", "crimson"]]) == 3 / 4
    assert majority_baseline([["two", "2"], ["2"]]) == 1
    assert majority_baseline([]) == 0
