"""Levels of alignment: golden numbers, scores that are the models' own, stores that end the same however written."""

import json
import pickle
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, strategies
from PIL import Image
from transformers import AutoTokenizer, CLIPModel, SiglipModel

from sightline.annotate import images
from sightline.annotate.levels import PairLevels
from sightline.annotate.pairs import caption, chunks, pair_key
from sightline.annotate.ranking import Cuts, cut_points
from sightline.config import Recipe, check
from sightline.data.features import image_key
from sightline.data.store import Store
from sightline.errors import ImageError, SightlineError
from sightline.methods.base import Setting
from sightline.models.assemble import assemble
from sightline.train.rows import read_data
from sightline.types import Sample, Turn
from stores import contents, killed_at_shard

GOLDEN = [0.31, 0.12, 0.25, 0.18, 0.40, 0.05, 0.22, 0.28]
"""design/methods.md, section 4; computed there by hand."""


def levels_of(scores: list[float], levels: int, by: Any) -> list[int]:
    cuts = Cuts(levels, cut_points(np.array(scores), levels, by), {})
    return [cuts(score, "") for score in scores]


def test_golden_levels():
    assert levels_of(GOLDEN, 4, "rank") == [4, 1, 3, 2, 4, 1, 2, 3]
    assert levels_of(GOLDEN, 4, "width") == [3, 1, 3, 2, 4, 1, 2, 3]
    assert cut_points(np.array(GOLDEN), 4, "rank") == (0.18, 0.25, 0.31)


scores = strategies.lists(strategies.floats(-1, 1, width=32), min_size=1, max_size=60)


@given(scores, strategies.integers(1, 12), strategies.sampled_from(["rank", "width"]))
def test_levels_follow_the_score_alone(values: list[float], levels: int, by: str):
    """Monotone in the score, between 1 and N, and the same in whatever order rows come."""
    found = levels_of(values, levels, by)
    pairs = sorted(zip(values, found, strict=True))
    assert [level for _, level in pairs] == sorted(found) and min(found) >= 1 and max(found) == levels
    assert all(a[1] == b[1] for a, b in pairwise(pairs) if a[0] == b[0])
    assert levels_of(values[::-1], levels, by) == found[::-1]


@given(scores, strategies.integers(1, 12))
def test_levels_by_rank_are_equally_many_up_to_ties(values: list[float], levels: int):
    """Of distinct scores, levels differ by one row at most; ties move whole groups upward."""
    distinct = sorted(set(values))
    counts = np.bincount(levels_of(distinct, levels, "rank"), minlength=levels + 1)[1:]
    assert counts.max() - counts.min() <= 1 and counts.sum() == len(distinct)
    found = levels_of(values, levels, "rank")
    most = max(values.count(value) for value in distinct)
    wanted = len(values) / levels
    assert all(abs(found.count(level + 1) - wanted) < most + 1 for level in range(levels))


def fits(text: str) -> bool:
    return len(text.split()) <= 4 and all(len(word) <= 9 for word in text.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one  two\nthree four", ["one two three four"]),
        ("One two. Three four! Five six? Seven.", ["One two. Three four!", "Five six? Seven."]),
        ("yes\nno\nred\nblue\ngreen", ["yes no red blue", "green"]),
        ("a b c d e f. G h.", ["a b c d", "e f. G h."]),
        ("a b. extraordinary. c d.", ["a b.", "extraordinary.", "c d."]),
        ("一二三四五六七。八九十一二三四。", ["一二三四五六七。 八九十一二三四。"]),
        ("", [""]),
    ],
)
def test_chunks_are_whole_sentences_or_whole_words(text: str, expected: list[str]):
    assert chunks(text, fits) == expected


@given(strategies.text("ab .!?\n", max_size=60))
def test_chunks_keep_every_word_in_order(text: str):
    found = chunks(text, fits)
    assert " ".join(" ".join(found).split()) == " ".join(text.split())
    assert all(fits(chunk) or len(chunk.split()) == 1 for chunk in found)


# From here on, with tiny encoders.


