"""Question files: what to ask of which images, and the answers that count.

One row is one question, as an item of a JSON list or as a line of JSONL; a row without `id` goes by its place:

    {"id": 7, "image": "7.png", "question": "What colour is the star?", "answer": "red", "ability": "colour"}

POPE's and VQA's own spellings are read too (`question_id`, `text`, `label`, `category`, `images`, `answers`),
and so are LLaVA's rows with one exchange. Nothing is skipped or guessed: the first row that is not as it
should be stops the reading.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.images import resolve_image
from ..data.templates import IMAGE
from ..errors import SightlineError, did_you_mean

NO_ABILITY = "other"
"""The ability of a question whose row names none."""

FIELDS = (
    *("id", "question_id", "image", "images", "question", "text", "conversations"),
    *("answer", "answers", "label", "ability", "category"),
)
_LEADING = re.compile(rf"\A(?:\s*{IMAGE})+\s*")
_TRAILING = re.compile(rf"\s*(?:{IMAGE}\s*)+\Z")


@dataclass(frozen=True)
class Question:
    """One question. `text` holds no image markers: the images come first, in order."""

    id: str
    images: tuple[Path, ...]
    text: str
    answers: tuple[str, ...]
    """Any of them counts as right."""
    ability: str = NO_ABILITY

    @property
    def cluster(self) -> str:
        """What the question shares with others: its images, or nothing but itself."""
        return "\n".join(str(image) for image in self.images) or f"question {self.id}"


def read_questions(path: Path, images_root: Path) -> list[Question]:
    """The questions of a file, in order, each checked, with the images they name known to exist.

    Args:
        path: a JSON list, or JSONL, which is read line by line.
        images_root: the folder that image names are relative to. Images are not opened here.

    Raises:
        SightlineError: naming file, row, field and fix, for the first row that is not as it should be.
    """
    questions: dict[str, Question] = {}
    places: dict[str, str] = {}
    for place, row in _rows(path):
        where = f"{path.name} {place}"
        question = _question(row, images_root, where, place)
        if question.id in questions:
            raise SightlineError(
                f"{where}: id '{question.id}' was taken by {places[question.id]}, so their answers could "
                "not be told apart. Give each question an id of its own."
            )
        questions[question.id], places[question.id] = question, where
    if not questions:
        raise SightlineError(f"{path} holds no questions. It should be a JSON list or JSONL, one question a row.")
    return list(questions.values())


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """The place in the file and the content of each row of a JSON list or JSONL."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            while (first := file.read(1)).isspace():
                pass
            file.seek(0)
            if first == "[":
                rows = _parse(file.read(), path.name, "Mend the JSON, or write one object a line (JSONL).")
                yield from ((f"row {number}", row) for number, row in enumerate(rows))
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where, fix = f"{path.name} line {number}", "Write one object a line, or one JSON list."
                    yield f"line {number}", _parse(line, where, fix)
    except FileNotFoundError:
        raise SightlineError(f"question file not found: {path}. Check the path given with --data.") from None
    except UnicodeDecodeError as error:
        raise SightlineError(f"{path} is not UTF-8 text ({error.reason}). Save it as UTF-8.") from None
    except OSError as error:
        raise SightlineError(f"cannot read {path}: {error.strerror}. Give a JSON or JSONL file.") from None


