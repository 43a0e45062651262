"""The page's pictures: learning curves as SVG that follows the page's colours, and images as data URIs."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.images import load_image
from ..errors import SightlineError
from ..files import picture_uri
from .run_folder import Curve

INK, MUTED = "#010101", "#020202"
"""Stand-ins that matplotlib can draw with; each becomes a CSS variable, legible on light and dark."""
LINES = {"a": "#030303", "b": "#040404", "c": "#050505", "d": "#060606", "twin": "#070707"}
"""Those of runs, by their marks."""
SHAPES = {"a": "o", "b": "s", "c": "D", "d": "^", "twin": "o"}
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)"} | {line: f"var(--{mark})" for mark, line in LINES.items()}

MAX_POINTS = 400
"""Points drawn of one curve; more are averaged in bins of equal width."""
TINY = 128
"""Images up to this side, in pixels, are shown with hard pixels."""


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean of about a 25th of the values around each one, of fewer near the ends; it does not lag behind."""
    reach = len(values) // 50
    sums = np.concatenate([[0.0], np.cumsum(values)])
    first = np.maximum(np.arange(len(values)) - reach, 0)
    last = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def thin(steps: np.ndarray, values: np.ndarray, limit: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points: means of consecutive bins."""
    if len(steps) <= limit:
        return steps, values
    bins = np.array_split(np.arange(len(steps)), limit)
    return np.array([steps[b].mean() for b in bins]), np.array([values[b].mean() for b in bins])


def curve_svg(lines: Sequence[tuple[str, str, Curve]], prefix: str) -> str:
    """Learning curves of one quantity as an `<svg>` element without size, colours or ids that could clash with the
    page's own: training as a full line, held-out rows as a dashed one with marks; each step only of a run alone.

    Args:
        lines: name, mark and curve of each run; a curve has at least one point.
        prefix: put before every id in the drawing; unique on the page.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "sightline",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.5, 2.7), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=[1, 2, 2.5, 5, 10]))
        drawn: list[np.ndarray] = []
        alone = len(lines) == 1
        for name, mark, curve in lines:
            colour = LINES[mark]
            if curve.train:
                steps, values = np.array(curve.train).T
                smoothed = smooth(values)
                if alone:
                    axes.plot(*thin(steps, values), color=colour, alpha=0.3, linewidth=0.8)
                axes.plot(
                    *thin(steps, smoothed), color=colour, linewidth=1.8, label="training, smoothed" if alone else name
                )
                drawn.append(smoothed)
            if curve.validation:
                steps, values = np.array(curve.validation).T
                axes.plot(
                    *thin(steps, values),
                    color=colour,
                    linewidth=1.4,
                    linestyle=(0, (4, 2)),
                    marker=SHAPES[mark] if len(values) <= 40 else None,
                    markersize=4,
                    label="validation" if alone else None if curve.train else name,
                )
                drawn.append(values)
        shown = np.concatenate(drawn)
        if shown.min() > 0 and shown.max() > 20 * shown.min():
            axes.set_yscale("log")
            axes.set_ylabel("log scale")
        axes.legend(frameon=False, loc="upper right", fontsize=9.5)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), prefix)


def _inline(svg: str, prefix: str) -> str:
    """matplotlib's file as an element of the page: no XML head, no fixed size, no style that reaches beyond it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'^<svg[^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r"font-family: [^;]*; ", "", svg).replace("xlink:href", "href")
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    return svg


def image_or_words(path: Path, side: int) -> dict[str, object]:
    """`{"uri", "tiny"}` of an image file, or `{"missing"}` with what to say in its place."""
    try:
        image = load_image(path)
    except SightlineError:
        return {"missing": f"Image not found or not readable: {path.name}"}
    return {"uri": picture_uri(image, side), "tiny": max(image.size) <= TINY}
