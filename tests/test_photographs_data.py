"""The folder that examples/photographs makes: real files, true to LLaVA's format, the same each time."""

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

SCRIPT = Path(__file__).parents[1] / "examples" / "photographs" / "make_photographs.py"


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("data") / "photographs"
    done = run_script(str(target))
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_photographs", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def captions(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "captions.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def instruct(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "instruct.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def questions(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def images_of(row: dict[str, Any]) -> list[str]:
    named = row.get("image", row.get("images", []))
    return [named] if isinstance(named, str) else named


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


def test_the_folder_is_large_enough_to_be_an_example(folder, captions, instruct, questions):
    assert len(list((folder / "images").iterdir())) >= 20
    assert len(captions) >= 40
    assert sum(len(row["conversations"]) // 2 for row in instruct) >= 60
    assert len(questions) >= 40


def test_every_image_opens_and_is_used(folder, captions, instruct, questions):
    named = {name for row in captions + instruct + questions for name in images_of(row)}
    assert named == {path.name for path in (folder / "images").iterdir()}
    for name in named:
        with Image.open(folder / "images" / name) as image:
            image.load()
            assert image.format == {".png": "PNG", ".jpg": "JPEG"}[Path(name).suffix]


def test_images_differ_as_files_in_the_wild_do(folder):
    images = [Image.open(path) for path in sorted((folder / "images").iterdir())]
    assert {image.mode for image in images} == {"1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"}
    assert {image.format for image in images} == {"PNG", "JPEG"}
    assert len({image.size for image in images}) >= 20
    shapes = [image.width / image.height for image in images]
    assert min(shapes) < 1 / 3 and max(shapes) > 3
    for image in images:
        image.close()


def test_crater_uses_all_sixteen_bits(folder):
    with Image.open(folder / "images" / "crater.png") as image:
        values = np.asarray(image)
    assert values.dtype == np.uint16
    assert values.max() > 40_000 and values.min() < 10_000


def test_cat_phone_is_stored_sideways_and_exif_turns_it_upright(folder):
    with (
        Image.open(folder / "images" / "cat_phone.jpg") as stored,
        Image.open(folder / "images" / "chelsea.png") as upright,
    ):
        assert stored.size == upright.size[::-1]
        difference = np.asarray(ImageOps.exif_transpose(stored), dtype=float) - np.asarray(upright, dtype=float)
    # JPEG at quality 90 moves a pixel here by 2 of 255 on average; the cat upside down differs by 36.
    assert np.abs(difference).mean() < 5


def test_cut_out_pictures_are_transparent_outside(folder):
    for name in ("coin.png", "colour_disc.png"):
        with Image.open(folder / "images" / name) as image:
            alpha = np.asarray(image.getchannel("A"))
        assert alpha[0, 0] == alpha[-1, -1] == 0
        assert alpha[alpha.shape[0] // 2, alpha.shape[1] // 2] == 255


def test_rows_are_llava_rows(captions, instruct):
    for row in captions + instruct:
        assert set(row) in ({"id", "image", "conversations"}, {"id", "conversations"})
        assert [turn["from"] for turn in row["conversations"]] == ["human", "gpt"] * (len(row["conversations"]) // 2)
        assert all(set(turn) == {"from", "value"} and turn["value"].strip() for turn in row["conversations"])
        asked = "".join(turn["value"] for turn in row["conversations"] if turn["from"] == "human")
        answered = "".join(turn["value"] for turn in row["conversations"] if turn["from"] == "gpt")
        assert asked.count("<image>") == len(images_of(row)), row["id"]
        assert "<image>" not in answered
        # LLaVA stores one image as a name and several as a list.
        assert isinstance(row.get("image", ""), str) == (len(images_of(row)) < 2)


def test_captions_are_one_exchange_about_one_image(captions):
    for row in captions:
        assert len(row["conversations"]) == 2 and isinstance(row["image"], str)
        assert row["conversations"][0]["value"] == "<image>\nDescribe the image briefly."


def test_conversations_cover_the_shapes_that_llava_rows_take(instruct):
    assert Counter(len(images_of(row)) for row in instruct).keys() == {0, 1, 2}
    openings = [row["conversations"][0]["value"] for row in instruct if images_of(row)]
    assert sum(text.startswith("<image>") for text in openings) >= 10
    assert sum(text.endswith("<image>") for text in openings) >= 10
    assert sum(len(row["conversations"]) > 2 for row in instruct) >= 10


def test_ids_are_unique(captions, instruct, questions):
    for rows in (captions, instruct, questions):
        assert len({row["id"] for row in rows}) == len(rows)


def test_no_eval_question_is_trained_on(instruct, questions):
    trained = " | ".join(words(turn["value"]) for row in instruct for turn in row["conversations"])
    assert [row["question"] for row in questions if words(row["question"]) in trained] == []


def test_no_eval_question_is_asked_twice_of_the_same_images(questions):
    asked = Counter((words(row["question"]), *images_of(row)) for row in questions)
    assert max(asked.values()) == 1


def test_questions_have_short_answers_and_an_ability(questions):
    for row in questions:
        assert len({"answer", "answers"} & set(row)) == 1 and len({"image", "images"} & set(row)) == 1
        answers = [row["answer"]] if "answer" in row else row["answers"]
        assert answers and all(isinstance(answer, str) and 1 <= len(answer.split()) <= 3 for answer in answers)
        assert row["ability"] in {
            *("colour", "comparison", "count", "existence", "object", "reading", "relation", "shape"),
        }


def test_yes_and_no_are_equally_often_right(questions):
    answers = Counter(row.get("answer") for row in questions)
    assert answers["yes"] == answers["no"] >= 20


def test_readme_says_where_every_source_comes_from(folder):
    text = (folder / "README.txt").read_text(encoding="utf-8")
    rights, made = text.split("What was made of which file:")
    sources = {line.split()[1].rstrip(",") for line in made.strip().splitlines()}
    assert len(sources) >= 20
    assert [source for source in sorted(sources) if source not in rights] == []


def test_documentation_counts_what_the_script_makes(folder, captions, instruct, questions):
    text = (SCRIPT.parent / "README.md").read_text(encoding="utf-8")
    exchanges = sum(len(row["conversations"]) // 2 for row in instruct)
    for phrase in (
        f"{len(list((folder / 'images').iterdir()))} pictures",
        f"{len(captions)} captions",
        f"{len(instruct)} conversations, {exchanges} exchanges",
        f"{len(questions)} questions",
    ):
        assert phrase in text


def test_a_second_run_writes_the_same_bytes(folder, tmp_path):
    again = tmp_path / "again"
    again.mkdir()  # an empty folder is welcome
    assert run_script(str(again)).returncode == 0
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    for file in files:
        assert (again / file).read_bytes() == (folder / file).read_bytes(), file
    assert list(tmp_path.iterdir()) == [again]


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me", encoding="utf-8")
    done = run_script(str(tmp_path))
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr and "Name a new folder" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_picture_that_the_wheel_lacks_is_named_and_nothing_is_left_behind(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "wheel_folder", lambda: tmp_path / "empty")
    with pytest.raises(ValueError, match=r"carries no 'astronaut\.png'.*pip install 'scikit-image"):
        script.make(tmp_path / "photographs")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_scikit_image_is_named_with_the_fix(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"scikit-image is not installed.*pip install"):
        script.make(tmp_path / "photographs")


def test_help_teaches():
    done = run_script("--help")
    assert done.returncode == 0
    for word in ("captions.json", "instruct.json", "questions.jsonl", "example: python examples/photographs"):
        assert word in done.stdout
