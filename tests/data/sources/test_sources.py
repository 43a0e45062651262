"""What holds for every format alike: the same samples, in any order, in any process, from a small index."""

import json
import os
import pickle
import random
import re
import shutil
import socket
import tarfile
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from sightline.data.images import load_image
from sightline.data.sources import (
    EmbeddedImage,
    Source,
    base,
    collect_problems,
    duplicate_ids,
    open_source,
    read_llava_json,
)
from sightline.errors import SightlineError
from sightline.types import Sample, Turn

from . import makers

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be read at random")

CASES = [(name, "captions") for name in makers.FORMATS]
CASES += [(name, "chats") for name in makers.FORMATS if name not in makers.TABLES]


def encoded(image) -> bytes:
    return image.read() if isinstance(image, EmbeddedImage) else image.read_bytes()


def content(sample: Sample) -> tuple:
    """What a sample says, whatever file it is from."""
    return sample.id, sample.turns, dict(sample.meta), [encoded(image) for image in sample.images]


def expected(rows: list[dict]) -> list[tuple]:
    found = []
    for number, row in enumerate(rows):
        if "caption" in row:
            turns = (Turn("user", "<image>"), Turn("assistant", row["caption"]))
            meta = {"kind": row["kind"]}
        else:
            roles = {"human": "user", "gpt": "assistant", "system": "system"}
            turns = tuple(Turn(roles[turn["from"]], turn["value"]) for turn in row["conversations"])
            meta = {"ability": row["ability"]}
        found.append((row["id"], turns, meta, [makers.picture(number)]))
    return found


def made(folder: Path, name: str, rows: list[dict]) -> Source:
    return open_source(makers.FORMATS[name](folder, rows))


def unread(source: Source) -> Source:
    """A copy that was not read from yet: beartype looks at a row of every sequence that a function returns."""
    return pickle.loads(pickle.dumps(source))


@pytest.fixture(params=CASES, ids=" ".join)
def case(request, tmp_path):
    name, kind = request.param
    rows = getattr(makers, kind)()
    path = makers.FORMATS[name](tmp_path, rows)
    return path, open_source(path), rows


def test_every_format_gives_the_same_samples(case):
    path, source, rows = case
    assert [content(sample) for sample in source] == expected(rows)
    assert {sample.source for sample in source} == {str(path)}


def test_random_access_is_sequential_access(case):
    _, source, rows = case
    assert len(source) == len(rows)
    order = random.Random(0).choices(range(len(rows)), k=3 * len(rows))
    assert [content(source[row]) for row in order] == [expected(rows)[row] for row in order]


def test_the_index_says_what_is_in_a_row(case):
    """Sizes and images that a batch is grouped by, and a hash that depends on the id alone."""
    _, source, rows = case
    samples = list(source)
    assert source.sizes.tolist() == [sum(len(turn.text) for turn in sample.turns) for sample in samples]
    assert source.num_images.tolist() == [1] * len(rows)
    assert (source.sizes.dtype, source.num_images.dtype, source.id_hashes.dtype) == (np.int32, np.uint8, np.uint64)
    assert len(set(source.id_hashes.tolist())) == len(rows)
    assert source.sequential == bool(source.notice)


def test_a_row_says_where_it_stands(case):
    _, source, rows = case
    places = [source.where(row) for row in range(len(rows))]
    assert len(set(places)) == len(rows)


def test_there_is_no_row_beyond_the_last(case):
    _, source, rows = case
    for row in (-1, len(rows)):
        with pytest.raises(IndexError):
            source[row]


def test_a_source_survives_pickling(case):
    """A copy reads the same, also one made of a source that was read from."""
    _, source, rows = case
    source[1]
    copy = pickle.loads(pickle.dumps(source))
    assert [content(copy[row]) for row in (2, 0)] == [expected(rows)[row] for row in (2, 0)]
    assert copy.sizes.tolist() == source.sizes.tolist()
    assert [copy.where(row) for row in (0, 3)] == [source.where(row) for row in (0, 3)]


def read(source: Source, row: int) -> Sample:
    return source[row]


