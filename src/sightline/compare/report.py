"""The results of a comparison as Markdown, and the files of results in its folder."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from ..files import write_text
from ..plan.report import flops
from .diagnosed import ScoreResult
from .folder import Comparison, Job, Row
from .plan import Plan
from .progress import duration
from .results import Cost, Curve, OutcomeResult, Results, results_of
from .statistics import ALPHA, POWER, Interval, level_of

SHOWN = 10
"""Missing runs that are named."""


def write_results(comparison: Comparison, command: str) -> tuple[Results, str]:
    """Write `results.jsonl` and `results.md` from the rows there are.

    Args:
        command: what goes on with the comparison.

    Returns:
        The results, and the Markdown.
    """
    comparison.note_settings()
    rows = comparison.rows()
    results = results_of(comparison.plan, rows)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values())
    write_text(comparison.path / "results.jsonl", "".join(lines))
    text = markdown(comparison, rows, results, command)
    write_text(comparison.path / "results.md", text)
    return results, text


def markdown(comparison: Comparison, rows: Mapping[Job, Row], results: Results, command: str) -> str:
    """All of it: claims, arms, cost, secondary outcomes, tuning, and what it rests on."""
    plan = comparison.plan
    parts = [f"# {plan.name}", _status(plan, results, command), "## Claims", _claims(plan, results.primary)]
    parts += [_arms(results.primary), "## Cost of one run", _costs(results.costs)]
    for result in results.secondary:
        parts += [f"## Secondary: {result.outcome.label}", "Not a claim: intervals are 95% each, for one alone."]
        parts += [_pairs(plan, result), _arms(result)]
    for curve in results.curves:
        parts += [f"## While training: {curve.name}", _curve(curve)]
    for score in results.diagnosed:
        parts += [f"## Diagnosed: {score.score} after {score.stage}", _diagnosed(score)]
    if plan.tuning is not None:
        parts += ["## Tuning", _tuning(comparison)]
    return "\n\n".join([*parts, "## What it rests on", _rests_on(comparison, rows)]) + "\n"


def _status(plan: Plan, results: Results, command: str) -> str:
    if results.complete:
        return f"All {len(plan.arms) * len(plan.seeds)} runs of the claim are done."
    names = [job.label for job in results.missing[:SHOWN]]
    more = len(results.missing) - len(names)
    lines = [f"**The claim waits: {len(results.missing)} runs are missing.**", *(f"- {name}" for name in names)]
    lines += [f"- and {more} more"] if more else []
    return "\n".join([lines[0], "", *lines[1:], "", f"Go on: `{command}`"])


def _claims(plan: Plan, result: OutcomeResult) -> str:
    claims = plan.num_claims
    together = (
        f"intervals are {100 * level_of(claims):.4g}% each, so that all {claims} hold together with {1 - ALPHA:.0%} "
        "(Bonferroni)"
        if claims > 1
        else f"the interval is {1 - ALPHA:.0%}"
    )
    text = (
        f"Primary outcome: {result.outcome.label} (`{plan.split}`). The smallest effect that matters is "
        f"{_points(plan.smallest_effect)}, by the plan. Differences are paired by seed; {together}: paired t, over "
        "seeds. It tells what other seeds would give on these questions, not what other questions would."
    )
    return f"{text}\n\n{_pairs(plan, result)}"


def _pairs(plan: Plan, result: OutcomeResult) -> str:
    rows = []
    for pair in result.pairs:
        d = pair.difference
        cells = ["", "", ""] if d is None else [_points(d.mean, sign=True), _span(d, points=True), str(d.seeds)]
        needed = "unknown" if pair.needed is None else f"{pair.needed:,}"
        rows.append([f"{pair.a} minus {pair.b}", *cells, needed, pair.words])
    enough = f"seeds to see {_points(plan.smallest_effect)} ({POWER:.0%} power)"
    heads = ["pair", "difference", "interval", "seeds", enough, "in words"]
    return _table(heads, rows)


def _arms(result: OutcomeResult) -> str:
    rows = []
    for arm in result.arms:
        if arm.score is None:
            rows.append([arm.name, "", "", "", "", "0"])
            continue
        cells = [f"{arm.score.mean:.1%}", _span(arm.score, points=False)]
        cells += [f"{arm.score.sd:.2%}" if arm.score.seeds > 1 else "unknown"]
        rows.append([arm.name, *cells, f"{arm.baseline:.1%}", str(arm.score.seeds)])
    questions = max((arm.questions for arm in result.arms), default=0)
    heads = ["arm", "mean", "95% interval over seeds", "sd between seeds", "commonest answer", "seeds"]
    return f"{_table(heads, rows)}\n\n{questions:,} questions."


def _costs(costs: Sequence[Cost]) -> str:
    rows = []
    for cost in costs:
        rows.append([cost.arm, *_spent(cost.mean), f"{cost.runs}"])
    heads = ["arm", "training", "evaluation", "FLOPs", "tokens", "samples", "steps", "runs"]
    lines = [_table(heads, rows)]
    tuned = [cost for cost in costs if cost.tuning_runs]
    if tuned:
        rows = [[cost.arm, *_spent(cost.tuning), f"{cost.tuning_runs}"] for cost in tuned]
        lines += ["All runs of its tuning together:", _table(heads, rows)]
    lines += ["Training is time in steps; FLOPs are counted from sizes and tokens (docs/dry-run.md), not measured."]
    return "\n\n".join(lines)


def _spent(values: Mapping[str, float | None]) -> list[str]:
    times = [_or_unknown(values[key], duration) for key in ("training_seconds", "evaluation_seconds")]
    numbers = [_or_unknown(values[key], lambda n: f"{n:,.0f}") for key in ("tokens", "samples", "steps")]
    return [*times, _or_unknown(values["flops"], lambda n: flops(int(n))), *numbers]


def _curve(curve: Curve) -> str:
    rows = []
    for (stage, step), arms in curve.points.items():
        cells = ["{:.3f}, {:.1%}".format(*arms[name]) if name in arms else "" for name in curve.arms]
        rows.append([stage, str(step), *cells])
    text = "Loss and share of rows right, means over seeds. At step 0 stands what the stage began with."
    return f"{text}\n\n{_table(['stage', 'step', *curve.arms], rows)}"


def _diagnosed(result: ScoreResult) -> str:
    """The score's own unit, so no points and no smallest effect."""

    def cells(found: Interval) -> list[str]:
        span = "unknown: one seed" if math.isinf(found.low) else f"{found.low:.3f} to {found.high:.3f}"
        return [f"{found.mean:.3f}", span, str(found.seeds)]

    heads = ["mean", "95% interval over seeds", "seeds"]
    arms = _table(["arm", *heads], [[name, *cells(found)] for name, found in result.arms.items()])
    pairs = _table(["pair", *heads], [[f"{a} minus {b}", *cells(found)] for (a, b), found in result.pairs.items()])
    return f"Whether arms did to the tokens what they are for; no claim.\n\n{arms}\n\n{pairs}"


