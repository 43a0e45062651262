"""MMLU: which of four letters is the likeliest, after five examples of the same subject. There is no image.

Source: Hendrycks et al. 2021.
"""

from collections.abc import Sequence
from pathlib import Path

from ..errors import SightlineError
from .files import rows
from .items import Answered, Item, Scores
from .letters import LETTERS
from .scoring import each

SHOTS = 5


def mmlu(root: Path) -> list[Item]:
    """The test questions of every subject that is there, each after its subject's five examples."""
    base = root / "data" if (root / "data").is_dir() else root
    items = []
    for path in sorted((base / "test").glob("*_test.csv")):
        subject = path.name.removesuffix("_test.csv")
        examples = base / "dev" / f"{subject}_dev.csv"
        if not examples.is_file():
            raise SightlineError(f"{examples} is not there, and {path.name} is asked after its examples. Put it there.")
        title = f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}.\n\n"
        shown = title + "".join(f"{_asked(row)} {row[5]}\n\n" for row in _checked(examples)[:SHOTS])
        for number, row in enumerate(_checked(path)):
            truth = {"letter": row[5], "subject": subject}
            items.append(Item(f"{subject}-{number}", shown + _asked(row), truth=truth))
    if not items:
        raise SightlineError(f"{base} has no test/*_test.csv. Put MMLU's folders test and dev there.")
    return items


def _asked(row: Sequence[str]) -> str:
    choices = "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, row[1:5], strict=False))
    return f"{row[0]}{choices}\nAnswer:"


def _checked(path: Path) -> list[list[str]]:
    found = rows(path)
    for number, row in enumerate(found):
        if len(row) != 6 or row[5] not in LETTERS[:4]:
            raise SightlineError(f"{path} row {number} is no question with four choices and a letter. Get it again.")
    return found


def _right(row: Answered) -> float:
    return float(row.said == row.item.truth["letter"])


def scores(answered: Sequence[Answered]) -> Scores:
    """The share of questions that are right, over all of them, and by subject."""
    return each(_right, group="subject")(answered)
