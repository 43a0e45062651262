"""LLaVA JSON: every way a row can be broken is said with its file, its row, its id and what to do."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.data.images import resolve_image
from sightline.data.sources import read_llava_json, sample_from_row
from sightline.errors import SightlineError
from sightline.types import Turn

HUMAN = {"from": "human", "value": "<image>\nWhat?"}
GPT = {"from": "gpt", "value": "red"}
GOOD = {"id": "a1", "image": "a.png", "conversations": [HUMAN, GPT], "ability": "colour"}


def write(folder: Path, rows) -> Path:
    path = folder / "rows.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


def test_a_row_becomes_a_sample(tmp_path):
    path = write(tmp_path, [GOOD])
    (sample,) = read_llava_json(path)
    assert sample.id == "a1"
    assert sample.images == (tmp_path / "a.png",)
    assert sample.turns == (Turn("user", "<image>\nWhat?"), Turn("assistant", "red"))
    assert sample.source == str(path)
    assert sample.meta == {"ability": "colour"}


def test_several_images_none_and_a_system_turn(tmp_path):
    two = {
        "id": 7,
        "image": ["a.png", "sub/b.png"],
        "conversations": [{"from": "human", "value": "<image><image>"}, GPT],
    }
    plain = {"conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Hi"}, GPT]}
    first, second = read_llava_json(write(tmp_path, [two, plain]), tmp_path / "pics")
    assert first.id == "7"
    assert first.images == (tmp_path / "pics/a.png", tmp_path / "pics/sub/b.png")
    assert (second.id, second.images) == ("rows.json row 1", ())
    assert [turn.role for turn in second.turns] == ["system", "user", "assistant"]


def test_images_under_either_name(tmp_path):
    for row in ({**GOOD, "image": None, "images": ["a.png"]}, {"images": "a.png", "conversations": [HUMAN, GPT]}):
        assert read_llava_json(write(tmp_path, [row]))[0].images == (tmp_path / "a.png",)


@pytest.mark.parametrize("nothing", ["", None, []])
def test_an_image_field_that_says_nothing(tmp_path, nothing):
    """Mixed sets write their text rows this way."""
    row = {"image": nothing, "conversations": [{"from": "human", "value": "Hi"}, GPT]}
    assert read_llava_json(write(tmp_path, [row]))[0].images == ()


def test_a_byte_order_mark_is_no_trouble(tmp_path):
    """Windows editors put one at the start of a UTF-8 file."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([GOOD]), encoding="utf-8-sig")
    assert read_llava_json(path)[0].id == "a1"


def changed(**fields) -> dict:
    return {**GOOD, **fields}


def talk(*turns) -> dict:
    return {"id": "a1", "image": "a.png", "conversations": list(turns)}


