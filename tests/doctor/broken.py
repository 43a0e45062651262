"""A folder with everything that can be wrong with rows, files and images: how each kind is made, and what the doctor
must say of it."""

import gzip
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

IMAGE = "<image>"


@dataclass(frozen=True)
class Kind:
    """One way to be broken. `says` and `fix` are words that must be in one finding's place or message, and its fix."""

    name: str
    make: Any
    check: str
    says: tuple[str, ...]
    fix: tuple[str, ...]


def row(question: Any = "Is it so?", answer: Any = "yes", **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **fields}


def turns(*speakers_and_texts: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    return {"conversations": [{"from": who, "value": text} for who, text in speakers_and_texts], **fields}


BROKEN = "rows/broken"
ROWS = [
    Kind("row-text", "hello", BROKEN, ("should be an object", "text"), ("Write it as",)),
    Kind("row-null", None, BROKEN, ("should be an object", "nothing"), ("Write it as",)),
    Kind("row-list", [1], BROKEN, ("should be an object", "a list"), ("Write it as",)),
    Kind("id-boolean", row(id=True), BROKEN, ("'id'", "a boolean"), ("leave it out",)),
    Kind("id-list", row(id=[1]), BROKEN, ("'id'", "a list"), ("leave it out",)),
    Kind("no-turns", {"id": "no-turns"}, BROKEN, ("no-turns", "'conversations'"), ("needs its turns",)),
    Kind(
        "turns-misspelt",
        {"id": "turns-misspelt", "conversation": []},
        BROKEN,
        ("turns-misspelt", "did you mean 'conversation'"),
        ("needs its turns",),
    ),
    Kind("turns-empty", {"conversations": []}, BROKEN, ("turns-empty", "an empty list"), ("question and an answer",)),
    Kind("turns-text", {"conversations": "hi"}, BROKEN, ("turns-text", "list of turns", "text"), ("remove the row",)),
    Kind("turn-text", {"conversations": ["hi"]}, BROKEN, ("turn-text", "turn 0 should be an object"), ("",)),
    Kind("no-value", {"conversations": [{"from": "human"}]}, BROKEN, ("no-value", "turn 0", "'value'"), ("",)),
    Kind("value-number", row(answer=3), BROKEN, ("value-number", "turn 1"), ("",)),
    Kind("no-speaker", {"conversations": [{"value": "hi"}]}, BROKEN, ("no-speaker", "turn 0 is from"), ("Use one of",)),
    Kind("speaker", turns(("human", "a"), ("bot", "b")), BROKEN, ("speaker", "from 'bot'"), ("human, gpt",)),
    Kind("two-questions", turns(("human", "a"), ("human", "b")), BROKEN, ("two-questions", "turn 1"), ("",)),
    Kind("answer-first", turns(("gpt", "a"), ("human", "b")), BROKEN, ("answer-first", "turn 0"), ("",)),
    Kind("system-late", turns(("human", "a"), ("system", "b"), ("gpt", "c")), BROKEN, ("system-late",), ("",)),
    Kind("system-alone", turns(("system", "a")), BROKEN, ("system-alone",), ("",)),
    Kind("empty-answer", row(answer=""), BROKEN, ("empty-answer", "empty answer"), ("remove the row",)),
    Kind("blank-answer", row(answer=" \n"), BROKEN, ("blank-answer", "empty answer"), ("remove the row",)),
    Kind("no-image", row(f"{IMAGE} What?"), BROKEN, ("no-image", "1 <image>", "0 images"), ("where each image",)),
    Kind("no-place", row(image="ok.png"), BROKEN, ("no-place", "0 <image>", "1 images"), ("where each image",)),
    Kind("two-places", row(IMAGE * 2, image="ok.png"), BROKEN, ("two-places", "2 <image>"), ("where each image",)),
    Kind("image-in-answer", row(answer=f"see {IMAGE}"), BROKEN, ("image-in-answer", "outside"), ("question",)),
    Kind(
        "image-in-system",
        turns(("system", IMAGE), ("human", "a"), ("gpt", "b")),
        BROKEN,
        ("image-in-system", "outside the user's turns"),
        ("question",),
    ),
    Kind("image-number", row(IMAGE, image=7), BROKEN, ("image-number", "'image'", "number"), ("",)),
    Kind("image-numbers", row(IMAGE, image=[7]), BROKEN, ("image-numbers", "'image'"), ("",)),
    Kind("absolute", row(IMAGE, image="/etc/passwd"), BROKEN, ("absolute", "leads out"), ("path inside",)),
    Kind("outside", row(IMAGE, image="../secret.png"), BROKEN, ("outside", "leads out"), ("path inside",)),
    Kind("half-character", row(answer="a\ud800b"), BROKEN, ("half-character", "half of a character"), ("",)),
    Kind("two-shapes", row(messages=[{"role": "user"}]), BROKEN, ("two-shapes", "both"), ("Keep one",)),
    Kind(
        "role",
        {"messages": [{"role": "human", "content": "a"}]},
        BROKEN,
        ("(id 'role')", "from 'human'"),
        ("user, assistant",),
    ),
    Kind("content-number", {"messages": [{"role": "user", "content": 1}]}, BROKEN, ("content-number", "turn 0"), ("",)),
    Kind(
        "item-type",
        {"messages": [{"role": "user", "content": [{"type": "video"}]}, {"role": "assistant", "content": "b"}]},
        BROKEN,
        ("item-type", "type 'video'"),
        ("text, image",),
    ),
    Kind(
        "item-text",
        {"messages": [{"role": "user", "content": [{"type": "text"}]}, {"role": "assistant", "content": "b"}]},
        BROKEN,
        ("item-text", "'text' should be text"),
        ("Write it there",),
    ),
    Kind("caption-number", {"caption": 1, "image": "ok.png"}, BROKEN, ("caption-number", "should be"), ("caption",)),
    Kind("caption-alone", {"caption": "a cat"}, BROKEN, ("caption-alone",), ("",)),
    Kind("caption-empty", {"caption": " ", "image": "ok.png"}, BROKEN, ("caption-empty",), ("",)),
    Kind("no-answer", turns(("human", "Is it so?")), "coverage/none", ("no-answer", "nothing"), ("Give it an answer",)),
    Kind("twin", [row("One?", id="twin"), row("Two?", id="twin")], "rows/duplicate-id", ("id 'twin'",), ("own id",)),
    Kind("copy", [row("Same?"), row("Same?", id="copy")], "rows/duplicate", ("(id 'copy')",), ("weight",)),
    Kind("img-tag", row("<img> What?"), "text/placeholder", ("img-tag", "'<img>'"), ("Write <image>",)),
    Kind("image-number-tag", row("<image_1> What?"), "text/placeholder", ("'<image_1>'",), ("Write <image>",)),
    Kind("image-brackets", row("[IMAGE] What?"), "text/placeholder", ("'[IMAGE]'",), ("Write <image>",)),
    Kind("lost-character", row(answer="caf\ufffd"), "text/encoding", ("lost-character",), ("write it as UTF-8",)),
    Kind("mojibake", row(answer="itâ€™s cafÃ©"), "text/encoding", ("mojibake", "turn 1"), ("own encoding",)),
    Kind("nul", row(answer="a\x00b"), BROKEN, ("(id 'nul')", "NUL"), ("Remove",)),
    Kind("bell", row(answer="a\x07b"), "text/control", ("(id 'bell')", "control characters"), ("Remove",)),
    Kind("html", row(answer="one<br>two"), "text/markup", ("html", "'<br>'"), ("plain text",)),
    Kind("entity", row(answer="one &amp; two"), "text/markup", ("entity", "'&amp;'"), ("plain text",)),
    Kind("two-in-one", row(answer="no\nUSER: why?"), "text/speaker", ("two-in-one", "two turns"), ("Split",)),
    Kind("stuck", row(answer="very " * 60), "text/repetition", ("stuck", "over and over"), ("again",)),
    Kind("eos-inside", row(answer="yes</s> no"), "text/special-token", ("eos-inside", "'</s>'"), ("out of the text",)),
    Kind("bos-inside", row(question="a <s> b"), "text/special-token", ("bos-inside", "'<s>'"), ("out of the text",)),
    Kind("empty-question", row(question=""), "text/empty-question", ("empty-question",), ("Write the question",)),
    Kind("same-image", row(IMAGE * 2, image=["ok.png"] * 2), "text/same-image", ("same-image", "twice"), ("Check",)),
    Kind("too-long", row(answer="many words " * 200), "budget/too-long", ("too-long", "max_length"), ("max_length=",)),
    Kind(
        "many-images",
        row(IMAGE * 30, image=[f"ok{n}.png" for n in range(30)]),
        "budget/images",
        ("many-images", "no image is ever cut"),
        ("max_length=",),
    ),
]


def png(path: Path, size: tuple[int, int] = (32, 32), colour: Any = (200, 30, 30), **options: Any) -> None:
    Image.new("RGB", size, colour).save(path, **options)


def noise(path: Path, **options: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def cut(path: Path) -> None:
    noise(path)
    path.write_bytes(path.read_bytes()[:-2000])


def bomb(path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    size = (60000).to_bytes(4, "big") * 2
    data = chunk(b"IHDR", size + b"\x08\x02\0\0\0") + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def bad_sum(path: Path) -> None:
    noise(path)
    data = bytearray(path.read_bytes())
    at = data.index(b"IHDR") + 6
    data[at] ^= 0xFF
    path.write_bytes(bytes(data))


def animation(path: Path) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def holds(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere.png"))


def beside(name: str) -> Callable[[Path], Any]:
    """The file is not there, and another one is."""
    return lambda path: png(path.with_name(name))


def inside_a_file(path: Path) -> None:
    path.parent.write_text("a file")


NOT = "images/not-an-image"
IMAGES = [
    Kind("missing.png", lambda path: None, "images/missing", ("missing.png", "not there"), ("remove the row",)),
    Kind("case.png", beside("CASE.PNG"), "images/missing", ("but 'CASE.PNG' is",), ("Write 'CASE.PNG'",)),
    Kind("other.jpg", beside("other.png"), "images/missing", ("but 'other.png' is",), ("Write 'other.png'",)),
    Kind("nowhere/a.png", lambda path: None, "images/missing", ("nor is its folder",), ("data.images",)),
    Kind("file/a.png", inside_a_file, "images/missing", ("is a file, not a folder",), ("data.images",)),
    Kind("dangling.png", dangling, "images/missing", ("a link to", "nowhere.png"), ("mend the link",)),
    Kind("empty.png", holds(b""), "images/empty", ("empty.png", "0 bytes"), ("again",)),
    Kind("folder.png", lambda path: path.mkdir(), "images/folder", ("is a folder",), ("file inside",)),
    Kind("pipe.png", os.mkfifo, "images/not-a-file", ("pipe",), ("Put the image",)),
    Kind("n" * 300 + ".png", lambda path: None, "images/name", ("cannot be a file's",), ("image name",)),
    Kind("cut.jpg", cut, "images/truncated", ("cut.jpg", "cut off"), ("again",)),
    Kind("cut.png", cut, "images/truncated", ("cut.png", "cut off"), ("again",)),
    Kind("sum.png", bad_sum, "images/damaged", ("sum.png", "damaged"), ("again",)),
    Kind("zeros.jpg", holds(bytes(500)), "images/damaged", ("only zeros",), ("again",)),
    Kind("bomb.png", bomb, "images/bomb", ("bomb.png", "more pixels"), ("smaller",)),
    Kind("page.jpg", holds(b"<!DOCTYPE html><html>404"), NOT, ("a web page",), ("Download it again",)),
    Kind("page2.jpg", holds(b"\n<html><body>"), NOT, ("page2.jpg", "a web page"), ("Download it again",)),
    Kind("denied.jpg", holds(b'{"error": "denied"}'), NOT, ("JSON",), ("Download",)),
    Kind("xml.jpg", holds(b"<?xml version='1.0'?><Error/>"), NOT, ("XML",), ("again",)),
    Kind("lfs.png", holds(b"version https://git-lfs.github.com/spec/v1\n"), NOT, ("Git LFS",), ("git lfs pull",)),
    Kind("drawing.png", holds(b"<svg xmlns=''/>"), NOT, ("a drawing",), ("PNG",)),
    Kind("paper.jpg", holds(b"%PDF-1.7"), NOT, ("a PDF",), ("PNG",)),
    Kind("many.jpg", holds(b"PK\x03\x04rest"), NOT, ("a ZIP",), ("Unpack",)),
    Kind("packed.png", holds(gzip.compress(b"x")), NOT, ("gzip",), ("gunzip",)),
    Kind("array.png", holds(b"\x93NUMPY\x01\x00"), NOT, ("NumPy",), ("PNG",)),
    Kind("film.jpg", holds(b"\0\0\0\x18ftypmp42"), NOT, ("a video",), ("Turn it into",)),
    Kind("film2.jpg", holds(b"\x1aE\xdf\xa3rest"), NOT, ("a video",), ("frame",)),
    Kind("phone.jpg", holds(b"\0\0\0\x18ftypheic"), NOT, ("HEIC",), ("JPEG",)),
    Kind("words.png", holds(b"just some words"), NOT, ("not an image that Pillow knows",), ("Put an image",)),
    Kind(
        "png.jpg",
        lambda path: png(path, format="PNG"),
        "images/extension",
        ("png.jpg", "a PNG", "'.jpg'"),
        ("png.png",),
    ),
    Kind(
        "jpeg.png",
        lambda path: png(path, format="JPEG"),
        "images/extension",
        ("jpeg.png", "a JPEG", "'.png'"),
        ("jpeg.jpg",),
    ),
    Kind("bare", lambda path: png(path, format="PNG"), "images/extension", ("'none'",), ("bare.png",)),
    Kind("moves.gif", animation, "images/frames", ("2 frames", "first"), ("as a PNG",)),
    Kind("dot.png", lambda path: png(path, (1, 1)), "images/tiny", ("1x1",), ("Check",)),
    Kind("line.png", lambda path: png(path, (1, 4000)), "images/narrow", ("1x4000",), ("pieces",)),
    Kind("huge.png", lambda path: png(path, (1300, 1000)), "images/large", ("huge.png", "very large"), ("smaller",)),
]

FILE = "rows/file"
GOOD = json.dumps([row("Is snow white?", id="good")])
FILES = [
    Kind("gone.json", None, FILE, ("gone.json", "not found"), ("data.path",)),
    Kind("words.json", b"not json", FILE, ("words.json", "list of rows"), ("JSON list of rows",)),
    Kind("half.json", GOOD[:-20].encode(), BROKEN, ("half.json row 0", "not JSON"), ("list of rows",)),
    Kind("empty.json", b"", FILE, ("empty.json",), ("",)),
    Kind("none.json", b"[]", FILE, ("none.json",), ("",)),
    Kind("object.json", b'{"a": 1}', FILE, ("object.json",), ("",)),
    Kind("latin.json", '[{"caption": "café"}]'.encode("latin-1"), BROKEN, ("latin.json row 0", "UTF-8"), ("UTF-8",)),
    Kind("notes.txt", b"words", FILE, ("notes.txt",), ("",)),
    Kind("line.jsonl", b'{"id": 1\n', BROKEN, ("line.jsonl line 1",), ("",)),
    Kind("long.jsonl", b'{"id": "' + b"a" * (17 * 2**20) + b'"}\n', BROKEN, ("long.jsonl", "line 1"), ("",)),
    Kind("columns.csv", b"a,b\n1,2\n", BROKEN, ("columns.csv line 1", "no column"), ("image, caption",)),
    Kind("rows.parquet", b"PAR1 not really", FILE, ("rows.parquet",), ("",)),
    Kind("shard.tar", b"not a tar" * 200, FILE, ("shard.tar",), ("",)),
]
KINDS = ROWS + IMAGES + FILES


def write(root: Path) -> list[dict[str, str]]:
    """Make everything under `root`; the data parts of a recipe that reads it all."""
    (root / "images").mkdir(parents=True)
    png(root / "images/ok.png")
    for number in range(30):
        png(root / "images" / f"ok{number}.png", colour=(number, 0, 0))
    rows: list[Any] = []
    for kind in ROWS:
        for made in kind.make if isinstance(kind.make, list) and kind.name in ("twin", "copy") else [kind.make]:
            named = isinstance(made, dict) and "id" not in made and kind.name != "copy"
            rows.append({**made, "id": kind.name} if named else made)
    for kind in IMAGES:
        path = root / "images" / kind.name
        kind.make(path)
        rows.append(row(f"{IMAGE} What is {kind.name[:20]}?", image=kind.name, id=f"shows {kind.name[:20]}"))
    (root / "rows.json").write_text(json.dumps(rows))
    for kind in FILES:
        if kind.make is not None:
            (root / kind.name).write_bytes(kind.make)
    (root / "held.json").write_text(json.dumps([row("Same?", id="held out")]))
    return [{"path": str(root / name)} for name in ("rows.json", *(kind.name for kind in FILES))]
