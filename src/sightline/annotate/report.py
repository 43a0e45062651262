"""What the labels of a store are: how scores are distributed, which words are used (SEA's Figure 6)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from ..data.store import Store
from ..errors import SightlineError
from ..files import write_json, write_text
from ..progress import watched
from .drawing import NONE
from .labels import unpacked

BINS = 400
"""Of the scores from 0 to 1."""
SHOWN = 20
"""Words that are listed at either end."""


@dataclass(frozen=True)
class LabelReport:
    """Counts over all labels of a store."""

    words: tuple[str, ...]
    images: int
    patches: int
    unlabelled: int
    """Patches without a label."""
    uses: Int[np.ndarray, " words"]
    """How often each word is a label."""
    mean_scores: Float[np.ndarray, " words"]
    """The mean score of its uses; 0 for a word without any."""
    histogram: Int[np.ndarray, " bins"]
    """Labels by score, from 0 to 1."""
    highest: float
    """The best score of all."""
    missing: int
    """Shards that are not there yet, and not counted: other processes are at work on them, or were stopped."""

    @property
    def used(self) -> float:
        """The share of the list that is used at all."""
        return float((self.uses > 0).mean())

    def ranked(self, *, least: bool = False) -> list[tuple[str, int]]:
        """Words by their uses, the most used first; with `least` the least used of those that are."""
        order = np.argsort(-self.uses, kind="stable")
        order = [place for place in order if self.uses[place] > 0]
        chosen = order[::-1][:SHOWN] if least else order[:SHOWN]
        return [(self.words[place], int(self.uses[place])) for place in chosen]

    def told(self) -> str:
        """Some lines for the user."""

        def listed(pairs: Sequence[tuple[str, int]]) -> str:
            return ", ".join(f"{word} {uses:,}" for word, uses in pairs)

        labels = int(self.uses.sum())
        share = np.cumsum(self.histogram) / max(1, labels)
        quartiles = ", ".join(f"{(np.searchsorted(share, q) + 0.5) / BINS:.3f}" for q in (0.25, 0.5, 0.75))
        partly = f"{self.missing:,} shards are not there yet; without them:"
        return "\n".join(
            [
                *([partly] if self.missing else []),
                f"{self.images:,} images, {self.patches:,} patches, {labels:,} labels",
                f"patches without a label: {self.unlabelled:,} ({self.unlabelled / max(1, self.patches):.1%})",
                f"words used: {int((self.uses > 0).sum()):,} of {len(self.words):,} ({self.used:.1%})",
                f"scores: quartiles {quartiles}, highest {self.highest:.3f}",
                f"most used:  {listed(self.ranked())}",
                f"least used: {listed(self.ranked(least=True))}",
            ]
        )


def measure_labels(folder: Path, *, progress: bool = True) -> LabelReport:
    """Count the labels in a folder, an image at a time.

    Raises:
        SightlineError: if it holds no labels with scores.
    """
    try:
        words = tuple((folder / "words.txt").read_text("utf-8").splitlines())
        about = json.loads((folder / "provenance.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SightlineError(
            f"'{folder}' holds no labels: {error}. Run: sightline annotate RECIPE --method sea"
        ) from None
    if about["depends_on"].get("drawn") is not None:
        raise SightlineError(
            f"'{folder}' keeps what was drawn of labels, not their scores, so there is nothing to report. Annotate "
            "without drawn_epochs."
        )
    store = Store(folder)
    uses, sums = np.zeros(len(words), dtype=np.int64), np.zeros(len(words))
    histogram = np.zeros(BINS, dtype=np.int64)
    images = patches = unlabelled = 0
    highest = 0.0
    for batch in watched(store.keys, "labels", batch_size=256, progress=progress):
        for key in batch:
            values = store.read(key)
            if not len(values["words"]):
                continue
            ids, scores = unpacked(values)
            there = ids != NONE
            np.add.at(uses, ids[there], 1)
            np.add.at(sums, ids[there], scores[there])
            histogram += np.bincount((scores[there] * BINS).astype(np.int64).clip(0, BINS - 1), minlength=BINS)
            highest = max(highest, float(scores.max()))
            images, patches = images + 1, patches + len(ids)
            unlabelled += int((~there.any(axis=1)).sum())
    means, missing = sums / np.maximum(uses, 1), len(store.missing())
    return LabelReport(words, images, patches, unlabelled, uses, means, histogram, highest, missing)


def write_report(report: LabelReport, folder: Path) -> list[Path]:
    """`labels.png`, `labels.txt` and `labels.json` in the folder of the labels."""
    picture, text, numbers = folder / "labels.png", folder / "labels.txt", folder / "labels.json"
    draw_report(report, picture)
    write_text(text, report.told() + "\n")
    write_json(
        numbers,
        {
            "images": report.images,
            "patches": report.patches,
            "patches without a label": report.unlabelled,
            "share of words used": report.used,
            "highest score": report.highest,
            "histogram of scores": report.histogram.tolist(),
            "uses": {word: int(count) for word, count in zip(report.words, report.uses, strict=True) if count},
        },
    )
    return [picture, text, numbers]


def draw_report(report: LabelReport, path: Path) -> None:
    """Two histograms: of the scores of all labels, and of the mean score of each word that is used."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.stairs(report.histogram, np.linspace(0, 1, BINS + 1), fill=True)
    left.set_xlim(0, max(report.highest, 1 / BINS))
    left.set(xlabel="score of a label", ylabel="labels", title="All labels")
    right.hist(report.mean_scores[report.uses > 0], bins=60)
    title = f"{report.used:.1%} of {len(report.words):,} words are used"
    right.set(xlabel="mean score of a word", ylabel="words", title=title)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
