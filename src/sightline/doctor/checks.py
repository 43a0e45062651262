"""Checks of rows that need no model: pure functions from samples to findings."""

import re
from collections import Counter
from collections.abc import Collection, Iterable
from hashlib import blake2b

from ..data.templates import Template
from ..types import Sample
from .findings import Finding, from_error, shown

LOOKALIKES = re.compile(
    r"(?!<image>)(?:<[ /]*(?:img|image[ _-]?\d*|imagehere|\|image(?:_\d+)?\|)[ /]*>|\[(?:img|image)\])", re.IGNORECASE
)
"""What other tools write where an image stands; here it is ordinary text."""
MOJIBAKE = re.compile("â€[™œ\u009d“”¦]|Ã[©¨¡³±¼¶¤]|Â[ °·]")
"""UTF-8 that was read as Latin-1 or Windows-1252."""
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
MARKUP = re.compile(r"&(?:amp|lt|gt|quot|nbsp|#\d+);|<br\s*/?>|</?(?:p|div|span|b|i)>")
SPEAKERS = re.compile(r"(?:^|\n)\s*(?:USER|ASSISTANT|Human|Assistant|### ?(?:Human|Assistant|Instruction))\s*:", re.M)


def broken_rows(problems: Iterable[str], file: str) -> list[Finding]:
    """Rows and files that could not be read; the text of each names its place, its cause and its fix."""
    found = []
    for problem in problems:
        place = re.match(r"(.{1,200}?(?:row|line) \d+(?: \(id '[^']*'\))?):? ", problem)
        where, check = (place[1], "rows/broken") if place else (file, "rows/file")
        fix = "Mend the row, or remove it." if place else "Write it as a JSON list of rows."
        found.append(from_error(problem, severity="error", check=check, where=where, fix=fix))
    return found


def text_of_row(where: str, sample: Sample, template: Template) -> list[Finding]:
    """What a row's own words say about how it was made."""
    found: list[Finding] = []

    def warn(check: str, message: str, fix: str) -> None:
        found.append(Finding("warning", f"text/{check}", f"{where} (id '{shown(sample.id, 40)}')", message, fix))

    for number, turn in enumerate(sample.turns):
        text, here = turn.text, f"turn {number}"
        if not text.strip():
            if turn.role == "assistant":
                warn(
                    "empty-answer",
                    f"{here} is an empty answer: it teaches the model to say nothing.",
                    "Write the answer, or remove the row.",
                )
            elif turn.role == "user" and template.user_text:
                warn("empty-question", f"{here} is an empty question.", "Write the question, or remove the row.")
            continue
        tagged = "<" in text or "[" in text
        if tagged and (match := LOOKALIKES.search(text)):
            warn(
                "placeholder",
                f"{here} holds '{match[0]}', which is ordinary text here: no image is put there.",
                "Write <image> where an image belongs, or take it out.",
            )
        if not text.isascii() and ("\ufffd" in text or MOJIBAKE.search(text)):
            warn(
                "encoding",
                f"{here} holds characters broken on the way ('{shown(text, 40)}'): the model would learn them.",
                "Read the original file with its own encoding and write it as UTF-8.",
            )
        if CONTROL.search(text):
            warn("control", f"{here} holds control characters (such as NUL).", "Remove them from the text.")
        if turn.role == "assistant":
            if (tagged or "&" in text) and (match := MARKUP.search(text)):
                warn(
                    "markup",
                    f"{here} answers with HTML ('{match[0]}'): the model would learn to write it.",
                    "Turn it into plain text, unless you want it.",
                )
            if ":" in text and SPEAKERS.search(text):
                warn(
                    "speaker",
                    f"{here} holds a speaker's name as a template writes it: two turns are in one.",
                    "Split the turns, and leave the names to the template.",
                )
            if says_one_thing(text):
                warn("repetition", f"{here} says the same thing over and over.", "Write the answer again.")
    if not template.user_text and not sample.images:
        warn(
            "caption-of-nothing",
            f"template '{template.name}' leaves out the question, and the row has no image: "
            "its answer is trained on nothing.",
            "Use a conversation template for rows without images, or remove the row.",
        )
    if len(set(sample.images)) < len(sample.images) and all(not hasattr(image, "mode") for image in sample.images):
        warn("same-image", "shows one image twice.", "Check the row's images.")
    return found


