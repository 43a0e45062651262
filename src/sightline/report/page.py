"""One run folder as one HTML file: what was learned, how sure that is, what it looks like, and how to make it again.

The file needs nothing beside it: no network, scripts or fonts. The same folder gives the same bytes.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from ..errors import SightlineError, did_you_mean
from ..evaluation.metrics import Estimate
from ..evaluation.scores import PREDICTIONS, Comparison, Prediction, by_ability, compare
from ..files import write_text
from .figures import LARGE, curve_svg, image_or_words, smooth
from .run_folder import Curve, Evaluation, Run, read_run

GALLERY = 12
"""Images in the gallery."""
IMAGES_PER_QUESTION = 4
YES_NO = ("accuracy", "precision", "recall", "f1", "yes_ratio")


def write_page(
    run: Path,
    *,
    out: Path | None = None,
    twin: Path | None = None,
    title: str | None = None,
    first: str | None = None,
    images_root: Path | None = None,
) -> Path:
    """Write the page of a run and give its path.

    What the run does not have yet (curves, an evaluation, a twin) is said in words on the page.

    Args:
        run: a run folder: `recipe.yaml`, `run.json`, `metrics.jsonl`, `eval/<name>/`, `model/`, each optional.
        out: the file to write; `report.html` in the run folder by default.
        twin: the run folder of the blind twin, trained the same with blank images.
        title: the page's heading; the run's name by default.
        first: the evaluation that the headline and the gallery are of; the first by name by default.
        images_root: where the evaluated images are, if they have moved since.

    Raises:
        SightlineError: if `run` or `twin` is not a run folder, there is no such `first` evaluation, or the page cannot
            be written.
    """
    own = read_run(run)
    if first is not None:
        names = [evaluation.name for evaluation in own.evaluations]
        if first not in names:
            raise SightlineError(
                f"the run has no evaluation '{first}'{did_you_mean(first, names) or '.'} "
                f"It has: {', '.join(names) or 'none'}."
            )
        own = replace(own, evaluations=tuple(sorted(own.evaluations, key=lambda e: e.name != first)))
    other = read_run(twin) if twin is not None else None
    page = _render(_context(own, other, title or own.name, images_root))
    out = out if out is not None else run / "report.html"
    try:
        write_text(out, page)
    except OSError as error:
        raise SightlineError(f"cannot write the page {out}: {error.strerror}. Give another place for it.") from None
    return out


def pick_gallery(predictions: Sequence[Prediction], count: int = GALLERY, *, seed: int = 0) -> list[Prediction]:
    """A mix to look at: abilities in turn, right and wrong in turn, an image once while others are left.

    It shows kinds of answers and not their shares, and depends on nothing but `predictions` and `seed`. Questions
    without images are shown only where there are no others.
    """
    rng = random.Random(seed)
    candidates = [row for row in predictions if row.images] or predictions
    piles = {
        (ability, right): rng.sample(rows, len(rows))
        for ability, all_rows in by_ability(candidates).items()
        for right in (True, False)
        if (rows := [row for row in all_rows if row.correct is right])
    }
    picked: list[Prediction] = []
    later: list[Prediction] = []
    seen: set[str] = set()
    abilities = sorted({ability for ability, _ in piles})
    turn = 0
    while len(picked) < count and any(piles.values()):
        lap, place = divmod(turn, len(abilities))
        ability, wanted = abilities[place], (lap + place) % 2 == 0
        turn += 1
        pile = piles.get((ability, wanted)) or piles.get((ability, not wanted)) or []
        while pile:
            row = pile.pop()
            if row.cluster not in seen:
                seen.add(row.cluster)
                picked.append(row)
                break
            later.append(row)
    return (picked + later)[:count]


def _render(context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sightline", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "points": _points}
    return environment.get_template("page.html.j2").render(context)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")


def _context(run: Run, twin: Run | None, title: str, images_root: Path | None) -> dict[str, Any]:
    notes = [*run.notes, *(f"Blind twin: {note}" for note in (twin.notes if twin else ()))]
    sections = [_section(evaluation, twin, notes) for evaluation in run.evaluations]
    return {
        "title": title,
        "run": run,
        "has_twin": twin is not None,
        "stages": _stages(run.curves),
        "sections": sections,
        "headline": sections[0] if sections else None,
        "gallery": _gallery(sections[0], images_root) if sections else [],
        "facts": _facts(run),
        "versions": _flat(run.info.get("versions")),
        "machine": _flat(run.info.get("machine")),
        "notes": notes,
    }


def _section(evaluation: Evaluation, twin: Run | None, notes: list[str]) -> dict[str, Any]:
    """One evaluation, beside the twin's on the same questions.

    That is the twin's of the same name, or with `-blank` after it: `sightline eval --blank-images` calls it so.
    """
    names = (f"{evaluation.name}-blank", evaluation.name)
    theirs = next((e for name in names for e in twin.evaluations if e.name == name), None) if twin else None
    comparison: Comparison | None = None
    if twin is not None and theirs is None and not evaluation.is_blank:
        notes.append(f"The blind twin has no evaluation '{evaluation.name}', so there is nothing to compare it with.")
    if theirs is not None:
        try:
            comparison = compare(evaluation.path / PREDICTIONS, theirs.path / PREDICTIONS)
        except SightlineError as error:
            notes.append(f"The blind twin is not shown for '{evaluation.name}': {error}")
            theirs = None
    if theirs is not None and not theirs.is_blank:
        notes.append(f"The blind twin was shown the images in its evaluation '{theirs.name}', not blank ones.")
    scores = evaluation.scores
    rows = [
        {
            "name": name,
            "model": estimate,
            "twin": theirs.scores.by_ability[name] if theirs else None,
            "difference": comparison.by_ability[name] if comparison else None,
            "baseline": scores.baseline_by_ability[name],
        }
        for name, estimate in scores.by_ability.items()
    ]
    overall = {
        "name": "overall",
        "model": scores.overall,
        "twin": theirs.scores.overall if theirs else None,
        "difference": comparison.overall if comparison else None,
        "baseline": scores.baseline,
    }
    return {
        "evaluation": evaluation,
        "theirs": theirs,
        "overall": overall,
        "rows": [overall, *rows] if len(rows) > 1 else [overall],
        "yes_no": _yes_no(evaluation, theirs),
        "settings": _flat(scores.settings) | {f"version of {k}": v for k, v in scores.versions.items()},
    }


def _yes_no(evaluation: Evaluation, theirs: Evaluation | None) -> list[tuple[str, Estimate, Estimate | None]]:
    block = evaluation.scores.yes_no
    other = theirs.scores.yes_no if theirs else None
    if block is None:
        return []
    names = {name: name.replace("_", "-").replace("f1", "F1").capitalize() for name in YES_NO}
    return [(names[key], getattr(block, key), getattr(other, key) if other else None) for key in YES_NO]


def _gallery(section: Mapping[str, Any], images_root: Path | None) -> list[dict[str, Any]]:
    evaluation: Evaluation = section["evaluation"]
    root = images_root if images_root is not None else Path(evaluation.scores.images_root)
    theirs = {row.id: row.prediction for row in section["theirs"].predictions} if section["theirs"] else {}
    items: list[dict[str, Any]] = []
    for row in pick_gallery(evaluation.predictions):
        side = LARGE if len(row.images) == 1 else LARGE // 2
        images = [image_or_words(root / name, side) for name in row.images[:IMAGES_PER_QUESTION]]
        more = len(row.images) - len(images)
        items.append({"row": row, "images": images, "more": more, "twin": theirs.get(row.id)})
    return items


def _stages(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    stages: dict[str, list[dict[str, Any]]] = {}
    for number, curve in enumerate(curves):
        figure = {"name": curve.quantity, "svg": Markup(curve_svg(curve, f"curve{number}")), "words": _in_words(curve)}
        stages.setdefault(curve.stage, []).append(figure)
    return [{"name": name, "figures": figures} for name, figures in stages.items()]


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


def _facts(run: Run) -> dict[str, str]:
    """The run in a few lines, of what `run.json` has."""
    keys = {"created": "Made", "seed": "Seed", "command": "Command"}
    facts = {name: str(run.info[key]) for key, name in keys.items() if key in run.info}
    if isinstance(seconds := run.info.get("seconds"), int | float):
        facts["Training took"] = f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    facts["Model"] = "saved in model/ of the run folder" if run.has_model else "none saved in the run folder"
    return facts


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """A mapping of anything as lines of text, with dots for what is inside; nothing for anything else."""
    if not isinstance(value, Mapping):
        return {}
    lines: dict[str, str] = {}
    for key, inner in value.items():
        lines |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else {f"{prefix}{key}": str(inner)}
    return lines
