import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.errors import SightlineError
from sightline.evaluation import Prediction, Question, evaluate
from sightline.report.answers import pick_gallery
from sightline.report.page import SCRIPT, write_page

EVIL = '<script>alert("x")</script> & co'


class Fake:
    """Right on all but each fifth question, where it gives markup; as a twin it always says red."""

    def __init__(self, questions: list[Question], *, blind: bool = False) -> None:
        self.answer_of = {question.text: question.answers[0] for question in questions}
        self.blind = blind
        self.asked = 0

    def answers(self, images, questions, *, max_new_tokens):
        out = []
        for question in questions:
            self.asked += 1
            out.append("red" if self.blind else EVIL if self.asked % 5 == 0 else self.answer_of[question])
        return out


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    folder = tmp_path_factory.mktemp("world")
    rows = []
    for number in range(30):
        path = folder / f"{number}.png"
        Image.new("RGB", (8, 8) if number % 2 else (600, 400), (number * 8, 0, 0)).save(path)
        colours = ("red", "blue")[: 1 + number % 2]
        rows.append(Question(f"c{number}", (path,), f"What colour is {number}?", colours, "colour"))
        rows.append(
            Question(f"e{number}", (path,), f"Is there {number}?", ("yes" if number % 3 else "no",), "existence")
        )
    return rows


def make_run(path: Path, questions: list[Question], *, blind: bool = False) -> Path:
    path.mkdir()
    (path / "recipe.yaml").write_text("name: toy\nstages: [<first>]\n")
    (path / "run.json").write_text(json.dumps({"name": path.name, "seed": 7, "versions": {"torch": "2.13"}}))
    rows = [{"stage": "pretrain", "step": s, "loss": 5 / s, "loss/answer": 5 / s, "lr/x": 1e-3} for s in range(1, 41)]
    rows += [{"stage": "finetune", "step": s, "loss": 9.0, "loss/a": 4.0, "loss/b": 5.0} for s in range(1, 5)]
    rows += [
        {"stage": "pretrain", "step": s, "split": "validation", "loss": 6 / s, "loss/answer": 6 / s} for s in (20, 40)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(Fake(questions, blind=blind), questions, out=path / "eval" / "test", blank_images=blind, progress=False)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, questions: list[Question]) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", questions)


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory, questions: list[Question]) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "twin", questions, blind=True)


