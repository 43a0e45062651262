"""What models of a comparison are diagnosed with, beside their outcomes."""

import json
from pathlib import Path

import pytest

from sightline.compare.checks import check_plan
from sightline.compare.diagnosed import diagnose_run, is_of
from sightline.compare.plan import Diagnosed
from sightline.compare.read import parse_plan
from sightline.compare.report import write_results
from sightline.compare.run import run_comparison
from sightline.config import check
from sightline.errors import SightlineError

from .stage import Here, Pretence, begin, plan_values, write_recipe

WORDS = "words/recall/own"


class Looks(Pretence):
    """Also diagnoses: a score by arm, stage and seed."""

    def __call__(self, arguments: list[str], *, log: Path, worker: int, lock: int) -> int:
        if arguments[0] != "diagnose":
            return super().__call__(arguments, log=log, worker=worker, lock=lock)
        self.commands.append(arguments)
        options = dict(zip(arguments[2::2], arguments[3::2], strict=True))
        out = Path(options["--out"])
        arm, seed = out.parts[-3].split(".seed")
        value = {"baseline": 0.25, "no-stage-1": 0.5, "blind": 0.0}[arm] + 0.01 * int(seed) ** 2 * (arm == "blind")
        value += 0.125 * (out.stem == "pretrain")
        out.write_text(json.dumps({"scores": {WORDS: {"value": value, "low": 0.0, "high": None, "n": 4}}}))
        return 0


def wanted(folder: Path, tiny, pictures: Path, **changes) -> dict:
    """A plan without tuning whose models are diagnosed after both stages."""
    recipe = write_recipe(folder / "base.yaml", tiny, pictures)
    recipe.write_text(recipe.read_text().replace("name: pretrain", "name: pretrain\n  save: true"))
    values = {"data": str(pictures / "captions.json"), "scores": [WORDS], "stages": ["pretrain"], "images": 8}
    return plan_values(folder, tuning=None, diagnostics=values | changes)


def test_models_are_diagnosed_after_the_stages_that_are_named(folder: Path, tiny, pictures: Path, monkeypatch):
    monkeypatch.setattr("sightline.compare.work._flops", lambda recipe, by_stage: 0)
    comparison, runner = begin(wanted(folder, tiny, pictures), folder / "out"), Looks(lambda arm, seed, lr: 0.5)
    assert run_comparison(comparison, runner) == []
    looks = [command for command in runner.commands if command[0] == "diagnose"]
    assert len(looks) == 3 * (2 + 1 + 2), "an arm without the stage is looked at once"
    first = looks[0]
    assert first[1].endswith("baseline.seed0/stages/pretrain/model") and first[first.index("--only") + 1] == "words"
    assert first[first.index("--template") + 1] == "vicuna_v1", (
        "a model that saw captions is asked as the last stage is"
    )
    row = json.loads((folder / "out" / "rows" / "baseline.seed1.json").read_text())
    assert row["diagnosed"] == {
        "pretrain": {WORDS: {"value": 0.375, "low": 0.0, "high": None}},
        "tune": {WORDS: {"value": 0.25, "low": 0.0, "high": None}},
    }
    results, text = write_results(comparison, "again")
    assert [(found.stage, [*found.arms]) for found in results.diagnosed] == [
        ("pretrain", ["baseline", "blind"]),
        ("tune", ["baseline", "no-stage-1", "blind"]),
    ]
    last = results.diagnosed[1].pairs["blind", "baseline"]
    assert last.mean == pytest.approx(0.05 / 3 - 0.25) and last.level == 0.95
    assert f"## Diagnosed: {WORDS} after tune" in text and "| no-stage-1 minus baseline | 0.250 |" in text
    assert "| no-stage-1 minus baseline |" not in text.split("after pretrain")[1].split("after tune")[0]


