"""Comparisons through the command line, with tiny models that really train: killed, resumed, repeated, refused."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from sightline.checkpoints.resume import Checkpoints
from sightline.compare.cli import compare, parse_shard
from sightline.compare.work import CommandLine, visible_gpus
from sightline.errors import SightlineError
from sightline.plan.run import plan as plan_recipe

from .stage import Here, PowerCut, plan_values, write_material, write_recipe

PROGRAM = """
import sys, typer
from sightline.checkpoints.resume import Checkpoints
from sightline.compare.cli import compare
from sightline.errors import SightlineError
app = typer.Typer()
app.command()(compare)
try:
    app()
except SightlineError as error:
    sys.exit(f"error: {error}")
"""


def sightline(*arguments: object) -> Result:
    """`sightline compare ...` in this process."""
    app = typer.Typer()
    app.command()(compare)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def said(result: Result) -> str:
    """The message for the user that a command ended with."""
    assert isinstance(result.exception, SightlineError), result.output
    return str(result.exception)


def two_arms(folder: Path, **changes) -> Path:
    """A plan of two runs: the baseline and the arm without stage 1, one seed."""
    values = plan_values(folder, tuning=None, seeds=1, secondary=None, **changes)
    values["arms"] = values["arms"][:2]
    (folder / "plan.yaml").write_text(yaml.safe_dump(values))
    return folder / "plan.yaml"


@pytest.fixture(scope="module")
def whole(tiny: dict[str, Path], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    write_material(folder, tiny, pictures)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sightline.compare.work.CommandLine", Here)
        result = sightline(two_arms(folder), "--out", folder / "out")
    assert result.exit_code == 0, result.output
    return folder / "out"


def scores(out: Path) -> dict[str, dict]:
    return {row.name: json.loads(row.read_text())["scores"] for row in sorted((out / "rows").glob("*.json"))}


def weights(out: Path) -> dict[str, str]:
    """A hash of the weights that each run ended with: answers of models this small are all wrong, and so alike."""
    files = sorted((out / "runs" / "claim").glob("*/model/model.safetensors"))
    return {file.parts[-3]: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_killed_comparison_leaves_its_training_alone(folder: Path, whole: Path, monkeypatch):
    """SIGKILL to the process that compares: the training that it started keeps its run to the end, another comparison
    waits for that and does the rest, and weights and scores are those of an undisturbed one."""
    out, plan = folder / "out", two_arms(folder)
    command = [sys.executable, "-c", PROGRAM, str(plan), "--out", str(out)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "logs" / "claim.baseline.seed0.log").is_file():
        assert first.poll() is None, "it ended before it began"
        time.sleep(0.05)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    monkeypatch.setattr("sightline.compare.work.CommandLine", Here)
    again = sightline(plan, "--out", out)
    assert again.exit_code == 0, again.output
    assert "waiting for runs that another process holds" in again.output
    assert scores(out) == scores(whole) and len(scores(out)) == 2
    assert weights(out) == weights(whole) and len(set(weights(out).values())) == 2
    rows = (out / "results.jsonl").read_text()
    assert str(folder) not in rows and json.loads(rows.splitlines()[0])["versions"]["torch"]
    assert "# small" in again.output


def test_commands_are_processes_of_their_own(tmp_path: Path):
    """Their words go to the log, their end is their exit code, and what is stopped starts nothing more."""
    with (tmp_path / "lock").open("w") as lock:
        where = {"worker": 0, "lock": lock.fileno()}
        runner = CommandLine(threads=1)
        assert runner(["--version"], log=tmp_path / "a.log", **where) == 0
        assert (tmp_path / "a.log").read_text().startswith("sightline ")
        assert runner(["train", "gone.yaml"], log=tmp_path / "b.log", **where) == 2
        assert "error: recipe not found" in (tmp_path / "b.log").read_text()
        codes = []
        long = ["world", "make", str(tmp_path / "world"), "--train", "100000"]
        thread = threading.Thread(target=lambda: codes.append(runner(long, log=tmp_path / "c.log", **where)))
        thread.start()
        while not (tmp_path / "c.log").is_file():
            time.sleep(0.02)
        time.sleep(0.2)
        runner.stop(signal.SIGTERM)
        thread.join(60)
        assert codes == [-signal.SIGTERM]
        assert runner(["--version"], log=tmp_path / "d.log", **where) != 0


def test_workers_share_out_the_gpus_they_may_see(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert visible_gpus(None) == visible_gpus("cuda") == ["2", "3"]
    assert visible_gpus("cpu") == visible_gpus("cuda:1") == []


def test_a_half_trained_run_goes_on_where_it_was(folder: Path, whole: Path, monkeypatch):
    """The power goes after the first step of the second stage; the trainer resumes, and weights and scores are
    the same."""
    plan, out, save = two_arms(folder), folder / "out", Checkpoints.save
    monkeypatch.setattr("sightline.compare.work.CommandLine", Here)

    def once(self, name, tensors, state):
        path = save(self, name, tensors, state)
        if name == "01-tune-0000001":
            raise PowerCut
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", once)
        assert isinstance(sightline(plan, "--out", out).exception, PowerCut)
    assert not (out / "rows").exists()
    result = sightline(plan, "--out", out)
    assert result.exit_code == 0, result.output
    assert scores(out) == scores(whole)
    assert weights(out) == weights(whole) and len(set(weights(out).values())) == 2
    first, second = (json.loads((where / "rows" / "baseline.seed0.json").read_text()) for where in (out, whole))
    assert (first["resumed"], second["resumed"]) == (1, 0)
    same = ("steps", "samples", "tokens", "flops")
    assert [first["compute"][key] for key in same] == [second["compute"][key] for key in same]


def test_what_a_run_cost_is_what_the_dry_run_counts(folder: Path, whole: Path):
    """FLOPs of the row against the plan of the recipe with the tokens that its rows had; samples and tokens against the
    metrics."""
    from sightline.config import load_recipe

    row = json.loads((whole / "rows" / "no-stage-1.seed0.json").read_text())
    run = whole / "runs" / "claim" / "no-stage-1.seed0"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "split" not in line]
    cost = row["compute"]
    assert (cost["steps"], cost["samples"]) == (len(steps), sum(line["samples"] for line in steps)) == (2, 8)
    assert cost["tokens"] == sum(line["tokens"] for line in steps)
    assert cost["training_seconds"] > 0 and cost["evaluation_seconds"] > 0
    recipe = load_recipe(run / "recipe.yaml")
    (stage,) = plan_recipe(recipe, (1,)).stages
    text = round(cost["tokens"] / 8 - stage.rows.images * stage.tokens_per_image)
    (stage,) = plan_recipe(recipe, (1,), text_tokens=text).stages
    assert cost["flops"] == stage.flops
    both = json.loads((whole / "rows" / "baseline.seed0.json").read_text())["compute"]
    assert both["flops"] > cost["flops"] and both["steps"] == 4


def test_a_methods_slots_are_no_text(folder: Path, tiny, pictures: Path):
    """A row's tokens hold them, and the plan adds them by itself."""
    from sightline.compare.work import _flops
    from sightline.config import load_recipe

    recipe = load_recipe(write_recipe(folder / "toy.yaml", tiny, pictures, methods=[{"name": "toy:Toy"}]))
    expected = plan_recipe(recipe, (1,), text_tokens=20)
    spent = {}
    for stage in expected.stages:
        assert stage.rows.images and stage.sequence == round(stage.rows.images * (stage.tokens_per_image + 1) + 20)
        spent[stage.name] = (stage.samples, stage.samples * stage.sequence)
    assert _flops(recipe, spent) == sum(stage.flops for stage in expected.stages)


