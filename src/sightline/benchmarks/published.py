"""The papers' tables: each row with its recipe, what was published, and what the user's own run scored."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import yaml
from rich.table import Table

from ..errors import SightlineError, did_you_mean
from .items import OWN_SCALE
from .run import SCORES, read_scores
from .suite import BENCHMARKS

BOTH = "mme/both"


@dataclass(frozen=True)
class Row:
    """A row of a paper's table."""

    name: str
    recipe: str
    scores: Mapping[str, float]
    """By benchmark, or `benchmark/score` where papers quote another than its first."""


@dataclass(frozen=True)
class Published:
    """A table of a paper."""

    paper: str
    title: str
    rows: tuple[Row, ...]

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(key for row in self.rows for key in row.scores))


def published(paper: str | None = None) -> list[Published]:
    """The tables of all papers, or of one.

    Raises:
        SightlineError: for a paper that there is not.
    """
    content = yaml.safe_load((files("sightline.benchmarks") / "published.yaml").read_text(encoding="utf-8"))
    tables = [Published(t["paper"], t["title"], tuple(Row(**row) for row in t["rows"])) for t in content]
    names = list(dict.fromkeys(table.paper for table in tables))
    if paper is None:
        return tables
    chosen = [table for table in tables if table.paper.lower() == paper.lower()]
    if not chosen:
        near = did_you_mean(paper, names) or "."
        raise SightlineError(f"there are no tables of '{paper}'{near} There are those of {', '.join(names)}.")
    return chosen


def own_score(run: Path, key: str) -> float | None:
    """What a run scored, on the papers' scale; None where it was not scored."""
    benchmark, _, part = key.partition("/")
    file = run / "eval" / benchmark / SCORES
    if not file.is_file():
        return None
    _, scores = read_scores(file)
    names = ["perception", "cognition"] if key == BOTH else [part or BENCHMARKS[benchmark].primary]
    if not all(name in scores for name in names):
        return None
    value = sum(scores[name].value for name in names)
    return value if benchmark in OWN_SCALE else 100 * value


def table(of: Published, runs: Path) -> Table:
    """A table for a terminal: under each row, what the run of its recipe scored, if there is one."""
    shown = Table(title=f"{of.paper}, {of.title}", title_justify="left", box=None, pad_edge=False)
    shown.add_column("row", overflow="fold")
    shown.add_column("recipe", overflow="fold", min_width=12)
    for column in of.columns:
        shown.add_column(column.replace("/", "\n"), justify="right")
    for row in of.rows:
        shown.add_row(row.name, row.recipe, *(_number(row.scores.get(column)) for column in of.columns))
        own = [own_score(runs / row.recipe, column) for column in of.columns]
        if any(value is not None for value in own):
            shown.add_row("", "yours", *map(_number, own), style="bold")
    return shown


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"