@pytest.fixture
def data(pictures: Path, tmp_path: Path) -> Path:
    """A copy of the pictures and their rows, which a test may change."""
    return Path(shutil.copytree(pictures, tmp_path / "data"))


@pytest.fixture
def pair_levels(tiny_joint: dict[str, Path], tiny: dict[str, Path], data: Path, tmp_path: Path):
    """`pair_levels(encoder="siglip", folder="other", model={...}, files=("captions.json",), ...)`."""

    def make(
        encoder: str = "clip",
        *,
        folder: str = "annotations",
        files: tuple[str, ...] = ("captions.json", "chats.json"),
        validation: tuple[str, ...] = (),
        model: dict | None = None,
        stage: dict | None = None,
        **options,
    ) -> PairLevels:
        paths = [[{"path": str(data / name)} for name in names] for names in (files, validation)]
        parts = {"vision": str(tiny_joint["clip"]), "language": str(tiny["llama"]), **(model or {})}
        made: Recipe = check(
            {
                "name": "levels",
                "device": "cpu",
                "annotations": str(tmp_path / folder),
                "model": parts,
                "stages": [
                    {"name": "pretrain", "data": paths[0], "validation": paths[1], "trainable": ["connector"]}
                    | (stage or {})
                ],
            }
        )
        torch.manual_seed(0)
        assembly = assemble(**parts)
        stages = made.stages[0]
        sources = [*read_data(stages.data), *read_data(stages.validation)]
        setting = Setting(made, 0, assembly, torch.device("cpu"), sources)
        wanted = {"levels": 4, "by": "rank", "scope": "all", "given": None} | options
        return PairLevels(encoder=str(tiny_joint[encoder]), setting=setting, **wanted)

    return make


def rows(levels: PairLevels) -> list[Sample]:
    return [sample for source in levels.setting.sources for sample in source]


def row(levels: PairLevels, id: str) -> Sample:
    return next(sample for sample in rows(levels) if sample.id == id)


def rewrite(path: Path, change) -> None:
    """Change the rows of a file by a function of the list."""
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def say(path: Path, number: int, text: str) -> None:
    """Have row `number` of a file answer `text`."""
    rewrite(path, lambda found: found[number]["conversations"][1].update(value=text))


@pytest.mark.parametrize(("encoder", "family"), [("clip", CLIPModel), ("siglip", SiglipModel)])
def test_scores_are_the_models_own(encoder: str, family: Any, pair_levels, tiny_joint, data: Path):
    """image_embeds and text_embeds of transformers' models. Pictures of 32 x 32 are the same however they are seen;
    the others as the model's own tower sees them."""
    levels = pair_levels(encoder)
    levels.compute()
    found = levels.open()
    model, tokenizer = (kind.from_pretrained(tiny_joint[encoder]) for kind in (family, AutoTokenizer))
    model.eval()
    seen = 0
    for sample in rows(levels):
        pictures = [Image.open(image) for image in sample.images]
        if not pictures or (encoder == "siglip" and any(picture.size != (32, 32) for picture in pictures)):
            continue
        pixels = levels.setting.assembly.image_processor(pictures, return_tensors="pt")["pixel_values"]
        texts = tokenizer([" ".join(caption(sample).split())], return_tensors="pt", padding="max_length", max_length=16)
        mask = {"attention_mask": texts["attention_mask"]} if encoder == "clip" else {}
        with torch.no_grad():
            out = model(pixel_values=pixels, input_ids=texts["input_ids"], **mask)
        cosines = F.cosine_similarity(out.image_embeds, out.text_embeds)
        assert found.scores(sample) == pytest.approx(float(cosines.mean()), abs=2e-6)
        seen += 1
    assert seen == (25 if encoder == "clip" else 12)


