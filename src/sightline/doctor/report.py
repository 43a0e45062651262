"""What the doctor says: tables and one verdict for people, the same as JSON for machines."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from ..train.progress import parts_table
from .findings import Finding, Group, Ledger
from .models import StageParts
from .overfit import Overfit

SCHEMA = 1
NAMED = 3
"""Findings of one kind that the terminal names, and things to fix first."""


@dataclass
class DataRecord:
    """What was seen of one file of one stage."""

    stage: str
    role: str
    path: str
    template: str
    max_length: int
    rows: int = 0
    broken: int = 0
    images: int = 0
    """Images that its rows name, repeats included."""
    budget: dict[str, Any] | None = None
    """Tokens of its rows; None where there was no tokenizer to count with."""


@dataclass
class Report:
    """Everything that was found about a recipe."""

    recipe: str
    ledger: Ledger = field(default_factory=Ledger)
    data: list[DataRecord] = field(default_factory=list)
    images: dict[str, int] = field(default_factory=lambda: {"files": 0, "decoded": 0, "broken": 0})
    parts: list[StageParts] = field(default_factory=list)
    overfit: list[Overfit] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether training would run to its end."""
        return not self.ledger.count("error")

    @property
    def verdict(self) -> str:
        if not self.ok:
            return "training would fail"
        return "training would run, but" if self.ledger.count("warning") else "ready"

    @property
    def fix_first(self) -> list[Group]:
        """The first three kinds of trouble, errors before warnings."""
        return [group for group in self.ledger if group.severity != "note"][:NAMED]

    def add(self, *findings: Finding) -> None:
        self.ledger.add(findings)

    def record(self) -> dict[str, Any]:
        """The report as JSON values; docs/doctor.md describes them."""
        return {
            "schema": SCHEMA,
            "recipe": self.recipe,
            "verdict": self.verdict,
            "ok": self.ok,
            "counts": {
                "error": self.ledger.count("error"),
                "warning": self.ledger.count("warning"),
                "note": self.ledger.count("note"),
            },
            "fix_first": [asdict(group.first[0]) | {"count": group.count} for group in self.fix_first],
            "data": [asdict(record) for record in self.data],
            "images": self.images,
            "parts": [parts.record() for parts in self.parts],
            "overfit": [result.record() for result in self.overfit],
            "findings": [
                {
                    "severity": group.severity,
                    "check": group.check,
                    "count": group.count,
                    "first": [{"where": f.where, "message": f.message, "fix": f.fix} for f in group.first],
                }
                for group in self.ledger
            ],
            "seconds": {name: round(value, 2) for name, value in self.seconds.items()},
        }


def show(report: Report, console: Console) -> None:
    """Print a report for people."""
    if report.data:
        console.print(data_table(report))
        images = report.images
        console.print(f"images: {images['files']:,} files, {images['decoded']:,} decoded, {images['broken']:,} broken")
    for parts in report.parts:
        title = f"stage {parts.stage}: weights, gradients and AdamW take {parts.memory / 2**30:.2f} GiB"
        console.print(parts_table(list(parts.rows), title=title))
    for result in report.overfit:
        console.print(f"one batch of stage {result.stage}: {escape(str(result))}", highlight=False)
    for group in report.ledger:
        style = {"error": "bold red", "warning": "yellow", "note": "cyan"}[group.severity]
        count = f" x {group.count:,}" if group.count > 1 else ""
        console.print(f"[{style}]{group.severity}[/] {group.check}{count}", highlight=False)
        for finding in group.first[:NAMED]:
            _lines(console, f"{finding.where}: {finding.message}", f"fix: {finding.fix}")
        if group.count > NAMED:
            console.print(f"    and {group.count - NAMED:,} more (--json names {len(group.first)})", highlight=False)
    console.print()
    console.print(verdict_line(report), highlight=False, style="bold green" if report.verdict == "ready" else "bold")
    for number, group in enumerate(report.fix_first, start=1):
        finding = group.first[0]
        more = f" (and {group.count - 1:,} more like it)" if group.count > 1 else ""
        _lines(console, f"{number}. {finding.where}: {finding.message}{more}", f"   {finding.fix}")


def verdict_line(report: Report) -> str:
    """The verdict in one line."""
    errors, warnings = report.ledger.count("error"), report.ledger.count("warning")
    rows = sum(record.rows for record in report.data)
    if errors:
        also = f" and {_many(warnings, 'warning')}" if warnings else ""
        return f"{report.verdict}: {_many(errors, 'error')}{also}. Fix first:"
    if warnings:
        return f"{report.verdict} there {'is' if warnings == 1 else 'are'} {_many(warnings, 'warning')}. Fix first:"
    return f"ready: {rows:,} rows and {report.images['decoded']:,} images were read, and nothing is wrong."


def data_table(report: Report) -> RichTable:
    """Rows, images and tokens of each file."""
    table = RichTable(title=f"recipe {report.recipe}", title_justify="left")
    for heading in ("stage", "file", "rows", "images", "tokens of a row", "too long", "learned"):
        table.add_column(heading, justify="left" if heading in ("stage", "file") else "right", overflow="fold")
    for record in report.data:
        budget = record.budget or {}
        stage = record.stage + (" (val.)" if record.role == "validation" else "")
        tokens = ["", "", ""]
        if budget.get("rows"):
            tokens = [" ".join(f"{budget[key]:,}" for key in ("min", "median", "p95", "max"))]
            tokens += [f"{budget['too_long']:,}", f"{budget['supervised_share']:.0%}"]
        rows = f"{record.rows:,}" + (f" +{record.broken:,} broken" if record.broken else "")
        table.add_row(stage, record.path, rows, f"{record.images:,}", *tokens)
    table.caption = "tokens: min, median, 95%, max, images included; learned: the share that is supervised"
    table.caption_justify = "left"
    return table


def _many(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"


def _lines(console: Console, *texts: str) -> None:
    for text in texts:
        console.print(f"    {text}", markup=False, highlight=False, soft_wrap=True)
