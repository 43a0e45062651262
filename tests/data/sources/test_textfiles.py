"""JSON Lines, JSON lists and tables: where rows start and end, and what a file can have wrong between them."""

import codecs
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.data.sources import base, collect_problems, jsonfiles, open_source
from sightline.errors import SightlineError

from . import makers

ROW = '{"id": "a", "image": "a.png", "caption": "x"}'
LONG = 100 * 2**20


def write(folder: Path, name: str, data: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return path


def texts(path: Path) -> list[str]:
    """The answers of all rows, read from the last to the first and then again in order."""
    source = open_source(path)
    backwards = [source[row].turns[-1].text for row in reversed(range(len(source)))]
    assert backwards[::-1] == [sample.turns[-1].text for sample in source]
    return backwards[::-1]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["", "mark"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_marks_and_blank_lines(tmp_path, end, mark, last):
    """A line keeps its number, whatever stands between."""
    rows = [f'{{"image": "a.png", "caption": "é{i}"}}' for i in range(4)]
    lines = [rows[0], "", rows[1], "  \t", "", rows[2], rows[3]]
    path = write(tmp_path, "a.jsonl", mark + (end.join(lines) + end * last).encode())
    assert texts(path) == ["é0", "é1", "é2", "é3"]
    assert [open_source(path)[row].id for row in range(4)] == [f"a.jsonl line {n}" for n in (1, 3, 6, 7)]

    table = end.join(["image,caption", "a.png,é0", "", "a.png,é1", f'a.png,"é{end}2"', "a.png,é3"]) + end * last
    path = write(tmp_path, "a.csv", mark + table.encode())
    assert texts(path) == ["é0", "é1", f"é{end}2", "é3"]
    source = open_source(path)
    assert [source.where(row) for row in range(4)] == [f"a.csv line {n}" for n in (2, 4, 5, 7)]

    listed = end.join(["", "[", rows[0], ",", rows[1] + "," + rows[2], ", " + rows[3], "]"]) + end * last
    assert texts(write(tmp_path, "a.json", mark + listed.encode())) == ["é0", "é1", "é2", "é3"]


words = st.text(min_size=1).filter(lambda text: text.strip() and "\0" not in text and "<image>" not in text)


@given(
    captions=st.lists(words, min_size=1),
    chunk=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
    ascii_only=st.booleans(),
)
def test_a_list_is_read_alike_in_chunks_of_any_size(tmp_path_factory, captions, chunk, indent, ascii_only):
    path = tmp_path_factory.getbasetemp() / "chunks.json"
    rows = [{"image": "a.png", "caption": text, "n": [1e5, -3]} for text in captions]
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=ascii_only), encoding="utf-8")
    whole, jsonfiles.CHUNK = jsonfiles.CHUNK, chunk
    try:
        assert texts(path) == captions
    finally:
        jsonfiles.CHUNK = whole