def test_rows_with_the_same_picture_and_caption_share_a_score(pair_levels):
    """Of 25 rows with images, 12 pictures of which 6 are alike, twice, and one row with two."""
    levels = pair_levels()
    store = Store(levels.compute())
    assert len(store) == 6 + 6 + 2
    found = levels.open()
    assert found(row(levels, "0")) == found(row(levels, "6")) and found.scores(row(levels, "0")) == found.scores(
        row(levels, "6")
    )
    two = row(levels, "two")
    each = [store.read(pair_key(image_key(image) or "", "no\nyes"))["cosines"] for image in two.images]
    assert found.scores(two) == pytest.approx(float(torch.cat(each).mean()))
    assert found(row(levels, "text")) == 0


def test_what_is_stored_and_recorded(pair_levels):
    """f32 cosines in the store; cut points, histogram, counts and provenance in a JSON from which levels follow."""
    levels = pair_levels(levels=4)
    folder = levels.compute()
    values = Store(folder).read(pair_key(image_key(row(levels, "0").images[0]) or "", "a red box"))
    assert values["cosines"].dtype == torch.float32 and values["cosines"].shape == (1,)
    (path,) = folder.glob("levels-*.json")
    record = json.loads(path.read_text())
    found = pickle.loads(pickle.dumps(levels.open()))
    mine = [found(sample) for sample in rows(levels) if sample.images]
    cuts = record["cut points"]["all"]
    assert mine == [1 + sum(cut <= found.scores(sample) for cut in cuts) for sample in rows(levels) if sample.images]
    assert record["rows by level"]["all"] == [mine.count(level) for level in (1, 2, 3, 4)]
    assert sum(record["histogram"]["rows"]) == record["rows"]["with a score"] == 25
    assert record["rows"]["without an image"] == 1 and record["captions by chunks"] == {"1": 25}
    assert (record["levels"], record["by"], record["scope"]) == (4, "rank", "all")
    assert record["scores depend on"]["encoder"]["tower"] == levels.facts["encoder"]["tower"]
    assert "image_mean" in record["scores depend on"]["preprocess"]
    about = json.loads((folder / "provenance.json").read_text())
    assert about["depends_on"] == levels.facts and about["batch"] == 32


def test_other_levels_of_the_same_scores_compute_nothing(pair_levels, monkeypatch):
    folder = pair_levels().compute()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    other = pair_levels(levels=8, by="width")
    assert other.compute() == folder and len(list(folder.glob("levels-*.json"))) == 2
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")} == before
    assert other.open().cuts.levels == 8


def test_killed_between_shards_the_store_ends_the_same(pair_levels, monkeypatch):
    """SIGKILL as the third of seven shards is written: the first two stay, the end is the same bytes."""
    monkeypatch.setattr(images, "SHARD_ROWS", 2)
    whole = pair_levels(folder="whole").compute()
    killed_at_shard(3, lambda: pair_levels(folder="killed").compute())
    levels = pair_levels(folder="killed")
    inodes = {path: path.stat().st_ino for path in levels.folder.glob("*-0*.safetensors")}
    assert len(inodes) == 2 and not list(levels.folder.glob("levels-*"))
    with pytest.raises(
        SightlineError, match=r"lacks the scores .* 10 of 14 are not in .* annotate RECIPE --method aligngpt"
    ):
        levels.open()
    pair_levels(folder="killed").compute()
    assert contents(levels.folder) == contents(whole) and len(list(whole.glob("*-0*.safetensors"))) == 7
    assert all(path.stat().st_ino == inode for path, inode in inodes.items())


def test_two_processes_share_the_work(pair_levels, monkeypatch):
    """One after the other, as torchrun's ranks would side by side: the bytes of one process."""
    monkeypatch.setattr(images, "SHARD_ROWS", 2)
    whole = pair_levels(folder="whole").compute()
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        levels = pair_levels(folder="two")
        folder = levels.compute()
        if rank == "0":
            assert len(list(folder.glob("*-0000*"))) == 4 and not list(folder.glob("levels-*"))
            assert levels.report() == (levels.report()[0], []) and "other processes" in levels.report()[0]
    assert contents(folder) == contents(whole)


