import filecmp
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sightline.errors import SightlineError
from sightline.world.claims import GRADES
from sightline.world.cli import app
from sightline.world.draw import patch_truth, render
from sightline.world.language import ABILITIES
from sightline.world.lexicon import DISTRACTORS, content_words, world_facts
from sightline.world.make import VERSION, make_world
from sightline.world.scene import NOVEL_PAIRS, SPLITS, Scene

from .checker import answer, files_in, holds, pairs_named, scene_from, statements_in

SMALL = {"train": 80, "validation": 40, "test": 40, "novel": 40}
FEW = dict.fromkeys(SPLITS, 6)


def rows(path: Path) -> list[dict]:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def scenes(world: Path, split: str) -> dict[str, Scene]:
    """The scenes of a split by image, as `truth/` tells them."""
    return {row["image"]: scene_from(row["scene"]) for row in rows(world / "truth" / f"{split}.jsonl")}


def things(scene: Scene) -> set[tuple[str, str, str]]:
    return {(thing.size, *thing.pair) for thing in scene.things}


def things_told(text: str) -> set[tuple[str, ...]]:
    return {words[1:] for words in statements_in(text) if words[0] == "thing"}


@pytest.fixture(scope="module")
def high_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 24 pictures of each split, in the high view."""
    out = tmp_path_factory.mktemp("world") / "high"
    make_world(out, seed=3, view="high", **dict.fromkeys(SPLITS, 24))
    return out


def test_the_same_seed_gives_the_same_files(small_world: Path, tmp_path: Path):
    make_world(tmp_path / "again", seed=3, **SMALL)
    names = files_in(small_world)
    assert len(names) == 200 + 19 and names == files_in(tmp_path / "again")
    _, different, missing = filecmp.cmpfiles(small_world, tmp_path / "again", names, shallow=False)
    assert not different and not missing


def test_another_seed_gives_other_scenes(small_world: Path, tmp_path: Path):
    make_world(tmp_path / "other", seed=4, **FEW)
    for split in SPLITS:
        assert not set(scenes(tmp_path / "other", split).values()) & set(scenes(small_world, split).values())


def test_a_larger_world_begins_with_the_smaller_one(small_world: Path, tmp_path: Path):
    make_world(tmp_path / "few", seed=3, **FEW)
    for name in [name for name in files_in(tmp_path / "few") if name.startswith("images/")]:
        assert filecmp.cmp(tmp_path / "few" / name, small_world / name, shallow=False), name
    lists = [name for name in files_in(small_world) if ".json" in name and name != "world.json"]
    assert len(lists) == 17
    for name in lists:
        few, many = rows(tmp_path / "few" / name), rows(small_world / name)
        ids = {row["id"] for row in few}
        assert few == [row for row in many if row["id"] in ids]


def test_pictures_are_of_the_scenes_that_the_truth_tells(small_world: Path, high_world: Path):
    for world, view in ((small_world, "low"), (high_world, "high")):
        for split in SPLITS:
            for image, scene in scenes(world, split).items():
                saved = np.asarray(Image.open(world / "images" / image))
                assert np.array_equal(saved, np.asarray(render(scene, view)))


def test_truth_on_disk_covers_every_patch(small_world: Path, high_world: Path):
    for world, view, count in ((small_world, "low", 36), (high_world, "high", 144)):
        for row in rows(world / "truth" / "validation.jsonl"):
            truth = patch_truth(scene_from(row["scene"]), 16, view)
            assert row["patch"] == 16 and len(row["patches"]) == count
            assert [patch["item"] for patch in row["patches"]] == truth.item.tolist()
            assert [tuple(patch["words"]) for patch in row["patches"]] == list(truth.words)
            assert [patch["coverage"] for patch in row["patches"]] == pytest.approx(truth.coverage, abs=1e-4)


def test_questions_on_disk_have_the_answers_of_their_scenes(small_world: Path, high_world: Path):
    for world, abilities in ((small_world, set(ABILITIES) - {"fine"}), (high_world, set(ABILITIES))):
        for split in ("validation", "test", "novel"):
            truth = scenes(world, split)
            asked = rows(world / f"{split}.questions.jsonl")
            assert {row["ability"] for row in asked} == abilities
            assert len({row["id"] for row in asked}) == len(asked)
            for row in asked:
                assert set(row) == {"id", "image", "question", "answer", "ability"}
                assert row["answer"] == answer(row["question"], truth[row["image"]])


def test_training_files_are_llava_json_and_true(small_world: Path):
    for split, names in (
        ("train", ("pretrain.json", "instruct.json")),
        ("validation", ("validation.captions.json", "validation.instruct.json")),
    ):
        truth = scenes(small_world, split)
        for name in names:
            found = rows(small_world / name)
            assert len({row["id"] for row in found}) == len(found)
            for row in found:
                human, gpt = row["conversations"]
                assert (human["from"], gpt["from"]) == ("human", "gpt")
                assert human["value"].startswith("<image>\n") and human["value"].count("<image>") == 1
                assert (small_world / "images" / row["image"]).is_file()
                if row.get("ability", "description") == "description":
                    assert things_told(gpt["value"]) == things(truth[row["image"]])
                else:
                    assert gpt["value"] == answer(human["value"].removeprefix("<image>\n"), truth[row["image"]])


def test_every_training_picture_has_one_caption_and_every_fourth_a_description(small_world: Path):
    images = list(scenes(small_world, "train"))
    assert [row["image"] for row in rows(small_world / "pretrain.json")] == images
    described = [row["image"] for row in rows(small_world / "instruct.json") if row["ability"] == "description"]
    assert described == images[::4]


def test_losses_on_validation_are_of_the_questions_that_are_scored(small_world: Path):
    scored = {(row["id"], row["question"], row["answer"]) for row in rows(small_world / "validation.questions.jsonl")}
    tuned = rows(small_world / "validation.instruct.json")
    texts = {(row["id"], *(turn["value"].removeprefix("<image>\n") for turn in row["conversations"])) for row in tuned}
    assert texts == scored


def test_noisy_captions_are_of_the_same_pictures_and_as_true_as_they_say(small_world: Path):
    truth = scenes(small_world, "train")
    clean, noisy = rows(small_world / "pretrain.json"), rows(small_world / "pretrain.noisy.json")
    assert [(row["id"], row["image"]) for row in noisy] == [(row["id"], row["image"]) for row in clean]
    for row, own in zip(noisy, clean, strict=True):
        text, scene = row["conversations"][1]["value"], truth[row["image"]]
        said = {statement for statement in statements_in(text) if statement[0] != "count"}
        wrong = sum(not holds(statement, scene) for statement in said)
        assert row["conversations"][0] == own["conversations"][0]
        assert row["stated"] - row["true"] == wrong
        if row["grade"] in ("clean", "partial", "unrelated"):
            assert wrong == 0 and (row["grade"] == "unrelated") == (row["stated"] == 0)
        else:
            assert wrong == 1 if row["grade"] == "one_wrong" else wrong == len(scene.things) + 1 + bool(scene.sign)


def test_half_of_the_noisy_captions_are_clean_and_the_rest_of_every_other_grade(small_world: Path):
    """Of 80, within four standard errors (18) of a half."""
    grades = Counter(row["grade"] for row in rows(small_world / "pretrain.noisy.json"))
    assert set(grades) == set(GRADES)
    assert 22 <= grades["clean"] <= 58


def test_questions_on_text_alone_show_nothing_and_are_answered_by_the_facts_or_the_words(small_world: Path):
    facts = {fact.question: fact.answer for fact in world_facts()}
    for split in ("validation", "test"):
        asked = rows(small_world / f"{split}.text.jsonl")
        assert len({row["id"] for row in asked}) == len(asked) == len(facts) + 40
        assert all(set(row) == {"id", "question", "answer", "ability"} for row in asked)
        assert {row["question"]: row["answer"] for row in asked if row["ability"] == "fact"} == facts
        truth = {image.removesuffix(".png"): scene for image, scene in scenes(small_world, split).items()}
        for row in [row for row in asked if row["ability"] == "described"]:
            scene = truth[row["id"].removesuffix("-described")]
            told, _, question = row["question"].rpartition(". ")
            assert things_told(told) == things(scene)
            assert row["answer"] == answer(question, scene)
            # The letter of a card is told, so it can be asked for, though no low view shows it.
            assert scene.card is None or ("card", scene.card.letter) in statements_in(told)
    assert not (small_world / "novel.text.jsonl").exists()


def test_a_high_world_tells_the_letters_of_cards_and_a_low_one_never_does(small_world: Path, high_world: Path):
    for world, told in ((small_world, False), (high_world, True)):
        truth = scenes(world, "train")
        with_card = [row for row in rows(world / "pretrain.json") if truth[row["image"]].card]
        assert with_card
        for row in with_card:
            card = truth[row["image"]].card
            assert card and (("card", card.letter) in statements_in(row["conversations"][1]["value"])) == told


def test_no_novel_pair_is_shown_or_named_outside_novel(small_world: Path):
    for split in ("train", "validation", "test"):
        assert not {t.pair for s in scenes(small_world, split).values() for t in s.things} & set(NOVEL_PAIRS)
    for path in small_world.glob("*.json*"):
        if path.name != "world.json" and not path.name.startswith("novel."):
            assert not pairs_named(path.read_text()) & set(NOVEL_PAIRS)
    for name in ("novel.questions.jsonl", "novel.captions.json"):
        assert pairs_named((small_world / name).read_text()) <= set(NOVEL_PAIRS)


def test_no_scene_is_in_two_splits(small_world: Path):
    shown = [{scene.content for scene in scenes(small_world, split).values()} for split in SPLITS]
    assert len(set.union(*shown)) == sum(map(len, shown))


def test_a_world_says_what_it_is(small_world: Path, high_world: Path):
    about = json.loads((small_world / "world.json").read_text())
    assert (about["version"], about["seed"], about["sizes"]) == (VERSION, 3, SMALL)
    assert (about["view"], about["image"], about["patch"]) == ("low", 96, 16)
    high = json.loads((high_world / "world.json").read_text())
    assert (high["view"], high["image"]) == ("high", 192)
    words = (small_world / "words.txt").read_text().splitlines()
    assert words == [*content_words(), *DISTRACTORS]
    assert about["content_words"] + about["distractors"] == len(words)


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(
        SightlineError, match=r"is not empty, and a world would overwrite it, so nothing was done.*rm -r"
    ):
        make_world(tmp_path, **FEW)
    result = CliRunner().invoke(app, ["make", str(tmp_path)])
    assert isinstance(result.exception, SightlineError)
    assert files_in(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"novel": 0}, "0 pictures asked for in split 'novel'.*--novel 300"),
        ({"train": 1_000_000}, "1000000 pictures asked for in split 'train'.*--train 300"),
        ({"seed": -1}, "the seed is -1.*--seed 0"),
    ],
)
def test_sizes_and_seeds_that_cannot_be_used_are_refused(tmp_path: Path, given: dict[str, int], message: str):
    with pytest.raises(SightlineError, match=message):
        make_world(tmp_path / "world", **FEW | given)
    assert not list(tmp_path.iterdir())


def test_a_world_that_fails_half_way_leaves_nothing(tmp_path: Path):
    def stop(split: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_world(tmp_path / "world", **FEW, progress=stop)
    assert not list(tmp_path.iterdir())


def test_progress_counts_the_pictures_of_each_split(tmp_path: Path):
    seen = []
    make_world(tmp_path / "world", **dict.fromkeys(SPLITS, 2), progress=lambda *step: seen.append(step))
    assert seen == [(split, done, 2) for split in SPLITS for done in (1, 2)]


def test_the_command_makes_a_world_in_an_empty_folder(tmp_path: Path):
    sizes = [word for split in SPLITS for word in (f"--{split}", "2")]
    result = CliRunner().invoke(app, ["make", str(tmp_path), *sizes])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "world.json").read_text())["sizes"] == dict.fromkeys(SPLITS, 2)


def test_same_seed_same_text_on_every_machine(tmp_path: Path):
    """The hash was taken with numpy 2.4.6 on x86-64, over the texts of a world of two to four pictures a split."""
    make_world(tmp_path / "w", seed=5, train=4, validation=4, test=2, novel=2)
    files = sorted(path for path in (tmp_path / "w").rglob("*") if path.is_file() and path.suffix != ".png")
    text = b"".join(path.name.encode() + path.read_bytes() for path in files)
    assert hashlib.sha256(text).hexdigest() == "992113c84e7c06a7bef81adb45b3ff787ada5d319e53de8087d08169016083b1"
