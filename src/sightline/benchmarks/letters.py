"""Answers by letter: which option an answer names, and MMBench's circular rule."""

import re
from collections.abc import Mapping, Sequence

LETTERS = "ABCDEFGHIJ"
ALONE = re.compile(r"(?<![A-Za-z])([A-J])(?![A-Za-z])")


def chosen(said: str, options: Sequence[str]) -> str | None:
    """The letter that an answer gives: alone, at its start ("B.", "(B)", "B: a cat"), or by an option's own words.

    None where it names none of them, or several.
    """
    known, text = LETTERS[: len(options)], said.strip()
    marked = re.match(r"\(?([A-J])(?:[).:]|$)", text)
    if marked and marked.group(1) in known:
        return marked.group(1)
    plain = [_plain(option) for option in options]
    same = [letter for letter, own in zip(known, plain, strict=True) if own and own == _plain(text)]
    if len(same) == 1:  # before letters alone: "A dog" is an option's text, and its "A" an article
        return same[0]
    alone = {letter for letter in ALONE.findall(text) if letter in known}
    if alone:
        return alone.pop() if len(alone) == 1 else None
    named = [letter for letter, own in zip(known, plain, strict=True) if own and own in _plain(text)]
    return named[0] if len(named) == 1 else None


def _plain(text: str) -> str:
    return text.strip().strip(".").lower()


def listed(options: Mapping[str, str]) -> str:
    """Options as the prompts have them: a line for each."""
    return "\n".join(f"{letter}. {text}" for letter, text in options.items())


def rotated(options: Sequence[str], by: int) -> list[str]:
    """MMBench's circular evaluation: the options moved on by some places."""
    return [options[(place + by) % len(options)] for place in range(len(options))]