BROKEN = {
    "not an object": ("red", "rows.json row 1 should be an object with 'conversations', and is text"),
    "id": (changed(id=[1]), "rows.json row 1: 'id' should be a string or a number, and is a list"),
    "id true": (changed(id=True), "'id' should be a string or a number, and is a boolean"),
    "misspelt": (
        {"id": "a1", "conversation": [HUMAN, GPT]},
        r"\(id 'a1'\) has no 'conversations'; did you mean 'conver",
    ),
    "no turns": (changed(conversations=[]), "'conversations' should be a list of turns, and is an empty list"),
    "turns": (changed(conversations="hello"), "'conversations' should be a list of turns, and is text"),
    "turn": (talk(HUMAN, "red"), "turn 1 should be an object with 'from' and a 'value' of text"),
    "no value": (talk(HUMAN, {"from": "gpt"}), "turn 1 should be an object with 'from' and a 'value' of text"),
    "value": (talk(HUMAN, {"from": "gpt", "value": 3}), "turn 1 should be an object with 'from' and a 'value' of text"),
    "role": (talk({**HUMAN, "from": "user"}, GPT), "turn 0 is from 'user'. Known: system, human, gpt"),
    "no role": (talk({"value": "x"}, GPT), "turn 0 is from 'None'. Known"),
    "role list": (talk({**HUMAN, "from": ["human"]}, GPT), "turn 0 is from"),
    "order": (talk(GPT, HUMAN), "turns should alternate human, gpt"),
    "twice": (talk(HUMAN, HUMAN), "turns should alternate human, gpt"),
    "system alone": (talk({"from": "system", "value": "S"}), "turns should alternate human, gpt"),
    "late system": (talk(HUMAN, GPT, {"from": "system", "value": "S"}), "at most one system turn at the start"),
    "no placeholder": (talk({**HUMAN, "value": "What?"}, GPT), "0 <image> in the questions for 1 images. Put one"),
    "no image": ({"id": "a1", "conversations": [HUMAN, GPT]}, "1 <image> in the questions for 0 images"),
    "image in answer": (talk(HUMAN, {**GPT, "value": "<image>"}), "<image> stands outside the user's turns. Move it"),
    "image number": (changed(image=3), "'image' should be a file name or a list of them, and is a number"),
    "image zero": (changed(image=0), "'image' should be a file name or a list of them, and is a number"),
    "image object": (changed(image={}), "'image' should be a file name or a list of them, and is an object"),
    "image names": (changed(image=["a.png", None]), "'image' should be a file name or a list of them"),
    "parent": (changed(image="../a.png"), "image '../a.png' leads out of the image folder .*. Use a path inside it"),
    "inner parent": (changed(image="x/../../a.png"), "leads out of the image folder"),
    "absolute": (changed(image="/etc/passwd"), "leads out of the image folder"),
    "half a character": (talk(HUMAN, {**GPT, "value": "\ud83d"}), "turn 1 holds half of a character .*Mend or remove"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_named(tmp_path, case):
    row, message = BROKEN[case]
    path = write(tmp_path, [GOOD, row])
    with pytest.raises(SightlineError, match=message) as caught:
        read_llava_json(path)
    assert str(caught.value).startswith("rows.json row 1")
    if isinstance(row, dict) and row.get("id") == "a1":
        assert "(id 'a1')" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ('[{"id": 1}', "is not JSON: .* It should be one list of rows"),
        ("{}\n{}", "is not JSON"),
        ("[]", "should hold a list of rows, and holds an empty list"),
        ('{"id": 1}', "should hold a list of rows, and holds an object"),
        ("null", "should hold a list of rows, and holds nothing"),
        ("[" * 100_000, "is not JSON"),
        ("[" + "1" * 5000 + "]", "is not JSON"),
    ],
)
def test_a_file_that_is_no_list_of_rows(tmp_path, text, message):
    with pytest.raises(SightlineError, match=message) as caught:
        read_llava_json(write(tmp_path, text))
    assert "rows.json" in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(SightlineError, match=r"data file not found: .*nowhere.json. Check `data.path`"):
        read_llava_json(tmp_path / "nowhere.json")
    with pytest.raises(SightlineError, match="cannot read"):
        read_llava_json(tmp_path)
    (tmp_path / "latin.json").write_bytes('["é"]'.encode("latin-1"))
    with pytest.raises(SightlineError, match=r"cannot read .* It should be a UTF-8 JSON file"):
        read_llava_json(tmp_path / "latin.json")


surrogates = st.text(st.characters(), max_size=6)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | surrogates | st.sampled_from(["human", "gpt", "<image>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(surrogates, inner, max_size=3),
    max_leaves=8,
)
turn = st.fixed_dictionaries(
    {}, optional={"from": st.sampled_from(["human", "gpt", "system"]) | anything, "value": anything}
)
row = st.fixed_dictionaries(
    {}, optional={"id": anything, "image": anything, "images": anything, "conversations": st.lists(turn) | anything}
)


@given(value=row | anything)
def test_any_json_gives_a_sample_or_our_error(value):
    """Whatever passes can be tokenised: its text encodes."""
    try:
        sample = sample_from_row(value, Path("images"), "f.json row 0")
    except SightlineError as error:
        assert str(error).startswith("f.json row 0")
    else:
        assert sample.turns
        "".join(turn.text for turn in sample.turns).encode("utf-8")


@given(name=st.text(st.sampled_from("./\\ab~"), min_size=1, max_size=9))
def test_no_name_leads_out_of_the_folder(name):
    root = Path("/data/images")
    try:
        path = resolve_image(root, name, "row")
    except SightlineError:
        return
    # Path.resolve would follow links; this only folds "..".
    assert Path(*(part for part in path.parts)).is_relative_to(root)
    assert ".." not in path.parts