@given(captions=st.lists(st.text(st.sampled_from("ab\"',\t\r\n é"), min_size=1).filter(str.strip), min_size=1))
def test_a_table_keeps_every_quote_and_line_end(tmp_path_factory, captions):
    folder = tmp_path_factory.getbasetemp()
    (folder / "images").mkdir(exist_ok=True)
    for maker in (makers.table, makers.tsv):
        assert texts(maker(folder, [{"image": "a.png", "caption": text} for text in captions])) == captions


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv"])
def test_a_line_of_100_mb_is_named_and_not_held(tmp_path, ending):
    """The first and the last row are sound; the one between would fill the memory if it were longer still."""
    lead, tail = {
        "jsonl": (f'{ROW}\n{{"id": "', f'"}}\n{ROW}\n'),
        "json": (f'[{ROW},\n{{"id": "', f'"}},\n{ROW}]'),
        "csv": ("image,caption\na.png,x\na.png,", "\na.png,x\n"),
        "tsv": ("image\tcaption\na.png\tx\na.png\t", "\na.png\tx\n"),
    }[ending]
    path = tmp_path / f"rows.{ending}"
    with path.open("w") as file:
        file.write(lead)
        for _ in range(LONG // 2**20):
            file.write("x" * 2**20)
        file.write(tail)
    (problem,) = collect_problems(path)
    where = {"jsonl": "line 2", "json": "row 1 (from line 2 of the file)"}.get(ending, "line 3")
    assert problem.startswith(f"rows.{ending} {where}")
    assert "and a row may have 16,777,216. Is a line end or a quote missing? Split or remove the row." in problem
    assert len(problem) < 300
    if ending != "json":  # after a value that does not end, nothing in a list can be found
        assert len(open_source(path, report=lambda problem: None)) == 2


def test_a_row_may_be_as_long_as_allowed(tmp_path, monkeypatch):
    """To the byte, in a list as on a line."""
    row = '{"image": "a.png", "caption": "%s"}'
    monkeypatch.setattr(jsonfiles, "CHUNK", 64)
    monkeypatch.setattr(jsonfiles, "MAX_ROW", 1000)
    fits, over = row % ("x" * (1000 - len(row) + 2)), row % ("x" * (1001 - len(row) + 2))
    for name, text in (("a.json", "[{},{}]"), ("a.jsonl", "{}\n{}")):
        assert len(texts(write(tmp_path, name, text.format(ROW, fits)))) == 2
        (problem,) = collect_problems(write(tmp_path, name, text.format(ROW, over)))
        assert "has 1,001 bytes" in problem
    assert base.MAX_ROW == 16 * 2**20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"rows.json is not JSON: it is empty. It should be one list of rows"),
        ("  \n", "is not JSON: it is empty"),
        ("x", "is not JSON: it starts with 'x'"),
        ("[", r"row 0 is not JSON: Expecting value \(line 1 of the file\). It should be one list of rows"),
        (f"[{ROW}", r"row 0: .*rows.json is not JSON: the file ends after it \(line 1 of the file\)"),
        (f"[{ROW},", r"row 1 is not JSON: Expecting value"),
        (f"[{ROW},]", r"row 1 is not JSON: Expecting value"),
        (f"[{ROW}\n{ROW}]", r"row 0: .* is not JSON: '\{' follows it \(line 2 of the file\)"),
        (f"[{ROW}] x", r"is not JSON: more follows the list \(line 1"),
        (f"[{ROW}][{ROW}]", "is not JSON: more follows the list"),
        (f'[{ROW},\n{{"id": "b"\n "image": 1}}]', r"row 1 is not JSON: Expecting ',' delimiter \(line 3 of the file\)"),
        (f'[{ROW},\n{{"id": "b\n"}}]', r"row 1 is not JSON: Invalid control character at \(line 3 of the file\)"),
        (f'[{ROW},\n{{"id": "b', r"row 1 is not JSON: Unterminated string starting at \(line 2 of the file\)"),
        (f"{ROW}\n{ROW}", "should hold a list of rows, and holds an object. If it has one object on each line, name"),
        ("[]", "should hold a list of rows, and holds an empty list. Put rows in it"),
        ("[ \n ]", "should hold a list of rows, and holds an empty list"),
        ('{"id": 1}', "should hold a list of rows, and holds an object"),
        ("null", "should hold a list of rows, and holds nothing"),
        ("-1", "is not JSON: it starts with '-'"),
        ("7", "should hold a list of rows, and holds a number"),
        ('"x"', "should hold a list of rows, and holds text"),
        ("[" * 100_000, "row 0 is not JSON: it is nested too deep"),
        ("[" + "1" * 5000 + "]", r"row 0 is not JSON: Exceeds the limit \(4300 digits\)"),
        ("[12]", "rows.json row 0 should be an object with 'conversations', and is a number"),
    ],
)
def test_a_file_that_is_no_list_of_rows(tmp_path, text, message):
    with pytest.raises(SightlineError, match=message) as caught:
        open_source(write(tmp_path, "rows.json", text))
    assert "rows.json" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows.jsonl holds no rows. Each line should be one row, whole"),
        ("\n \n", "rows.jsonl holds no rows"),
        (f"{ROW}\n{ROW} x", r"rows.jsonl line 2 is not JSON: Extra data \(column 47\). Each line should be one row"),
        (f"\n{ROW[:-1]}", r"rows.jsonl line 2 is not JSON: Expecting ',' delimiter \(column 45\)"),
        (f'{ROW}\n{{"id":\n1}}', r"rows.jsonl line 2 is not JSON: Expecting value \(column 7\)"),
        (f"[\n{ROW}\n]", "line 1 starts a list, so .* is no JSON Lines. Name it .json"),
        (f"{ROW}\n[]", "rows.jsonl line 2 should be an object with 'conversations', and is an empty list"),
        ("[" * 100_000, "rows.jsonl line 1 starts a list"),
        (ROW + '\n{"a":' + "[" * 100_000, "rows.jsonl line 2 is not JSON: it is nested too deep"),
        (ROW + "\n" + "1" * 5000, "rows.jsonl line 2 is not JSON: Exceeds the limit"),
    ],
)
def test_a_file_that_is_no_json_lines(tmp_path, text, message):
    with pytest.raises(SightlineError, match=message):
        open_source(write(tmp_path, "rows.jsonl", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "rows.csv holds no rows. Put one row on each line below its header"),
        ("image,caption\n", "rows.csv holds no rows"),
        ("a.png,x\n", "line 1: the header has no column 'image'.* It has: a.png, x. The first line should name"),
        ("image,captoin\na.png,x", "no column 'caption'; did you mean 'captoin'"),
        ("image;caption\na.png;x", "no column 'image'; the columns look parted by ';', not ','. It has: image;caption"),
        ("image,caption,image\na,b,c", "line 1: the header names column 'image' twice. Rename one"),
        ("image,caption\na.png,a box, red\n", r"line 2 has 3 fields, and the header 2. Put text that holds ','"),
        ("image,caption\na.png\n", "line 2 has 1 fields, and the header 2"),
        ("image,caption\na.png,\n", "line 2: 'caption' is empty, which .* Write it, or remove the row"),
        ("image,caption\n,x\n", "line 2: a row with a 'caption' needs one image, and has 0. Name it in 'image'"),
        ('image,caption\na.png,"x', "line 2: a quote opens and does not close .* Close it, or double it"),
        ('image,caption\na.png,"x" y', "line 2 is no row of a table: .* Double the quotes inside a quoted field"),
        ("image,caption\na.png,x\ra.png,y", "line 2 is no row of a table"),
        ("image,caption\na.png,<image>", "line 2: 'caption' holds <image>"),
        ("id,image,caption\n7,../a.png,x", r"line 2 \(id '7'\): image '../a.png' leads out of the image folder"),
        (b"image,caption\na.png,\xff", r"line 2 is not UTF-8: byte 6 of it, byte 20 of the file, is 0xff. Mend that"),
        (b"ima\xffge,caption\na.png,x", r"line 1 is not UTF-8: byte 3 of it, byte 3 of the file"),
    ],
)
def test_a_file_that_is_no_table(tmp_path, text, message):
    with pytest.raises(SightlineError, match=message) as caught:
        open_source(write(tmp_path, "rows.csv", text))
    assert "rows.csv" in str(caught.value)


