"""`datasets` on disk and Parquet: images of every storage, columns of every shape."""

import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sightline.data.sources import arrow, collect_problems, open_source
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
