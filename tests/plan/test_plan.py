"""The plan of whole recipes: rows, steps, samples, GPUs; the shipped LLaVA-1.5 recipes; the command line."""

import json
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from sightline import cli
from sightline.config import Recipe, check, load_recipe, shipped_recipes
from sightline.errors import SightlineError
from sightline.plan import plan, show
from sightline.plan.report import GIB, flops, head
from sightline.plan.rows import CAPTION_TOKENS, CONVERSATION_TOKENS

ROOT = Path(__file__).parents[2]
LLAVA = [name for name in shipped_recipes() if name.startswith("llava-1.5")]
FITS = {"llava-1.5-7b-qlora-24gb": 24, "llava-1.5-7b-lora-80gb": 80}


def make_recipe(path, *, model=None, **changes) -> Recipe:
    stage = {"name": "s", "data": {"path": str(path)}, "trainable": ["connector"], "batch_size": 4}
    model = model or {"vision": "world:clip", "language": "world:lm"}
    return check({"name": "r", "model": model, "max_length": 256, "stages": [stage | changes]})


@pytest.mark.parametrize("name", LLAVA)
def test_the_published_settings_of_llava(name):
    """Liu et al. 2023 and their scripts: rows, steps, batches and rates of both stages."""
    recipe = load_recipe(name)
    assert recipe.model is not None
    assert recipe.model.vision == "openai/clip-vit-large-patch14-336"
    assert recipe.model.language == f"lmsys/vicuna-{'13b' if '13b' in name else '7b'}-v1.5"
    assert (recipe.model.connector, recipe.model.vision_layer, recipe.model.image_fit) == ("mlp", -2, "pad")
    assert recipe.max_length == 2048
    pretrain, instruct = recipe.stages
    for stage in recipe.stages:
        assert (stage.schedule, stage.warmup, stage.weight_decay, stage.epochs) == ("cosine", 0.03, 0.0, 1.0)
        assert stage.precision == "bf16"
    assert (pretrain.trainable, pretrain.lr, pretrain.batch_size * pretrain.accumulate) == (["connector"], 1e-3, 256)
    assert instruct.trainable == ["connector", "language"]
    assert instruct.batch_size * instruct.accumulate == 128
    assert instruct.group_by_length and not pretrain.group_by_length
    assert [stage.data[0].template for stage in recipe.stages] == ["plain", "vicuna_v1"]
    if instruct.lora is None:
        assert instruct.lr == 2e-5
    else:
        assert (instruct.lora.rank, instruct.lora.alpha, instruct.lora.dropout) == (128, 256, 0.05)
        assert (instruct.lr, instruct.lr_by_part) == (2e-4, {"connector": 2e-5})
    planned = plan(recipe)
    assert [(stage.steps, stage.samples) for stage in planned.stages] == [(2181, 558_128), (5198, 665_298)]
    assert all(stage.tokens_per_image == 576 for stage in planned.stages)


@pytest.mark.parametrize(("name", "size"), FITS.items())
def test_recipes_for_one_gpu_fit_it_and_say_what_they_take(name, size):
    """Even where every row has max_length tokens, with a twentieth to spare; the comment is today's dry run."""
    planned = plan(load_recipe(name), gpus=[1])
    for stage in planned.stages:
        longest = stage.gpus[0].longest
        assert longest is not None
        assert longest.total < 0.95 * size * GIB
    text = shipped_recipes()[name].read_text(encoding="utf-8")
    assert "\n".join(head(planned)) in text, f"the head of {name}.yaml is behind; it should say\n" + "\n".join(
        head(planned)
    )


def test_the_sizes_of_llava_7b():
    """2 x parameters x tokens, roughly, and that three times for what trains: sanity of the whole sum."""
    pretrain, instruct = plan(load_recipe("llava-1.5-7b")).stages
    assert {part.name: part.trained for part in pretrain.parts} == {"vision": 0, "connector": 20_979_712, "language": 0}
    matrices = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    tokens = 256 * (576 + CAPTION_TOKENS)
    assert pretrain.step.decoder == pytest.approx(2 * matrices * tokens, rel=0.03)
    assert pretrain.step.vision_backward == 0
    tokens = 128 * (576 + CONVERSATION_TOKENS)
    whole = instruct.step.decoder + instruct.step.decoder_backward
    assert whole == pytest.approx(6 * matrices * tokens, rel=0.05)
    assert instruct.step.recomputed == instruct.step.decoder


def test_steps_and_samples_are_those_of_training(pictures):
    """Counted from the files: 14 rows of which 0.5 and 12 twice; a last step that is smaller; steps that override."""
    mixture = [
        {"path": str(pictures / "chats.json"), "weight": 0.5},
        {"path": str(pictures / "captions.json"), "weight": 2},
    ]
    (stage,) = plan(make_recipe("", data=mixture, epochs=2)).stages
    assert stage.rows.sizes == (14, 12)
    assert (stage.rows.counted, stage.steps, stage.samples) == (True, 16, 62)
    (stage,) = plan(make_recipe("", data=mixture, steps=9)).stages
    assert (stage.steps, stage.samples) == (9, 31 + 4)
    (stage,) = plan(make_recipe(pictures / "chats.json")).stages
    assert stage.rows.images == pytest.approx(14 / 14)
    assert 1 < stage.rows.text < 12


