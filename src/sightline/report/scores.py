"""One evaluation on a page: the first run's, and the others' on the same questions."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..benchmarks.items import OWN_SCALE
from ..errors import SightlineError
from ..evaluation.metrics import Estimate
from ..evaluation.scores import PREDICTIONS, Comparison, compare
from .differences import flat
from .run_folder import Evaluation
from .series import Series

YES_NO = ("accuracy", "precision", "recall", "f1", "yes_ratio")
ASKED = ("dtype", "max_new_tokens", "decoding")
"""Settings of an evaluation that change answers; others say where and on what it ran."""


def section(evaluation: Evaluation, series: Sequence[Series], notes: list[str]) -> dict[str, Any]:
    """An evaluation of the first run, with a column for each run that answered the same questions.

    Differences are an other's score minus the first's, and the first's minus the twin's. `notes` receives why a run is
    not beside it, or was asked otherwise.
    """
    columns: list[dict[str, Any]] = [{"series": series[0], "evaluation": evaluation, "difference": None}]
    for one in series[1:]:
        if (found := _theirs(evaluation, one, notes)) is not None:
            columns.append(found)
    scores = evaluation.scores
    overall = _row("overall", scores.baseline, columns, None)
    rows = [_row(name, scores.baseline_by_ability[name], columns, name) for name in scores.by_ability]
    return {
        "evaluation": evaluation,
        "columns": columns,
        "overall": overall,
        "rows": [overall, *rows] if len(rows) > 1 else [overall],
        "yes_no": _yes_no(columns),
        "settings": flat(scores.settings) | {f"version of {name}": value for name, value in scores.versions.items()},
    }


def left_over(series: Sequence[Series]) -> list[str]:
    """In words, the evaluations of other runs that the first has none for: they are not shown."""
    notes = []
    for one in series[1:]:
        beside = {theirs.name for own in series[0].run.evaluations if (theirs := one.beside(own.name)) is not None}
        if alone := [f"'{own.name}'" for own in one.run.evaluations if own.name not in beside and not own.is_blank]:
            notes.append(f"{one.name} has evaluations that {series[0].name} has not, not shown: {', '.join(alone)}.")
    return notes


def benchmarks_of(series: Sequence[Series]) -> list[dict[str, Any]]:
    """Each benchmark that a run has scores of: the score that papers quote, then the others; a cell for each run."""
    found: dict[str, dict[str, Any]] = {}
    for one in series:
        for benchmark in one.run.benchmarks:
            about = found.setdefault(benchmark.name, {"benchmark": benchmark, "by_run": {}})
            about["by_run"][one.name] = benchmark.scores
    for about in found.values():
        benchmark, by_run = about["benchmark"], about["by_run"]
        names = dict.fromkeys([benchmark.primary, *(name for scores in by_run.values() for name in scores)])
        about["shares"] = benchmark.name not in OWN_SCALE
        about["rows"] = [(name, [by_run.get(one.name, {}).get(name) for one in series]) for name in names]
    return list(found.values())


def _theirs(evaluation: Evaluation, series: Series, notes: list[str]) -> dict[str, Any] | None:
    theirs = series.beside(evaluation.name)
    if theirs is None:
        if not evaluation.is_blank:
            notes.append(
                f"{series.name} has no evaluation '{evaluation.name}', so there is nothing to compare it with."
            )
        return None
    files = (evaluation.path / PREDICTIONS, theirs.path / PREDICTIONS)
    try:
        difference = compare(*(files if series.is_twin else reversed(files)))
    except SightlineError as error:
        notes.append(f"{series.name} is not shown for '{evaluation.name}': {error}")
        return None
    if series.is_twin and not theirs.is_blank:
        notes.append(f"{series.name} was shown the images in its evaluation '{theirs.name}', not blank ones.")
    for key in ASKED if series.is_twin else (*ASKED, "blank_images"):
        one, other = theirs.scores.settings.get(key), evaluation.scores.settings.get(key)
        if one != other and None not in (one, other):
            notes.append(
                f"{series.name} was asked otherwise in its evaluation '{theirs.name}', so the difference is not of the "
                f"models alone: {key} is {one} and not {other}."
            )
    return {"series": series, "evaluation": theirs, "difference": difference}


def _row(name: str, baseline: float, columns: Sequence[Mapping[str, Any]], ability: str | None) -> dict[str, Any]:
    def of(scores: Any) -> Estimate:
        return scores.overall if ability is None else scores.by_ability[ability]

    cells = []
    for column in columns:
        difference: Comparison | None = column["difference"]
        cells.append(
            {
                "series": column["series"],
                "score": of(column["evaluation"].scores),
                "difference": None if difference is None else of(difference),
            }
        )
    return {"name": name, "cells": cells, "baseline": baseline}


def _yes_no(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Estimate]]]:
    """A row for each score, a cell for each column; those that answered the same questions have the same scores."""
    blocks = [column["evaluation"].scores.yes_no for column in columns]
    if None in blocks:
        return []
    names = {name: name.replace("_", "-").replace("f1", "F1").capitalize() for name in YES_NO}
    return [(names[key], [getattr(block, key) for block in blocks]) for key in YES_NO]
