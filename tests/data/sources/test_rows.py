"""Rows of every shape: what they become, and every way they can be broken, with file, row, field and fix."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import parts
from sightline.data.images import resolve_image
from sightline.data.sources import EmbeddedImage, read_llava_json, sample_from_row
from sightline.data.templates import get_template, render, to_jinja
from sightline.errors import SightlineError
from sightline.types import Turn

from . import makers

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
    for row in (
        {**GOOD, "image": None, "images": ["a.png"]},
        {**GOOD, "image": "", "images": ["a.png"]},
        {"images": "a.png", "conversations": [HUMAN, GPT]},
    ):
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
    "id": (changed(id=[1]), "rows.json row 1: 'id' should be a string or a whole number, and is a list"),
    "id true": (changed(id=True), "'id' should be a string or a whole number, and is a boolean"),
    "id with a fraction": (changed(id=1.5), "'id' should be a string or a whole number, and is 1.5. Change it"),
    "misspelt": (
        {"id": "a1", "conversation": [HUMAN, GPT]},
        r"\(id 'a1'\) has no 'conversations'; did you mean 'conver",
    ),
    "no turns": (changed(conversations=[]), "'conversations' should be a list of turns, and is an empty list"),
    "turns nothing": (
        changed(conversations=None),
        "'conversations' should be a list of turns, and is nothing. Give it",
    ),
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


BROKEN |= {
    "empty answer": (talk(HUMAN, {**GPT, "value": " \n"}), "turn 1 is an empty answer, which .* Write one, or remove"),
    "nul": (talk(HUMAN, {**GPT, "value": "a\0"}), "turn 1 holds a NUL character.* Remove it"),
    "half an id": (changed(id="\ud83d"), r"\(id '.ud83d'\): 'id' holds half of a character"),
    "nul id": (changed(id="a\0"), r"\(id 'a.x00'\): 'id' holds a NUL"),
    "image in system": (
        talk({"from": "system", "value": "<image>"}, HUMAN, GPT),
        "turn 0: <image> stands outside the user's turns. Move it into a question, or say it in other words",
    ),
    "chat turns": (
        talk({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}),
        "Turns with 'role' and 'content' belong under 'messages': rename the field",
    ),
    "both shapes": (changed(messages=[]), "has both 'conversations' and 'messages'. Keep one"),
    "both images": (changed(images=["b.png"]), "has both 'image' and 'images'. Keep one"),
    "empty name": (changed(image=[""]), "'image' should be a file name .* its item 0 is empty text. Name files inside"),
    "nul name": (changed(image="a\0.png"), "image 'a.x00.png' holds a NUL"),
    "half a name": (changed(image="\udc00.png"), "image '.udc00.png' holds half of a character"),
    "address": (
        changed(image="https://e.org/a.png"),
        "is an address, and nothing is downloaded. Save it in the image f",
    ),
    "data address": (changed(image="data:image/png;base64,AA"), "is an address, and nothing is downloaded"),
    "two for one": (
        changed(image=["a.png", "b.png"]),
        "1 <image> in the questions for 2 images. Put one <image> where",
    ),
    "order named": (talk(GPT, HUMAN), "turn 0 is from 'gpt', and turns should alternate human, gpt.* Mend their order"),
    "nothing": (None, "rows.json row 1 should be an object with 'conversations', and is nothing. Write it as"),
    "no fields": ({}, "has no 'conversations'. Each row needs its turns there or under 'messages', or a 'caption'"),
    "caption misspelt": ({"image": "a.png", "captoin": "x"}, "did you mean 'captoin'"),
    "caption without image": ({"id": "a1", "caption": "x"}, "a row with a 'caption' needs one image, and has 0. Name"),
    "caption with two": (
        {"image": ["a", "b"], "text": "x"},
        "a row with a 'text' needs one image, and has 2. .*several",
    ),
    "caption list": (
        {"image": "a.png", "caption": ["x"]},
        "'caption' should be text, and is a list. Write the caption",
    ),
    "caption empty": ({"image": "a.png", "caption": " "}, "'caption' is empty, which .* Write it, or remove the row"),
    "caption nothing": ({"image": "a.png", "caption": None}, "'caption' should be text, and is nothing"),
    "caption image": ({"image": "a.png", "caption": "<image> x"}, "'caption' holds <image>, .* Say it in other words"),
    "caption nul": ({"image": "a.png", "caption": "\0"}, "'caption' holds a NUL"),
}


def message(*content, role: str = "user", answer: str = "red", images=("a.png",)) -> dict:
    content = content[0] if len(content) == 1 and not isinstance(content[0], dict) else list(content)
    turns = [{"role": role, "content": content}, {"role": "assistant", "content": answer}]
    return {"id": "a1", "images": list(images), "messages": turns}


PICTURE, WORDS = {"type": "image"}, {"type": "text", "text": "What?"}
BROKEN |= {
    "message role": (message("<image>", role="human"), "turn 0 is from 'human'. Known: system, user, assistant"),
    "message order": (
        message("Hi", role="assistant"),
        "turn 0 is from 'assistant', and turns should alternate user",
    ),
    "message content": (message(3), "turn 0 should be an object with 'role' and a 'content' of text or of items"),
    "llava turns": (
        {"messages": [HUMAN, GPT]},
        "Turns with 'from' and 'value' belong under 'conversations': rename the field",
    ),
    "item": (message(PICTURE, WORDS, {}), "turn 0, item 2 has type 'None'. Known: text, image"),
    "item text": (message(["x"]), "turn 0, item 0 should be an object with a 'type', and is text. Write"),
    "item type": (message(PICTURE, {"type": "video"}), "turn 0, item 1 has type 'video'. Known: text, image"),
    "item no text": (message(PICTURE, {"type": "text"}), "turn 0, item 1: 'text' should be text, and is nothing"),
    "item image": (
        message({"type": "image", "image": 3}),
        "turn 0, item 0: 'image' should be a file name, and is a numb",
    ),
    "item count": (message(PICTURE, PICTURE, WORDS), "2 <image> in the questions for 1 images"),
    "item and text": (
        message(PICTURE, {"type": "text", "text": "<image>?"}),
        "2 <image> in the questions for 1 images",
    ),
    "item named twice": (message({"type": "image", "path": "b.png"}), "1 <image> in the questions for 2 images"),
    "item index": (
        message({**PICTURE, "index": 1}),
        "turn 0, item 0 has index 1, and the next image is 0. List 'images'",
    ),
    "item outside": (message({"type": "image", "image": "../b.png"}, images=()), "image '../b.png' leads out of"),
    "picture in answer": (
        message("<image>", answer=[PICTURE]),
        "turn 1: <image> stands outside the user's turns. Move",
    ),
    "no answer text": (message(PICTURE, WORDS, answer=[]), "turn 1 is an empty answer"),
    "lone system": (
        {"messages": [{"role": "system", "content": "S"}]},
        "nothing follows the system turn, .*user, assis",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_named(tmp_path, case):
    row, problem = BROKEN[case]
    path = write(tmp_path, [GOOD, row])
    with pytest.raises(SightlineError, match=problem) as caught:
        read_llava_json(path)
    assert str(caught.value).startswith("rows.json row 1")
    if isinstance(row, dict) and row.get("id") == "a1":
        assert "(id 'a1')" in str(caught.value)


def test_messages_give_what_conversations_give(tmp_path):
    rows = makers.chats()
    llava = read_llava_json(makers.json_list(tmp_path, rows))
    assert read_llava_json(makers.json_list(tmp_path, [makers.as_messages(row) for row in rows])) == llava


def test_items_of_a_message_stand_as_the_chat_template_puts_them(tmp_path):
    """An image item is `<image>` and a newline; text is taken as it is."""
    row = message(PICTURE, WORDS, PICTURE, images=("a.png", "b.png"))
    (sample,) = read_llava_json(write(tmp_path, [row]))
    assert sample.turns == (Turn("user", "<image>\nWhat?<image>\n"), Turn("assistant", "red"))
    content = [PICTURE, WORDS, PICTURE]
    prompt = render(get_template("vicuna_v1"), sample.turns[:1], "</s>", prompt_only=True)[0]
    chat = to_jinja(get_template("vicuna_v1"))
    messages = [{"role": "user", "content": content}]
    assert parts.tokenizer().apply_chat_template(
        messages, chat_template=chat, tokenize=False, add_generation_prompt=True
    ) == prompt.replace("</s>", parts.tokenizer().eos_token)


@pytest.mark.parametrize("key", ["image", "path", "url"])
def test_an_item_may_name_its_image(tmp_path, key):
    """The others take those of `images`, in order."""
    row = message(PICTURE, {"type": "image", key: "b.png"}, WORDS, PICTURE, images=("a.png", "c.png"))
    assert read_llava_json(write(tmp_path, [row]))[0].images == tuple(tmp_path / f"{name}.png" for name in "abc")


def test_null_fields_of_an_item_say_nothing(tmp_path):
    """Arrow gives every item every field."""
    row = message({"type": "image", "text": None, "index": 0}, {"type": "text", "text": "What?", "index": None})
    assert read_llava_json(write(tmp_path, [row]))[0].turns[0].text == "<image>\nWhat?"


def test_indices_of_items_count_through_all_turns(tmp_path):
    row = message({**PICTURE, "index": 0}, WORDS, images=("a.png", "b.png"))
    row["messages"] += [{"role": "user", "content": [{**PICTURE, "index": 1}]}, {"role": "assistant", "content": "x"}]
    assert len(read_llava_json(write(tmp_path, [row]))[0].images) == 2


@pytest.mark.parametrize("key", ["caption", "text"])
def test_a_caption_is_an_answer_to_its_image(tmp_path, key):
    (sample,) = read_llava_json(write(tmp_path, [{"image": "a.png", key: "a box", "width": 3}]))
    assert sample.turns == (Turn("user", "<image>"), Turn("assistant", "a box"))
    assert (sample.images, sample.meta, sample.id) == ((tmp_path / "a.png",), {"width": 3}, "rows.json row 0")


def test_a_caption_beside_turns_is_kept_apart(tmp_path):
    assert read_llava_json(write(tmp_path, [{**GOOD, "caption": "x"}]))[0].meta == {"ability": "colour", "caption": "x"}


def test_bytes_are_images(tmp_path):
    """Arrow's rows hold them, alone or beside a path."""
    for value in (b"png", {"bytes": b"png", "path": None}, {"bytes": b"png", "path": "/abs/../x.png"}):
        (image,) = sample_from_row({"image": value, "text": "x"}, tmp_path, "row").images
        assert isinstance(image, EmbeddedImage)
        assert image.read() == b"png"
    named = {"bytes": None, "path": "x.png"}
    assert sample_from_row({"image": named, "text": "x"}, tmp_path, "row").images == (tmp_path / "x.png",)
    with pytest.raises(SightlineError, match="leads out of the image folder"):
        sample_from_row({"image": {**named, "path": "/x.png"}, "text": "x"}, tmp_path, "row")