def test_a_spawned_process_reads_the_same(tmp_path):
    sources = []
    for name in ("jsonl", "csv", "datasets", "tar"):
        (tmp_path / name).mkdir()
        sources.append(made(tmp_path / name, name, makers.captions()))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        for source in sources:
            assert pool.submit(read, source, 3).result() == source[3]


class Ids:
    """A dataset for a loader: the ids of a source's rows, many times over."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __len__(self) -> int:
        return 40 * len(self.source)

    def __getitem__(self, row: int) -> str:
        return self.source[row * 5 % len(self.source)].id


@pytest.mark.parametrize("name", ["json", "csv", "parquet", "tar"])
def test_forked_workers_share_no_position(tmp_path, name):
    rows = makers.captions()
    source = made(tmp_path, name, rows)
    source[0]
    (ids,) = zip(*DataLoader(Ids(source), batch_size=1, num_workers=2), strict=True)
    assert list(ids) == [f"c{row * 5 % len(rows)}" for row in range(40 * len(rows))]


def test_images_in_containers_are_opened_like_files(tmp_path):
    for name in ("parquet", "tar"):
        (tmp_path / name).mkdir()
        image = made(tmp_path / name, name, makers.captions())[3].images[0]
        assert load_image(image).getpixel((0, 0)) == (3, 0, 90)
        assert "c3.png" in image.name


def test_an_embedded_image_is_equal_by_value(tmp_path):
    assert EmbeddedImage("a", b"x") == EmbeddedImage("a", b"x") != EmbeddedImage("a", b"y")
    (tmp_path / "f").write_bytes(b"0123")
    assert EmbeddedImage("a", path=tmp_path / "f", offset=1, size=2).read() == b"12"
    with pytest.raises(SightlineError, match=r"image a: '.*f' ends within it, so it changed .* Start again"):
        EmbeddedImage("a", path=tmp_path / "f", offset=3, size=2).read()
    with pytest.raises(SightlineError, match=r"cannot read image a: .* Put '.*gone' back"):
        EmbeddedImage("a", path=tmp_path / "gone", size=1).read()


@pytest.mark.parametrize("name", ["json", "jsonl", "csv", "tar", "tar.gz"])
def test_a_file_that_changed_is_not_read_on(tmp_path, name):
    """Its rows stand elsewhere now: a row that was not asked for would be read."""
    path = makers.FORMATS[name](tmp_path, makers.captions())
    source = unread(open_source(path))
    file = path if path.is_file() else path / "a-0.tar"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(SightlineError, match=r"changed after it was indexed.*Start again"):
        source[0]


def test_a_stream_says_that_it_starts_again(tmp_path):
    source = unread(made(tmp_path, "tar.gz", makers.captions()))
    assert source.sequential
    for words in ("neither shuffled nor grouped", "a run that resumes skips forward", "going back starts it again"):
        assert words in source.notice
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [source[row].id for row in (0, 2, 2, 5)] == ["c0", "c2", "c2", "c5"]
    with pytest.warns(UserWarning, match="cannot be read at random"):
        assert source[1].id == "c1"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert source[0].id == "c0"


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz"])
def test_compressed_tars(tmp_path, ending):
    rows = makers.captions()
    source = open_source(makers.compressed(tmp_path, rows, ending=ending))
    assert source.sequential
    assert [content(sample) for sample in source] == expected(rows)


def test_nothing_is_asked_of_the_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was asked")

    path = makers.parquet(tmp_path, makers.captions())
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert open_source(path)[0].id == "c0"


@pytest.mark.parametrize("name", ["json", "jsonl", "csv", "datasets", "tar"])
def test_progress_ends_at_its_total(tmp_path, name):
    calls = []
    path = makers.FORMATS[name](tmp_path, makers.captions())
    open_source(path, progress=lambda done, total: calls.append((done, total)))
    assert calls
    assert calls[-1][0] == calls[-1][1] > 0
    assert calls == sorted(calls)


@pytest.mark.parametrize("name", [name for name in makers.FORMATS if name not in makers.TABLES])
def test_every_problem_is_found_in_one_pass(tmp_path, name):
    """The third and the fifth row are broken; `where` of the others still says where they stand."""
    rows = makers.chats()
    rows[2]["conversations"][-1]["value"] = " "
    rows[4]["conversations"][-1]["from"] = "robot"
    path = makers.FORMATS[name](tmp_path, rows)
    problems = collect_problems(path)
    assert len(problems) == 2
    assert "is an empty answer" in problems[0]
    assert "is from 'robot'. Known: system, human, gpt" in problems[1]
    assert "q2" in problems[0]
    assert "q4" in problems[1]
    assert collect_problems(path, limit=1) == problems[:1]
    with pytest.raises(SightlineError) as caught:
        open_source(path)
    assert str(caught.value) == problems[0]

    whole = open_source(path, report=lambda problem: None)
    assert [content(sample) for sample in whole] == [expected(makers.chats())[row] for row in (0, 1, 3)]
    (tmp_path / "sound").mkdir()
    places = made(tmp_path / "sound", name, makers.chats())
    assert [whole.where(row) for row in range(3)] == [places.where(row) for row in (0, 1, 3)]


def test_problems_of_the_file_come_last(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"id": 1}, {"id": 2},', encoding="utf-8")
    problems = collect_problems(path)
    assert problems[0].startswith("rows.json row 0 (id '1') has no 'conversations'")
    assert problems[1].startswith("rows.json row 1 (id '2') has no 'conversations'")
    assert "row 2 is not JSON" in problems[2]
    assert collect_problems(tmp_path / "gone.json") == [
        f"data file not found: {tmp_path}/gone.json. Check `data.path` (relative to where you are)."
    ]
    assert collect_problems(makers.json_lines(tmp_path, makers.chats())) == []


@pytest.mark.parametrize("name", ["json", "csv", "parquet", "tar"])
def test_equal_ids_are_found_by_their_hashes(tmp_path, name):
    rows = makers.captions()
    for row in (4, 6):
        rows[row]["id"] = "c1"
    rows[5]["id"] = rows[0]["id"]
    source = made(tmp_path, name, rows)
    found = duplicate_ids(source)
    assert [message.partition(" has the id of ")[0] for message in found] == [source.where(row) for row in (4, 5, 6)]
    assert f"{source.where(4)} has the id of {source.where(1)}, so they would share" in found[0]
    assert "Give each row an id of its own" in found[0]
    assert duplicate_ids(source, limit=1) == found[:1]


def test_hashes_are_the_same_tomorrow(tmp_path):
    """blake2b of the id's UTF-8, 8 bytes, little end first: python -c "...blake2b(b'c0', digest_size=8)..." by hand."""
    from hashlib import blake2b

    source = made(tmp_path, "jsonl", makers.captions(1))
    assert source.id_hashes[0] == int.from_bytes(blake2b(b"c0", digest_size=8).digest(), "little")


