"""The lens as an HTML page: each token a cell that shows its nearest words, with mouse or keyboard.

The file needs nothing beside it: no network, no fonts. Its one script moves between cells with the arrow keys; without
it Tab does. No other script can run on it, whatever a word says.
"""

from pathlib import Path
from typing import Any

from .. import pages
from ..files import picture_uri, write_text
from .lens import Cell, Lens

KINDS = {True: "right", False: "wrong", None: "unknown"}
SIGNS = {True: "✓", False: "✗", None: ""}
ARROWS = """
for (const grid of document.querySelectorAll(".cells")) {
  const cells = [...grid.querySelectorAll(".cell")];
  const across = Number(grid.dataset.grid);
  const steps = {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across};
  cells.forEach((cell, at) => {
    cell.tabIndex = at ? -1 : 0;
    cell.addEventListener("focus", () => {
      cells.forEach(other => { other.tabIndex = other === cell ? 0 : -1; });
    });
    cell.addEventListener("keydown", event => {
      const row = at - at % across;
      const step = event.key === "Home" ? row - at : event.key === "End" ? row + across - 1 - at : steps[event.key];
      if (step === undefined) return;
      event.preventDefault();
      const next = at + step;
      const leaves = Math.abs(step) === 1 && event.key.startsWith("Arrow") && (next < row || next >= row + across);
      if (!leaves && cells[next]) cells[next].focus();
    });
  });
}
"""
"""Moves among the cells of each `.cells` of a page, with the arrow keys, Home and End; Tab enters and leaves."""


def render(lens: Lens, *, title: str) -> str:
    """The page."""
    cells = [_cell(cell, *divmod(number, lens.grid)) for number, cell in enumerate(lens.cells)]
    context = {
        "title": title,
        "summary": lens.summary(),
        "judged": bool(lens.judged),
        "padded": any(cell.padding for cell in lens.cells),
        "grid": lens.grid,
        "rows": [cells[start : start + lens.grid] for start in range(0, len(cells), lens.grid)],
        "image": picture_uri(lens.image),
    }
    return pages.render("diagnostics", "lens.html.j2", context, script=ARROWS)


def write_page(lens: Lens, path: Path, *, title: str) -> None:
    """Write the page, whole or not at all."""
    write_text(path, render(lens, title=title))


def label_of(cell: Cell, row: int, column: int, *, most: int | None = None) -> str:
    """A token in a sentence: its place, its nearest words with their cosines, what it shows, whether it is right.

    Args:
        row, column: from 0 on.
        most: words that are told, all by default.
    """
    words = ", ".join(f"{word} {score:.2f}" for word, score in cell.words[:most])
    facts = [f"{_place(row, column)}: {words}"]
    facts += ["padding"] if cell.padding else []
    facts += [f"shows {', '.join(cell.true)}"] if cell.true else []
    facts += [KINDS[cell.right]] if cell.right is not None else []
    return "; ".join(facts)


def _place(row: int, column: int) -> str:
    return f"row {row + 1}, column {column + 1}"


def _cell(cell: Cell, row: int, column: int) -> dict[str, Any]:
    return {
        "place": _place(row, column),
        "label": label_of(cell, row, column),
        "word": cell.word,
        "letters": max(4, len(cell.word)),
        "kind": KINDS[cell.right],
        "sign": SIGNS[cell.right],
        "padding": cell.padding,
        "true": cell.true,
        "words": [
            {"word": word, "score": f"{score:.3f}", "share": f"{100 * max(score, 0):.1f}", "true": word in cell.true}
            for word, score in cell.words
        ],
    }