def test_a_changed_caption_or_image_is_missing(pair_levels, data: Path):
    levels = pair_levels(files=("captions.json",))
    levels.compute()
    trained = levels.open()
    say(data / "captions.json", 0, "another box")
    changed = pair_levels(files=("captions.json",))
    with pytest.raises(SightlineError, match=r"1 of \d+ are not in"):
        changed.open()
    with pytest.raises(SightlineError, match=r"sample '0': .* has no score .* changed after this stage began"):
        trained(row(changed, "0"))
    changed.compute()
    again = pair_levels(files=("captions.json",)).open()
    assert again(row(changed, "0")) in (1, 2, 3, 4) and len(Store(changed.folder)) == 7
    Image.new("RGB", (32, 32), "black").save(data / "images" / "3.png")
    with pytest.raises(SightlineError, match=r"1 of \d+ are not in"):
        pair_levels(files=("captions.json",)).open()


@pytest.mark.parametrize("change", [{"model": {"image_fit": "crop"}}, {"encoder": "siglip"}], ids=str)
def test_scores_made_otherwise_are_refused(change: dict, pair_levels):
    """Another transform or encoder has another folder: the old scores are never read."""
    pair_levels().compute()
    with pytest.raises(SightlineError, match=r"there is no .*; another encoder or transform has other scores. Run"):
        pair_levels(**change).open()


def test_damaged_scores_are_refused_and_computed_again(pair_levels):
    levels = pair_levels()
    folder = levels.compute()
    (shard,) = folder.glob("*-00000.*")
    before = shard.read_bytes()
    shard.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(SightlineError, match=r"is damaged; its scores are not used. Run"):
        pair_levels().open()
    pair_levels().compute()
    assert shard.read_bytes() == before
    pair_levels().open()


LONG = "a red box. " * 12
"""60 tokens of a text side of 16."""


def test_long_captions_are_scored_in_chunks(pair_levels, tiny_joint, data: Path):
    """The mean of the cosines of stretches that fit; what still was cut is recorded."""
    say(data / "captions.json", 0, LONG)
    say(data / "captions.json", 1, "a blue box. " + "z" * 40)
    levels = pair_levels(files=("captions.json",))
    store = Store(levels.compute())
    tokenizer = AutoTokenizer.from_pretrained(tiny_joint["clip"])
    parts = chunks(caption(row(levels, "0")), lambda text: len(tokenizer(text).input_ids) <= 16)
    assert len(parts) > 2 and all(part.endswith("box.") for part in parts)
    values = store.read(pair_key(image_key(row(levels, "0").images[0]) or "", LONG.strip()))
    assert len(values["cosines"]) == len(parts) and not values["truncated"].any()
    assert levels.open().scores(row(levels, "0")) == pytest.approx(float(values["cosines"].double().mean()))
    cut = store.read(pair_key(image_key(row(levels, "1").images[0]) or "", "a blue box. " + "z" * 40))
    assert cut["truncated"].tolist() == [False, True]
    told, (_, _, numbers) = levels.report()
    record = json.loads(numbers.read_text())
    assert record["captions by chunks"] == {"1": 10, "2": 1, str(len(parts)): 1}
    assert record["captions not read to their end"] == 1
    assert "captions scored in several chunks: 2 (16.7%)" in told and "not read to their end even so: 1" in told
    say(data / "captions.json", 0, parts[0])
    alone = pair_levels(files=("captions.json",))
    alone.compute()
    assert alone.open().scores(row(alone, "0")) == pytest.approx(float(values["cosines"][0]), abs=1e-6)


def test_chunks_across_batches_score_the_same(pair_levels, data: Path, monkeypatch):
    """A caption whose chunks lie in two batches: 1e-6 of the one batch that holds them all."""
    say(data / "captions.json", 2, LONG)
    found = []
    for batch, folder in ((32, "large"), (4, "small")):
        monkeypatch.setattr("sightline.annotate.pairs.BATCH", batch)
        levels = pair_levels(files=("captions.json",), folder=folder)
        levels.compute()
        scores = levels.open().scores
        found.append([scores(sample) for sample in rows(levels)])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