@pytest.fixture(scope="module")
def written(run: Path, twin: Path) -> "tuple[str, Outline]":
    return write(run, twin=twin)


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed, without its curves."""
    copy = Path(shutil.copytree(run, tmp_path / "own"))
    (copy / "metrics.jsonl").unlink()
    return copy


class Outline(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += f" {data} "

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def write(run: Path, *others: Path, **options) -> tuple[str, Outline]:
    path = write_page(run, *others, **options)
    page = path.read_text(encoding="utf-8")
    return page, Outline(page)


def test_the_page_says_what_the_run_did(written):
    page, outline = written
    # Each fifth answer of the model is markup, which is never right: 48/60. The twin says red: right on all 30 colours,
    # and neither yes nor no on the others: 30/60.
    assert "The model answers 80.0% of 60 questions right" in outline.text
    assert "its blind twin, trained the same with blank images, 50.0%" in outline.text
    assert "+30.0 points" in outline.text
    assert "One seed: no claim" in outline.text
    # Of colours red is always right; of existence 20 of 30 are yes.
    assert "commonest answer would score 83.3%" in outline.text
    for words in (
        "pretrain",
        "finetune, loss/b",
        "colour",
        "existence",
        "Yes-ratio",
        "stages: [<first>]",
        "torch",
        "7",
    ):
        assert words in outline.text
    assert "Training 5 at step 1" in outline.text and "validation 0.15 at step 40" in outline.text
    assert len(page) < 3_000_000


def test_a_dozen_images_are_inside_and_described(written):
    _, outline = written
    images = outline.all("img")
    assert len(images) == 12 and all(image["alt"] for image in images)
    assert all(str(image["src"]).startswith(("data:image/png;base64,", "data:image/jpeg;base64,")) for image in images)
    tiny = [image for image in images if image.get("class") == "tiny"]
    assert tiny and all(str(image["src"]).startswith("data:image/png") for image in tiny)
    assert "✓ right" in outline.text and "✗ wrong" in outline.text


def test_the_page_needs_nothing_beside_it(written):
    page, outline = written
    assert {name for name, _ in outline.tags}.isdisjoint({"link", "iframe", "object", "embed"})
    assert outline.all("script") == [{}] and page.count("<script>") == 1 and SCRIPT in page
    references = [
        value for _, attributes in outline.tags for key, value in attributes.items() if key in ("src", "href")
    ]
    assert all(str(value).startswith(("data:", "#")) for value in references)
    assert "url(http" not in page and "@import" not in page


def test_ids_are_unique_and_references_hold(written):
    page, outline = written
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'(?:href="#|url\(#|aria-labelledby=")([^")]+)', page)
    assert targets and set(targets) <= set(ids)
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]", page)


def test_headings_tables_and_regions_are_proper(written):
    _, outline = written
    levels = [int(name[1]) for name, _ in outline.tags if re.fullmatch("h[1-6]", name)]
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in pairwise(levels))
    assert len(outline.all("caption")) == len(outline.all("table")) == 2
    assert all(cell.get("scope") in ("row", "col") for cell in outline.all("th"))
    assert outline.all("html")[0]["lang"] == "en"


def test_answers_and_names_are_escaped(own):
    page, outline = write(own, title="<b>A & B</b>")
    assert page.count("<script") == 1 and "<b>" not in page
    assert EVIL in outline.text and "<b>A & B</b>" in outline.text


def test_the_same_folder_gives_the_same_bytes(run, twin, written, tmp_path):
    again = write_page(run, twin=twin, out=tmp_path / "new" / "page.html")
    assert again.read_text(encoding="utf-8") == written[0]


def test_without_a_twin_the_page_says_so(own):
    assert write_page(own) == own / "report.html"
    _, outline = write(own)
    assert "No blind twin is shown" in outline.text and "blind twin, trained" not in outline.text


def test_a_fresh_run_is_said_in_words(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: fresh\n")
    _, outline = write(tmp_path)
    assert "no curves and no evaluation yet" in outline.text
    assert "has not been evaluated yet" in outline.text and "name: fresh" in outline.text


def test_a_run_in_training_is_not_called_trained(own, run):
    shutil.rmtree(own / "eval")
    shutil.copy(run / "metrics.jsonl", own)
    _, outline = write(own)
    assert "The model has learning curves and no evaluation yet" in outline.text and "trained" not in outline.text


def test_a_name_that_is_no_unicode_is_no_reason_to_stop(own):
    (own / "run.json").write_text(r'{"name": "a\udcffb"}')
    assert "a?b" in write(own)[1].text


def test_what_is_broken_is_said_in_words(own, questions, tmp_path):
    (own / "run.json").write_text("[1")
    (own / "metrics.jsonl").write_text('{"stage": "pretrain", "step": 41, "loss": NaN}\n[1]\n{"sta')
    (own / "eval" / "other").mkdir()
    (own / "eval" / "other" / "predictions.jsonl").write_text("{}")
    evaluate(Fake(questions), questions[:5], out=own / "eval" / "mixed", progress=False)
    shutil.copy(own / "eval" / "test" / "scores.json", own / "eval" / "mixed")
    evaluate(Fake(questions), questions[:5], out=tmp_path / "twin" / "eval" / "test", progress=False)
    _, outline = write(own, twin=tmp_path / "twin", images_root=tmp_path / "nowhere")
    for words in (
        "run.json is not a JSON object",
        "left out of the curves: 2",
        "not finite numbers, and are left out of the curves: 1",
        "Evaluation 'other' is left out",
        "scores.json and predictions.jsonl do not belong together",
        "The blind twin is not shown for 'test'",
        "do not hold the same questions",
        "Image not found or not readable",
    ):
        assert words in outline.text
    assert not outline.all("img")


def test_moved_images_can_be_found_again(own, questions, tmp_path):
    shutil.copytree(questions[0].images[0].parent, tmp_path / "moved")
    scores = own / "eval" / "test" / "scores.json"
    scores.write_text(json.dumps(json.loads(scores.read_text()) | {"images_root": "/gone"}))
    assert not write(own)[1].all("img")
    assert len(write(own, images_root=tmp_path / "moved")[1].all("img")) == 12


def test_a_twin_that_saw_images_is_said(own, run):
    assert "The blind twin was shown the images" in write(own, twin=run)[1].text


def test_folders_that_hold_no_run_are_refused(run, tmp_path):
    with pytest.raises(SightlineError, match="run folder not found"):
        write_page(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SightlineError, match="holds no run"):
        write_page(tmp_path / "empty")
    with pytest.raises(SightlineError, match="run folder not found"):
        write_page(run, twin=tmp_path / "nowhere")
    with pytest.raises(SightlineError, match="cannot write the page"):
        write_page(run, out=tmp_path / "empty")


@pytest.mark.parametrize("num_abilities", [1, 2, 3, 5])
def test_the_gallery_mixes_abilities_and_outcomes(num_abilities):
    rows = [
        Prediction(str(n), (f"{n // 2}.png",), "?", ("x",), "x", correct=n % 3 > 0, ability=f"a{n % num_abilities}")
        for n in range(240)
    ]
    picked = pick_gallery(rows)
    assert len({row.images for row in picked}) == 12
    assert {(row.ability, row.correct) for row in picked} == {(row.ability, row.correct) for row in rows}
    assert picked == pick_gallery(rows) != pick_gallery(rows, seed=1)


def test_a_small_gallery_takes_what_there_is():
    rows = [Prediction(str(n), ("0.png",), "?", ("x",), "x", correct=True, ability="a") for n in range(3)]
    assert {row.id for row in pick_gallery(rows)} == {"0", "1", "2"}
    assert pick_gallery([]) == []


def test_the_page_stays_small_whatever_the_images_are(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, size=(16, 700, 900, 3), dtype=np.uint8)
    paths = [folder / f"{number}.png" for number in range(len(noise))]
    for path, pixels in zip(paths, noise, strict=True):
        Image.fromarray(pixels).save(path, compress_level=0)
    questions = [Question(str(n), (paths[n], *paths[:9][: n % 2 * 8]), "What?" * 9999, ("noise",)) for n in range(16)]
    run = tmp_path / "run"
    evaluate(Fake(questions), questions, out=run / "eval" / "test", progress=False)
    page, outline = write(run)
    assert len(page) < 3_000_000
    assert "and 5 more images" in outline.text
    assert "has no metrics yet" in outline.text


def test_the_headline_is_of_the_evaluation_that_is_named(own, questions):
    evaluate(Fake(questions, blind=True), questions, out=own / "eval" / "a", progress=False)
    assert "answers 50.0% of 60" in write(own)[1].text, "the first by name"
    (name,) = {path.name for path in (own / "eval").iterdir()} - {"a"}
    assert "answers 80.0% of 60" in write(own, first=name)[1].text
    with pytest.raises(SightlineError, match=f"no evaluation 'nothing'.*It has: a, {name}"):
        write(own, first="nothing")


def test_the_headline_is_not_of_blank_images(own, questions):
    evaluate(Fake(questions, blind=True), questions, out=own / "eval" / "a", blank_images=True, progress=False)
    _, outline = write(own)
    assert "The model answers 80.0% of 60" in outline.text and "The images were blank." in outline.text
    (seen,) = [path for path in (own / "eval").iterdir() if path.name != "a"]
    shutil.rmtree(seen)
    assert "answers 50.0% of 60 questions right with blank images" in write(own)[1].text, "where there are no others"