def test_models_that_were_trained_are_diagnosed(folder: Path, tiny, pictures: Path):
    values = wanted(folder, tiny, pictures) | {"seeds": [0]}
    values["arms"] = values["arms"][:2]
    comparison = begin(values, folder / "out")
    assert run_comparison(comparison, Here(threads=1), discard=True) == []
    row = json.loads((folder / "out" / "rows" / "baseline.seed0.json").read_text())
    assert [*row["diagnosed"]] == ["pretrain", "tune"] and 0 <= row["diagnosed"]["tune"][WORDS]["value"] <= 1
    assert not (folder / "out" / "runs" / "claim" / "baseline.seed0" / "stages").exists(), "looked at, then discarded"


def test_a_score_that_there_is_not_fails_the_run_and_says_which_there_are(folder: Path, tiny, pictures: Path):
    values = wanted(folder, tiny, pictures, scores=["words/recal/own"]) | {"seeds": [0]}
    (failure, *_) = run_comparison(begin(values, folder / "out"), Looks(lambda arm, seed, lr: 0.5))
    assert "no score 'words/recal/own' was measured; did you mean 'words/recall/own'?" in str(failure)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.json"}, "diagnostics.data: 'nowhere.json' is not there"),
        ({"scores": ["word/recall"]}, "no part 'word' is measured; did you mean 'words'?"),
        ({"scores": ["gate/overall/entropy"]}, "of models with such levels, a gate, or cognition, and no arm has it"),
        ({"stages": ["pretrian"]}, "no arm has a stage 'pretrian'; did you mean 'pretrain'?"),
    ],
)
def test_what_cannot_be_diagnosed_is_refused_before_anything_runs(folder, tiny, pictures, changes, message):
    with pytest.raises(SightlineError) as caught:
        check_plan(parse_plan(wanted(folder, tiny, pictures, **changes), "plan"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("score", "has"),
    [
        (WORDS, ["plain", "gated", "global", "telling"]),
        ("captions/own/right", ["plain", "gated", "global", "telling"]),
        ("captions/level/3/right", ["gated", "global"]),
        ("levels/norm/1", ["gated", "global"]),
        ("levels/cosine_distance/1/8", ["gated", "global"]),
        ("levels/cosine_distance/1/9", []),
        ("gate/overall/entropy", ["gated"]),
        ("gate/overall/weights/7", ["gated"]),
        ("gate/overall/weights/8", []),
        ("cognition/vq/own/accuracy", ["telling"]),
    ],
)
def test_scores_of_levels_are_asked_of_models_that_have_them(folder: Path, score: str, has: list[str]):
    """Arms without levels, or without a gate, are compared with those that have them, and go without their scores."""
    stage = {"name": "s", "data": {"path": "x"}, "trainable": ["connector"]}
    base = {"model": {"vision": "x", "language": "y"}, "stages": [stage]}
    methods = {"plain": [], "gated": [{"name": "aligngpt"}], "global": [{"name": "aligngpt", "mode": "global"}]}
    methods["telling"] = [{"name": "cognition"}]
    recipes = {arm: check({"name": arm, "methods": records, **base}) for arm, records in methods.items()}
    assert [arm for arm, recipe in recipes.items() if is_of(score, recipe)] == has

    def command(kind: str, model: str, *options: str) -> None:
        given = dict(zip(options[::2], options[1::2], strict=True))
        Path(given["--out"]).write_text(json.dumps({"scores": {score: {"value": 1.0, "low": 0.0, "high": 2.0}}}))

    wanted = Diagnosed(data="x", scores=[score])
    for arm, recipe in recipes.items():
        (folder / arm).mkdir(parents=True)
        assert bool(diagnose_run(wanted, recipe, folder / arm, command)) == (arm in has)


def test_a_stage_whose_model_is_not_kept_is_refused(folder: Path, tiny, pictures: Path):
    values = wanted(folder, tiny, pictures)
    write_recipe(folder / "base.yaml", tiny, pictures)
    with pytest.raises(SightlineError, match="arm 'baseline' does not keep its model after stage 'pretrain'"):
        check_plan(parse_plan(values, "plan"))


def test_another_material_is_another_comparison(folder: Path, tiny, pictures: Path):
    material = check_plan(parse_plan(wanted(folder, tiny, pictures), "plan"))
    assert str(pictures / "captions.json") in material.files