def test_levels_within_each_source(pair_levels, data: Path):
    """Each file has as many rows of each level; a held-out file takes the cut points of all training data."""
    options = {"scope": "source", "levels": 3, "validation": ("held.json", "captions.json")}
    shutil.copy(data / "chats.json", data / "held.json")
    levels = pair_levels(**options)
    levels.compute()
    found = levels.open()
    captions, chats, held, again = levels.setting.sources
    for source in (captions, chats):
        own = np.array([found.scores(sample) for sample in source if sample.images])
        expected = levels_of(own.tolist(), 3, "rank")
        assert [found(sample) for sample in source if sample.images] == expected
    everywhere = levels_of([found.scores(s) for source in (captions, chats) for s in source if s.images], 3, "rank")
    assert [found(sample) for sample in held if sample.images] == everywhere[12:]
    assert [found(sample) for sample in again] == [found(sample) for sample in captions]
    all_of_it = pair_levels(**options | {"scope": "all"}).open()
    assert [all_of_it(s) for source in (captions, chats) for s in source if s.images] == everywhere
    told, (picture, *_) = levels.report()
    assert f"rows by level of {data / 'chats.json'}" in told and picture.read_bytes()[:4] == b"\x89PNG"


def test_a_picture_that_cannot_be_decoded(pair_levels, data: Path):
    """Its row has no level; it ends the job unless the stage skips such rows, and is counted."""
    (data / "images" / "5.png").write_bytes(b"no picture")
    with pytest.raises(SightlineError, match=r"sample '5' .* cannot decode image .* bad_images=skip"):
        pair_levels().compute()
    levels = pair_levels(stage={"bad_images": "skip"})
    levels.compute()
    found = levels.open()
    with pytest.raises(ImageError, match="could not be decoded when its caption was to be scored"):
        found(row(levels, "5"))
    assert "2 with an image that cannot be read" in levels.report()[0]
    (data / "images" / "5.png").unlink()
    with pytest.raises(ImageError, match="image not found"):
        found(row(levels, "5"))


def test_a_model_of_several_scales_shows_the_encoder_its_own_size(pair_levels):
    """The model's pixels are larger than the encoder's then, and made smaller for it."""
    levels = pair_levels(model={"vision_scales": [1, 2]})
    levels.compute()
    plain = pair_levels(folder="plain")
    plain.compute()
    several, one = levels.open(), plain.open()
    assert [several.scores(s) for s in rows(levels) if s.images] == pytest.approx(
        [one.scores(s) for s in rows(plain) if s.images], abs=0.02
    )


def test_a_stage_without_images_has_no_levels(pair_levels, data: Path):
    rewrite(data / "chats.json", lambda found: found.__delitem__(slice(0, 13)))
    with pytest.raises(SightlineError, match="have no images, so there are no scores of them"):
        pair_levels(files=("chats.json",)).compute()


# Similarities that somebody gives.


def similar(data: Path, values: list[float]) -> list[dict]:
    return [{"id": str(number), "similarity": value} for number, value in enumerate(values)]


VALUES = [*GOLDEN, 0.5, 0.6, 0.01, 0.02]


@pytest.mark.parametrize("shape", ["json", "jsonl", "object", "rows"])
def test_similarities_that_are_given(shape: str, pair_levels, data: Path):
    """In a file of rows, of lines, of ids, or in the data; no encoder is run."""
    found = similar(data, VALUES)
    path = data / ("given.jsonl" if shape == "jsonl" else "given.json")
    if shape == "rows":
        rewrite(data / "captions.json", lambda own: [a.update(b) for a, b in zip(own, found, strict=True)])
    elif shape == "object":
        path.write_text(json.dumps({each["id"]: each["similarity"] for each in found}))
    else:
        path.write_text("\n".join(map(json.dumps, found)) + "\n" if shape == "jsonl" else json.dumps(found))
    levels = pair_levels(files=("captions.json",), given="rows" if shape == "rows" else str(path))
    folder = levels.compute()
    assert [path.suffix for path in folder.iterdir()] == [".json"]
    opened = pickle.loads(pickle.dumps(levels.open()))
    assert [opened(sample) for sample in rows(levels)] == levels_of(VALUES, 4, "rank")
    assert "12 rows with a score" in levels.report()[0] and "chunks" not in levels.report()[0]