def test_rows_of_absent_data_are_the_recipes(tmp_path):
    absent = {"path": str(tmp_path / "gone.json"), "rows": 100, "template": "plain"}
    planned = plan(make_recipe("", data=absent))
    (stage,) = planned.stages
    assert (stage.rows.sizes, stage.rows.counted, stage.rows.text) == ((100,), False, CAPTION_TOKENS)
    assert any("its data is not all here" in note for note in planned.notes)
    (stage,) = plan(make_recipe("", data=absent | {"limit": 10})).stages
    assert stage.rows.sizes == (10,)
    (stage,) = plan(make_recipe("", data=absent), text_tokens=50).stages
    assert (stage.rows.text, stage.sequence) == (50, stage.tokens_per_image + 50)
    roughly = {"path": absent["path"], "about_rows": 90}
    planned = plan(make_recipe("", data=roughly))
    assert (planned.stages[0].rows.sizes, planned.stages[0].rows.roughly) == ((90,), True)
    console = Console(record=True, width=160)
    show(planned, console)
    assert "90 rows (roughly, by the recipe)" in console.export_text()
    (stage,) = plan(make_recipe("", data=roughly | {"rows": 100})).stages
    assert (stage.rows.sizes, stage.rows.roughly) == ((100,), False)
    with pytest.raises(SightlineError, match=r"data file not found: .*gone\.json.*Add `rows: N`"):
        plan(make_recipe(tmp_path / "gone.json"))


def test_more_processes_than_passes_is_shown_as_impossible(tmp_path):
    absent = {"path": str(tmp_path / "gone.json"), "rows": 100}
    planned = plan(make_recipe("", data=absent, accumulate=3))
    assert [on.passes for on in planned.stages[0].gpus] == [3, 2, 0, 0]
    assert [on.mean is None for on in planned.stages[0].gpus] == [False, False, True, True]
    one, two, *_ = planned.stages[0].gpus
    assert (one.flops, two.flops) == (planned.stages[0].step.total, 2 * one.flops // 3)
    console = Console(record=True, width=160)
    show(planned, console)
    assert "more processes than accumulate (3)" in " ".join(console.export_text().split())


def test_what_would_stop_training_stops_the_dry_run(pictures):
    captions = pictures / "captions.json"
    with pytest.raises(SightlineError, match="trains 'conector', which the model does not have"):
        plan(make_recipe(captions, trainable=["conector"]))
    with pytest.raises(SightlineError, match="weights name a loss 'nothing'"):
        plan(make_recipe(captions, weights={"nothing": 1.0}))
    with pytest.raises(SightlineError, match=r"an image has \d+ tokens and max_length is 8"):
        plan(make_recipe(captions).model_copy(update={"max_length": 8}))
    adapters = {"trainable": ["connector", "language"], "lora": {"rank": 2, "targets": ["q_porj"]}}
    with pytest.raises(SightlineError, match="names 'q_porj', and the decoder has no linear layer of that name"):
        plan(make_recipe(captions, **adapters))


def test_adapters_are_found_by_the_end_of_a_name(pictures):
    """As peft finds them: `q_proj` and `self_attn.q_proj` are the same layers."""
    trained = []
    for target in ("q_proj", "self_attn.q_proj"):
        adapters = {"trainable": ["connector", "language"], "lora": {"rank": 2, "targets": [target]}}
        parts = plan(make_recipe(pictures / "captions.json", **adapters)).stages[0].parts
        trained.append(next(part.trained for part in parts if part.name == "language"))
    assert trained[0] == trained[1] > 0


def test_a_method_that_trains_asks_for_gradients(tiny, pictures):
    """Nudge trains alone and edits what the connector gives: the decoder has a backward pass, the connector none."""
    model = {"vision": str(tiny["clip"]), "language": str(tiny["llama"])}
    recipe = make_recipe(pictures / "captions.json", model=model, trainable=["nudge"])
    planned = plan(recipe.model_copy(update={"methods": [{"name": "toy:Nudge"}]}))
    (stage,) = planned.stages
    assert stage.step.decoder_backward > 0
    assert stage.step.connector_backward == 0
    assert any("method 'nudge'" in note for note in planned.notes)


def test_the_dry_run_on_the_command_line(monkeypatch, capsys, tmp_path):
    """As JSON and as tables, without a run folder; in less than 30 s for the largest."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["sightline", "train", *words])
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        assert not leaving.value.code
        return capsys.readouterr().out

    began = time.monotonic()
    record = json.loads(run("llava-1.5-13b", "--dry-run", "--json", "--text-tokens", "100"))
    assert time.monotonic() - began < 30
    assert [stage["rows"]["text"] for stage in record["stages"]] == [100, 100]
    first = record["stages"][0]
    assert first["step"]["total"] > 1e15
    assert first["gpus"][0]["mean"]["total"] == sum(
        value for key, value in first["gpus"][0]["mean"].items() if key != "total"
    )
    table = run("llava-1.5-7b", "stages.1.accumulate=4", "--dry-run")
    assert "558,128 rows (by the recipe); 2,181 steps of 16 x 16 = 256 rows" in table
    assert "6,738,415,616" in table
    page = (ROOT / "docs" / "dry-run.md").read_text(encoding="utf-8")
    assert run("llava-1.5-7b", "--dry-run") in page, "docs/dry-run.md shows another output than today's"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [["--json"], ["--text-tokens", "10"], ["--image-size", "9x9"]])
def test_options_of_the_dry_run_alone_are_refused(monkeypatch, capsys, options):
    monkeypatch.setattr(sys, "argv", ["sightline", "train", "world", *options])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    assert leaving.value.code == 2
    assert f"{options[0]} goes with --dry-run" in capsys.readouterr().err


def test_numbers_for_people():
    assert [flops(x) for x in (2 * 10**6, 325 * 10**10, 9999 * 10**11, 2 * 10**21)] == [
        "2 MFLOP",
        "3.25 TFLOP",
        "1e+03 TFLOP",
        "2,000 EFLOP",
    ]
