"""What captions name at each forced level in AlignGPT's comparison (Zhao et al. 2024: higher levels name more).

Drawn from the committed rows: things of a picture named right, and things named that are not there, per caption, as the
mean over seeds with its 95% interval.

    python benchmarks/captions_by_level.py      # writes docs/assets/aligngpt-levels.png
"""

import json
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import t

HERE = Path(__file__).parent
ROWS = HERE / "comparisons" / "aligngpt" / "rows"
OUT = HERE.parent / "docs" / "assets" / "aligngpt-levels.png"
STAGES = {"pretrain": "after stage 1", "instruct": "after stage 2"}
ARMS = {"both": "levels by similarity", "random": "vectors as they were drawn"}
LEVELS = range(1, 9)
COLOURS = {"right": "#0072b2", "wrong": "#d55e00"}


def scores() -> dict[tuple[str, str, str], list[float]]:
    """By arm, stage and score: the value of each seed."""
    found: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for path in sorted(ROWS.glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        for stage, values in row["diagnosed"].items():
            for name, value in values.items():
                found[row["arm"], stage, name].append(value["value"])
    return found


def mean(values: list[float]) -> tuple[float, float]:
    """Mean and half of its 95% interval, by Student's t."""
    count = len(values)
    middle = sum(values) / count
    deviation = (sum((value - middle) ** 2 for value in values) / (count - 1)) ** 0.5
    return middle, float(t.ppf(0.975, count - 1)) * deviation / count**0.5


def main() -> None:
    """Draw the stages side by side."""
    found = scores()
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots(1, len(STAGES), sharey=True)
    for axis, (stage, title) in zip(axes, STAGES.items(), strict=True):
        for what, colour in COLOURS.items():
            for (arm, label), style in zip(ARMS.items(), ("-", ":"), strict=True):
                points = [mean(found[arm, stage, f"captions/level/{level}/{what}"]) for level in LEVELS]
                middles, halves = zip(*points, strict=True)
                axis.errorbar(
                    LEVELS, middles, halves, color=colour, linestyle=style, capsize=2, label=f"{what}, {label}"
                )
            plain = mean(found["baseline", stage, f"captions/own/{what}"])[0]
            axis.axhline(plain, color=colour, linestyle="--", linewidth=0.8, label=f"{what}, baseline")
        axis.set(title=title, xlabel="forced level", xticks=list(LEVELS), ylim=(0, None))
    axes[0].set_ylabel("things named in a caption")
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(OUT, dpi=110)
    print(OUT)


if __name__ == "__main__":
    main()