@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet", "tar"])
def test_an_index_grows_in_blocks(tmp_path, monkeypatch, name):
    """Of two rows here; some rows are left out on the way."""
    monkeypatch.setattr(base, "BLOCK", 2)
    rows = makers.captions(9)
    for row in (0, 3, 4, 8):
        rows[row]["caption"] = " "
    source = open_source(makers.FORMATS[name](tmp_path, rows), report=lambda problem: None)
    kept = [1, 2, 5, 6, 7]
    assert [content(sample) for sample in source] == [expected(rows)[row] for row in kept]
    assert source.sizes.tolist() == [len("<image>") + len(rows[row]["caption"]) for row in kept]
    assert len(source.id_hashes) == len(source.num_images) == 5
    first = int(re.findall(r"\d+", source.where(0).removesuffix("'"))[-1])
    places = [int(re.findall(r"\d+", source.where(row).removesuffix("'"))[-1]) - first for row in range(5)]
    extra = [0, 0, 1, 1, 1] if name == "csv" else [0] * 5  # the caption of row 2 has a line end
    assert places == [row - 1 + more for row, more in zip(kept, extra, strict=True)]


def test_a_source_of_broken_rows_alone_is_empty(tmp_path):
    problems = []
    path = tmp_path / "a.jsonl"
    path.write_text("1\n2\n")
    source = open_source(path, report=problems.append)
    assert (len(source), len(problems), list(source)) == (0, 2, [])
    assert source.sizes.shape == source.num_images.shape == source.id_hashes.shape == (0,)
    assert (source.sizes.dtype, source.id_hashes.dtype) == (np.int32, np.uint64)
    assert duplicate_ids(source) == []


