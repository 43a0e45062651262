"""What a plan must be before anything runs: whole, honest about its seeds and splits, and what it was when it began."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sightline.cli import app
from sightline.compare.checks import check_plan
from sightline.compare.draft import draft_plan
from sightline.compare.folder import begun_comparison, jobs_of, open_comparison
from sightline.compare.read import arm_recipe, load_plan, parse_plan, plan_hash
from sightline.data.order import Order
from sightline.errors import SightlineError
from sightline.models.assemble import Assembly
from sightline.train.folder import said
from sightline.train.processes import joined
from sightline.train.run import Data, start

from .stage import begin, plan_values, write_questions, write_recipe


def refused(values: dict) -> str:
    with pytest.raises(SightlineError) as caught:
        check_plan(parse_plan(values, "plan.yaml"))
    return str(caught.value)


def test_a_plan_in_full(folder: Path):
    plan = parse_plan(plan_values(folder), "plan.yaml")
    check_plan(plan)
    assert plan.compared == [("no-stage-1", "baseline"), ("blind", "baseline")]
    assert plan.num_claims == 2
    jobs = jobs_of(plan)
    assert len(jobs) == 3 * 2 * 2 + 3 * 3, "settings by tuning seeds, then arms by seeds"
    assert [job.kind for job in jobs] == ["tuning"] * 12 + ["claim"] * 9
    tried = {arm.name: sum(job.kind == "tuning" and job.arm == arm.name for job in jobs) for arm in plan.arms}
    assert len(set(tried.values())) == 1, "every arm has the same tuning"


def test_the_plan_of_the_guide_is_one():
    text = (Path(__file__).parents[2] / "docs" / "compare.md").read_text()
    plan = parse_plan(yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]), "docs/compare.md")
    assert plan.seeds == list(range(10)) and plan.num_claims == 2
    for arm in plan.arms:
        for setting in plan.settings_of(arm):
            assert arm_recipe(plan, arm, seed=0, setting=setting, out=Path("x")).stages[-1].name == "instruct"


def test_a_number_of_seeds_counts_from_zero(folder: Path):
    assert parse_plan(plan_values(folder, seeds=4), "p").seeds == [0, 1, 2, 3]


def test_arms_differ_as_they_say(folder: Path):
    plan = parse_plan(plan_values(folder), "p")
    recipes = {
        arm.name: arm_recipe(plan, arm, seed=7, setting=["stages.1.lr=5e-3"], out=folder / "x") for arm in plan.arms
    }
    assert {recipe.seed for recipe in recipes.values()} == {7}
    assert [stage.name for stage in recipes["no-stage-1"].stages] == ["tune"]
    assert recipes["no-stage-1"].stages[0].lr == 5e-3, "settings count stages before any is dropped"
    assert recipes["blind"].blank_images and not recipes["baseline"].blank_images


ARM = {"name": "x", "recipe": "base.yaml"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds: list should have at least 1 item"),
        ({"seeds": 0}, "seeds: should be 1 to 10000 seeds, or a list of them (got 0)"),
        ({"seeds": [1, 1]}, "seeds: '1' is there twice"),
        ({"seeds": [True]}, "seeds.0"),
        ({"seeds": [0, 100]}, "tuning.seeds: [100] are seeds of the claim too"),
        ({"arms": [ARM]}, "arms: list should have at least 2 items"),
        ({"arms": [ARM, {**ARM, "name": "X"}]}, "arms: 'x' is there twice; rows would overwrite each other"),
        ({"arms": [ARM, {**ARM, "name": "a/../b"}]}, "arms.1.name"),
        ({"arms": [ARM, {**ARM, "name": "y", "overrides": ["seed=4"]}]}, "seed is set by the comparison"),
        ({"baseline": "blnd"}, "'blnd' is not an arm; did you mean 'blind'?"),
        ({"pairs": [["blind", "blind"]]}, "an arm cannot be compared with itself"),
        ({"pairs": [["blind", "baseline"], ["baseline", "blind"]]}, "one difference would be two claims"),
        (
            {"secondary": [{"questions": "q.jsonl", "ability": "a"}, {"questions": "./q.jsonl", "ability": "a"}]},
            "primary and secondary: 'q.jsonl, a' is there twice; one outcome would have two intervals",
        ),
        ({"claims": 1}, "claims: 1 are fewer than the 2 pairs compared"),
        ({"smallest_effect": 0}, "smallest_effect"),
        ({"smallest_effect": float("nan")}, "smallest_effect"),
        ({"primary": None}, "primary: missing"),
        ({"split": "validation"}, "split"),
        ({"metric": "f1"}, "metric: unknown key"),
        ({"sedes": 3}, "sedes: unknown key; did you mean 'seeds'?"),
        ({"tuning": {"seeds": [9], "questions": "v.jsonl", "settings": [], "sed": 1}}, "tuning.sed: unknown key"),
    ],
)
def test_a_plan_that_is_not_one(folder: Path, changes: dict, message: str):
    values = plan_values(folder) | changes
    values = {key: value for key, value in values.items() if value is not None}
    assert message in refused(values)


def test_every_mistake_is_told_at_once(folder: Path):
    said = refused(plan_values(folder, seeds=0, smallest_effect=3, baselin="x"))
    assert said.startswith("3 problems in plan.yaml, so nothing was run:")


def test_an_arm_with_more_tuning_is_refused(folder: Path):
    values = plan_values(folder)
    values["arms"][1]["settings"] = [["stages.1.lr=1e-3"], ["stages.1.lr=2e-3"], ["stages.1.lr=3e-3"]]
    assert "more tuning is an advantage" in refused(values)


def test_an_arm_whose_settings_do_nothing_is_refused(folder: Path):
    """The learning rate of a stage that the arm drops is no second setting."""
    values = plan_values(folder)
    values["tuning"]["settings"] = [["stages.0.lr=1e-3"], ["stages.0.lr=2e-3"]]
    assert "arm 'no-stage-1': settings 0 and 1 give the same recipe" in refused(values)


def test_tuning_on_the_test_split_is_refused(folder: Path, pictures: Path):
    values = plan_values(folder)
    values["tuning"]["questions"] = str(folder / "test.questions.jsonl")
    assert "the split of the claim" in refused(values)
    copied = folder / "renamed.questions.jsonl"
    copied.write_bytes((folder / "test.questions.jsonl").read_bytes())
    values["tuning"]["questions"] = str(copied)
    assert "share 8 pictures or questions" in refused(values)
    values["tuning"]["questions"] = str(write_questions(folder / "some.jsonl", pictures, range(7, 12)))
    assert "share 1 pictures or questions" in refused(values), "one is enough"


def test_a_claim_about_validation_is_refused(folder: Path):
    values = plan_values(folder, tuning=None, primary={"questions": str(folder / "validation.questions.jsonl")})
    assert "a claim is about `test`" in refused(values)


def test_training_on_the_claims_file_is_refused(folder: Path, pictures: Path):
    test = folder / "test.questions.jsonl"
    values = plan_values(folder)
    values["arms"][1]["overrides"] = [f"stages.1.data.path={test}"]
    assert "arm 'no-stage-1' reads" in refused(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [{"name": "a", "recipe": "gone.yaml"}, {**ARM}]}, "arm 'a': recipe not found: gone.yaml"),
        ({"primary": {"questions": "gone.jsonl"}}, "question file not found: gone.jsonl, so nothing could be scored"),
        ({"primary": {"questions": "test.questions.jsonl", "ability": "color"}}, "did you mean 'colour'?"),
        (
            {"arms": [ARM, {**ARM, "name": "y", "drop_stages": ["pretrian"]}]},
            "arm 'y': there is no stage 'pretrian' to drop; did you mean 'pretrain'?",
        ),
        ({"arms": [ARM, {**ARM, "name": "y", "drop_stages": ["pretrain", "tune"]}]}, "arm 'y': 1 problem"),
        ({"arms": [ARM, {**ARM, "name": "y", "overrides": ["stages.7.lr=1"]}]}, "stages.7: there are 2 here"),
    ],
)
def test_what_a_plan_names_must_be_there(folder: Path, monkeypatch, changes: dict, message: str):
    monkeypatch.chdir(folder)
    assert message in refused(plan_values(folder) | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not YAML"),
        ("- a", "should hold a plan"),
        ("", "should hold a plan"),
        ("stages: []\nname: x", "is a recipe, and one alone has nothing to be compared with"),
    ],
)
def test_a_file_that_is_no_plan(tmp_path: Path, text: str, message: str):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(SightlineError, match=message):
        load_plan(tmp_path / "p.yaml")
    with pytest.raises(SightlineError, match="plan not found"):
        load_plan(tmp_path / "gone.yaml")


def test_a_plan_is_kept_with_its_hash_before_the_first_run(folder: Path):
    comparison = begin(plan_values(folder), folder / "out")
    begun = json.loads((folder / "out" / "plan.json").read_text())
    assert begun["plan"] == comparison.hash == plan_hash(load_plan(folder / "out" / "plan.yaml"))
    assert begun["began"] and set(begun["recipes"]) == {"baseline", "no-stage-1", "blind"}
    assert set(begun["questions"]) == {"test.questions.jsonl", "validation.questions.jsonl"}
    assert "runs/" in (folder / "out" / ".gitignore").read_text()
    assert begin(plan_values(folder), folder / "out") == comparison, "the same plan goes on"


@pytest.mark.parametrize("spoiled", ["[]", "{", '{"plan": 1}', '{"plan": 1, "began": 1, "recipes": null}'])
def test_a_record_that_was_spoiled_is_named(folder: Path, spoiled: str):
    begin(plan_values(folder), folder / "out")
    (folder / "out" / "plan.json").write_text(spoiled)
    with pytest.raises(SightlineError, match=r"cannot tell with which plan '.*out' was begun"):
        begin(plan_values(folder), folder / "out")
    record = {"plan": 1, "began": 1, "recipes": None, "questions": {}, "files": {}}
    (folder / "out" / "plan.json").write_text(json.dumps(record))
    with pytest.raises(SightlineError, match="its recipes, questions, files should be named"):
        begin(plan_values(folder), folder / "out")


@pytest.mark.parametrize("changes", [{"seeds": [0, 1, 2, 3]}, {"smallest_effect": 0.01}, {"tuning": None}])
def test_a_plan_that_changed_is_refused(folder: Path, changes: dict):
    begin(plan_values(folder), folder / "out")
    with pytest.raises(
        SightlineError, match=r"proves nothing, so nothing was run. .* start anew: give the plan another"
    ):
        begin(plan_values(folder, **changes), folder / "out")


def test_its_copy_its_recipes_and_its_questions_may_not_change_either(folder: Path, tiny, pictures: Path):
    out = folder / "out"
    comparison = begin(plan_values(folder), out)
    write_recipe(folder / "base.yaml", tiny, pictures, max_length=1024)
    assert begun_comparison(comparison.plan, out)[0] == comparison, "what is there can be read all the same"
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan_values(folder)))
    read = CliRunner().invoke(app, ["compare", str(folder / "plan.yaml"), "--report", "--out", str(out)])
    assert read.exit_code == 0 and (out / "results.md").is_file(), read.output
    with pytest.raises(SightlineError, match=r"recipes that the plan names are others .*: baseline, no-stage-1, blind"):
        begin(plan_values(folder), out)
    write_recipe(folder / "base.yaml", tiny, pictures)
    write_questions(folder / "test.questions.jsonl", pictures, range(7))
    with pytest.raises(SightlineError, match=r"questions that the plan names are others .*: test.questions.jsonl"):
        begin(plan_values(folder), out)
    write_questions(folder / "test.questions.jsonl", pictures, range(8))
    begin(plan_values(folder), out)
    (out / "plan.yaml").write_text(yaml.safe_dump(plan_values(folder, seeds=2)))
    with pytest.raises(SightlineError, match="the plan is another one"):
        begin(plan_values(folder), out)


def test_rows_and_weights_may_not_change_either(folder: Path, tiny, pictures: Path, tmp_path: Path):
    """As many rows as before, of which one says something else; a tower of the same shape with other weights."""
    rows, tower, out = tmp_path / "rows.json", tmp_path / "tower", folder / "out"
    text = (pictures / "captions.json").read_text()
    rows.write_text(text)
    shutil.copytree(tiny["clip"], tower)
    base = yaml.safe_load((folder / "base.yaml").read_text())
    base["model"]["vision"] = str(tower)
    base["stages"][0]["data"] = {"path": str(rows), "images": str(pictures / "images"), "template": "plain"}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    begin(plan_values(folder), out)
    rows.write_text(text.replace("red", "new", 1))
    with pytest.raises(SightlineError, match=rf"files that the plan names are others .*: {re.escape(str(rows))}"):
        begin(plan_values(folder), out)
    rows.write_text(text)
    weights = load_file(tower / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, tower / "model.safetensors")
    with pytest.raises(SightlineError, match=rf"files that the plan names are others .*: {re.escape(str(tower))}"):
        begin(plan_values(folder), out)


def test_a_key_that_a_later_version_adds_changes_no_hash():
    """Null, false and empty say nothing; zero does."""
    before = {"lr": 1e-3, "steps": 0}
    assert said(before) == said(before | {"new": None, "other": False, "list": [], "map": {}})
    assert len({said(before | {"new": value}) for value in (None, 0, True, "x", [1])}) == 5


def test_a_folder_with_something_else_is_left_alone(folder: Path):
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("x")
    with pytest.raises(SightlineError, match="is no comparison that was begun"):
        begin(plan_values(folder), folder / "out")
    assert [path.name for path in (folder / "out").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", [".plan.yaml.12.34", "..gitignore.1.2", ".plan.json.ab", "..plan.json.ab.1.2"])
def test_a_folder_that_another_process_begins_now_is_no_other_thing(folder: Path, name: str):
    """Nor one in which a process was killed as it wrote its first files."""
    (folder / "out").mkdir()
    (folder / "out" / name).write_text("half")
    begin(plan_values(folder), folder / "out")
    assert (folder / "out" / "plan.json").is_file()


def test_processes_that_begin_at_once_begin_one_comparison(folder: Path):
    values = plan_values(folder)
    plan = parse_plan(values, "plan")
    material, text = check_plan(plan), yaml.safe_dump(values)
    with ThreadPoolExecutor(4) as pool:
        for number in range(20):
            out = folder / f"out{number}"
            begun = [pool.submit(open_comparison, plan, text, material, out) for _ in range(4)]
            assert len({future.result().hash for future in begun}) == 1
            assert {path.name for path in out.iterdir()} == {"plan.yaml", "plan.json", ".gitignore"}


def test_two_files_of_one_name_are_refused(folder: Path, pictures: Path):
    (folder / "b").mkdir()
    other = write_questions(folder / "b" / "test.questions.jsonl", pictures, range(2))
    said = refused(plan_values(folder, secondary=[{"questions": str(other)}]))
    assert "two question files are called test.questions.jsonl" in said


def test_a_plan_from_recipes(folder: Path, tiny, pictures: Path):
    """Written once, with everything in it; the same command finds it again, another one does not overwrite it."""
    other = write_recipe(folder / "other.yaml", tiny, pictures)
    recipes, data = [str(folder / "base.yaml"), str(other)], folder / "test.questions.jsonl"
    path = draft_plan(recipes, folder=folder / "c", seeds=10, data=data)
    plan = load_plan(path)
    check_plan(plan)
    assert path == folder / "c" / "base-vs-other.plan.yaml"
    assert plan.seeds == list(range(10)) and plan.compared == [("other", "base")] and plan.smallest_effect == 0.02
    assert draft_plan(recipes, folder=folder / "c", seeds=10, data=data) == path
    with pytest.raises(SightlineError, match="is another plan"):
        draft_plan(recipes, folder=folder / "c", seeds=11, data=data)
    with pytest.raises(SightlineError, match=r"--data test.questions.jsonl"):
        draft_plan(recipes, folder=folder / "c", seeds=10)
    with pytest.raises(SightlineError, match="is there twice"):
        draft_plan([recipes[0], recipes[0]], folder=folder / "c", seeds=10, data=data)


def fresh(plan, name: str) -> tuple[Assembly, Order]:
    """The model that an arm starts from and the order of its last stage's rows, for seed 5."""
    recipe = arm_recipe(plan, plan.arm(name), seed=5, setting=[], out=Path("x"))
    assembly = start(recipe, recipe.stages[0], None)
    number, stage = len(recipe.stages) - 1, recipe.stages[-1]
    with joined("cpu") as processes:
        rows, _ = Data(recipe, None, processes).of(number, assembly)
    return assembly, rows.order(batch_size=stage.batch_size, accumulate=stage.accumulate)


def test_arms_start_alike_and_see_the_same_order(folder: Path):
    """Of one seed: the connector is the same to the bit with a method and without, with a stage less, and blind; the
    rows of a common stage come in one order. Another seed gives others."""
    values = plan_values(folder, tuning=None)
    values["arms"].append({"name": "nudged", "recipe": values["arms"][0]["recipe"]})
    values["arms"][-1]["overrides"] = ["methods=[{name: 'toy:Nudge'}]"]
    plan = parse_plan(values, "p")
    (first, order), *others = [fresh(plan, arm.name) for arm in plan.arms]
    state = first.model.state_dict()
    for assembly, theirs in others:
        assert theirs == order
        assert list(theirs.micro_batches(3)) == list(order.micro_batches(3))
        common = assembly.model.state_dict()
        assert state.keys() <= common.keys()
        assert all(bool((value == common[name]).all()) for name, value in state.items())
    recipe = arm_recipe(plan, plan.arms[0], seed=6, setting=[], out=Path("x"))
    other = start(recipe, recipe.stages[0], None).model.state_dict()
    assert not all(bool((value == other[name]).all()) for name, value in state.items())