def test_a_plan_that_cannot_be_carried_out_is_not_left_in_the_way(folder: Path, tiny, pictures: Path, monkeypatch):
    """After a mistyped ability or file, the command said right goes on."""
    monkeypatch.chdir(folder)
    write_recipe(folder / "other.yaml", tiny, pictures)
    recipes = ["base.yaml", "other.yaml", "--seeds", 3, "--plan", "--data"]
    assert "did you mean 'colour'?" in said(sightline(*recipes, "test.questions.jsonl", "--ability", "color"))
    assert "question file not found" in said(sightline(*recipes, "tset.questions.jsonl"))
    assert not Path("comparisons").exists()
    result = sightline(*recipes, "test.questions.jsonl", "--ability", "colour")
    assert result.exit_code == 0, result.output


def test_no_more_seeds_than_a_plan_takes(folder: Path, tiny, pictures: Path, monkeypatch):
    monkeypatch.chdir(folder)
    write_recipe(folder / "other.yaml", tiny, pictures)
    result = sightline("base.yaml", "other.yaml", "--data", "test.questions.jsonl", "--plan", "--seeds", 10**11)
    assert result.exit_code == 2 and "10000" in result.output


def test_recipes_alone_are_compared_by_a_plan_that_is_written_first(folder: Path, tiny, pictures: Path, monkeypatch):
    monkeypatch.chdir(folder)
    write_recipe(folder / "other.yaml", tiny, pictures)
    options = ["base.yaml", "other.yaml", "--seeds", 3, "--data", "test.questions.jsonl", "--plan"]
    result = sightline(*options)
    assert result.exit_code == 0, result.output
    assert "the plan is comparisons/base-vs-other.plan.yaml" in result.output
    assert (
        "is a plan of 6 runs; nothing was run. Carry it out: sightline compare comparisons/base-vs-other"
        in result.output
    )
    assert [path.name for path in Path("comparisons").iterdir()] == ["base-vs-other.plan.yaml"], (
        "it may still be changed"
    )
    assert "no comparison was begun" in said(sightline("comparisons/base-vs-other.plan.yaml", "--report"))
    assert "another name: --name NAME" in said(sightline(*options[:3], 4, *options[4:]))


