import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sightline.errors import SightlineError
from sightline.evaluation import Question, read_questions

ROW = {"id": 7, "image": "a.png", "question": "What colour?", "answer": "red", "ability": "colour"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


def read(root: Path, content: object) -> list[Question]:
    path = root.parent / "questions.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_questions(path, root)


def test_a_json_list_and_jsonl_read_alike(root):
    expected = [Question("7", (root / "a.png",), "What colour?", ("red",), "colour")]
    assert read(root, [ROW]) == expected
    assert read(root, json.dumps(ROW) + "\n\n") == expected
    assert read(root, "\ufeff \n" + json.dumps([ROW], indent=2)) == expected


def test_spellings_of_pope_and_vqa(root):
    pope = {"question_id": 1, "image": "a.png", "text": "Is it?", "label": "yes", "category": "popular"}
    vqa = {"id": "x", "images": ["a.png", "b.png"], "question": "How many?", "answers": ["2", "two"]}
    assert read(root, [pope, vqa]) == [
        Question("1", (root / "a.png",), "Is it?", ("yes",), "popular"),
        Question("x", (root / "a.png", root / "b.png"), "How many?", ("2", "two"), "other"),
    ]


def test_text_alone_needs_no_image(root):
    assert read(root, [{"id": 1, "question": "Capital?", "answer": "Rome"}])[0].images == ()


def without(*names: str) -> dict:
    return {key: value for key, value in ROW.items() if key not in names}


def test_a_row_without_id_goes_by_its_place(root):
    rows = [without("id"), ROW, without("id")]
    assert [question.id for question in read(root, rows)] == ["row 0", "7", "row 2"]
    assert [question.id for question in read(root, "\n".join(map(json.dumps, rows)))] == ["line 1", "7", "line 3"]


def test_a_llava_row_loses_its_markers(root):
    turns = [{"from": "human", "value": "<image>\n<image>\nSame?"}, {"from": "gpt", "value": "no"}]
    row = {"id": "l", "image": ["b.png", "a.png"], "conversations": turns}
    assert read(root, [row]) == [Question("l", (root / "b.png", root / "a.png"), "Same?", ("no",), "other")]
    turns[0]["value"] = "What is this?\n<image>"
    assert read(root, [row | {"image": "a.png"}])[0].text == "What is this?"


def talk(*speakers: str) -> dict:
    return {"id": 1, "conversations": [{"from": speaker, "value": "x"} for speaker in speakers]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ["questions.json", "no questions", "JSONL"]),
        ("[]", ["no questions"]),
        ("[{]", ["questions.json", "not JSON"]),
        (json.dumps(ROW) + "\n{oops\n", ["questions.json line 2", "not JSON", "one object a line"]),
        (b"\xff\xfe\x00", ["UTF-8"]),
        ([ROW, 3], ["questions.json row 1", "object", "a number"]),
        ([ROW | {"id": True}], ["'id'", "a boolean"]),
        ([ROW, ROW | {"question": "Other?"}], ["row 1", "id '7'", "row 0"]),
        ([without("answer")], ["id '7'", "no 'answers'", "label"]),
        ([without("answer") | {"anser": "red"}], ["did you mean 'answer'"]),
        ([ROW | {"answer": 3}], ["answer", "a number", "Quote"]),
        ([ROW | {"answer": []}], ["answer", "empty"]),
        ([ROW | {"answer": " "}], ["an answer is empty"]),
        ([ROW | {"label": "blue"}], ["'answer' and 'label' disagree"]),
        ([without("question")], ["no 'question'", "text"]),
        ([ROW | {"question": ["?"]}], ["the question should be text", "a list"]),
        ([ROW | {"question": "<image>\n"}], ["the question is empty"]),
        ([ROW | {"question": "<image><image>?"}], ["2 <image>", "1 images"]),
        ([ROW | {"image": "gone.png"}], ["image not found", "gone.png"]),
        ([ROW | {"image": "x" * 5000}], ["image not found"]),
        ([ROW | {"image": "a\0.png"}], ["image not found"]),
        ([ROW | {"image": "../secret.png"}], ["leads out of the image folder"]),
        ([ROW | {"image": "/etc/passwd"}], ["leads out of the image folder"]),
        ([ROW | {"image": 3}], ["'image' should be a file name"]),
        ([ROW | {"ability": 3}], ["'ability'", "a number"]),
        ([ROW | {"answer": "\ud800"}], ["'answer'", "surrogate"]),
        ([talk("human", "gpt", "human", "gpt")], ["one human turn and one gpt turn", "Split"]),
        ([talk("gpt", "human")], ["one human turn and one gpt turn"]),
        ([talk("human", "gpt") | {"answer": "x"}], ["both 'conversations' and 'answer'"]),
        ("[" * 100_000, ["not JSON"]),
        ("1" * 10_000, ["not JSON"]),
    ],
)
def test_errors_name_place_and_fix(root, content, words):
    with pytest.raises(SightlineError) as error:
        read(root, content)
    for word in words:
        assert word in str(error.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(SightlineError, match=r"nowhere\.json"):
        read_questions(tmp_path / "nowhere.json", tmp_path)
    with pytest.raises(SightlineError, match="cannot read"):
        read_questions(tmp_path, tmp_path)


NAMES = (
    "id",
    "question_id",
    "image",
    "images",
    "question",
    "answer",
    "answers",
    "label",
    "ability",
    "from",
    "value",
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("a.png"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from((*NAMES, "conversations")), inner, max_size=6)
    ),
    max_leaves=12,
)
ROWS = st.lists(st.builds(lambda extra: ROW | (extra if isinstance(extra, dict) else {}), ANYTHING) | ANYTHING)


@settings(max_examples=150, deadline=None)
@given(st.binary() | st.text().map(str) | ROWS.map(json.dumps) | ROWS.map(lambda r: "\n".join(map(json.dumps, r))))
def test_no_file_raises_anything_else(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        try:
            questions = read_questions(path, Path(folder))
        except SightlineError:
            return
        assert len({question.id for question in questions}) == len(questions) > 0