@pytest.mark.parametrize("low", [0, 1])
def test_whole_numbers_are_levels_already(low: int, pair_levels, data: Path):
    """As AlignGPT's authors ship them, from 0; also where levels are not equally many."""
    given = [low, low, low, low, low, low, low + 1, low + 2, low + 3, low, low + 3, low]
    (data / "given.json").write_text(json.dumps(similar(data, [float(value) for value in given])))
    levels = pair_levels(files=("captions.json",), given=str(data / "given.json"))
    found = levels.open()
    assert [found(sample) for sample in rows(levels)] == [value - low + 1 for value in given]
    record = json.loads(levels.report()[1][2].read_text())
    assert record["given levels are counted from"] == low and record["rows by level"]["all"] == [8, 1, 1, 2]
    with pytest.raises(SightlineError, match=rf"whole numbers from {low} to {low + 3}, so they are levels, and .* 3"):
        replace(levels, levels=3).open()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"sample '3' .* has an image and no 'similarity' in .* Add a row with its id"),
        ("0.3", r"given.json row 3: 'similarity' should be a number, and is text"),
        (True, r"row 3: 'similarity' should be a number, and is a boolean"),
        (float("nan"), r"row 3: 'similarity' should be a number, and is nan"),
        (10**400, r"row 3: 'similarity' should be a number"),
    ],
    ids=str,
)
def test_similarities_that_are_wrong(value: Any, message: str, pair_levels, data: Path):
    found: list[dict] = similar(data, VALUES)
    found[3]["similarity"] = value
    if value is None:
        del found[3]
    (data / "given.json").write_text(json.dumps(found))
    with pytest.raises(SightlineError, match=message):
        pair_levels(files=("captions.json",), given=str(data / "given.json")).compute()


def test_similarities_that_cannot_be_found(pair_levels, data: Path):
    path = data / "given.json"

    def opened(given: str | None = None) -> None:
        pair_levels(files=("captions.json",), given=given or str(path)).open()

    with pytest.raises(SightlineError, match=r"cannot read similarities from .*given.json': No such file"):
        opened()
    path.write_text(json.dumps([*similar(data, VALUES), {"id": "3", "similarity": 0.9}]))
    with pytest.raises(SightlineError, match=r"row 12: id '3' is there twice, with similarities 0.18 and 0.9"):
        opened()
    path.write_text('[{"similarity": 1}]')
    with pytest.raises(SightlineError, match="row 0: a similarity is found by the row's 'id', and it has none"):
        opened()
    path.write_text("[{}")
    with pytest.raises(SightlineError, match=r"given\.json is not JSON"):
        opened()
    path.write_text("[]")
    with pytest.raises(SightlineError, match="holds no similarities"):
        opened()
    with pytest.raises(SightlineError, match=r"sample '0' .* has an image and no 'similarity', so it has no level"):
        opened("rows")


def test_what_is_shown_of_the_ends(pair_levels, data: Path):
    """Captions of the lowest level begin with the lowest score, of the highest with the highest."""
    (data / "given.json").write_text(json.dumps(similar(data, VALUES)))
    levels = pair_levels(files=("captions.json",), given=str(data / "given.json"))
    told, (picture, text, numbers) = levels.report()
    record = json.loads(numbers.read_text())
    assert [each["id"] for each in record["lowest"]] == ["10", "11", "5"]
    assert [each["id"] for each in record["highest"]] == ["9", "8", "4"]
    assert record["lowest"][0] == {"id": "10", "level": 1, "score": 0.01, "caption": "a blue box"}
    assert text.read_text() == told + "\n" and picture.is_file()


def test_a_caption_is_all_that_a_row_answers():
    turns = (Turn("system", "s"), Turn("user", "<image> a?"), Turn("assistant", " b "), Turn("user", "c?"))
    assert caption(Sample("x", (), (*turns, Turn("assistant", "d")))) == "b\nd"