def test_an_id_may_be_left_out_in_some_rows(tmp_path):
    source = open_source(write(tmp_path, "a.csv", "id,image,text\nx,a.png,1\n,a.png,2\n"))
    assert [sample.id for sample in source] == ["x", "a.csv line 3"]


def test_lines_behind_an_open_quote_are_checked_too(tmp_path):
    """The quote takes the rest of the file with it; the doctor still names what else is wrong there."""
    path = write(tmp_path, "a.csv", 'image,caption\na.png,"x\na.png,ok\na.png\na.png,fine\n')
    problems = collect_problems(path)
    assert [problem.split(" ")[:3] for problem in problems] == [["a.csv", "line", "2:"], ["a.csv", "line", "4"]]
    sound = open_source(path, report=lambda problem: None)
    assert [(sample.turns[1].text, sample.id) for sample in sound] == [("ok", "a.csv line 3"), ("fine", "a.csv line 5")]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_named(tmp_path, encoding):
    data = f"{ROW}\n{ROW.replace('x', 'é')}\n".encode(encoding)
    message = r"a.jsonl line \d is not UTF-8: byte \d+ of it, byte \d+ of the file, is 0x..\. Mend that .*, or save"
    with pytest.raises(SightlineError, match=message):
        open_source(write(tmp_path, "a.jsonl", data))


def test_a_byte_that_is_not_utf8_is_found_at_its_place(tmp_path):
    """In the row that holds it, after the rows before it were checked."""
    data = f"[{ROW},\n{ROW},".encode() + b'{"id": "\xe9'
    (problem,) = collect_problems(write(tmp_path, "a.json", data + b'"}]'))
    assert problem.startswith(f"a.json row 2 is not UTF-8: byte {len(data) - 1} of the file, is 0xe9. Mend")
    cut = write(tmp_path, "b.json", f"[{ROW},\n{ROW},".encode() + b'{"id": "\xc3')
    assert "b.json row 2 is not UTF-8" in collect_problems(cut)[0]
    lines = write(tmp_path, "a.jsonl", f"{ROW}\n{ROW}\n".encode() + b"\xe9\n" + ROW.encode())
    assert collect_problems(lines) == [
        f"a.jsonl line 3 is not UTF-8: byte 0 of it, byte {2 * len(ROW) + 2} of the file, is 0xe9. "
        "Mend that character, or save the file as UTF-8."
    ]
