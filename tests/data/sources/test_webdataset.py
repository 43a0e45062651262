"""WebDataset tars: which members are a sample, and what a tar can have wrong."""

import io
import json
import multiprocessing
import os
import tarfile
from dataclasses import replace

import pytest

from sightline.data.sources import collect_problems, open_source
from sightline.errors import SightlineError
from sightline.types import Turn

from . import makers

PNG = [makers.picture(i) for i in range(4)]
CHAT = {"conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "x"}]}
TWO = {"conversations": [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "x"}]}


def only(folder, members, **options):
    (sample,) = open_source(makers.tar(folder / "a.tar", members, **options))
    return sample


@pytest.mark.parametrize("ending", ["jpg", "JPEG", "png", "webp"])
def test_a_caption_in_a_text_file(tmp_path, ending):
    sample = only(tmp_path, [(f"dir/a.{ending}", PNG[0]), ("dir/a.txt", "a box\n")])
    assert (sample.id, sample.turns[1]) == ("dir/a", Turn("assistant", "a box"))
    assert sample.images[0].read() == PNG[0]


def test_a_caption_beside_facts(tmp_path):
    """As img2dataset writes: the caption in both files, or facts alone in the .json."""
    facts = {"url": "http://x", "caption": "a box"}
    sample = only(tmp_path, [("a.jpg", PNG[0]), ("a.json", json.dumps(facts)), ("a.txt", "a box")])
    assert (sample.turns[1].text, sample.meta) == ("a box", {"url": "http://x"})
    sample = only(tmp_path, [("a.jpg", PNG[0]), ("a.txt", "a box"), ("a.json", '{"width": 3}')])
    assert (sample.turns[1].text, sample.meta) == ("a box", {"width": 3})


@pytest.mark.parametrize("names", [None, ["a.1.png", "a.0.png"], ["1.png", "0.png"], ["coco/x/a.1.png", "d/a.0.png"]])
def test_a_row_names_its_members(tmp_path, names):
    """By member, by ending, or by a path whose last part it is; without names, all in the tar's order."""
    row = TWO | ({"image": names} if names else {})
    sample = only(tmp_path, [("d/a.0.png", PNG[0]), ("d/a.1.png", PNG[1]), ("d/a.json", json.dumps(row))])
    assert [image.read() for image in sample.images] == (PNG[1::-1] if names else PNG[:2])


def test_messages_of_items(tmp_path):
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]}
    sample = only(tmp_path, [("a.png", PNG[0]), ("a.json", json.dumps(row))])
    assert (sample.turns[0].text, sample.images[0].read()) == ("<image>\nWhat?", PNG[0])


def test_messages_whose_items_name_members(tmp_path):
    content = [{"type": "image", "image": "1.png"}, {"type": "image", "image": "0.png"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "x"}]}
    sample = only(tmp_path, [("a.0.png", PNG[0]), ("a.1.png", PNG[1]), ("a.json", json.dumps(row))])
    assert [image.read() for image in sample.images] == [PNG[1], PNG[0]]


def test_text_alone_is_a_sample(tmp_path):
    talk = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}
    assert only(tmp_path, [("a.json", "\ufeff" + json.dumps(talk))]).images == ()


def test_what_systems_add_is_no_sample(tmp_path):
    sample = only(tmp_path, [("._a.png", b"x"), ("a.png", PNG[0]), (".DS_Store", b"x"), ("a.txt", "x"), ("a.cls", "3")])
    assert sample.images[0].read() == PNG[0]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_names(tmp_path, form):
    """Their headers come before the member's own: reading at random starts there."""
    name = "é" * 90 + "/" + "x" * 110
    members = [(f"{name}{i}{end}", data) for i in range(3) for end, data in ((".png", PNG[i]), (".txt", f"t{i}"))]
    source = open_source(makers.tar(tmp_path / "a.tar", members, format=form))
    for row in (2, 0, 1):
        assert (source[row].id, source[row].images[0].read()) == (f"{name}{row}", PNG[row])


