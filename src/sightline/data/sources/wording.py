"""How messages speak of values from files: what they are, and what they hold, in few characters."""

from typing import Any

from ...errors import SightlineError


def shown(value: Any, limit: int = 80) -> str:
    """A value from a file as messages quote it: short, on one line, without what cannot be printed."""
    text = value if isinstance(value, str) else str(value)[: limit + 1]
    text = text if len(text) <= limit else text[:limit] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def kind(value: Any) -> str:
    """What a value is, in a user's words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    if isinstance(value, list | str) and not value:
        return "an empty list" if isinstance(value, list) else "empty text"
    return "nothing" if value is None else names.get(type(value), type(value).__name__)


def check_text(text: str, where: str) -> None:
    """See that text can be tokenised; `where` names it.

    Raises:
        SightlineError: for a NUL character or a lone surrogate.
    """
    if "\0" in text:
        raise SightlineError(f"{where} holds a NUL character, which no text should. Remove it.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise SightlineError(
            f"{where} holds half of a character (a lone surrogate), which cannot be tokenised. Mend or remove it."
        ) from None
