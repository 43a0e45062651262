"""What a model is diagnosed on: images with captions, questions, and, in the small world, the truth of every patch."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..data.images import resolve_image
from ..data.templates import IMAGE
from ..errors import SightlineError
from ..evaluation.questions import Question, read_questions

PLATES = ("sign", "card")
"""What carries a letter in the small world; everything else in it is a shape in a colour."""
KNOWN = 1000
"""Images of the `train` split that material of a world has beside its own."""
COVERED = 0.2
"""Fraction of a token that an item covers for the token to count as the item's; a small ring covers little more."""


@dataclass(frozen=True)
class TokenTruth:
    """What one visual token shows."""

    words: tuple[str, ...]
    """The words that are true of it: of what covers most of it, or of the background."""
    item: int
    """Number of the item that covers most of it, -1 where nothing does."""
    coverage: float
    """Fraction of it that this item covers."""


@dataclass(frozen=True)
class Case:
    """One image."""

    id: str
    image: Path
    caption: str
    patches: tuple[TokenTruth, ...] = ()
    """Of the patches of `truth/`, in reading order; empty where the truth is not known."""
    things: tuple[str, ...] = ()
    """What there is to see, "red ring" or "sign", where that is known."""

    def truth_of(self, tokens: int) -> tuple[TokenTruth, ...]:
        """The truth of each of an image's visual tokens.

        A token may stand for a square of patches (a connector that pools); its words are those of its best covered
        patch. Empty where the truth is not known, or the tokens are no such grid.
        """
        side, grid = math.isqrt(len(self.patches)), math.isqrt(tokens)
        if not self.patches or grid * grid != tokens or side % grid:
            return ()
        step = side // grid
        found = []
        for token in range(tokens):
            top, left = (step * place for place in divmod(token, grid))
            inside = [self.patches[(top + i) * side + left + j] for i in range(step) for j in range(step)]
            found.append(max(inside, key=lambda patch: patch.coverage))
        return tuple(found)


@dataclass(frozen=True)
class Asked:
    """What a question asks of one item in an image."""

    item: int
    """The item's number, as in `TokenTruth.item`."""
    attribute: str
    """The group of words, in `Material.groups`, that its answer is one of."""


@dataclass(frozen=True)
class Material:
    """What a diagnosis looks at."""

    name: str
    cases: tuple[Case, ...]
    questions: tuple[Question, ...] = ()
    """About the images of the cases."""
    text_questions: tuple[Question, ...] = ()
    """Without images."""
    words: tuple[str, ...] = ()
    """Candidates for the word of a visual token."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The words of each attribute (colour, shape, ...), of which at most one is true of a visual token."""
    known: tuple[Path, ...] = ()
    """Other images, for what must be fitted on some and asked about others."""
    asked: Mapping[str, Asked] = field(default_factory=dict)
    """By the id of a question: the one item that it is about, where there is one and it is known."""

    @property
    def has_truth(self) -> bool:
        return bool(self.cases) and bool(self.cases[0].patches)

    @property
    def has_things(self) -> bool:
        """Whether what there is to see in its images is known."""
        return any(case.things for case in self.cases)


def read_world(folder: Path, *, split: str = "validation", most: int = 300) -> Material:
    """The material in a folder that `sightline world make` wrote.

    Args:
        most: images to take, from the first on.

    Raises:
        SightlineError: if the folder is no world, or lacks the split.
    """
    try:
        truth = [json.loads(line) for line in (folder / "truth" / f"{split}.jsonl").read_text("utf-8").splitlines()]
        captions = json.loads((folder / f"{split}.captions.json").read_text("utf-8"))
        words = (folder / "words.txt").read_text("utf-8").split()
        groups = json.loads((folder / "world.json").read_text("utf-8"))["words"]
    except (OSError, ValueError, KeyError) as error:
        raise SightlineError(
            f"'{folder}' is no world folder with a split '{split}': {error}. Run: sightline world make '{folder}'"
        ) from None
    said = {row["image"]: row["conversations"][1]["value"] for row in captions}
    root, told = folder / "images", folder / f"{split}.text.jsonl"
    cases = [_case(row, root, said) for row in truth[:most]]
    shown = {case.image for case in cases}
    questions = [
        q for q in read_questions(folder / f"{split}.questions.jsonl", root) if q.images and set(q.images) <= shown
    ]
    scenes = {case.image: row["scene"] for case, row in zip(cases, truth, strict=False)}
    asked = {q.id: found for q in questions if (found := _asked(q, scenes[q.images[0]], groups)) is not None}
    return Material(
        name=f"{folder.name}/{split}",
        cases=tuple(cases),
        questions=tuple(questions),
        text_questions=tuple(read_questions(told, root)) if told.exists() else (),
        words=tuple(words),
        groups={name: tuple(group) for name, group in groups.items()},
        known=tuple(sorted((root / "train").glob("*"))[:KNOWN]),
        asked=asked,
    )


