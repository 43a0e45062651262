"""Runs side by side on one page: their differences, their looks, the claims of comparisons."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from test_page import Fake, make_run, questions, write

from sightline.compare import claims as module
from sightline.compare.claims import Claim, Claims, read_claims, read_shipped
from sightline.diagnostics.lens import Cell
from sightline.errors import SightlineError
from sightline.evaluation import evaluate
from sightline.evaluation.metrics import Estimate
from sightline.report import page as module_of_the_page
from sightline.report.curves import in_order
from sightline.report.differences import differences
from sightline.report.looking import look_where_missing, looked, pictures_of
from sightline.report.looks import Look, Looks, Map, Pictured, key_of, read_looks, write_looks
from sightline.report.page import LARGEST, write_page
from sightline.report.run_folder import read_run
from sightline.report.series import series_of

__all__ = ["questions"]
COMPARISONS = Path(__file__).parents[2] / "benchmarks" / "comparisons"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, questions) -> list[Path]:
    """One that is right on four of five, one that is blind; the second has looks of one picture."""
    folder = tmp_path_factory.mktemp("runs")
    made = [make_run(folder / "first", questions), make_run(folder / "second", questions, blind=True)]
    (made[0] / "recipe.yaml").write_text("name: first\nstages:\n- {name: tune, lr: 1.0, steps: 3}\n")
    (made[1] / "recipe.yaml").write_text("name: second\nstages:\n- {name: tune, lr: 2.0, steps: 3, extra: yes}\n")
    write_looks(made[1], *looks_of("3.png", grid=2))
    return made


def looks_of(name: str, grid: int, key: str = "key") -> tuple[Looks, dict[str, Image.Image]]:
    cells = [Cell((("red", 0.5), ("<b>", 0.25)), ("red",), True)] + [Cell((("mud", 0.4),))] * (grid**2 - 1)
    look = Look(
        name,
        Map("0-seen.png", grid, tuple(cells), "a summary"),
        {"by itself": "a <i>caption</i>", "1": "another"},
        Pictured("0-drawn.png", "PSNR 12.3 dB"),
        Pictured("0-painted.png", "1 of 4 codes right"),
    )
    gate = {"overall": {"1": Estimate(0.25, 0.2, 0.3, 7), "2": Estimate(0.75, 0.7, 0.8, 7)}}
    files = {f"0-{what}.png": Image.new("RGB", (40, 40), "red") for what in ("seen", "drawn", "painted")}
    return Looks(key, (look,), gate, ("There is no moon: it is day.",)), files


def test_runs_are_compared_with_the_first(runs):
    page, outline = write(runs[0], *runs[1:])
    assert "first answers 80.0% of 60 questions right" in outline.text
    assert "second 50.0%" in outline.text and "a difference of −30.0 points" in outline.text
    assert "that is below zero." in outline.text
    assert "less first" in outline.text and page.count("var(--b)") > 2
    assert "first: Training 5 at step 1" in outline.text and "second: Training 5 at step 1" in outline.text
    assert "pretrain, loss/answer" in outline.text, "totals of several runs are not put together"


def test_the_headline_is_of_what_all_runs_have(runs, questions, tmp_path):
    own, other = (Path(shutil.copytree(run, tmp_path / run.name)) for run in runs)
    evaluate(Fake(questions), questions[:10], out=own / "eval" / "early", progress=False)
    evaluate(Fake(questions), questions[:10], out=other / "eval" / "late", progress=False)
    _, outline = write(own, other)
    assert "first answers 80.0% of 60" in outline.text and "second 50.0%" in outline.text
    assert "second has no evaluation 'early'" in outline.text
    assert "second has evaluations that first has not, not shown: 'late'." in outline.text
    assert "first answers 80.0% of 10" in write(own, other, first="early")[1].text
    shutil.rmtree(own / "eval")
    _, outline = write(own, other)
    assert "first has learning curves and no evaluation yet" in outline.text
    assert "not shown: 'late'." in outline.text


def test_a_twin_beside_several_is_the_first_ones(runs):
    _, outline = write(*runs, twin=runs[1])
    assert "the blind twin of first, trained the same with blank images, 50.0%" in outline.text
    assert "first less it +30.0 points" in outline.text and "a difference of −30.0 points" in outline.text


def test_runs_that_were_asked_otherwise_are_told(runs, questions, tmp_path):
    other = Path(shutil.copytree(runs[0], tmp_path / "other"))
    assert "asked otherwise" not in write(runs[0], other)[1].text
    evaluate(
        Fake(questions), questions, out=other / "eval" / "test", max_new_tokens=3, blank_images=True, progress=False
    )
    text = write(runs[0], other)[1].text
    assert text.count("asked otherwise") == 2 and "max_new_tokens is 3 and not 16" in text
    assert "blank_images is True and not False" in text
    assert write(runs[0], twin=other)[1].text.count("asked otherwise") == 1, "a twin's images are blank"


def test_answers_that_say_neither_are_counted_for_each_run(runs):
    assert "as wrong above; such were 6 of 30 by first, 30 of 30 by second." in write(*runs)[1].text


def test_stages_stand_in_the_order_in_which_they_ran():
    assert in_order([["pretrain", "instruct"], ["pretrain", "text", "instruct", "more"]]) == [
        "pretrain",
        "text",
        "instruct",
        "more",
    ]
    assert in_order([["b"], ["a", "b"], []]) == ["a", "b"]


def test_what_differs_in_the_recipes_is_told(runs):
    _, outline = write(runs[0], runs[1])
    assert "stages.tune.lr 1.0 2.0" in outline.text and "stages.tune.extra – True" in outline.text
    assert "stages.tune.steps" not in outline.text
    stages = "stages: [{name: x, lr: 1}, {name: y, lr: 2, save: false}]"
    assert differences({"a": stages, "b": "stages: [{name: x, lr: 3}]\nmethods: [{name: sea}]"}) == [
        ("stages.x.lr", ["1", "3"]),
        ("stages.y", ["lr: 2", None]),
        ("methods.sea", [None, "as it is"]),
    ]
    assert differences({"a": "x: 1\ny: {z: [1, 2]}", "b": "x: 1\ny: {z: [1]}\nname: q", "c": "{"}) == [
        ("x", ["1", "1", None]),
        ("y.z", ["[1, 2]", "[1]", None]),
    ]


def test_what_was_looked_at_is_shown_with_its_words(runs):
    page, outline = write(runs[0], runs[1])
    cells = [tag for tag in outline.all("div") if tag.get("class") == "cell"]
    assert cells[0]["aria-label"] == "row 1, column 1: red 0.50, <b> 0.25; shows red; right"
    assert len(cells) == 4 and "✓ red" in outline.text
    for words in ("a summary", "level 1", "a <i>caption</i>", "PSNR 12.3 dB", "1 of 4 codes right", "no moon"):
        assert words in outline.text
    assert "75.0" in outline.text and "<i>" not in page
    assert "Nothing was looked at" not in outline.text and "Nothing was looked at" in write(runs[0])[1].text


@pytest.mark.parametrize("without", [(), (0,), (1,), (0, 1)])
def test_a_picture_stands_once_beside_its_captions_where_any_run_has_it(runs, tmp_path, without: tuple[int, ...]):
    copies = [Path(shutil.copytree(runs[0], tmp_path / f"copy{number}")) for number in range(2)]
    looks, files = looks_of("3.png", grid=2)
    for number, copy in enumerate(copies):
        one = replace(looks.pictures[0], map=None) if number in without else looks.pictures[0]
        write_looks(copy, replace(looks, pictures=(one,)), files)
    _, outline = write(*copies)
    shown = [tag for tag in outline.all("img") if tag["alt"] == "3.png"]
    assert len(shown) == (0 if len(without) == 2 else 1)


def test_a_large_lens_makes_no_large_page(runs, tmp_path):
    """Of four runs with 27 x 27 tokens each, and photographs that do not compress."""
    copies = [Path(shutil.copytree(runs[0], tmp_path / f"copy{number}")) for number in range(4)]
    looks, _ = looks_of("3.png", grid=27)
    noise = Image.merge("RGB", [Image.effect_noise((420, 420), 90)] * 3)
    for copy in copies:
        write_looks(copy, looks, {f"0-{what}.png": noise for what in ("seen", "drawn", "painted")})
    page = write_page(*copies).read_text(encoding="utf-8")
    assert len(page.encode()) < LARGEST and "✓ red" not in page, "no room for words, yet they are told"
    assert "row 27, column 27: mud" in page and "left out" not in page


def test_a_page_with_no_room_shows_fewer_pictures(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(module_of_the_page, "LARGEST", 1)
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    looks, files = looks_of("3.png", grid=2)
    write_looks(
        run, replace(looks, pictures=tuple(replace(looks.pictures[0], picture=f"{n}.png") for n in range(5))), files
    )
    page, outline = write(run)
    assert page.count('class="cells"') == 1 and "4 more pictures were looked at, and left out" in outline.text
    assert "Nothing was looked at" not in outline.text


def test_looks_are_kept_until_model_or_pictures_change(runs, tmp_path):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    (run / "model").mkdir()
    (run / "model" / "model.safetensors").write_bytes(b"1")
    pictures = [path for _, path in pictures_of(read_run(run), 2, None)]
    assert len(pictures) == 2 and not looked(run, pictures)
    looks, files = looks_of("3.png", 2, key=key_of(run, pictures))
    write_looks(run, looks, files)
    assert read_looks(run) == looks and looked(run, pictures) and not looked(run, pictures[:1])
    (run / "model" / "model.safetensors").write_bytes(b"12")
    assert not looked(run, pictures)
    (run / "looks" / "0-drawn.png").write_bytes((run / "looks" / "0-drawn.png").read_bytes()[:60])
    (run / "looks" / "0-seen.png").unlink()
    assert "Left out, since they cannot be read: 0-seen.png, 0-drawn.png in" in write(run)[1].text
    text = (run / "looks" / "looks.json").read_text()
    (run / "looks" / "looks.json").write_text(text.replace('"grid": 2', '"grid": 3'))
    assert "looks.json cannot be read" in write(run)[1].text
    (run / "looks" / "looks.json").write_text("{")
    assert not looked(run, pictures)
    assert "looks.json cannot be read" in write(run)[1].text


def test_a_damaged_picture_is_passed_over(runs, questions, tmp_path):
    shutil.copytree(questions[0].images[0].parent, tmp_path / "moved")
    first, second, third = pictures_of(read_run(runs[0]), 3, tmp_path / "moved")
    first[1].write_bytes(b"GIF89a")
    assert pictures_of(read_run(runs[0]), 2, tmp_path / "moved") == [second, third]


def test_a_model_that_cannot_run_is_no_end(runs, tmp_path):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    (run / "model").mkdir()
    with pytest.raises(
        SightlineError, match=r"no model at(.|\n)*The page of what is there can be written: --pictures 0"
    ):
        look_where_missing(series_of([run], None), 1)


def test_runs_that_cannot_share_a_page_are_refused(runs, tmp_path):
    with pytest.raises(SightlineError, match="given twice"):
        series_of([runs[0], runs[0]], None)
    with pytest.raises(SightlineError, match="at most 4 runs"):
        series_of([tmp_path] * 5, None)
    copy = Path(shutil.copytree(runs[0], tmp_path / "other"))
    assert [one.name for one in series_of([runs[0], copy], None)] == ["first", "other"], "by folder where names are one"


def test_benchmarks_stand_on_the_page(runs, tmp_path):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    for name, value in (("pope", 0.875), ("mme", 1234.5)):
        folder = run / "eval" / name
        folder.mkdir()
        (folder / "answers.jsonl").write_text("")
        score = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 9}
        about = {"title": name.upper(), "primary": "best", "note": "", "scores": {"best": score, "part": score}}
        (folder / "scores.json").write_text(json.dumps(about))
    (run / "eval" / "broken").mkdir()
    (run / "eval" / "broken" / "answers.jsonl").write_text("")
    (run / "eval" / "broken" / "scores.json").write_text("{}")
    _, outline = write(run)
    assert "POPE best, n = 9 87.5" in outline.text and "MME best, n = 9 1234.5" in outline.text
    assert "MME part" in outline.text
    assert "Benchmark 'broken' is left out" in outline.text and "Evaluation 'pope'" not in outline.text
    shutil.rmtree(run / "eval" / "test")
    assert "MME, POPE have been scored, and The model has no evaluation on a question file yet" in write(run)[1].text


def test_claims_over_seeds_are_shown_beside(runs):
    claims = Claims(
        "toy",
        "accuracy",
        100,
        10,
        0.95,
        0.02,
        {"b": "base", "a": "mine", "c": "mine"},
        (Claim("a", "b", 0.03, -0.01, 0.07, "no <more>"),),
    )
    _, outline = write(runs[0], comparisons=[claims])
    assert "What seeds say" in outline.text and "a less b" in outline.text and "no <more>" in outline.text
    assert "Arms: b (base); a, c (mine)." in outline.text
    assert "+3.0 points (−1.0 to +7.0):" in outline.text and "10 seeds for each arm" in outline.text
    assert "What seeds say" not in write(runs[0])[1].text
    nothing = Claims("toy", "accuracy", 9, 2, 0.95, 0.02, {}, (Claim("a", "b", -1e-5, -0.01, 0.01, "none"),))
    assert "+0.0 points" in write(runs[0], comparisons=[nothing])[1].text, "no -0.0"


def test_what_claims_nothing_is_refused(runs, tmp_path):
    with pytest.raises(SightlineError, match="holds no comparison"):
        read_claims(runs[0])
    (tmp_path / "plan.yaml").write_text(
        "name: one\narms: [{name: a, recipe: world}, {name: b, recipe: world}]\nseeds: 1\nsmallest_effect: 0.02\n"
        "primary: {questions: test.questions.jsonl}\n"
    )
    with pytest.raises(SightlineError, match="has one seed, so it claims nothing"):
        read_claims(tmp_path)


@pytest.mark.skipif(not COMPARISONS.is_dir(), reason="only a checkout of the repository has the comparisons")
def test_what_ships_is_what_the_comparisons_say():
    complete = sorted(path.parent for path in COMPARISONS.glob("*/results.md"))
    assert read_shipped() == [read_claims(folder) for folder in complete], "run benchmarks/ship_claims.py"
    assert module.SHIPPED.is_file() and len(complete) > 3
