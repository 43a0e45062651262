import json
import sys
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from sightline.errors import SightlineError
from sightline.evaluation import Question, compare, evaluate, read_predictions, read_scores, scores_table

COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


class Looker:
    """Names the colour of the first image, says yes to everything else, and notes how it was asked."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def answers(self, images, questions, *, max_new_tokens):
        self.batches.append(len(questions))
        assert all(image.mode == "RGB" for row in images for image in row)
        return [self.answer(row, question) for row, question in zip(images, questions, strict=True)]

    def answer(self, images, question: str) -> str:
        if not question.startswith("What colour"):
            return "Yes."
        seen = images[0].getpixel((0, 0))
        return next((name for name, colour in COLOURS.items() if colour == seen), "grey")


@pytest.fixture
def questions(tmp_path: Path) -> list[Question]:
    folder = tmp_path / "world" / "images"
    folder.mkdir(parents=True)
    rows = []
    for number in range(10):
        name = "red" if number % 2 else "blue"
        path = folder / f"{number}.png"
        Image.new("RGB", (4, 4), COLOURS[name]).save(path)
        rows.append(Question(f"c{number}", (path,), "What colour is it?", (name,), "colour"))
        rows.append(Question(f"e{number}", (path,), "Is it red?", ("yes" if name == "red" else "no",), "existence"))
    return [*rows, Question("t", (), "Is ice cold?", ("yes",), "knowledge")]


def test_scores_and_files_agree(questions, tmp_path):
    looker = Looker()
    scores = evaluate(looker, questions, out=tmp_path / "eval", settings={"model": Path("m")}, batch_size=8)
    assert looker.batches == [8, 8, 5]
    # Colours are all right, "Yes." is right for the 5 red ones and for the ice: 10 + 5 + 1 of 21.
    assert scores.overall.value == pytest.approx(16 / 21) and scores.n == 21
    assert {name: e.value for name, e in scores.by_ability.items()} == {
        "colour": 1,
        "existence": 0.5,
        "knowledge": 1,
    }
    assert scores.baseline_by_ability == {"colour": 0.5, "existence": 0.5, "knowledge": 1}
    assert scores.baseline == pytest.approx(11 / 21)
    assert scores.yes_no is not None
    assert scores.yes_no.recall.value == 1 and scores.yes_no.yes_ratio.value == 1
    assert scores.yes_no.true_yes_ratio == pytest.approx(6 / 11)
    assert scores.settings["decoding"] == "greedy" and scores.settings["batch_size"] == 8
    assert scores.versions["torch"]

    read = read_scores(tmp_path / "eval" / "scores.json")
    assert read.overall == scores.overall and read.yes_no == scores.yes_no and read.settings["model"] == "m"
    rows = read_predictions(tmp_path / "eval" / "predictions.jsonl")
    assert [row.id for row in rows] == [question.id for question in questions]
    assert rows[0].images == ("0.png",) and rows[0].correct and rows[0].prediction == "blue"
    assert Path(read.images_root) == tmp_path / "world" / "images"
    assert not list((tmp_path / "eval").glob(".*"))


def test_the_same_evaluation_writes_the_same_bytes(questions, tmp_path):
    for name in ("one", "two"):
        evaluate(Looker(), questions, out=tmp_path / name)
    for file in ("predictions.jsonl", "scores.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_blank_images_hide_the_colour(questions, tmp_path):
    scores = evaluate(Looker(), questions, out=tmp_path, blank_images=True)
    assert scores.by_ability["colour"].value == 0 and scores.settings["blank_images"] is True


def test_compare_is_paired_by_question(questions, tmp_path):
    evaluate(Looker(), questions, out=tmp_path / "a")
    evaluate(Looker(), questions[::-1], out=tmp_path / "b", blank_images=True)
    files = (tmp_path / "a" / "predictions.jsonl", tmp_path / "b" / "predictions.jsonl")
    comparison = compare(*files)
    assert comparison.by_ability["colour"].value == 1 and comparison.by_ability["colour"].low == 1
    assert comparison.by_ability["existence"].value == 0
    assert comparison.overall.value == pytest.approx(10 / 21) and comparison.overall.low > 0


def test_compare_refuses_other_questions(questions, tmp_path):
    evaluate(Looker(), questions, out=tmp_path / "a")
    evaluate(Looker(), questions[1:], out=tmp_path / "b")
    with pytest.raises(SightlineError, match=r"1 stand in one of them only \(the first is 'c0'\)"):
        compare(tmp_path / "a" / "predictions.jsonl", tmp_path / "b" / "predictions.jsonl")
    changed = Question("c0", questions[0].images, "What colour is that?", ("blue",), "colour")
    evaluate(Looker(), [changed, *questions[1:]], out=tmp_path / "b")
    with pytest.raises(SightlineError, match="question 'c0' is not the same"):
        compare(tmp_path / "a" / "predictions.jsonl", tmp_path / "b" / "predictions.jsonl")


def test_evaluate_refuses_what_cannot_be_scored(questions, tmp_path):
    class Mute(Looker):
        def answers(self, images, questions, *, max_new_tokens):
            return ["yes"]

    with pytest.raises(SightlineError, match="no questions"):
        evaluate(Looker(), [], out=tmp_path)
    with pytest.raises(SightlineError, match="batch of 0"):
        evaluate(Looker(), questions, out=tmp_path, batch_size=0)
    with pytest.raises(SightlineError, match="1 answers to 16 questions, from 'c0' on"):
        evaluate(Mute(), questions, out=tmp_path)
    questions[0].images[0].write_bytes(b"no image")
    with pytest.raises(SightlineError, match=r"0\.png"):
        evaluate(Looker(), questions, out=tmp_path)
    assert not (tmp_path / "scores.json").exists()


@pytest.mark.parametrize("content", ["", "{", '{"id": 3}', '{"id": "a"}\n'])
def test_broken_files_are_named(content, tmp_path):
    path = tmp_path / "predictions.jsonl"
    path.write_text(content)
    with pytest.raises(SightlineError, match=r"predictions\.jsonl.*Run"):
        read_predictions(path)
    with pytest.raises(SightlineError, match=r"predictions\.jsonl.*Run"):
        read_scores(path)


def test_progress_appears_after_a_while(questions, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["sightline.progress"], "PATIENCE", -1.0)
    evaluate(Looker(), questions, out=tmp_path, batch_size=2)
    captured = capsys.readouterr()
    assert captured.err == "asking: 2 of 21\n" and captured.out == "", "no terminal: a line, the next after 30 seconds"
    monkeypatch.setattr(sys.modules["sightline.progress"], "LINE_EVERY", -1.0)
    evaluate(Looker(), questions, out=tmp_path, batch_size=10)
    assert capsys.readouterr().err.splitlines() == ["asking: 10 of 21", "asking: 20 of 21", "asking: 21 of 21"]


def test_scores_table_shows_intervals_and_the_difference(questions, tmp_path):
    scores = evaluate(Looker(), questions, out=tmp_path / "a")
    evaluate(Looker(), questions, out=tmp_path / "b", blank_images=True)
    comparison = compare(tmp_path / "a" / "predictions.jsonl", tmp_path / "b" / "predictions.jsonl")
    console = Console(width=140, record=True, file=(tmp_path / "console").open("w"))
    console.print(scores_table(scores, comparison))
    text = console.export_text()
    assert "colour" in text and "100.0%" in text and "+100.0" in text and "yes/no yes-ratio" in text
    assert json.loads((tmp_path / "a" / "scores.json").read_text())["n"] == 21
