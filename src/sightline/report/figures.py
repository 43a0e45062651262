"""The page's pictures: learning curves as SVG that follows the page's colours, and images as data URIs."""

import io
import re
import warnings
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
LONGEST_NAME = 24
"""Letters of a run's name in a legend."""
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
    page's own: training as a full line, held-out rows as a dashed one with marks; each step only of a run alone, and
    marks on the full line only of several.

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
        for number, (name, mark, curve) in enumerate(lines):
            called = _called(name)
            drawn_as: dict[str, Any] = {"color": LINES[mark], "fillstyle": "none" if mark == "twin" else "full"}
            if curve.train:
                steps, values = np.array(curve.train).T
                smoothed = smooth(values)
                if alone:
                    axes.plot(*thin(steps, values), color=LINES[mark], alpha=0.3, linewidth=0.8)
                axes.plot(
                    *thin(steps, smoothed),
                    **drawn_as,
                    linewidth=1.8,
                    marker=None if alone else SHAPES[mark],
                    markersize=5,
                    markevery=(0.05 * number, 0.25),
                    label="training, smoothed" if alone else called,
                )
                drawn.append(smoothed)
            if curve.validation:
                steps, values = np.array(curve.validation).T
                axes.plot(
                    *thin(steps, values),
                    **drawn_as,
                    linewidth=1.4,
                    linestyle=(0, (4, 2)),
                    marker=SHAPES[mark] if len(values) <= 40 else None,
                    markersize=4,
                    label="validation" if alone else None if curve.train else called,
                )
                drawn.append(values)
        shown = np.concatenate(drawn)
        if shown.min() > 0 and shown.max() > 20 * shown.min():
            axes.set_yscale("log")
            axes.set_ylabel("log scale")
        for text in axes.legend(frameon=False, loc="best", fontsize=9.5).get_texts():
            text.set_parse_math(False)
        buffer = io.StringIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # the browser's fonts draw it, not matplotlib's
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), prefix)


def _called(name: str) -> str:
    """A run's name as a legend has room for it; matplotlib leaves out what begins with an underscore."""
    short = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"
    return short.replace("_", "\u200b_", 1) if short.startswith("_") else short


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