def says_one_thing(text: str) -> bool:
    """Whether a text has far more words (or letters) than different ones, as a model that got stuck writes."""
    words = text.split()
    return (len(words) >= 40 and len(set(words)) * 20 <= len(words)) or (len(text) >= 80 and len(set(text)) <= 3)


def special_tokens(where: str, sample: Sample, special: re.Pattern[str] | None) -> list[Finding]:
    """Special tokens of the tokenizer inside a row's words: they would be read as the tokens themselves."""
    if special is None:
        return []
    found = []
    for number, turn in enumerate(sample.turns):
        if match := special.search(turn.text):
            effect = "the answer would end there" if turn.role == "assistant" else "the conversation would break there"
            found.append(
                Finding(
                    "warning",
                    "text/special-token",
                    f"{where} (id '{shown(sample.id, 40)}')",
                    f"turn {number} holds '{match[0]}', which the tokenizer reads as its own mark: {effect}.",
                    f"Take '{match[0]}' out of the text; the template adds what is needed.",
                )
            )
    return found


def special_pattern(tokens: Collection[str]) -> re.Pattern[str] | None:
    """A pattern for a tokenizer's special tokens, but for `<image>`."""
    words = [re.escape(token) for token in tokens if token and token != "<image>"]
    return re.compile("|".join(sorted(words, key=len, reverse=True))) if words else None


def none_left(stage: str, role: str) -> Finding:
    """What it means that policies leave no row of a stage's data, or of its validation."""
    effect = "its parts would stay as they were" if role == "data" else "its loss could not be measured"
    message = f"no row of its {role} has sound images and fits max_length: {effect}."
    fix = "Mend the images (bad_images only skips), or raise max_length."
    return Finding("error", "coverage/none-left", f"stage '{stage}'", message, fix)


class Seen:
    """Ids and contents of the rows of a stage, as hashes: what is there twice."""

    def __init__(self) -> None:
        self.ids: Counter[bytes] = Counter()
        self.contents: set[bytes] = set()

    def row(self, where: str, sample: Sample, columns: Collection[str]) -> list[Finding]:
        """Findings about a row that another one before it equals, in its id or wholly."""
        found = []
        key, content = _hash(sample.id), content_hash(sample)
        place = f"{where} (id '{shown(sample.id, 40)}')"
        if self.ids[key]:
            effect = "the rows are confused in error messages"
            if columns:
                effect = f"the column '{next(iter(columns))}' is kept by id, so one row would have the other's value"
            found.append(
                Finding(
                    "error" if columns else "warning",
                    "rows/duplicate-id",
                    place,
                    f"another row has the same id '{shown(sample.id, 40)}': {effect}.",
                    "Give each row its own id, or leave ids out.",
                )
            )
        self.ids[key] += 1
        if content in self.contents:
            found.append(
                Finding(
                    "warning",
                    "rows/duplicate",
                    place,
                    "the same images and words stand in a row before it: it counts twice in training.",
                    "Remove one of them, or use a weight if you want it seen more often.",
                )
            )
        self.contents.add(content)
        return found

    def held_out(self, where: str, sample: Sample) -> list[Finding]:
        """A validation row that is trained on."""
        if content_hash(sample) not in self.contents:
            return []
        message = "this validation row is among the rows that are trained on: its loss says nothing about new ones."
        fix = "Remove it from one of the two files."
        return [Finding("warning", "rows/leak", f"{where} (id '{shown(sample.id, 40)}')", message, fix)]


def content_hash(sample: Sample) -> bytes:
    """A hash of what a row shows and says; its id aside."""
    images = "\x1f".join(str(image) for image in sample.images)
    return _hash("\x1e".join([images, *(f"{turn.role}\x1f{turn.text}" for turn in sample.turns)]))


def _hash(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
