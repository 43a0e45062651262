"""A finding: what is wrong, where, what it means, and what to do. A ledger counts all of them and keeps the first."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

Severity = Literal["error", "warning", "note"]
"""An error stops training, now or at the row it is about; a warning makes it worse; a note is worth knowing."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

KEPT = 100
"""Findings of one kind that are kept; the others are counted."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    severity: Severity
    check: str
    """Its kind, such as `images/missing`: stable, for machines."""
    where: str
    """The file, row, stage or part it is about."""
    message: str
    """What is wrong and what it leads to."""
    fix: str
    """What to do about it."""


@dataclass
class Group:
    """Findings of one kind: how many there are, and the first of them."""

    severity: Severity
    check: str
    count: int = 0
    first: list[Finding] = field(default_factory=list)


class Ledger:
    """All findings, in groups of a kind. Memory stays bounded whatever is wrong with the data."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str, str], Group] = {}

    def add(self, findings: Iterable[Finding]) -> None:
        """Count findings, and keep the first of each kind."""
        for finding in findings:
            # Broken rows have one check and many causes; each cause has its own fix.
            cause = shape(finding.fix) if finding.check == "rows/broken" else ""
            key = (finding.severity, finding.check, cause)
            group = self._groups.setdefault(key, Group(finding.severity, finding.check))
            group.count += 1
            if len(group.first) < KEPT:
                group.first.append(finding)

    def take(self, other: "Ledger") -> None:
        """Add another ledger's groups to those here."""
        for key, theirs in other._groups.items():
            mine = self._groups.setdefault(key, Group(theirs.severity, theirs.check))
            mine.count += theirs.count
            mine.first += theirs.first[: KEPT - len(mine.first)]

    def count(self, severity: Severity) -> int:
        """How many findings there are of a severity."""
        return sum(group.count for group in self if group.severity == severity)

    def __iter__(self) -> Iterator[Group]:
        """The groups: errors first, each severity in the order in which it was found."""
        return iter(sorted(self._groups.values(), key=lambda group: SEVERITIES.index(group.severity)))


def from_error(
    error: object, *, severity: Severity, check: str, where: str, fix: str = "Mend this, or remove it."
) -> Finding:
    """A finding from one of our errors, worded as cause, consequence, fix: the fix is its last sentence.

    Args:
        fix: what to do where the error does not say.
    """
    text = " ".join(str(error).split())
    cause, own = split_fix(text.removeprefix(where).removeprefix(":").lstrip())
    return Finding(severity, check, where, cause, own.replace("Known: ", "Use one of these: ") or fix)


def split_fix(text: str) -> tuple[str, str]:
    """Cause and fix of an error's text: the last sentence that begins with a capital, if there are two."""
    found = list(re.finditer(r"[.?!)] (?=[A-Z])", text))
    if not found:
        return text, ""
    at = found[-1].end()
    return text[:at].rstrip(), text[at:]


def shape(text: str) -> str:
    """A text without what differs from row to row: quoted words and numbers."""
    return re.sub(r"'[^']*'|\d+", "", text)


def shown(text: str, most: int = 60) -> str:
    """A text short enough for a message, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 3]}..."