def with_questions(material: Material, path: Path, images_root: Path) -> Material:
    """The material with the questions of a file, as `sightline eval` reads it, in place of its own.

    Raises:
        SightlineError: for a row that is no question, or an image that is not there.
    """
    questions = read_questions(path, images_root)
    return replace(
        material,
        name=f"{material.name} with {path.name}" if material.cases else path.name,
        questions=tuple(question for question in questions if question.images),
        text_questions=tuple(question for question in questions if not question.images),
        asked={},
    )


def find_case(folder: Path, image: Path) -> Case:
    """An image of a world folder with its truth, without its caption.

    Args:
        image: its path, or its name below `images`.

    Raises:
        SightlineError: if `folder` is no world, or the image is not one of its own.
    """
    root = folder / "images"
    path = image if image.exists() else root / image
    try:
        name = path.resolve().relative_to(root.resolve())
    except ValueError:
        raise SightlineError(
            f"'{image}' is not an image of '{folder}', so its truth is not known. Leave --data out, or give an image "
            f"below '{root}'."
        ) from None
    file = folder / "truth" / f"{name.parts[0]}.jsonl" if name.parts else folder
    try:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines() if name.as_posix() in line]
        found = [_case(row, root, {}) for row in rows if row["image"] == name.as_posix()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SightlineError(
            f"cannot read the truth of '{name}' in '{file}': {error!r}. Make the world anew."
        ) from None
    if not found:
        raise SightlineError(f"'{file}' has no truth of an image '{name}'. Give an image that it lists.")
    return found[0]


def read_captions(path: Path, images_root: Path, *, most: int = 300) -> Material:
    """The material of a LLaVA JSON: images with their captions, without truth; the words are those of the captions.

    Of several rows on an image the first counts: intervals take images for independent.

    Raises:
        SightlineError: if the file cannot be read, or no row has one image and an answer.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SightlineError(
            f"cannot read '{path}': {error}. Give a world folder, or captions in LLaVA's JSON: a list of rows."
        ) from None
    cases, taken = [], set()
    for number, row in enumerate(rows if isinstance(rows, list) else []):
        turns = row.get("conversations") if isinstance(row, Mapping) else None
        turns = [turn.get("value") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
        image = row.get("image") if turns else None
        said = turns[1] if len(turns) > 1 and IMAGE in str(turns[0]) else None
        if isinstance(image, str) and image not in taken and isinstance(said, str):
            taken.add(image)
            where = resolve_image(images_root, image, f"{path.name} row {number}")
            cases.append(Case(str(row.get("id", number)), where, said))
        if len(cases) == most:
            break
    if not cases:
        raise SightlineError(f"'{path}' has no row with one image and a caption. Give captions in LLaVA's JSON.")
    words = sorted({word for case in cases for word in words_of(case.caption)})
    return Material(path.name, tuple(cases), words=tuple(words))


def words_of(text: str) -> list[str]:
    """The words of a text, lower case, without punctuation."""
    cleaned = "".join(c if c.isalnum() or c in "'-" else " " for c in text.lower())
    return [word for word in cleaned.split() if any(c.isalnum() for c in word)]


def _case(row: Mapping[str, Any], root: Path, said: Mapping[str, str]) -> Case:
    patches = tuple(TokenTruth(tuple(p["words"]), p["item"], p["coverage"]) for p in row["patches"])
    scene = row["scene"]
    things = [f"{thing['colour']} {thing['shape']}" for thing in scene["things"]]
    things += [plate for plate in PLATES if scene[plate]]
    return Case(row["id"], root / row["image"], said.get(row["image"], ""), patches, tuple(things))


def _asked(question: Question, scene: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> Asked | None:
    """The item that a question names by its other attributes, or the sign whose letter it asks for."""
    said, things = set(words_of(question.text)), scene["things"]
    if question.ability == "reading" and scene["sign"]:
        return Asked(len(things), "letter")
    if question.ability not in ("colour", "shape", "size"):
        return None
    named = {
        name: said & set(groups[name])
        for name in ("colour", "shape")
        if name != question.ability and said & set(groups[name])
    }
    fits = [i for i, thing in enumerate(things) if all(thing[name] in words for name, words in named.items())]
    return Asked(fits[0], question.ability) if len(fits) == 1 else None


def take(items: Sequence[Any], most: int) -> list[Any]:
    """`most` of the items, drawn at random with a fixed seed, in their order.

    Not every n-th: each picture is asked the same kinds of question in turn, and a step would favour some.
    """
    if len(items) <= most:
        return list(items)
    return [items[number] for number in sorted(random.Random(0).sample(range(len(items)), most))]
