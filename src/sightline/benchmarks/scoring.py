"""From what was said to scores with intervals: means, by groups, by image."""

from collections.abc import Callable, Sequence

import numpy as np

from ..evaluation.metrics import Estimate, bootstrap_interval, proportion_interval
from .items import Answered, Scores


def mean(values: Sequence[float], rows: Sequence[Answered], bounds: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """A mean over rows, its interval over what they are clustered by."""
    clusters = [row.cluster for row in rows]
    if all(value in (0.0, 1.0) for value in values) and bounds == (0.0, 1.0):
        return proportion_interval([bool(value) for value in values], clusters)
    columns = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)
    return bootstrap_interval(columns, lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1e-12), clusters, bounds=bounds)


def by_group(
    values: Sequence[float], rows: Sequence[Answered], group: Callable[[Answered], str | None]
) -> dict[str, Estimate]:
    """The mean of each group, groups in alphabetical order."""
    names = [group(row) for row in rows]
    found = {}
    for name in sorted({name for name in names if name}):
        chosen = [place for place, own in enumerate(names) if own == name]
        found[name] = mean([values[place] for place in chosen], [rows[place] for place in chosen])
    return found


def each(
    rule: Callable[[Answered], float], name: str = "accuracy", group: str | None = None
) -> Callable[[Sequence[Answered]], Scores]:
    """A score that is the mean of a rule over rows, and of each `truth[group]` beside it."""

    def score(rows: Sequence[Answered]) -> Scores:
        values = [float(rule(row)) for row in rows]
        groups = by_group(values, rows, lambda row: row.item.truth.get(str(group))) if group else {}
        return {name: mean(values, rows)} | {f"{name}/{key}": value for key, value in groups.items()}

    return score
