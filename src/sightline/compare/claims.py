"""What a comparison claims, in a few numbers: what a page shows beside a single run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import SightlineError
from ..files import write_text
from .folder import Comparison
from .read import load_plan, plan_hash
from .results import results_of

SHIPPED = Path(__file__).with_name("shipped.json")
"""The claims of the comparisons in `benchmarks/comparisons`; `benchmarks/ship_claims.py` writes it."""


@dataclass(frozen=True)
class Claim:
    """Arm a minus arm b on the primary outcome, paired by seed."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    words: str


@dataclass(frozen=True)
class Claims:
    """A comparison that is complete."""

    name: str
    outcome: str
    questions: int
    seeds: int
    level: float
    """Confidence of each interval."""
    smallest_effect: float
    """By the plan."""
    recipes: Mapping[str, str]
    """Of each arm, as the plan names it; arms may change it."""
    claims: tuple[Claim, ...]


def read_claims(folder: Path) -> Claims:
    """The claims of a comparison's folder, computed from its rows.

    Raises:
        SightlineError: if the folder holds no comparison, or one that waits for runs or has one seed.
    """
    if not (folder / "plan.yaml").is_file():
        raise SightlineError(
            f"'{folder}' holds no comparison: it has no plan.yaml. Give the folder that `sightline compare` wrote."
        )
    plan = load_plan(folder / "plan.yaml")
    if len(plan.seeds) < 2:
        raise SightlineError(
            f"the comparison in '{folder}' has one seed, so it claims nothing. Give one over several, or leave it out."
        )
    results = results_of(plan, Comparison(plan, folder, plan_hash(plan)).rows())
    if not results.complete:
        raise SightlineError(
            f"the comparison in '{folder}' waits for {len(results.missing)} runs, so it claims nothing yet. Finish it, "
            "or leave it out."
        )
    found, level = [], 0.0
    for pair in results.primary.pairs:
        d = pair.difference
        assert d is not None, "a complete comparison has every pair"
        found.append(Claim(pair.a, pair.b, round(d.mean, 6), round(d.low, 6), round(d.high, 6), pair.words))
        level = d.level
    outcome = results.primary
    questions = max(arm.questions for arm in outcome.arms)
    recipes = {arm.name: str(arm.recipe) for arm in plan.arms}
    label, effect = outcome.outcome.label, plan.smallest_effect
    return Claims(plan.name, label, questions, len(plan.seeds), level, effect, recipes, tuple(found))


def write_shipped(claims: Sequence[Claims], path: Path = SHIPPED) -> None:
    """Write claims where `read_shipped` finds them."""
    write_text(path, json.dumps([asdict(some) for some in claims], indent=1, ensure_ascii=False) + "\n")


def read_shipped(path: Path = SHIPPED) -> list[Claims]:
    """The claims of the comparisons that Sightline's authors ran in the small world."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return [Claims(**{**row, "claims": tuple(Claim(**claim) for claim in row["claims"])}) for row in rows]