def _parse(text: str, where: str, fix: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SightlineError(f"{where} is not JSON: {error}. {fix}") from None


def _question(row: Any, root: Path, where: str, place: str) -> Question:
    if not isinstance(row, Mapping):
        raise SightlineError(f"{where} should be an object with a question and its answer, and is {_kind(row)}.")
    key = row.get("id", row.get("question_id", place))
    if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
        raise SightlineError(f"{where}: 'id' should be text or a whole number, and is {_kind(key)}. Or leave it out.")
    where = f"{where} (id '{key}')"
    if "conversations" in row:
        text, answers = _exchange(row, where)
    else:
        text, answers = _one_of(row, where, "question", "text"), _one_of(row, where, "answers", "answer", "label")
    images = _images(row, root, where)
    return Question(
        id=_storable(str(key), "id", where),
        images=images,
        text=_text(text, len(images), where),
        answers=_answers(answers, where),
        ability=_ability(row, where),
    )


def _one_of(row: Mapping[str, Any], where: str, *names: str) -> Any:
    """The value of the first of `names` that `row` has; the others, if they are there, must agree with it."""
    found = [name for name in names if name in row]
    if not found:
        near = next(filter(None, (did_you_mean(str(key), names) for key in row if key not in FIELDS)), "")
        raise SightlineError(f"{where} has no '{names[0]}'{near}. Add it; also read: {', '.join(names[1:])}.")
    other = next((name for name in found if row[name] != row[found[0]]), None)
    if other is not None:
        raise SightlineError(f"{where}: '{found[0]}' and '{other}' disagree. Keep the one that counts.")
    return row[found[0]]


def _exchange(row: Mapping[str, Any], where: str) -> tuple[Any, Any]:
    """Question and answer of a LLaVA row, which must hold exactly one human and one gpt turn."""
    both = [name for name in ("question", "text", "answer", "answers", "label") if name in row]
    if both:
        raise SightlineError(f"{where} has both 'conversations' and '{both[0]}'. Keep the one that counts.")
    turns = row["conversations"]
    speakers = (
        [turn.get("from") if isinstance(turn, Mapping) else None for turn in turns] if isinstance(turns, list) else []
    )
    if speakers != ["human", "gpt"]:
        raise SightlineError(
            f"{where}: 'conversations' should be one human turn and one gpt turn, and is "
            f"{', '.join(str(speaker) for speaker in speakers) or _kind(turns)}. "
            "Split longer talks into questions."
        )
    return turns[0].get("value"), turns[1].get("value")


def _images(row: Mapping[str, Any], root: Path, where: str) -> tuple[Path, ...]:
    names = _one_of(row, where, "image", "images") if "image" in row or "images" in row else None
    names = [] if names is None else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise SightlineError(f"{where}: 'image' should be a file name or a list of them. Leave it out for text alone.")
    paths = tuple(resolve_image(root, _storable(name, "image", where), where) for name in names)
    for path in paths:
        if not _is_file(path):
            raise SightlineError(f"{where}: image not found: {path}. Check the name, or the image folder given.")
    return paths


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _text(text: Any, num_images: int, where: str) -> str:
    if not isinstance(text, str):
        raise SightlineError(f"{where}: the question should be text, and is {_kind(text)}.")
    markers = text.count(IMAGE)
    if markers not in (0, num_images):
        raise SightlineError(f"{where}: {markers} {IMAGE} in the question for {num_images} images. Make them agree.")
    words = _storable(_TRAILING.sub("", _LEADING.sub("", text)).strip(), "question", where)
    if IMAGE in words:
        raise SightlineError(
            f"{where}: {IMAGE} stands inside the question. Images are shown before it, so the question would "
            f"change. Word it without ('the first picture'), with every {IMAGE} at its start."
        )
    if not words:
        raise SightlineError(f"{where}: the question is empty. Write what to ask.")
    return words


def _answers(answers: Any, where: str) -> tuple[str, ...]:
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(answer, str) for answer in answers):
        raise SightlineError(
            f"{where}: the answer should be text or a list of texts, and is {_kind(answers)}. Quote it."
        )
    if not all(answer.strip() for answer in answers):
        raise SightlineError(f"{where}: an answer is empty, so nothing could match it. Write it, or take it out.")
    return tuple(_storable(answer, "answer", where) for answer in answers)


def _ability(row: Mapping[str, Any], where: str) -> str:
    name = next((row[key] for key in ("ability", "category") if row.get(key) is not None), NO_ABILITY)
    if not isinstance(name, str) or not name.strip():
        raise SightlineError(f"{where}: 'ability' should be text, and is {_kind(name)}. Name it, or leave it out.")
    return _storable(name.strip(), "ability", where)


def _storable(text: str, field: str, where: str) -> str:
    """`text`, which must be writable as UTF-8: JSON can escape half a character (`\\ud800`)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise SightlineError(f"{where}: '{field}' holds half a character (a lone surrogate). Write it again.") from None
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", bool: "a boolean", int: "a number", float: "a number"}
    if value is None or value in ("", []):
        return "empty"
    return f"'{value[:40]}'" if isinstance(value, str) else names.get(type(value), type(value).__name__)
