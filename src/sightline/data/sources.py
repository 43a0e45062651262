"""From files to samples. LLaVA's JSON: `id`, `image` (a name, a list, or absent) and `conversations`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import SightlineError, did_you_mean
from ..types import Role, Sample, Turn
from .images import image_folder, resolve_image
from .templates import IMAGE

ROLES: dict[str, Role] = {"system": "system", "human": "user", "gpt": "assistant"}
FIELDS = {"id", "image", "images", "conversations"}


def read_llava_json(path: Path, images: Path | None = None) -> list[Sample]:
    """The rows of a LLaVA JSON file, each checked.

    Args:
        path: a JSON list of rows.
        images: the folder of the rows' images; see `image_folder` for the default. Images are not opened here.

    Raises:
        SightlineError: naming file, row, field and fix, for the first row that is not as it should be.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SightlineError(f"data file not found: {path}. Check `data.path` (relative to where you are).") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SightlineError(f"cannot read {path}: {error}. It should be a UTF-8 JSON file.") from None
    except (ValueError, RecursionError) as error:
        raise SightlineError(f"{path} is not JSON: {error}. It should be one list of rows.") from None
    if not isinstance(rows, list) or not rows:
        raise SightlineError(f"{path} should hold a list of rows, and holds {_kind(rows)}.")
    root = image_folder(path, images)
    return [sample_from_row(row, root, f"{path.name} row {i}", source=str(path)) for i, row in enumerate(rows)]


def sample_from_row(row: Any, root: Path, where: str, *, source: str = "") -> Sample:
    """One LLaVA row as a `Sample`; `where` names it in errors.

    Raises:
        SightlineError: for wrong types, unknown roles, turns out of order, or `<image>` counts that disagree.
    """
    if not isinstance(row, Mapping):
        raise SightlineError(f"{where} should be an object with 'conversations', and is {_kind(row)}.")
    sample_id = row.get("id", where)
    if not isinstance(sample_id, str | int) or isinstance(sample_id, bool):
        raise SightlineError(f"{where}: 'id' should be a string or a number, and is {_kind(sample_id)}.")
    where = f"{where} (id '{sample_id}')"
    if "conversations" not in row:
        hint = did_you_mean("conversations", (str(key) for key in row))
        raise SightlineError(f"{where} has no 'conversations'{hint or '.'} Each row needs its turns there.")

    names = row.get("image") if row.get("image") is not None else row.get("images")
    names = [] if names is None or names == "" else [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SightlineError(f"{where}: 'image' should be a file name or a list of them, and is {_kind(names)}.")

    turns = _turns(row["conversations"], where)
    places = sum(turn.text.count(IMAGE) for turn in turns if turn.role == "user")
    if places != len(names):
        raise SightlineError(
            f"{where}: {places} {IMAGE} in the questions for {len(names)} images. "
            f"Put one {IMAGE} where each image belongs."
        )
    if any(IMAGE in turn.text for turn in turns if turn.role != "user"):
        raise SightlineError(f"{where}: {IMAGE} stands outside the user's turns. Move it into a question.")
    return Sample(
        id=str(sample_id),
        images=tuple(resolve_image(root, name, where) for name in names),
        turns=turns,
        source=source,
        meta={key: value for key, value in row.items() if key not in FIELDS},
    )


def _turns(conversations: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(conversations, list) or not conversations:
        raise SightlineError(f"{where}: 'conversations' should be a list of turns, and is {_kind(conversations)}.")
    turns: list[Turn] = []
    for number, message in enumerate(conversations):
        if not isinstance(message, Mapping) or not isinstance(message.get("value"), str):
            raise SightlineError(f"{where}: turn {number} should be an object with 'from' and a 'value' of text.")
        speaker = message.get("from")
        if not isinstance(speaker, str) or speaker not in ROLES:
            raise SightlineError(f"{where}: turn {number} is from '{speaker}'. Known: {', '.join(ROLES)}.")
        try:
            message["value"].encode("utf-8")
        except UnicodeEncodeError:
            raise SightlineError(
                f"{where}: turn {number} holds half of a character (a lone surrogate), which cannot be tokenised. "
                "Mend or remove it."
            ) from None
        turns.append(Turn(ROLES[speaker], message["value"]))
    speakers = [turn.role for turn in turns if turn.role != "system"]
    in_order = all(role == ("user", "assistant")[i % 2] for i, role in enumerate(speakers))
    if not in_order or not speakers or any(turn.role == "system" for turn in turns[1:]):
        raise SightlineError(f"{where}: turns should alternate human, gpt, after at most one system turn at the start.")
    return tuple(turns)


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "a boolean",
        int: "a number",
        float: "a number",
    }
    if isinstance(value, list) and not value:
        return "an empty list"
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
