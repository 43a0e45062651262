"""What the levels of a stage are: how scores are distributed, where they are cut, and captions at either end."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from ..data.sources.wording import shown
from ..files import write_json, write_text
from ..types import Sample
from .pairs import caption
from .ranking import CutPoints, Cuts, Scored

BINS = 80
"""Of the scores, from the lowest to the highest."""
SHOWN = 5
"""Captions that are shown of the lowest and of the highest level."""
PANELS = 6
"""Sources that are drawn, the largest first."""
EVERYWHERE = "all"


@dataclass(frozen=True)
class LevelReport:
    """Scores, cut points and levels of a stage's training data, for people."""

    scored: Scored
    cuts: Cuts
    samples: Sequence[Sequence[Sample]]
    """The rows of each of the stage's sources."""
    about: dict[str, Any]
    """How levels were made."""
    facts: dict[str, Any]
    """All that a score depends on beside image and caption."""

    @cached_property
    def levels(self) -> Int[np.ndarray, " rows"]:
        """The level of each row that has a score."""
        names = self.scored.names
        pairs = zip(self.scored.scores.tolist(), self.scored.source.tolist(), strict=True)
        return np.array([self.cuts(score, names[source]) for score, source in pairs])

    @property
    def stem(self) -> str:
        """The name of its files: another cut, or other rows, have another."""
        found = hashlib.sha256(json.dumps([self.about, self.facts], sort_keys=True).encode())
        found.update(np.sort(self.scored.scores).tobytes())
        return f"levels-{found.hexdigest()[:16]}"

    def groups(self) -> dict[str, tuple[CutPoints, np.ndarray]]:
        """By name, cut points and which rows they cut: all of them, or those of each source."""
        if not self.cuts.by_source:
            return {EVERYWHERE: (self.cuts.everywhere, np.ones(len(self.levels), dtype=bool))}
        names = self.scored.names
        return {name: (self.cuts.by_source[name], self.scored.source == n) for n, name in enumerate(names)}

    def examples(self, *, lowest: bool) -> list[dict[str, Any]]:
        """Rows of the lowest level there is with the lowest scores, or of the highest with the highest."""
        level = self.levels.min() if lowest else self.levels.max()
        rows = np.flatnonzero(self.levels == level)
        order = np.argsort(self.scored.scores[rows] * (1 if lowest else -1), kind="stable")[:SHOWN]
        found = []
        for row in rows[order].tolist():
            source, number = self.scored.places[row].tolist()
            sample = self.samples[source][number]
            found.append(
                {"id": sample.id, "level": int(level), "score": float(self.scored.scores[row])}
                | {"caption": shown(caption(sample), 200)}
            )
        return found

    def told(self) -> str:
        """Some lines for the user."""
        scored, count = self.scored, len(self.levels)
        quantiles = ", ".join(f"{value:.3f}" for value in np.quantile(scored.scores, (0, 0.25, 0.5, 0.75, 1)))
        lines = [
            f"{count:,} rows with a score, {scored.text_only:,} without an image, {scored.unreadable:,} with an image "
            "that cannot be read",
            f"scores: lowest, quartiles, highest {quantiles}",
        ]
        if scored.chunks.any():
            chunked, cut = int((scored.chunks > 1).sum()), int(scored.truncated.sum())
            lines.append(
                f"captions scored in several chunks: {chunked:,} ({chunked / count:.1%}), the longest in "
                f"{scored.chunks.max()}; not read to their end even so: {cut:,}"
            )
        for name, (points, rows) in self.groups().items():
            title = "" if name == EVERYWHERE else f" of {name}"
            lines += [
                f"rows by level{title}: {', '.join(f'{each:,}' for each in self._counts(rows))}",
                f"cut points{title}: {', '.join(f'{point:.4f}' for point in points)}",
            ]
        for title, lowest in (("lowest", True), ("highest", False)):
            lines.append(f"captions of the {title} level:")
            lines += [f"  {row['score']:.3f}  {row['id']}: {row['caption']}" for row in self.examples(lowest=lowest)]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """For the file that keeps it."""
        scored, groups = self.scored, self.groups()
        histogram, edges = np.histogram(scored.scores, bins=BINS)
        return {
            "what": "levels of alignment: 1, and one more for each cut point that the score reaches",
            **self.about,
            "cut points": {EVERYWHERE: self.cuts.everywhere, **self.cuts.by_source},
            "rows by level": {name: self._counts(rows) for name, (_, rows) in groups.items()},
            "rows": {
                "with a score": len(self.levels),
                "without an image": scored.text_only,
                "with an image that cannot be read": scored.unreadable,
            },
            "captions by chunks": {str(n): count for n, count in sorted(Counter(scored.chunks.tolist()).items()) if n},
            "captions not read to their end": int(scored.truncated.sum()),
            "histogram": {"edges": edges.tolist(), "rows": histogram.tolist()},
            "lowest": self.examples(lowest=True),
            "highest": self.examples(lowest=False),
            "scores depend on": self.facts,
        }

    def _counts(self, rows: np.ndarray) -> list[int]:
        return np.bincount(self.levels[rows] - 1, minlength=self.cuts.levels).tolist()


def write_record(report: LevelReport, folder: Path) -> Path:
    """Cut points, histogram, counts and provenance as JSON, in the folder of the scores."""
    path = folder / f"{report.stem}.json"
    write_json(path, report.record())
    return path


def write_report(report: LevelReport, folder: Path) -> list[Path]:
    """A picture, a text and the record in the folder of the scores."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, text = folder / f"{report.stem}.png", folder / f"{report.stem}.txt"
    draw_levels(report, picture)
    write_text(text, report.told() + "\n")
    return [picture, text, write_record(report, folder)]


def draw_levels(report: LevelReport, path: Path) -> None:
    """A histogram of the scores with their cut points, and beside it the rows of each level; for each source, if it
    has cut points of its own."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = sorted(report.groups().items(), key=lambda group: -int(group[1][1].sum()))[:PANELS]
    figure = Figure(figsize=(9, 0.6 + 2.8 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    low, high = report.scored.scores.min(), report.scored.scores.max()
    numbers = np.arange(1, report.cuts.levels + 1)
    panels = figure.subplots(len(groups), 2, squeeze=False, width_ratios=(2, 1))
    for (name, (points, rows)), (left, right) in zip(groups, panels, strict=True):
        left.hist(report.scored.scores[rows], bins=BINS, range=(low, high) if low < high else None)
        for point in points:
            left.axvline(point, color="black", linewidth=0.8, linestyle=":")
        left.set(xlabel="score", ylabel="rows", title=shown(name, 60) if name != EVERYWHERE else "All rows")
        right.bar(numbers, report._counts(rows))
        right.set(xlabel="level", ylabel="rows", xticks=numbers)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