BROKEN = {
    "no text": ([("a.png", PNG[0])], "a.tar sample 'a' has no .json and no .txt, only a.png. The members of a sample"),
    "apart": (
        [("a.png", PNG[0]), ("b.png", PNG[1]), ("a.txt", "x"), ("b.txt", "x")],
        "has no .json and no .txt, only a.png. .* make the tar with --sort=name",
    ),
    "no image": ([("a.txt", "x")], "a.tar sample 'a': a row with a 'caption' needs one image, and has 0"),
    "two images": ([("a.0.png", b""), ("a.1.png", b""), ("a.txt", "x")], "needs one image, and has 2"),
    "empty text": ([("a.png", PNG[0]), ("a.txt", "\n")], "a.tar sample 'a': 'caption' is empty"),
    "no json": (
        [("a.png", PNG[0]), ("a.json", "{")],
        "a.tar sample 'a': its .json is not JSON: .* It should be one row",
    ),
    "a list": ([("a.png", PNG[0]), ("a.json", "[]")], "a.tar sample 'a' should be an object .*, and is an empty list"),
    "no utf-8": ([("a.png", PNG[0]), ("a.txt", b"\xff")], "a.tar sample 'a': its .txt is not UTF-8: byte 0 of it"),
    "not there": (
        [("a.png", PNG[0]), ("a.json", json.dumps({"image": "b.png"} | CHAT))],
        "image 'b.png' is not in the archive beside it. There: a.png",
    ),
    "part of a name": (
        [("xa.png", PNG[0]), ("xa.json", json.dumps({"image": "a.png"} | CHAT))],
        "image 'a.png' is not in the archive beside it. There: xa.png",
    ),
    "either": (
        [("a.0.png", b""), ("a.1.png", b""), ("a.json", json.dumps({"image": "png"} | CHAT))],
        "image 'png' is not in the archive beside it. There: a.0.png, a.1.png",
    ),
    "twice": ([("a.png", b"1"), ("a.png", b"2"), ("a.txt", "x")], "has two members named a.png. Keep one"),
    "too few": ([("a.json", json.dumps(CHAT))], "1 <image> in the questions for 0 images"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_sample_is_named(tmp_path, case):
    members, message = BROKEN[case]
    with pytest.raises(SightlineError, match=message):
        open_source(makers.tar(tmp_path / "a.tar", members))
    assert collect_problems(tmp_path / "a.tar")


def rows(count=4):
    return makers.members(makers.captions(count))


def header_at(path, number):
    with tarfile.open(path) as archive:
        return archive.getmembers()[number].offset


def test_a_damaged_header_does_not_end_the_tar_in_silence(tmp_path):
    """`tarfile` itself takes it for the end."""
    path = makers.tar(tmp_path / "a.tar", rows())
    at = header_at(path, 4)
    data = bytearray(path.read_bytes())
    data[at : at + 4] = b"\xff" * 4
    path.write_bytes(data)
    with tarfile.open(path) as archive:
        assert len(archive.getmembers()) == 4
    with pytest.raises(SightlineError, match=rf"a.tar is no sound tar: the header at byte {at} is broken"):
        open_source(path)


def test_joined_tars_are_named(tmp_path):
    path = makers.tar(tmp_path / "a.tar", rows())
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(SightlineError, match=r"more follows its end mark at byte \d+, as if several were joined. Make"):
        open_source(path)


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
def test_a_tar_that_is_cut_is_named(tmp_path, ending):
    path = makers.tar(tmp_path / f"a.{ending}", rows(), "w" if ending == "tar" else "w:gz")
    data, third = path.read_bytes(), header_at(path, 3)
    cuts = (700, third + 100, third + 600) if ending == "tar" else (50, len(data) - 12)
    for cut in cuts:
        path.write_bytes(data[:cut])
        with pytest.raises(SightlineError, match=rf"a.{ending} is no sound tar: .* Make it again, or remove it"):
            open_source(path)


def test_a_header_that_points_back_ends(tmp_path):
    """A negative size would have `tarfile` read the same headers for ever (CVE-2025-8194)."""
    info = tarfile.TarInfo("a.txt")
    info.size = -1024
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    with pytest.raises(SightlineError, match=r"a.tar is no sound tar"):
        open_source(tmp_path / "a.tar")


def test_a_text_that_fills_the_memory_is_named(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("a.json")
        info.size = 17 * 2**20
        archive.addfile(info, io.BytesIO(b" " * info.size))
    with pytest.raises(SightlineError, match=r"a.tar member 'a.json' has 17,825,792 bytes, and a row may have"):
        open_source(path)


def test_an_empty_tar_holds_no_samples(tmp_path):
    with pytest.raises(SightlineError, match=r"a.tar holds no samples. The members of a sample should stand together"):
        open_source(makers.tar(tmp_path / "a.tar", []))


@pytest.mark.filterwarnings("ignore:.*cannot be read at random")
def test_the_same_samples_compressed(tmp_path):
    plain = open_source(makers.tar(tmp_path / "a.tar", rows(6)))
    packed = open_source(makers.tar(tmp_path / "a.tar.xz", rows(6), "w:xz"))
    for one, other in zip(plain, packed, strict=True):
        assert replace(one, images=(), source="") == replace(other, images=(), source="")
        assert one.images[0].read() == other.images[0].read()


def _read(source, rows, results):
    results.put([source[row].id for row in rows])


@pytest.mark.filterwarnings("ignore:.*cannot be read at random")
def test_processes_that_were_forked_read_their_own_stream(tmp_path):
    """They share the open file and its position with the process that opened it: both would read on in turns."""
    names = [f"{n:03}" for n in range(400)]
    members = [item for name in names for item in ((f"{name}.txt", "a cat"), (f"{name}.png", os.urandom(4000)))]
    source = open_source(makers.tar(tmp_path / "a.tar.gz", members, "w:gz"))
    assert source[0].id == "000"
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    halves = [range(0, 400, 2), range(1, 400, 2)]
    processes = [fork.Process(target=_read, args=(source, half, results), daemon=True) for half in halves]
    for process in processes:
        process.start()
    ids = sorted(name for _ in processes for name in results.get(timeout=60))
    assert ids == names
    assert [source[row].id for row in (1, 399)] == ["001", "399"]
