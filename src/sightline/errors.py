"""The one error that users see: what happened, what it means, and what to do about it.

`SightlineError` is a `ValueError`, so library users catch it as such; the command line prints it and exits with 2.
Our own broken invariants are `assert`s, never this.
"""

import difflib
from collections.abc import Iterable


class SightlineError(ValueError):
    """A problem in what the user gave, worded as cause, consequence, fix."""

    exit_code = 2
    """What the command line exits with."""


class ImageError(SightlineError):
    """An image that cannot be used. A recipe's `bad_images` says what becomes of its row."""


class LongRowError(SightlineError):
    """A row with more tokens than `max_length`. A recipe's `long_rows` says what becomes of it."""

    def __init__(self, fact: str, fix: str) -> None:
        super().__init__(f"{fact} {fix}")
        self.fact = fact


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean 'lr'?"` where some known word is near `word`, else an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
