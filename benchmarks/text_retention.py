"""What SEA's comparisons say of text alone while stage 2 trains, as curves (Yin et al. 2024, Figure 3).

Drawn from the committed rows: the mean over seeds of the share of text questions right, with the range of the seeds.

    python benchmarks/text_retention.py      # writes docs/assets/sea-text.png
"""

import json
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
OUT = HERE.parent / "docs" / "assets" / "sea-text.png"
PANELS = {
    "sea": "larger, each arm its own rate",
    "sea-early": "larger, early, one rate",
    "sea-small": "small, one rate",
    "sea-small-early": "small, early, one rate",
}
COLOURS = {
    "baseline": "#000000",
    "sea": "#0072b2",
    "sea-true": "#009e73",
    "sea-shuffled": "#d55e00",
    "no-stage-1": "#999999",
}


def curves(folder: Path) -> dict[str, dict[int, list[float]]]:
    """By arm and step: the accuracy of each seed."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((folder / "rows").glob("*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        for point in row["curves"]["text"]:
            found[row["arm"]][point["step"]].append(point["accuracy"])
    return found


def main() -> None:
    """Draw the panels side by side."""
    figure = Figure(figsize=(11, 3), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (name, title) in zip(axes, PANELS.items(), strict=True):
        by_arm = curves(HERE / "comparisons" / name)
        for arm, colour in COLOURS.items():
            if arm in by_arm:
                steps = sorted(by_arm[arm])
                seeds = [by_arm[arm][step] for step in steps]
                axis.plot(steps, [sum(each) / len(each) for each in seeds], color=colour, label=arm)
                axis.fill_between(steps, [min(s) for s in seeds], [max(s) for s in seeds], color=colour, alpha=0.08)
        axis.set(title=title, xlabel="step of stage 2", ylim=(0, 1))
    axes[0].set_ylabel("text questions right")
    axes[0].legend(fontsize=8, loc="lower center", ncols=2, frameon=False)
    figure.savefig(OUT, dpi=110)
    print(OUT)


if __name__ == "__main__":
    main()