def test_more_images_than_fit_a_byte(tmp_path):
    row = {
        "image": ["a.png"] * 300,
        "conversations": [{"from": "human", "value": "<image>" * 300}, {"from": "gpt", "value": "x"}],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps([row]))
    source = open_source(path)
    assert source.num_images.tolist() == [255]
    assert len(source[0].images) == 300


# Which reader


def test_the_images_folder_can_be_given(tmp_path):
    path = makers.json_lines(tmp_path, makers.captions())
    shutil.move(tmp_path / "images", tmp_path / "else")
    assert open_source(str(path), str(tmp_path / "else"))[0].images == (tmp_path / "else/c0.png",)


def test_patterns_and_folders_of_files(tmp_path):
    rows = makers.captions()
    makers.shards(tmp_path, rows)
    assert len(open_source(tmp_path / "shards")) == len(rows)
    assert len(open_source(tmp_path / "shards/a-[01].tar")) == len(rows) // 3
    assert {sample.source for sample in open_source(tmp_path / "shards/*.tar")} == {f"{tmp_path}/shards/*.tar"}
    (tmp_path / "parts").mkdir()
    makers.parquet_folder(tmp_path / "parts", rows)
    source = open_source(tmp_path / "parts/shards")
    assert source.where(0) == "train-00000-of-00002.parquet row 0"
    assert source.where(len(rows) - 1) == f"train-00001-of-00002.parquet row {len(rows) - len(rows) // 2 - 1}"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("rows.jsn", "[]", r"has no format that is known by its ending; did you mean '.json'\? Known: .json"),
        ("rows.xlsx", "x", "has no format that is known by its ending. Known: .json"),
        ("rows.zip", "x", "Known: .json"),
        ("rows", "[]", "is no data that is known"),
        ("rows.tar", "no tar at all", r"rows.tar is no sound tar: .* Make it again, or remove it"),
        ("rows.tar", "", r"rows.tar is no sound tar: .* Make it again"),
        ("rows.tar.gz", "no gzip", "rows.tar.gz is no sound tar"),
        ("rows.tar.zst", b"\x28\xb5\x2f\xfdx", "rows.tar.zst is compressed with zstd, which .* Unpack it to a .tar"),
        ("rows.parquet", "no parquet", r"rows.parquet is no sound Parquet file: .* Write it again"),
        ("rows.parquet", "", "rows.parquet is no sound Parquet file"),
    ],
)
def test_what_cannot_be_opened(tmp_path, name, data, message):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(SightlineError, match=message):
        open_source(path)


def test_a_pipe_is_refused(tmp_path):
    """Opening one to see what it holds would wait for its writer."""
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(SightlineError, match=r"a.tar is a pipe, which can be read once, .* Write it to a file"):
        open_source(tmp_path / "a.tar")


def test_a_pipe_among_shards_is_refused(tmp_path):
    makers.tar(tmp_path / "a.tar", makers.members(makers.captions()))
    os.mkfifo(tmp_path / "b.tar")
    with pytest.raises(SightlineError, match=r"b.tar is a pipe"):
        open_source(tmp_path)


@pytest.mark.parametrize("name", ["a\0.json", "\ud800.json"])
def test_a_name_that_no_file_can_have(tmp_path, name):
    with pytest.raises(SightlineError, match=r"cannot be a file's name: .* Check `data.path`"):
        open_source(tmp_path / name)


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(SightlineError, match=r"cannot read .*File name too long"):
        open_source(tmp_path / ("a" * 5000 + ".json"))