@pytest.mark.parametrize(
    "row",
    [
        changed(id="x" * 10**6),
        changed(image="x" * 10**6 + "://"),
        talk({**HUMAN, "from": "x" * 10**6}, GPT),
        talk({**HUMAN, "from": ["x" * 10**6]}, GPT),
        {"x" * 10**6: 1},
        {f"key{i}": i for i in range(10**5)},
        message({"type": "x" * 10**6}),
    ],
    ids=["id", "image", "role", "role list", "key", "keys", "type"],
)
def test_messages_stay_short(tmp_path, row):
    with pytest.raises(SightlineError) as caught:
        read_llava_json(write(tmp_path, [{**row, "id": row["id"] + "\0"} if len(str(row.get("id", ""))) > 9 else row]))
    assert len(str(caught.value)) < 600


surrogates = st.text(st.characters(), max_size=6)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | surrogates | st.sampled_from(["human", "gpt", "<image>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(surrogates, inner, max_size=3),
    max_leaves=8,
)
turn = st.fixed_dictionaries(
    {}, optional={"from": st.sampled_from(["human", "gpt", "system"]) | anything, "value": anything}
)
item = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image"]) | anything},
    optional=dict.fromkeys(("text", "image", "path", "url", "index"), anything),
)
said = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "assistant", "system"]) | anything,
        "content": st.lists(item, max_size=3) | anything,
    },
)
row = st.fixed_dictionaries(
    {},
    optional={
        "id": anything,
        "image": anything | st.binary(max_size=3),
        "images": anything,
        "conversations": st.lists(turn) | anything,
        "messages": st.lists(said, max_size=3) | anything,
        "caption": anything,
    },
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
