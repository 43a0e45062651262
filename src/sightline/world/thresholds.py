"""What the shipped backbones must know before the world can say anything about a method, and whether they do.

A bad backbone hides every effect: a tower that does not see shape cannot give shape's words to visual tokens, and a
language model that does not bind a colour to its shape in text will not in images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ..evaluation.metrics import Estimate
from .scene import LETTERS

LEAST: dict[str, Mapping[str, float]] = {
    "clip": {
        "retrieval": 0.85,
        "clean_over_colour": 0.9,
        "clean_over_shape": 0.9,
        "clean_over_size": 0.9,
        "clean_over_letter": 0.9,
        "probe_colour": 0.95,
        "probe_shape": 0.9,
        "probe_letter": 0.8,
        "word_colour": 0.9,
        "word_shape": 0.7,
        "word_letter": 0.6,
        "fine_high": 0.9,
    },
    "lm": {
        "colour_1": 0.95,
        "shape_1": 0.95,
        "colour_2": 0.9,
        "shape_2": 0.9,
        "colour_3": 0.9,
        "shape_3": 0.9,
        "fact": 0.9,
    },
}
"""What a backbone's score must be above; other scores are printed without a threshold."""
LEAST["lm-small"] = LEAST["lm"]
LEAST["vae"] = {"psnr": 28.0}
LEAST["denoiser"] = {"gain": 3.0}
LEAST["vq"] = {"used": 0.5}
DECIBELS = ("psnr", "psnr_blank", "gain")
"""Scores that are no shares."""
CHANCE = {"clip": {"fine_low": 1 / len(LETTERS)}}
"""Scores whose interval must contain chance: what the low view cannot tell."""


@dataclass(frozen=True)
class Finding:
    """A score of a backbone beside what it must be."""

    backbone: str
    name: str
    score: Estimate
    least: float | None = None
    chance: float | None = None

    @property
    def passes(self) -> bool:
        """True also of a score without a threshold."""
        if self.chance is not None:
            return self.score.low <= self.chance <= self.score.high
        return self.least is None or self.score.value > self.least

    def line(self) -> str:
        """The finding in one line of a table."""
        score = f"{self.score.value:.3f} ({self.score.low:.3f} to {self.score.high:.3f})"
        score += " dB" if self.name in DECIBELS else ""
        wanted = f"above {self.least:g}" if self.least is not None else ""
        wanted = f"holds {self.chance:g}" if self.chance is not None else wanted
        verdict = ("passes" if self.passes else "MISSES") if wanted else ""
        return f"{self.backbone:<14} {self.name:<22} {score:<24} {wanted:<14} {verdict}".rstrip()

    def as_row(self) -> dict[str, float | bool]:
        """The finding for machines, with its threshold where it has one."""
        score = self.score
        unit = "dB" if self.name in DECIBELS else "share"
        row = {unit: round(score.value, 4), "low": round(score.low, 4), "high": round(score.high, 4), "n": score.n}
        if self.least is not None:
            row |= {"above": self.least}
        if self.chance is not None:
            row |= {"holds": self.chance}
        return row | ({"passes": self.passes} if len(row) > 4 else {})


def judge(backbone: str, name: str, score: Estimate) -> Finding:
    """A score on `validation` with the threshold it has, if it has one."""
    return Finding(backbone, name, score, LEAST.get(backbone, {}).get(name), CHANCE.get(backbone, {}).get(name))
