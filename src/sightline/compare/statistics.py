"""What seeds tell about a difference: paired t intervals, corrected for the number of claims, and words for them.

Each seed gives one difference, since both arms saw the same data order and started alike where they could. The interval
answers: had other seeds been drawn, where would the mean difference lie, on these questions? It is Student's (1908), at
the level 1 - alpha / m for m claims (Bonferroni; Dunn 1961), so that all m intervals hold together with 1 - alpha.
What it assumes: differences of seeds that are independent and roughly normal.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import special

ALPHA = 0.05
"""How often one of all claims together may be wrong where there is nothing to find."""
POWER = 0.8
MOST_SEEDS = 10**6
NONE = 1e-9
"""A standard deviation below it is rounding: scores are shares of questions."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and where it lies."""

    mean: float
    low: float
    high: float
    """Both infinite below two seeds."""
    sd: float
    """Standard deviation between seeds; 0 below two."""
    seeds: int
    level: float
    """Confidence of this interval alone, for instance 0.975 of one of two claims."""


def t_quantile(p: float, df: int) -> float:
    """The value that Student's t with `df` degrees of freedom stays below with probability `p`."""
    return float(special.stdtrit(df, p))


def level_of(claims: int, alpha: float = ALPHA) -> float:
    """Confidence of each of `claims` intervals that hold together with 1 - alpha (Bonferroni).

    Raises:
        ValueError: for fewer claims than one.
    """
    if claims < 1:
        raise ValueError(f"{claims} claims have no level; there must be 1 at least.")
    return 1 - alpha / claims


def mean_interval(values: Sequence[float], level: float = 1 - ALPHA) -> Interval:
    """The mean of at least one value with its t interval: mean +- t(n - 1) sd / sqrt(n)."""
    mean, n = fmean(values), len(values)
    if n < 2:
        return Interval(mean, -math.inf, math.inf, 0.0, n, level)
    sd = stdev(values)
    sd = sd if sd > NONE else 0.0
    half = t_quantile(0.5 + level / 2, n - 1) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n, level)


def paired_interval(a: Sequence[float], b: Sequence[float], level: float) -> Interval:
    """The mean of a minus b, seed by seed, with its t interval.

    Raises:
        ValueError: if they are not as many.
    """
    return mean_interval([x - y for x, y in zip(a, b, strict=True)], level)


def power(seeds: int, sd: float, effect: float, level: float) -> float:
    """How often the two-sided paired t test at `1 - level` sees a mean difference of `effect`: noncentral t."""
    shift = effect * math.sqrt(seeds) / sd
    limit = t_quantile(0.5 + level / 2, seeds - 1)
    if shift > limit + 30:
        return 1.0
    other = float(special.nctdtr(seeds - 1, shift, -limit))  # the wrong side; scipy gives NaN where it is next to 0
    return float(1 - special.nctdtr(seeds - 1, shift, limit)) + (0.0 if math.isnan(other) else other)


def seeds_needed(sd: float, effect: float, level: float, wanted: float = POWER) -> int | None:
    """The fewest seeds whose test sees `effect` with probability `wanted`, if differences vary by `sd` between seeds.

    None where it would take more than a million. With `sd` from few seeds it is a rough number.
    """
    if sd <= 0:
        return 2
    high = 2
    while power(high, sd, effect, level) < wanted:
        high *= 2
        if high > MOST_SEEDS:
            return None
    low = high // 2
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, sd, effect, level) >= wanted else (middle, high)
    return high


def verdict(difference: Interval, smallest: float, a: str, b: str) -> str:
    """What an interval of `a` minus `b` says, in words.

    Args:
        smallest: the smallest effect that matters, above zero.
    """
    if difference.seeds < 2:
        return "no claim: it takes two seeds at least to tell a difference from its noise"
    if difference.sd == 0 and difference.mean == 0:
        return "no claim: the two scored the same on every seed, so how seeds vary was not seen"
    if difference.sd == 0:
        return "no claim: the difference is the same on every seed, so how seeds vary was not seen"
    within = -smallest < difference.low and difference.high < smallest
    if difference.low <= 0 <= difference.high:
        noise = "a difference inside its noise"
        return f"{noise}, and smaller than what matters" if within else f"{noise}; one that matters is not excluded"
    better, worse, nearest = (a, b, difference.low) if difference.mean > 0 else (b, a, -difference.high)
    if within:
        return f"{better} scores above {worse}, by an amount smaller than what matters"
    if nearest >= smallest:
        return f"{better} scores above {worse}, by an amount that matters"
    return f"{better} scores above {worse}; whether by as much as matters is open"
