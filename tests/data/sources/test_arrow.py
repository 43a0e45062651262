"""`datasets` on disk and Parquet: images of every storage, columns of every shape."""

import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.data.sources import arrow, collect_problems, open_source
from sightline.data.sources.rows import FIELDS
from sightline.errors import SightlineError
from sightline.types import Turn

from . import makers

PNG = makers.picture(1)


def table(folder, rows=None, **columns):
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows) if rows is not None else pa.table(columns), path)
    return path


def talk(images):
    return [{"from": "human", "value": "<image>" * images + "?"}, {"from": "gpt", "value": "x"}]


def test_images_of_every_storage(tmp_path):
    """A struct of bytes and path, bytes alone, lists of either, and names of files."""
    both = {"bytes": PNG, "path": None}
    for row, count in (
        ({"image": both, "text": "x"}, 1),
        ({"image": PNG, "text": "x"}, 1),
        ({"images": [both, both], "conversations": talk(2)}, 2),
        ({"images": [PNG, PNG], "conversations": talk(2)}, 2),
        ({"image": [both], "text": "x"}, 1),
    ):
        source = open_source(table(tmp_path, [row]))
        assert [image.read() for image in source[0].images] == [PNG] * count
        assert source.num_images.tolist() == [count]
    source = open_source(table(tmp_path, [{"image": "a.png", "text": "x"}, {"image": "b.png", "text": "y"}]))
    assert [sample.images for sample in source] == [(tmp_path / "a.png",), (tmp_path / "b.png",)]


def test_rows_with_images_and_without(tmp_path):
    """Nulls and empty lists are no images; each row keeps its own."""
    counts = (2, 0, 1, 0, 3)
    rows = [
        {"images": [makers.picture(10 * row + k) for k in range(count)], "conversations": talk(count)}
        for row, count in enumerate(counts)
    ]
    rows[1]["images"] = None
    source = open_source(table(tmp_path, rows))
    assert source.num_images.tolist() == list(counts)
    assert [[image.read() for image in sample.images] for sample in source] == [row["images"] or [] for row in rows]


def test_the_bytes_of_images_stay_on_disk_while_rows_are_checked(tmp_path, monkeypatch):
    checked = []
    original = arrow.sample_from_row

    def watch(row, *args, **options):
        checked.append(row["image"])
        return original(row, *args, **options)

    monkeypatch.setattr(arrow, "sample_from_row", watch)
    source = open_source(makers.parquet(tmp_path, makers.captions(3)))
    assert [image["bytes"] for image in checked[:3]] == [b"-"] * 3
    assert source[1].images[0].read() == makers.picture(1)


def test_turns_kept_as_an_object_of_lists(tmp_path):
    """How `datasets` has long stored a Sequence of objects."""
    path = table(tmp_path, [{"conversations": {"from": ["human", "gpt"], "value": ["Hi", "Yo"]}}])
    assert open_source(path)[0].turns == (Turn("user", "Hi"), Turn("assistant", "Yo"))


def test_messages_of_items_as_trl_stores_them(tmp_path):
    """HuggingFaceH4/llava-instruct-mix-vsft: every item has every field."""
    question = [{"index": None, "text": "What?", "type": "text"}, {"index": 0, "text": None, "type": "image"}]
    answer = [{"index": None, "text": "red", "type": "text"}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    (sample,) = open_source(table(tmp_path, [{"messages": messages, "images": [{"bytes": PNG, "path": None}]}]))
    assert sample.turns == (Turn("user", "What?<image>\n"), Turn("assistant", "red"))
    assert sample.images[0].read() == PNG


def test_broken_rows_name_their_shard(tmp_path):
    rows = makers.captions(6)
    rows[4]["caption"] = ""
    (problem,) = collect_problems(makers.parquet_folder(tmp_path, rows))
    assert problem.startswith("train-00001-of-00002.parquet row 1 (id 'c4'): 'caption' is empty")
    outside = table(tmp_path, [{"image": {"bytes": None, "path": "/etc/passwd"}, "text": "x"}])
    assert "rows.parquet row 0: image '/etc/passwd' leads out of the image folder" in collect_problems(outside)[0]
    absent = table(tmp_path, [{"image": {"bytes": PNG, "path": ""}, "text": "x"}, {"image": None, "text": "y"}])
    assert "rows.parquet row 1: a row with a 'text' needs one image, and has 0" in collect_problems(absent)[0]
    misspelt = table(tmp_path, [{"image": PNG, "captoin": "x"}])
    assert "did you mean 'captoin'" in collect_problems(misspelt)[0]


def test_text_that_is_not_utf8_is_named(tmp_path):
    """Other writers do not look; Arrow itself raises a UnicodeDecodeError where the text is read."""
    text = pa.Array.from_buffers(
        pa.string(),
        3,
        [None, pa.py_buffer(b"".join(n.to_bytes(4, "little") for n in (0, 1, 2, 3))), pa.py_buffer(b"a\xffb")],
    )
    path = table(tmp_path, image=pa.array(["1.png", "2.png", "3.png"]), text=text)
    (problem,) = collect_problems(path)
    assert problem.startswith("rows.parquet row 1 is damaged: ")
    assert "UTF8" in problem
    assert "Write it again as UTF-8" in problem
    sound = open_source(path, report=lambda problem: None)
    assert [sample.turns[1].text for sample in sound] == ["a", "b"]


arrow_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=4) | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["bytes", "path", "from", "value", "role", "content", "type"]), inner, max_size=2
        )
    ),
    max_leaves=5,
)


@settings(max_examples=30)
@given(row=st.dictionaries(st.sampled_from(FIELDS), arrow_values, min_size=1, max_size=4))
def test_any_row_is_a_sample_or_our_error(tmp_path_factory, row):
    try:
        path = table(tmp_path_factory.getbasetemp(), [row, row])
    except (pa.ArrowException, NotImplementedError):
        return  # Arrow holds no such row
    try:
        assert all(sample.turns for sample in open_source(path))
    except SightlineError as problem:
        assert str(problem) in collect_problems(path)[0]


def test_splits_are_named(tmp_path):
    data = makers.dataset(makers.captions(2))
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / "both")
    with pytest.raises(SightlineError, match=r"holds several splits. Name one of them: '.*both/train', '.*both/test'"):
        open_source(tmp_path / "both")
    assert len(open_source(tmp_path / "both/train")) == 2
    datasets.DatasetDict(train=data).save_to_disk(tmp_path / "one")
    assert len(open_source(tmp_path / "one")) == 2


def test_what_datasets_cannot_open(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(SightlineError, match=r"cannot open .* with `datasets`: .* Save it again, or name the right"):
        open_source(tmp_path)
    with pytest.raises(SightlineError, match=r"rows.parquet holds no rows. Put rows in it"):
        open_source(table(tmp_path, image=pa.array([], pa.string()), text=pa.array([], pa.string())))
    path = makers.saved(tmp_path, makers.captions())
    next(path.glob("*.arrow")).write_bytes(b"x")
    with pytest.raises(SightlineError, match=r"cannot open .*saved with `datasets`"):
        open_source(path)


def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "a.parquet").write_bytes(b"x")
    (tmp_path / "state.json").write_text("{}")
    for path in (tmp_path / "a.parquet", tmp_path):
        with pytest.raises(
            SightlineError, match=r"needs the `datasets` library, .* Run: pip install 'sightline.data.'"
        ):
            open_source(path)


def test_progress_bars_are_left_as_they_were(tmp_path):
    path = makers.parquet(tmp_path, makers.captions())
    datasets.enable_progress_bars()
    open_source(path)
    assert datasets.is_progress_bar_enabled()
