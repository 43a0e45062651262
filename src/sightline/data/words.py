"""Lists of words, and what a word is to a tokenizer."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import SightlineError

ENGLISH = "english"
ENGLISH_WORDS = 40_000


def word_list(name: str) -> tuple[str, ...]:
    """The words called `english`, or those of a file with a word on each line, each once, in their order.

    Raises:
        SightlineError: if the file cannot be read as UTF-8 text or holds no word, or the package that `english` comes
            from is not there.
    """
    return english_words() if name == ENGLISH else read_word_list(Path(name).expanduser())


def english_words() -> tuple[str, ...]:
    """The 40,000 most frequent of the 82,765 English words of symspellpy's dictionary, by frequency.

    symspellpy is under the MIT licence; its dictionary intersects the words of Google Books Ngram (CC BY 3.0) with
    SCOWL, the collection that 2of12 comes from. Words of letters alone are taken, of two or more.

    Raises:
        SightlineError: if symspellpy is not installed.
    """
    try:
        text = (files("symspellpy") / "frequency_dictionary_en_82_765.txt").read_text("utf-8-sig")
    except ModuleNotFoundError:
        raise SightlineError(
            "the list `english` is made of the dictionary of symspellpy, which is not installed. "
            "Run: pip install symspellpy. Or give a file with a word on each line."
        ) from None
    words = (line.split()[0] for line in text.splitlines() if line.strip())
    return tuple(dict.fromkeys(word for word in words if word.isalpha() and len(word) > 1))[:ENGLISH_WORDS]


def read_word_list(path: Path) -> tuple[str, ...]:
    """The words of a file, one on a line, in their order, each once.

    Raises:
        SightlineError: if it cannot be read as UTF-8 text, or holds no word.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SightlineError(
            f"cannot read the words in '{path}': {reason}. Give a file with a word on a line."
        ) from None
    words = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not words:
        raise SightlineError(f"'{path}' holds no words. Give a file with a word on a line.")
    return words


def inside_a_sentence(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The ids of each text as they are after a word and a space.

    Not those of `" text"`: Llama-2's tokenizer puts a space of its own before every text, and would give two.
    """
    before = len(tokenizer.encode("a", add_special_tokens=False))
    together = tokenizer([f"a {text}" for text in texts], add_special_tokens=False)["input_ids"] if texts else []
    return [ids[before:] for ids in together]
