"""Intervals against numbers computed by hand and printed tables; words for every way that an interval can lie."""

import math

import numpy as np
import pytest
from scipy import special, stats

from sightline.compare.statistics import (
    Interval,
    level_of,
    mean_interval,
    paired_interval,
    power,
    seeds_needed,
    t_quantile,
    verdict,
)


@pytest.mark.parametrize(
    ("p", "df", "value"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 9, 2.262),
        (0.95, 4, 2.132),
        (0.995, 10, 3.169),
        (0.975, 120, 1.980),
    ],
)
def test_quantiles_are_those_of_printed_tables(p: float, df: int, value: float):
    """Student's table, as in any textbook, to its three decimals."""
    assert t_quantile(p, df) == pytest.approx(value, abs=6e-4)


def test_one_degree_of_freedom_is_cauchy():
    assert t_quantile(0.9875, 1) == pytest.approx(math.tan(math.pi * 0.4875), rel=1e-9)


def test_a_paired_interval_by_hand():
    """Differences 1, 2, 3: mean 2, sd 1, half width 4.3027 / sqrt(3) = 2.4841."""
    found = paired_interval([5.0, 7.0, 9.0], [4.0, 5.0, 6.0], 0.95)
    assert (found.mean, found.sd, found.seeds) == (2, 1, 3)
    assert (found.low, found.high) == pytest.approx((2 - 2.48414, 2 + 2.48414), abs=1e-4)


def test_pairing_is_what_narrows_it():
    """Seeds that move both arms together drop out of the difference, and out of no arm's own interval."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, 10)
    a, b = (shared + rng.normal(0, 0.1, 10)).tolist(), shared.tolist()
    paired = paired_interval(a, b, 0.95)
    assert paired.high - paired.low < 0.3
    assert mean_interval(a).high - mean_interval(a).low > 0.8


def test_claims_widen_every_interval():
    """Two claims: 97.5% each; with three seeds the quantile is 6.2053 (table) in place of 4.3027."""
    assert level_of(1) == 0.95
    assert level_of(2) == 0.975
    found = paired_interval([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], level_of(2))
    assert found.high - found.mean == pytest.approx(6.2053 / math.sqrt(3), abs=1e-3)
    with pytest.raises(ValueError, match="1 at least"):
        level_of(0)


@pytest.mark.parametrize(("seeds", "claims"), [(3, 1), (5, 2), (10, 3)])
def test_intervals_hold_together_as_often_as_they_say(seeds: int, claims: int):
    """4,000 comparisons with a shared baseline: all intervals hold the truth in 95% of them or a little more."""
    rng = np.random.default_rng(1)
    truth = np.linspace(-1, 1, claims)
    draws = rng.normal(size=(4000, claims + 1, seeds))
    differences = truth[None, :, None] + draws[:, 1:] - draws[:, :1]
    mean, sd = differences.mean(-1), differences.std(-1, ddof=1)
    half = t_quantile(0.5 + level_of(claims) / 2, seeds - 1) * sd / math.sqrt(seeds)
    together = (np.abs(mean - truth) <= half).all(1).mean()
    assert 0.94 < together < 0.985
    one = mean_interval(differences[0, 0].tolist(), level_of(claims))
    assert one.high - one.mean == pytest.approx(half[0, 0])


@pytest.mark.parametrize(("effect", "seeds"), [(0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_seeds_needed_are_those_of_power_tables(effect: float, seeds: int):
    """Two-sided paired t, alpha 0.05, power 0.8, in units of the sd: 34, 15, 10 by Cohen's tables and G*Power."""
    assert seeds_needed(1.0, effect, 0.95) == seeds
    assert power(seeds, 1.0, effect, 0.95) >= 0.8 > power(seeds - 1, 1.0, effect, 0.95)


def test_power_is_how_often_it_is_seen():
    rng = np.random.default_rng(2)
    draws = rng.normal(0.6, 1.0, size=(20_000, 12))
    t = draws.mean(1) / (draws.std(1, ddof=1) / math.sqrt(12))
    assert power(12, 1.0, 0.6, 0.95) == pytest.approx((np.abs(t) > t_quantile(0.975, 11)).mean(), abs=0.012)


def integrated(seeds: int, effect: float, level: float) -> float:
    """The same power without noncentral t: over what the sd could come out as, how often |mean| is beyond the limit."""
    df, limit, shift = seeds - 1, t_quantile(0.5 + level / 2, seeds - 1), effect * math.sqrt(seeds)
    sd = np.linspace(stats.chi.ppf(1e-14, df), stats.chi.isf(1e-14, df), 4001) / math.sqrt(df)
    seen = special.ndtr(shift - limit * sd) + special.ndtr(-shift - limit * sd)
    return float(np.trapezoid(seen * stats.chi.pdf(sd * math.sqrt(df), df) * math.sqrt(df), sd))


@pytest.mark.parametrize("claims", [1, 2, 10, 50])
def test_power_is_a_number_everywhere(claims: int):
    """Also where scipy's noncentral t gives NaN for the wrong side: from 5 or so on, as large effects have it."""
    level = level_of(claims)
    for effect in np.geomspace(0.5, 30, 40).tolist():
        for seeds in (2, 3, 4, 8, 20):
            assert power(seeds, 1.0, effect, level) == pytest.approx(integrated(seeds, effect, level), abs=1e-4)
        needed = seeds_needed(1.0, effect, level)
        assert needed == next(n for n in range(2, 200) if integrated(n, effect, level) >= 0.8)


def test_a_hopeless_effect_and_a_plain_one():
    assert seeds_needed(1.0, 1e-6, 0.95) is None
    assert seeds_needed(1e-9, 0.5, 0.95) == 2
    assert seeds_needed(0.0, 0.5, 0.95) == 2


def interval(low: float, high: float, *, seeds: int = 5, sd: float = 0.1) -> Interval:
    return Interval((low + high) / 2, low, high, sd, seeds, 0.95)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (interval(-0.2, 0.3), "a difference inside its noise; one that matters is not excluded"),
        (interval(-0.01, 0.05), "a difference inside its noise, and smaller than what matters"),
        (interval(0.01, 0.05), "a scores above b, by an amount smaller than what matters"),
        (interval(-0.05, -0.01), "b scores above a, by an amount smaller than what matters"),
        (interval(0.01, 0.3), "a scores above b; whether by as much as matters is open"),
        (interval(-0.3, -0.01), "b scores above a; whether by as much as matters is open"),
        (interval(0.1, 0.3), "a scores above b, by an amount that matters"),
        (interval(-0.3, -0.2), "b scores above a, by an amount that matters"),
        (interval(0.0, 0.05), "a difference inside its noise, and smaller than what matters"),
        (mean_interval([0.9]), "no claim: it takes two seeds at least"),
        (mean_interval([0.5, 0.5]), "no claim: the difference is the same on every seed"),
        (paired_interval([0.3, 0.8], [0.2, 0.7], 0.95), "no claim: the difference is the same on every seed"),
        (mean_interval([0.0, 0.0]), "no claim: the two scored the same on every seed"),
    ],
)
def test_words_for_every_interval(found: Interval, words: str):
    assert verdict(found, 0.1, "a", "b").startswith(words)
    assert "*" not in verdict(found, 0.1, "a", "b")
