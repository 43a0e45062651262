"""The learning curves of a page, those of several runs in one figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from .figures import curve_svg, smooth
from .run_folder import Curve
from .series import Series

TOTAL = "loss"


def stages_of(series: Sequence[Series]) -> list[dict[str, Any]]:
    """A figure for each quantity of each stage, with the runs that have it; stages in the order in which they ran.

    Of one run the total is shown, and its terms where there are several. The totals of several runs, with terms of
    different methods in them, cannot be compared: there it is the terms.
    """
    lines: dict[tuple[str, str], list[tuple[Series, Curve]]] = {}
    several = len(series) > 1
    for one in series:
        for stage in dict.fromkeys(curve.stage for curve in one.run.curves):
            curves = [curve for curve in one.run.curves if curve.stage == stage]
            terms = [curve for curve in curves if curve.quantity.startswith(f"{TOTAL}/")]
            total = [curve for curve in curves if curve.quantity == TOTAL]
            rest = [curve for curve in curves if curve not in terms and curve not in total]
            if not (several and terms):
                terms = [*total, *(terms if len(terms) > 1 or not total else [])]
            for curve in [*terms, *rest]:
                lines.setdefault((stage, curve.quantity), []).append((one, curve))
    order = in_order([list(dict.fromkeys(curve.stage for curve in one.run.curves)) for one in series])
    stages: list[dict[str, Any]] = []
    number = 0
    for stage in order:
        figures = []
        for (where, quantity), found in lines.items():
            if where == stage:
                svg = curve_svg([(one.name, one.mark, curve) for one, curve in found], f"curve{number}")
                words = [f"{one.name}: {_in_words(curve)}" if several else _in_words(curve) for one, curve in found]
                figures.append({"name": quantity, "svg": Markup(svg), "words": " ".join(words)})
                number += 1
        stages.append({"name": stage, "figures": figures})
    return stages


def in_order(runs: Sequence[Sequence[str]]) -> list[str]:
    """The stages of all runs, once each: one that the runs before do not have follows the one that it followed."""
    order: list[str] = []
    for stages in runs:
        place = 0
        for stage in stages:
            if stage not in order:
                order.insert(place, stage)
            place = order.index(stage) + 1
    return order


def _in_words(curve: Curve) -> str:
    """What a curve shows, for those who cannot see it."""
    words: list[str] = []
    if curve.train:
        values = np.array([value for _, value in curve.train])
        words.append(f"Training {values[0]:.3g} at step {curve.train[0][0]}")
        words.append(f"{smooth(values)[-1]:.3g} (smoothed) at step {curve.train[-1][0]}")
    if curve.validation:
        words.append(
            f"{'validation' if words else 'Validation'} {curve.validation[-1][1]:.3g} at step {curve.validation[-1][0]}"
        )
    return ", ".join(words) + "."