def _tuning(comparison: Comparison) -> str:
    plan, rows = comparison.plan, []
    tuning = plan.tuning
    assert tuning is not None
    for arm in plan.arms:
        means, chosen = comparison.tuned(arm.name), comparison.chosen(arm.name)
        for number, setting in enumerate(plan.settings_of(arm)):
            score = "" if means is None else f"{means[number]:.1%}"
            rows.append([arm.name, f"`{' '.join(setting) or 'as it is'}`", score, "yes" if number == chosen else ""])
    text = (
        f"Each arm tried as many settings on seeds {', '.join(map(str, tuning.seeds))}, scored on "
        f"{tuning.questions.rpartition('/')[2]}; the highest mean was taken, the first of equals."
    )
    return f"{text}\n\n{_table(['arm', 'setting', 'mean', 'chosen'], rows)}"


def _rests_on(comparison: Comparison, rows: Mapping[Job, Row]) -> str:
    plan = comparison.plan
    lines = [
        f"- plan `{comparison.hash[:16]}`, written down before the first run (`plan.yaml`, `plan.json`)",
        f"- seeds of the claim: {', '.join(map(str, plan.seeds))}",
    ]
    if plan.tuning is None:
        lines += ["- no arm was tuned: recipes as they are"]
    lines += [f"- {what}: {text}" for what in ("versions", "machine") for text in _kinds(rows, what)]
    if any(len(_kinds(rows, what)) > 1 for what in ("versions", "machine")):
        lines += ["- runs were made with several versions or machines, which adds noise that seeds do not explain"]
    return "\n".join(lines)


def _kinds(rows: Mapping[Job, Row], what: str) -> list[str]:
    texts = (", ".join(f"{key} {value}" for key, value in row[what].items()) for row in rows.values())
    return list(dict.fromkeys(texts))


def _span(interval: Interval, *, points: bool) -> str:
    """An interval, cut off where no accuracy can be."""
    if math.isinf(interval.low):
        return "unknown: one seed"
    if interval.sd == 0:
        return "unknown: all seeds alike"
    if points:
        return f"{100 * max(-1, interval.low):+z.2f} to {_points(min(1, interval.high), sign=True)}"
    return f"{max(0, interval.low):.1%} to {min(1, interval.high):.1%}"


def _points(value: float, *, sign: bool = False) -> str:
    """A difference of accuracies in points, which no percentage is mistaken for."""
    return f"{100 * value:+z.2f} points" if sign else f"{100 * value:.3g} points"


def _or_unknown(value: float | None, show) -> str:
    return "unknown" if value is None else show(value)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])
