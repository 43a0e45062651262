"""What the rows of a comparison say: a pure function of the plan and the rows, wherever they were made."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from .diagnosed import ScoreResult, scores_of
from .folder import Job, Row, jobs_of, score_of
from .plan import Outcome, Plan
from .statistics import Interval, level_of, mean_interval, paired_interval, seeds_needed, verdict


@dataclass(frozen=True)
class PairResult:
    """One pair on one outcome: a minus b."""

    a: str
    b: str
    difference: Interval | None
    """None where there is no seed that both have."""
    words: str
    needed: int | None
    """Seeds that would see the smallest effect with 80% power, with the variance seen; None if it was not seen."""


@dataclass(frozen=True)
class ArmResult:
    """One arm on one outcome, over its seeds."""

    name: str
    score: Interval | None
    baseline: float | None
    """Accuracy of the commonest answer to each ability's questions."""
    questions: int


@dataclass(frozen=True)
class Cost:
    """What an arm spent: means of the claim's runs, and what its tuning took in all."""

    arm: str
    runs: int
    mean: Mapping[str, float | None]
    """Seconds of training and of evaluation, steps, samples, tokens, FLOPs of one run."""
    tuning_runs: int
    tuning: Mapping[str, float | None]
    """The same, summed over its tuning."""


@dataclass(frozen=True)
class Curve:
    """A validation set that has a name, while the runs of the claim trained: means over seeds."""

    name: str
    arms: tuple[str, ...]
    points: Mapping[tuple[str, int], Mapping[str, tuple[float, float]]]
    """By stage and step, then by arm: loss and accuracy."""


@dataclass(frozen=True)
class OutcomeResult:
    """All arms and pairs on one outcome."""

    outcome: Outcome
    arms: tuple[ArmResult, ...]
    pairs: tuple[PairResult, ...]


@dataclass(frozen=True)
class Results:
    """A comparison as far as it is done."""

    missing: tuple[Job, ...]
    primary: OutcomeResult
    secondary: tuple[OutcomeResult, ...]
    costs: tuple[Cost, ...]
    curves: tuple[Curve, ...] = ()
    diagnosed: tuple[ScoreResult, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.missing


def results_of(plan: Plan, rows: Mapping[Job, Row]) -> Results:
    """Intervals and words for the rows there are; while any run is missing, the words say that the claim waits."""
    missing = tuple(job for job in jobs_of(plan) if job not in rows)
    level = level_of(plan.num_claims)
    return Results(
        missing,
        _outcome(plan, rows, plan.primary, level, waits=bool(missing)),
        tuple(_outcome(plan, rows, outcome, level_of(1), waits=bool(missing)) for outcome in plan.secondary),
        tuple(_cost(arm.name, rows) for arm in plan.arms),
        _curves(plan, rows),
        scores_of(plan, [row for job, row in rows.items() if job.kind == "claim"]),
    )


def _outcome(plan: Plan, rows: Mapping[Job, Row], outcome: Outcome, level: float, *, waits: bool) -> OutcomeResult:
    file = Path(outcome.questions).name
    by_arm: dict[str, dict[int, Row]] = {arm.name: {} for arm in plan.arms}
    for job, row in rows.items():
        if job.kind == "claim":
            by_arm[job.arm][job.seed] = row["scores"][file]
    pairs = []
    for a, b in plan.compared:
        seeds = [seed for seed in plan.seeds if seed in by_arm[a] and seed in by_arm[b]]
        first, second = ([_value(by_arm[name][seed], outcome) for seed in seeds] for name in (a, b))
        difference = paired_interval(first, second, level) if seeds else None
        words = "waits for runs that are missing"
        if difference is not None and not waits:
            words = verdict(difference, plan.smallest_effect, a, b)
        seen = difference is not None and difference.sd > 0
        needed = seeds_needed(difference.sd, plan.smallest_effect, level) if difference is not None and seen else None
        pairs.append(PairResult(a, b, difference, words, needed))
    return OutcomeResult(outcome, tuple(_arm(name, scores, outcome) for name, scores in by_arm.items()), tuple(pairs))


def _arm(name: str, scores: Mapping[int, Row], outcome: Outcome) -> ArmResult:
    if not scores:
        return ArmResult(name, None, None, 0)
    first = next(iter(scores.values()))
    known = first["baseline"] if outcome.ability is None else first["baseline_by_ability"][outcome.ability]
    interval = mean_interval([_value(score, outcome) for score in scores.values()])
    return ArmResult(name, interval, known, score_of(first, outcome.ability)["n"])


def _value(scores: Row, outcome: Outcome) -> float:
    return score_of(scores, outcome.ability)["value"]


def _curves(plan: Plan, rows: Mapping[Job, Row]) -> tuple[Curve, ...]:
    """A point is shown where every run of an arm has it: arms may validate at different steps."""
    claims = {job: row.get("curves", {}) for job, row in rows.items() if job.kind == "claim"}
    found = []
    for name in dict.fromkeys(name for curves in claims.values() for name in curves):
        seen: dict[tuple[str, int], dict[str, list[tuple[float, float]]]] = {}
        for job, curves in claims.items():
            for point in curves.get(name, []):
                if "loss" in point and "accuracy" in point:
                    arms = seen.setdefault((point["stage"], point["step"]), {})
                    arms.setdefault(job.arm, []).append((point["loss"], point["accuracy"]))
        runs = Counter(job.arm for job in claims)
        points = {
            place: {arm: _means(values) for arm, values in arms.items() if len(values) == runs[arm]}
            for place, arms in seen.items()
        }
        found.append(Curve(name, tuple(arm.name for arm in plan.arms if runs[arm.name]), points))
    return tuple(found)


def _means(values: list[tuple[float, float]]) -> tuple[float, float]:
    return fmean(loss for loss, _ in values), fmean(accuracy for _, accuracy in values)


def _cost(arm: str, rows: Mapping[Job, Row]) -> Cost:
    of: dict[str, list[dict[str, Any]]] = {"claim": [], "tuning": []}
    for job, row in rows.items():
        if job.arm == arm:
            of[job.kind].append(row["compute"])
    keys = ("training_seconds", "evaluation_seconds", "steps", "samples", "tokens", "flops")

    def total(kind: str, key: str) -> float | None:
        values = [compute[key] for compute in of[kind]]
        return None if not values or any(value is None for value in values) else float(sum(values))

    def mean(key: str) -> float | None:
        values = [compute[key] for compute in of["claim"]]
        return None if not values or any(value is None for value in values) else fmean(values)

    return Cost(
        arm,
        len(of["claim"]),
        {key: mean(key) for key in keys},
        len(of["tuning"]),
        {key: total("tuning", key) for key in keys},
    )