def test_a_failing_run_says_why_and_what_to_do(folder: Path, monkeypatch):
    monkeypatch.setattr("sightline.compare.work.CommandLine", Here)
    values = plan_values(folder, tuning=None, seeds=1, secondary=None)
    values["arms"] = values["arms"][:2]
    values["arms"][1]["overrides"] = ["stages.1.weights={nothing/of-it: 1.0}"]
    (folder / "plan.yaml").write_text(yaml.safe_dump(values))
    message = said(sightline(folder / "plan.yaml", "--out", folder / "out"))
    assert message.startswith("1 run failed, so the claim waits:\n  claim: no-stage-1, seed 0: `sightline train`")
    assert "nothing/of-it" in message and "Mend the cause, and go on: sightline compare" in message
    assert (folder / "out" / "rows" / "baseline.seed0.json").is_file(), "the other arm was done"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.yaml"], "plan not found: gone.yaml. Give a plan file, or two recipes or more"),
        (["base.yaml"], "is a recipe, and one alone has nothing to be compared with"),
        (["base.yaml", "gone.yaml"], "recipe not found: gone.yaml"),
        (["base.yaml", "plan.yaml"], "problems in plan.yaml"),
        (["plan.yaml", "--seeds", "3"], "--seeds goes with recipes"),
        (["plan.yaml", "--shard", "3/2"], "--shard 3/2 is no part of the runs"),
        (["plan.yaml", "--shard", "half"], "--shard half is no part"),
    ],
)
def test_mistakes_are_one_message(folder: Path, monkeypatch, arguments: list[str], message: str):
    monkeypatch.chdir(folder)
    two_arms(folder)
    before = set(folder.iterdir())
    assert message in said(sightline(*arguments))
    assert set(folder.iterdir()) == before, "nothing is written for a command that failed"


def test_shards_are_parts_of_a_whole():
    assert parse_shard("1/1") == (1, 1) and parse_shard("2/5") == (2, 5)
    for text in ("0/2", "1/0", "-1/2", "1", "", "1/2/3", "٣/4", "1/" + "9" * 30):
        with pytest.raises(SightlineError):
            parse_shard(text)
