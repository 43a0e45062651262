"""`sightline export`: what it writes stands alone, and is proved to compute what the model did."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration
from typer.testing import CliRunner

from sightline.checkpoints import export_model, load_model, save_model
from sightline.checkpoints.export import probe
from sightline.cli import app
from sightline.config import Stage
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.generation import Assistant
from sightline.models.adapters import lora_of, prepare_stage
from sightline.models.assemble import Assembly, assemble
from sightline.models.precision import is_adapter

pytest.importorskip("peft")

VICUNA = get_template("vicuna_v1")
TOY = {"name": "toy:Toy"}


def make(tiny, stage: dict | None = None, **options) -> Assembly:
    torch.manual_seed(0)
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), **options)
    if stage is not None:
        values = {"name": "s", "data": {"path": "x"}, "trainable": ["connector", "language"]} | stage
        prepare_stage(assembly, Stage.model_validate(values))
        for name, parameter in assembly.model.named_parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape) if is_adapter(name) else 0
    assembly.model.eval()
    return assembly


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory) -> Path:
    """Saved models by kind."""
    root = tmp_path_factory.mktemp("models")
    lora = {"rank": 4, "alpha": 8}
    save_model(make(tiny), root / "stock", VICUNA)
    save_model(make(tiny, connector="linear"), root / "linear", VICUNA)
    save_model(make(tiny, methods=[TOY]), root / "own", VICUNA)
    save_model(make(tiny, {"lora": lora}), root / "lora", VICUNA)
    save_model(make(tiny, {"lora": lora | {"init": "pissa"}}, methods=[TOY]), root / "pissa", VICUNA)
    return root


@pytest.mark.parametrize("name", ["stock", "linear", "own"])
def test_without_adapters_not_a_bit_changes(name, folders, tmp_path):
    done = export_model(folders / name, tmp_path / "out")
    assert (done.difference, done.tolerance) == (0.0, 0.0)
    assert ("stock llava" in done.kind) == (name != "own")
    first, second = (load_file(folder / "model.safetensors") for folder in (folders / name, tmp_path / "out"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["lora", "pissa"])
def test_merged_it_stands_alone_and_computes_the_same(name, folders, tmp_path):
    before = probe(load_model(folders / name), VICUNA)
    done = export_model(folders / name, tmp_path / "out", merge=True)
    assert 0 <= done.difference <= done.tolerance == 1e-4
    after = load_model(tmp_path / "out")
    assert lora_of(after.model) is None
    for first, second in zip(before, probe(after, VICUNA), strict=True):
        assert (first - second).abs().max() <= 1e-4 * first.abs().max()
    kind = json.loads((tmp_path / "out" / "config.json").read_text())
    assert kind["model_type"] == ("llava" if name == "lora" else "sightline")
    assert not kind.get("base")
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    if name == "lora":
        stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
        assert type(stock) is LlavaForConditionalGeneration
        AutoProcessor.from_pretrained(tmp_path / "out")


def test_unmerged_adapters_stay_adapters(folders, tmp_path):
    done = export_model(folders / "lora", tmp_path / "out")
    assert (done.kind, done.difference) == ("a Sightline model (adapters over its base)", 0.0)
    assert lora_of(load_model(tmp_path / "out").model) is not None
    with pytest.raises(SightlineError, match=r"nothing to write in bf16. Add --merge"):
        export_model(folders / "lora", tmp_path / "other", dtype="bf16")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["stock", "pissa"])
def test_in_half_precision(name, dtype, folders, tmp_path):
    done = export_model(folders / name, tmp_path / "out", merge=True, dtype=dtype)
    assert 0 < done.difference <= done.tolerance
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert {value.dtype for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {kind}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(kind).removeprefix("torch.")


def test_one_that_computes_something_else_is_not_written(folders, tmp_path, monkeypatch):
    """Whatever the cause, an infinity in half precision among them."""
    strange = load_model(folders / "stock")
    with torch.no_grad():
        strange.model.lm_head.weight[3, 3] = 1e6
    save_model(strange, tmp_path / "strange", VICUNA)
    with pytest.raises(
        SightlineError, match=r"computes other logits than .*strange': they differ by (inf|nan) of the largest"
    ):
        export_model(tmp_path / "strange", tmp_path / "out", dtype="fp16")

    def wrong(assembly: Assembly) -> None:
        from sightline.models.adapters import merge

        merge(assembly)
        assembly.model.lm_head.weight.data[0] += 0.1

    monkeypatch.setattr("sightline.checkpoints.export.merge_adapters", wrong)
    with pytest.raises(SightlineError, match=r"and 0.0001 is allowed. Nothing was written"):
        export_model(folders / "lora", tmp_path / "out", merge=True)
    assert [path.name for path in tmp_path.iterdir()] == ["strange"]


def test_what_others_made_needs_a_template(folders, tmp_path):
    stock = LlavaForConditionalGeneration.from_pretrained(folders / "stock")
    del stock.config.sightline
    stock.save_pretrained(tmp_path / "theirs")
    AutoProcessor.from_pretrained(folders / "stock").save_pretrained(tmp_path / "theirs")
    with pytest.raises(SightlineError, match=r"does not say how turns become text. Name its template: --template"):
        export_model(tmp_path / "theirs", tmp_path / "out")
    assert export_model(tmp_path / "theirs", tmp_path / "out", template="vicuna_v1").difference == 0


def test_the_command_line_says_what_it_did(folders, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "model").symlink_to(folders / "lora")
    result = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "out"), "--merge"])
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "out") in result.stdout
    assert "a stock llava checkpoint; largest difference of a logit" in result.stderr
    assert "(0.0001 allowed)" in result.stderr
    again = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "out")])
    assert isinstance(again.exception, SightlineError)
    assert "is not empty, and the export would overwrite it" in str(again.exception)


@pytest.mark.parametrize("name", ["stock", "own", "lora"])
def test_models_are_asked_in_bfloat16(name, folders):
    """Half the memory; tables that need fp32 (rotary frequencies) keep it."""
    assistant = Assistant(folders / name, dtype=torch.bfloat16)
    assert {p.dtype for p in assistant.model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in assistant.model.model.language_model.buffers()} == {torch.float32}
    assert len(assistant.answers([[Image.new("RGB", (40, 30))], []], ["What?", "Why?"], max_new_tokens=2)) == 2