def test_folders_that_are_no_data(tmp_path):
    with pytest.raises(SightlineError, match=r"is no data that is known. Known: .json \(a list of rows\), .jsonl"):
        open_source(tmp_path)
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(SightlineError, match=r"It holds a.jsonl: name one file"):
        open_source(tmp_path)
    for name in ("train-0.parquet", "test-0.parquet"):
        (tmp_path / name).write_text("")
    with pytest.raises(SightlineError, match=r"holds several splits \(test, train\). Name the files of one: .*/test\*"):
        open_source(tmp_path)
    (tmp_path / "a.tar").write_text("")
    with pytest.raises(SightlineError, match=r"holds both .tar and .parquet files. Name those meant: '.*/\*.tar'"):
        open_source(tmp_path)
    with pytest.raises(SightlineError, match=r"no file matches .*nothing-\*.tar. Check `data.path`"):
        open_source(tmp_path / "nothing-*.tar")


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(SightlineError, match=r"data file not found: .*nowhere.json. Check `data.path`"):
        read_llava_json(tmp_path / "nowhere.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(SightlineError, match="is no data that is known"):
        read_llava_json(tmp_path / "folder.json")


# No bytes raise anything but our error

ENDINGS = ("json", "jsonl", "csv", "tsv", "tar", "parquet", "tar.gz")
PIECES = (b"[", b"{", b'"', b"]}", b",", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"<image>", b"image,caption\n")


@pytest.mark.parametrize("ending", ENDINGS)
@given(data=st.binary(max_size=600) | st.lists(st.sampled_from(PIECES) | st.binary(max_size=5)).map(b"".join))
def test_no_bytes_give_a_traceback(tmp_path_factory, ending, data):
    path = tmp_path_factory.getbasetemp() / f"bytes.{ending}"
    path.write_bytes(data)
    problems = collect_problems(path)
    try:
        for sample in open_source(path):
            assert sample.turns
    except SightlineError as problem:
        assert str(problem) == problems[0]
        assert len(str(problem)) < 1500
        str(problem).encode("utf-8")


@pytest.mark.parametrize("name", ["json", "jsonl", "csv", "tar", "tar.gz", "parquet"])
@settings(max_examples=25)
@given(data=st.data())
def test_no_damage_gives_a_traceback(tmp_path_factory, name, data):
    """A sound file with some bytes changed, or cut."""
    folder = tmp_path_factory.getbasetemp() / f"damage {name}"
    if not folder.exists():
        folder.mkdir()
        makers.FORMATS[name](folder, makers.captions())
    sound = next(path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".png")
    raw = bytearray(sound.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = sound.with_name("damaged" + "".join(sound.suffixes))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)) | st.just(len(raw)))])
    try:
        for sample in open_source(path):
            assert sample.turns
    except SightlineError as problem:
        assert len(str(problem)) < 1500
    finally:
        path.unlink()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
json_rows = st.dictionaries(
    st.sampled_from(["id", "image", "images", "conversations", "messages", "caption", "text"]), json_values, max_size=4
)


@given(value=json_rows | json_values)
def test_any_json_value_is_a_sample_or_our_error(tmp_path_factory, value):
    """As a row of a list, as a line, and as a member of a tar: the same verdict."""
    folder, text = tmp_path_factory.getbasetemp(), json.dumps(value)
    (folder / "value.json").write_text(f"[{text}]", encoding="utf-8")
    (folder / "value.jsonl").write_text(text, encoding="utf-8")
    makers.tar(folder / "value.tar", [("a.json", text)])
    found = [bool(collect_problems(folder / f"value.{ending}")) for ending in ("json", "jsonl", "tar")]
    assert found[0] == found[1]
    assert found[0] <= found[2]  # images that a row names are not in the tar


def test_the_index_of_a_tar_holds_no_headers(tmp_path):
    """`tarfile` keeps every header it saw, about a kilobyte for each."""
    from sightline.data.sources.archive import Archive

    rows = makers.captions(30)
    path = makers.tar(tmp_path / "a.tar", makers.members(rows), format=tarfile.USTAR_FORMAT)
    kept = []
    original = tarfile.TarFile.next

    def next_member(self):
        kept.append(len(self.members))
        return original(self)

    tarfile.TarFile.next = next_member
    try:
        with Archive(path) as archive:
            assert len(list(archive)) == 60
    finally:
        tarfile.TarFile.next = original
    assert max(kept) <= 1
