"""Runs as one HTML file: what was learned, how sure that is, what it looks like, and how to make it again.

The file needs nothing beside it: no network, no fonts; its one script moves among the tokens of a lens. The same
folders give the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compare.claims import Claims
from ..diagnostics.lens_page import ARROWS
from ..errors import SightlineError
from ..files import write_text
from ..pages import render
from .answers import shown
from .curves import stages_of
from .differences import differences, flat
from .run_folder import Run
from .scores import benchmarks_of, left_over, section
from .seen import seen_of
from .series import ALONE, Series, series_of

LARGEST = 3_000_000
"""Bytes of a page."""
TELLS = """
for (const lens of document.querySelectorAll(".lens")) {
  const said = lens.querySelector(".said"), hint = said.textContent;
  const tell = event => {
    const cell = event.target.closest(".cell") || document.activeElement.closest(".lens .cell");
    said.textContent = cell && lens.contains(cell) ? cell.getAttribute("aria-label") : hint;
  };
  for (const kind of ["pointerover", "pointerleave", "focusin"]) lens.addEventListener(kind, tell);
}
"""
SCRIPT = ARROWS + TELLS


@dataclass(frozen=True)
class Size:
    """How much of what takes room is shown."""

    answers: int
    side: int
    """Pixels of an image."""
    words: int
    """Of a token of the lens."""
    pictures: int
    """Looked at with the models."""


SIZES = (Size(12, 360, 5, 12), Size(12, 240, 3, 12), Size(8, 180, 1, 3), Size(4, 120, 1, 1))
"""Tried in turn until the page is small enough."""


def write_page(
    run: Path,
    *others: Path,
    out: Path | None = None,
    twin: Path | None = None,
    title: str | None = None,
    first: str | None = None,
    images_root: Path | None = None,
    comparisons: Sequence[Claims] = (),
) -> Path:
    """Write the page of a run, or of several side by side, and give its path.

    What a run does not have yet (curves, an evaluation, looks, a twin) is said in words on the page.

    Args:
        run: a run folder: `recipe.yaml`, `run.json`, `metrics.jsonl`, `eval/<name>/`, `looks/`, `model/`, each
            optional.
        others: run folders that are compared with it.
        out: the file to write; `report.html` in the first run folder by default.
        twin: the run folder of the first one's blind twin, trained the same with blank images.
        title: the page's heading; the runs' names by default.
        first: the evaluation that the headline and the gallery are of; by default the first by name that all runs have.
        images_root: where the evaluated images are, if they have moved since.
        comparisons: claims over seeds to show beside.

    Raises:
        SightlineError: if a folder is no run's, there are too many, there is no such `first` evaluation, or the page
            cannot be written.
    """
    series = series_of([run, *others], twin, first)
    title = title or " and ".join(one.run.name if one.name == ALONE else one.name for one in series if not one.is_twin)
    context, page = _context(series, title, comparisons), ""
    for size in SIZES:
        page = _render(context | _pictures(context, images_root, size))
        if len(page.encode("utf-8")) < LARGEST:
            break
    out = out if out is not None else run / "report.html"
    try:
        write_text(out, page)
    except OSError as error:
        raise SightlineError(f"cannot write the page {out}: {error.strerror}. Give another place for it.") from None
    return out


def _render(context: Mapping[str, Any]) -> str:
    filters = {"percent": _percent, "points": _points}
    page = render("report/templates", "page.html.j2", context, script=SCRIPT, filters=filters)
    return page.encode("utf-8", "replace").decode("utf-8")  # a name of bytes that are no UTF-8


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+z.1f}".replace("-", "−")


def _context(series: Sequence[Series], title: str, comparisons: Sequence[Claims]) -> dict[str, Any]:
    """What is on the page but its pictures."""
    several = len(series) > 1
    notes = [f"{one.name}: {note}" if several else note for one in series for note in one.run.notes]
    sections = [section(evaluation, series, notes) for evaluation in series[0].run.evaluations]
    notes += left_over(series)
    return {
        "title": title,
        "series": series,
        "has_twin": any(one.is_twin for one in series),
        "stages": stages_of(series),
        "sections": sections,
        "headline": sections[0] if sections else None,
        "benchmarks": benchmarks_of(series),
        "comparisons": comparisons,
        "differences": differences({one.name: one.run.recipe for one in series}),
        "facts": {one.name: _facts(one.run) for one in series},
        "versions": {one.name: flat(one.run.info.get("versions")) for one in series},
        "machines": {one.name: flat(one.run.info.get("machine")) for one in series},
        "notes": notes,
    }


def _pictures(context: Mapping[str, Any], images_root: Path | None, size: Size) -> dict[str, Any]:
    headline = context["headline"]
    return {
        "gallery": shown(headline, images_root, size.answers, size.side) if headline else [],
        "seen": seen_of(context["series"], size.side, size.words, size.pictures),
    }


def _facts(run: Run) -> dict[str, str]:
    """The run in a few lines, of what `run.json` has."""
    keys = {"created": "Made", "seed": "Seed", "command": "Command"}
    facts = {name: str(run.info[key]) for key, name in keys.items() if key in run.info}
    if isinstance(seconds := run.info.get("seconds"), int | float):
        facts["Training took"] = f"{seconds / 60:.1f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
    facts["Model"] = "saved in model/ of the run folder" if run.has_model else "none saved in the run folder"
    return facts
