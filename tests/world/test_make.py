import filecmp
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sightline.errors import SightlineError
from sightline.world.cli import app
from sightline.world.draw import render
from sightline.world.make import make_world
from sightline.world.scene import NOVEL_PAIRS, SPLITS, Scene, Thing

from .checker import answer, pairs_named

SMALL = {"train": 40, "validation": 40, "test": 40, "novel": 40}


def rows(path: Path) -> list[dict]:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def scenes(world: Path, split: str) -> dict[str, Scene]:
    """The scenes of a split by image, as `truth/` tells them."""
    found = {}
    for row in rows(world / "truth" / f"{split}.jsonl"):
        told = row["scene"]
        things = tuple(Thing(**t | {"offset": tuple(t["offset"]), "tint": tuple(t["tint"])}) for t in told["things"])
        found[row["image"]] = Scene(told["background"], things, tuple(told["tint"]))
    return found


def test_the_same_seed_gives_the_same_files(small_world: Path, tmp_path: Path):
    make_world(tmp_path / "again", seed=3, **SMALL)
    names = [str(p.relative_to(small_world)) for p in sorted(small_world.rglob("*")) if p.is_file()]
    assert len(names) == 160 + 11
    _, different, missing = filecmp.cmpfiles(small_world, tmp_path / "again", names, shallow=False)
    assert not different and not missing


def test_pictures_are_of_the_scenes_that_the_truth_tells(small_world: Path):
    for split in SPLITS:
        for image, scene in scenes(small_world, split).items():
            saved = np.asarray(Image.open(small_world / "images" / image))
            assert np.array_equal(saved, np.asarray(render(scene)))


def test_questions_on_disk_have_the_answers_of_their_scenes(small_world: Path):
    for split in ("validation", "test", "novel"):
        truth = scenes(small_world, split)
        asked = rows(small_world / f"{split}.questions.jsonl")
        assert {row["ability"] for row in asked} == {"colour", "shape", "count", "background", "existence"}
        assert len({row["id"] for row in asked}) == len(asked)
        for row in asked:
            assert set(row) == {"id", "image", "question", "answer", "ability"}
            assert row["answer"] == answer(row["question"], truth[row["image"]])


def test_training_files_are_llava_json(small_world: Path):
    truth = scenes(small_world, "train")
    for name in ("pretrain.json", "instruct.json"):
        for row in rows(small_world / name):
            human, gpt = row["conversations"]
            assert (human["from"], gpt["from"]) == ("human", "gpt")
            assert human["value"].startswith("<image>\n") and human["value"].count("<image>") == 1
            assert (small_world / "images" / row["image"]).is_file()
            if row.get("ability", "description") == "description":
                assert pairs_named(gpt["value"]) == {thing.pair for thing in truth[row["image"]].things}
            else:
                assert gpt["value"] == answer(human["value"].removeprefix("<image>\n"), truth[row["image"]])
    described = sum(row["ability"] == "description" for row in rows(small_world / "instruct.json"))
    assert described == -(-len(truth) // 4)


def test_no_novel_pair_is_shown_or_named_outside_novel(small_world: Path):
    for split in ("train", "validation", "test"):
        assert not {t.pair for s in scenes(small_world, split).values() for t in s.things} & set(NOVEL_PAIRS)
    for path in small_world.glob("*.json*"):
        if path.name not in ("novel.questions.jsonl", "world.json"):
            assert not pairs_named(path.read_text()) & set(NOVEL_PAIRS)


def test_no_scene_is_in_two_splits(small_world: Path):
    shown = [{scene.content for scene in scenes(small_world, split).values()} for split in SPLITS]
    assert len(set.union(*shown)) == sum(map(len, shown))


def test_truth_on_disk_covers_every_patch(small_world: Path):
    for row in rows(small_world / "truth" / "validation.jsonl"):
        assert row["patch"] == 16 and len(row["patches"]) == 16
        for patch in row["patches"]:
            assert (patch["thing"] < 0) == (patch["coverage"] == 0) == (len(patch["words"]) == 1)


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(
        SightlineError, match=r"is not empty, and a world would overwrite it, so nothing was done.*rm -r"
    ):
        make_world(tmp_path, **SMALL)
    result = CliRunner().invoke(app, ["make", str(tmp_path)])
    assert isinstance(result.exception, SightlineError)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("given", "message"),
    [({"novel": 0}, "0 pictures asked for in split 'novel'.*--novel 300"), ({"seed": -1}, "the seed is -1.*--seed 0")],
)
def test_sizes_and_seeds_that_cannot_be_used_are_refused(tmp_path: Path, given: dict[str, int], message: str):
    with pytest.raises(SightlineError, match=message):
        make_world(tmp_path / "world", **SMALL | given)
    assert not list(tmp_path.iterdir())


def test_a_world_that_fails_half_way_leaves_nothing(tmp_path: Path):
    def stop(split: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path / "world", **SMALL, progress=stop)
    assert not list(tmp_path.iterdir())


def test_the_command_makes_a_world_in_an_empty_folder(tmp_path: Path):
    sizes = [word for split in SPLITS for word in (f"--{split}", "2")]
    result = CliRunner().invoke(app, ["make", str(tmp_path), *sizes])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "world.json").read_text())["sizes"] == dict.fromkeys(SPLITS, 2)
