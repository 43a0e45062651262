"""A plan written from recipes alone, so that a comparison begun in one line has its plan on paper too."""

from collections.abc import Sequence
from pathlib import Path

import yaml

from ..config import load_recipe
from ..errors import SightlineError
from ..files import write_text
from .checks import check_plan
from .read import parse_plan

SMALLEST_EFFECT = 0.02
SUFFIX = ".plan.yaml"


def draft_plan(
    recipes: Sequence[str],
    *,
    folder: Path,
    seeds: int,
    data: Path | None = None,
    ability: str | None = None,
    smallest_effect: float = SMALLEST_EFFECT,
    name: str | None = None,
) -> Path:
    """Write the plan of a comparison of recipes, the first being the baseline.

    The same arguments give the same file, so that the same command goes on with what it began.

    Args:
        folder: where the plan goes, as `<name>.plan.yaml`.
        data: the claim's question file; by default `test.questions.jsonl` beside the first recipe's last stage's data.

    Raises:
        SightlineError: if there is no such file, the plan cannot be carried out, or another one is in the way.
    """
    loaded = [load_recipe(recipe) for recipe in recipes]
    names = [recipe.name for recipe in loaded]
    if len({name.lower() for name in names}) < len(names):
        names = [Path(recipe).stem for recipe in recipes]
    if data is None:
        data = Path(loaded[0].stages[-1].data[0].path).parent / "test.questions.jsonl"
        if not data.is_file():
            raise SightlineError(
                f"there is no {data}, so it is not known what to claim anything about, and nothing was run. Say which "
                "questions: --data test.questions.jsonl"
            )
    values = {
        "name": name or "-vs-".join(names)[:80],
        "arms": [{"name": n, "recipe": str(r)} for n, r in zip(names, recipes, strict=True)],
        "seeds": list(range(seeds)),
        "primary": {"questions": str(data)} | ({"ability": ability} if ability else {}),
        "split": "test",
        "smallest_effect": smallest_effect,
    }
    text = (
        "# The plan of a comparison, written by `sightline compare` before its first run. See docs/compare.md.\n"
        "# No arm is tuned: each recipe is taken as it is. A plan with a `tuning` gives every arm the same.\n"
        + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    )
    plan = parse_plan(values, "the plan of these recipes")
    path = folder / f"{plan.name}{SUFFIX}"
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise SightlineError(
            f"'{path}' is another plan, so nothing was run. Carry that one out: sightline compare {path}. Or give this "
            "one another name: --name NAME"
        )
    if not path.is_file():
        check_plan(plan)  # one that cannot be carried out is not left in the way of the next
        write_text(path, text)
    return path
