"""Scores that somebody gives: rows with a `similarity`, as AlignGPT's authors ship theirs.

    {"id": "004539375", "similarity": 0.31, ...}

In a file of such rows (JSON, or JSON lines), in a JSON object of ids and scores, or in the rows of the data themselves.
What their code reads there is a level itself, counted from 0; so whole numbers are levels, and all others scores.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.sources.files import parse
from ..data.sources.wording import kind, shown
from ..errors import SightlineError
from ..types import Sample

FIELD = "similarity"
ROWS = "rows"
"""The data's own rows have the field."""


@dataclass(frozen=True)
class GivenScores:
    """Scores of rows by their ids, or by their own field. It can be pickled."""

    given: str
    by_id: Mapping[str, float] | None
    """None where the rows have them."""

    def __call__(self, sample: Sample) -> float:
        """The score of a row.

        Raises:
            SightlineError: if it has none, or one that is no number.
        """
        if self.by_id is None:
            if FIELD not in sample.meta:
                raise SightlineError(
                    f"sample '{sample.id}' ({sample.source}) has an image and no '{FIELD}', so it has no level. Give "
                    "every row with an image its own, or let sightline annotate compute them."
                )
            return number(sample.meta[FIELD], f"sample '{sample.id}' ({sample.source})")
        if sample.id not in self.by_id:
            raise SightlineError(
                f"sample '{sample.id}' ({sample.source}) has an image and no '{FIELD}' in '{self.given}', so it has no "
                "level. Add a row with its id, or let sightline annotate compute them."
            )
        return self.by_id[sample.id]


def read_given(given: str) -> GivenScores:
    """Scores as they are given: `rows`, or the path of a file.

    Raises:
        SightlineError: for a file that cannot be read, that holds no scores, or two for an id.
    """
    if given == ROWS:
        return GivenScores(given, None)
    path = Path(given).expanduser()
    by_id: dict[str, float] = {}
    for name, value, where in _scores(path, _read(path).decode("utf-8", errors="replace")):
        score = number(value, where)
        if by_id.setdefault(name, score) != score:
            raise SightlineError(
                f"{where}: id '{shown(name)}' is there twice, with similarities {by_id[name]} and {score}, so the "
                "rows that have it are not told apart. Put the field into the data's own rows, and say 'rows'."
            )
    if not by_id:
        raise SightlineError(f"'{path}' holds no similarities. Give rows with 'id' and '{FIELD}'.")
    return GivenScores(given, by_id)


def given_facts(given: str) -> dict[str, Any]:
    """What given scores depend on."""
    if given == ROWS:
        return {"given": ROWS}
    return {"given": hashlib.sha256(_read(Path(given).expanduser())).hexdigest()}


def lowest_level(scores: Iterable[float], levels: int) -> int | None:
    """What given levels are counted from, 0 or 1; None if they are scores, as one that is no whole number shows.

    Raises:
        SightlineError: for levels of another number of them.
    """
    values = set(scores)
    if not all(value.is_integer() for value in values):
        return None
    low = 0 if 0 in values else 1
    if min(values) < low or max(values) >= low + levels:
        raise SightlineError(
            f"the similarities are whole numbers from {int(min(values))} to {int(max(values))}, so they are levels, "
            f"and there are {levels} of them here. Say so many levels as they have, or give scores."
        )
    return low


def number(value: Any, where: str) -> float:
    """A score from a file; `where` names its row.

    Raises:
        SightlineError: if it is no number, or not a finite one.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        what = shown(value) if isinstance(value, float) else kind(value)
        raise SightlineError(f"{where}: '{FIELD}' should be a number, and is {what}. Mend it, or remove the row.")
    return float(value)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SightlineError(
            f"cannot read similarities from '{path}': {error.strerror}. Name a JSON file, or say 'rows'."
        ) from None


def _scores(path: Path, text: str) -> Iterator[tuple[str, Any, str]]:
    """Every id with its value and where it stands."""
    fix = "Give rows with ids, as JSON or one on each line of a .jsonl."
    rows: Iterable[tuple[Any, str]]
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        lines = [(line, f"{path.name} line {place}") for place, line in enumerate(text.split("\n"), start=1)]
        rows = ((parse(line, where, fix=fix), where) for line, where in lines if line.strip())
    else:
        value = parse(text, path.name, fix=fix)
        if isinstance(value, Mapping):
            yield from ((name, score, f"{path.name}, id '{shown(name)}'") for name, score in value.items())
            return
        if not isinstance(value, list):
            raise SightlineError(f"'{path}' should hold a list of rows, and holds {kind(value)}. {fix}")
        rows = ((row, f"{path.name} row {place}") for place, row in enumerate(value))
    for row, where in rows:
        if not isinstance(row, Mapping) or isinstance(row.get("id"), bool) or not isinstance(row.get("id"), str | int):
            raise SightlineError(f"{where}: a similarity is found by the row's 'id', and it has none. Add it.")
        if FIELD in row:  # rows of text alone have none
            yield str(row["id"]), row[FIELD], where
