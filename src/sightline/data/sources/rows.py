"""One row of a user's data to a `Sample`, whichever shape it has.

    conversations   LLaVA: [{"from": "human" | "gpt" | "system", "value": text}], images in `image`
    messages        chat: [{"role": "user" | "assistant" | "system", "content": text or items}], items being
                    {"type": "text", "text": ...} and {"type": "image"}, which may name its image itself
    caption, text   one image and what it shows: the question is the image alone

An image item becomes `<image>` and a newline, as in the chat template that a saved processor carries.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import SightlineError, did_you_mean
from ...types import Role, Sample, Turn
from ..templates import IMAGE
from .base import EmbeddedImage
from .rowimages import find_image, given_images, is_image
from .wording import check_text, kind, shown

ROLES: dict[str, dict[str, Role]] = {
    "conversations": {"system": "system", "human": "user", "gpt": "assistant"},
    "messages": {"system": "system", "user": "user", "assistant": "assistant"},
}
KEYS = {"conversations": ("from", "value"), "messages": ("role", "content")}
SHAPES = ("conversations", "messages", "caption", "text")
FIELDS = ("id", "image", "images", *SHAPES)
IMAGE_NAMES = ("image", "path", "url")
"""Where an image item of a message may name its image."""


def sample_from_row(
    row: Any,
    root: Path,
    where: str,
    *,
    source: str = "",
    members: Mapping[str, EmbeddedImage] | None = None,
    default_id: str | None = None,
    check_only: bool = False,
) -> Sample:
    """One row as a `Sample`; `where` names it in errors. Images are not opened.

    Args:
        root: the folder that image names are in.
        members: the images that came with the row in an archive, by name. Names then mean these; a row that names none
            has them all, in order.
        default_id: the id of a row without one; `where` if not given.
        check_only: check the names of image files, and let `root` stand for each. Making paths is a fifth of the time,
            and pathlib interns their parts: 9 MB over many rows.

    Raises:
        SightlineError: for wrong types, missing fields, unknown roles, turns out of order, empty answers, characters
            that cannot be tokenised, image names that leave the folder, or `<image>` counts that disagree.
    """
    if not isinstance(row, Mapping):
        raise SightlineError(
            f"{where} should be an object with 'conversations', and is {kind(row)}. "
            'Write it as {"image": ..., "conversations": [...]}.'
        )
    sample_id = row.get("id")
    if sample_id is None:
        sample_id = default_id if default_id is not None else where
    elif not isinstance(sample_id, str | int) or isinstance(sample_id, bool):
        raise SightlineError(
            f"{where}: 'id' should be a string or a whole number, and is "
            f"{shown(sample_id) if isinstance(sample_id, float) else kind(sample_id)}. Change it, or leave it out."
        )
    else:
        sample_id = str(sample_id)
        where = f"{where} (id '{shown(sample_id)}')"
        check_text(sample_id, f"{where}: 'id'")

    shape = next((key for key in SHAPES if row.get(key) is not None), None)
    shape = shape or next((key for key in SHAPES if key in row), None)
    if shape is None:
        near = [key for key in list(row)[:100] if isinstance(key, str) and len(key) < 50]
        hint = next((hint for key in SHAPES if (hint := did_you_mean(key, near))), ".")
        raise SightlineError(
            f"{where} has no 'conversations'{hint} Each row needs its turns there or under 'messages', or a 'caption' "
            "beside its 'image'."
        )
    if row.get("conversations") is not None and row.get("messages") is not None:
        raise SightlineError(f"{where} has both 'conversations' and 'messages'. Keep one of them.")

    given = given_images(row, where)
    turns, places = (_turns if shape in ROLES else _caption)(row[shape], shape, where)
    named = [place for place in places if place is not None]
    if members is not None and not given and not named:
        given = list(members)
    if shape not in ROLES and len(given) != 1:
        raise SightlineError(
            f"{where}: a row with a '{shape}' needs one image, and has {len(given)}. Name it in 'image'; "
            "several images belong in 'conversations'."
        )
    if len(places) != len(given) + len(named):
        raise SightlineError(
            f"{where}: {len(places)} {IMAGE} in the questions for {len(given) + len(named)} images. "
            f"Put one {IMAGE} where each image belongs."
        )
    rest = iter(given)
    images = [place if place is not None else next(rest) for place in places]
    return Sample(
        id=sample_id,
        images=tuple(find_image(value, root, where, members, check_only) for value in images),
        turns=tuple(turns),
        source=source,
        meta={key: value for key, value in row.items() if key not in ("id", "image", "images", shape)},
    )


def _turns(messages: Any, shape: str, where: str) -> tuple[list[Turn], list[Any]]:
    """The turns, and for each `<image>` in them the image that it names itself, or None."""
    if not isinstance(messages, list) or not messages:
        raise SightlineError(
            f"{where}: '{shape}' should be a list of turns, and is {kind(messages)}. "
            "Give it a question and an answer, or remove the row."
        )
    roles, (speaker_key, text_key) = ROLES[shape], KEYS[shape]
    turns: list[Turn] = []
    places: list[Any] = []
    for number, message in enumerate(messages):
        here = f"{where}: turn {number}"
        content = message.get(text_key) if isinstance(message, Mapping) else None
        if isinstance(content, list) and shape == "messages":
            text, mine = _items(content, here, places.count(None))
        elif isinstance(content, str):
            text, mine = content, [None] * content.count(IMAGE)
        else:
            raise SightlineError(f"{here} should be an object with {_wanted(shape)}. {_turn_fix(message, shape)}")
        speaker = message.get(speaker_key)
        if not isinstance(speaker, str) or speaker not in roles:
            raise SightlineError(f"{here} is from '{shown(speaker)}'. Known: {', '.join(roles)}.")
        check_text(text, here)
        role = roles[speaker]
        if mine and role != "user":
            raise SightlineError(
                f"{here}: {IMAGE} stands outside the user's turns. Move it into a question, or say it in other words."
            )
        if role == "assistant" and not text.strip():
            raise SightlineError(
                f"{here} is an empty answer, which would teach the model to say nothing. Write one, or remove the row."
            )
        turns.append(Turn(role, text))
        places += mine
    _check_order(turns, tuple(roles), where)
    return turns, places


def _items(content: list[Any], where: str, before: int) -> tuple[str, list[Any]]:
    """The text of a message given as items, and its images; `before` it, so many of `images` were shown."""
    pieces: list[str] = []
    places: list[Any] = []
    for number, item in enumerate(content):
        here = f"{where}, item {number}"
        if not isinstance(item, Mapping):
            raise SightlineError(
                f"{here} should be an object with a 'type', and is {kind(item)}. Write {{\"type\": ...}}."
            )
        match item.get("type"):
            case "text":
                if not isinstance(item.get("text"), str):
                    raise SightlineError(
                        f"{here}: 'text' should be text, and is {kind(item.get('text'))}. Write it there."
                    )
                pieces.append(item["text"])
                places += [None] * item["text"].count(IMAGE)
            case "image":
                value = next((item[key] for key in IMAGE_NAMES if item.get(key) is not None), None)
                if value is not None and not is_image(value):
                    raise SightlineError(f"{here}: 'image' should be a file name, and is {kind(value)}. Name the file.")
                index, following = item.get("index"), before + places.count(None)
                if value is None and index is not None and index != following:
                    raise SightlineError(
                        f"{here} has index {shown(index)}, and the next image is {following}. "
                        "List 'images' in the order in which the turns show them."
                    )
                pieces.append(IMAGE + "\n")
                places.append(value)
            case other:
                raise SightlineError(f"{here} has type '{shown(other)}'. Known: text, image.")
    return "".join(pieces), places


def _caption(text: Any, shape: str, where: str) -> tuple[list[Turn], list[Any]]:
    here = f"{where}: '{shape}'"
    if not isinstance(text, str):
        raise SightlineError(f"{here} should be text, and is {kind(text)}. Write the caption there.")
    if not text.strip():
        raise SightlineError(
            f"{here} is empty, which would teach the model to say nothing. Write it, or remove the row."
        )
    if IMAGE in text:
        raise SightlineError(f"{here} holds {IMAGE}, which stands for a picture. Say it in other words.")
    check_text(text, here)
    return [Turn("user", IMAGE), Turn("assistant", text)], [None]


def _check_order(turns: list[Turn], names: tuple[str, ...], where: str) -> None:
    """One system turn at the start at most, then user and assistant in turn."""
    system, user, assistant = names
    expected = "user"
    for number, turn in enumerate(turns):
        if number == 0 and turn.role == "system":
            continue
        if turn.role != expected:
            name = {"system": system, "user": user, "assistant": assistant}[turn.role]
            raise SightlineError(
                f"{where}: turn {number} is from '{name}', and turns should alternate {user}, {assistant}, after at "
                "most one system turn at the start. Mend their order."
            )
        expected = "assistant" if expected == "user" else "user"
    if turns[-1].role == "system":
        raise SightlineError(
            f"{where}: nothing follows the system turn, and turns should alternate {user}, {assistant}. "
            "Give it a question and an answer, or remove the row."
        )


def _wanted(shape: str) -> str:
    if shape == "conversations":
        return "'from' and a 'value' of text"
    return "'role' and a 'content' of text or of items"


def _turn_fix(message: Any, shape: str) -> str:
    other = "messages" if shape == "conversations" else "conversations"
    if isinstance(message, Mapping) and all(key in message for key in KEYS[other]):
        return f"Turns with '{KEYS[other][0]}' and '{KEYS[other][1]}' belong under '{other}': rename the field."
    return "Mend it, or remove the row."
