"""Adapters on disk: base and files give back the model that was trained, and anything else is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sightline.checkpoints import load_model, save_model
from sightline.checkpoints.export import probe
from sightline.config import Stage
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.generation import Assistant
from sightline.models.adapters import lora_of, merge, plain_state, prepare_stage
from sightline.models.assemble import Assembly, assemble
from sightline.models.precision import is_adapter

pytest.importorskip("peft")

VICUNA = get_template("vicuna_v1")
LORA = {"rank": 4, "alpha": 8}
PISSA = LORA | {"init": "pissa"}
BF16 = {"frozen": "bf16", "precision": "bf16"}
NF4 = {"frozen": "nf4", "precision": "bf16"}
TOY = {"name": "toy:Toy"}


def stage_of(**changes) -> Stage:
    return Stage.model_validate({"name": "s", "data": {"path": "x"}, "trainable": ["connector", "language"]} | changes)


def jolt(assembly: Assembly, *prefixes: str) -> None:
    """Move the adapters, the connector and the methods as a training would, and what else is named."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in assembly.model.named_parameters():
        if is_adapter(name) or name.startswith(("model.multi_modal_projector.", "model.methods.", *prefixes)):
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def make(tiny, *stages: Stage, language: str = "llama", **options) -> Assembly:
    """A model as it is after these stages."""
    torch.manual_seed(0)
    assembly = assemble(str(tiny["clip"]), str(tiny[language]), **options)
    for stage in stages:
        prepare_stage(assembly, stage)
        jolt(assembly, *(["model.vision_tower."] if "vision" in stage.trainable else []))
    assembly.model.eval()
    return assembly


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def in_fp32(assembly: Assembly) -> None:
    """The same weights, computed with in fp32."""
    from sightline.models.precision import hold_part

    hold_part(assembly.model, "vision", "fp32")
    hold_part(assembly.model, "language", "fp32")


CASES = {
    "lora": ([stage_of(lora=LORA)], {}),
    "pissa": ([stage_of(lora=PISSA)], {}),
    "pissa-bf16": ([stage_of(trainable=["connector"], **BF16), stage_of(lora=PISSA, **BF16)], {}),
    "lora-nf4": ([stage_of(trainable=["connector"], **BF16), stage_of(lora=LORA, **NF4)], {}),
    "pissa-nf4": ([stage_of(lora=PISSA, **NF4)], {}),
    "methods": ([stage_of(lora=LORA)], {"methods": [TOY]}),
    "tied": ([stage_of(lora=LORA)], {"language": "tied", "connector": "linear", "vision_layer": [-2, -1]}),
    "vision": ([stage_of(trainable=["vision"]), stage_of(lora=LORA, **BF16)], {}),
}


@pytest.mark.parametrize("name", CASES)
def test_base_and_files_give_the_trained_model(name, tiny, tmp_path):
    """The very weights, so the very logits; and saving what was loaded gives the same files."""
    if "nf4" in name:
        pytest.importorskip("bitsandbytes")
    stages, options = CASES[name]
    assembly = make(tiny, *stages, **options)
    state = torch.random.get_rng_state()
    assert save_model(assembly, tmp_path / "model", VICUNA) == ["adapters over its base"]
    files = {file.name: file.stat().st_size for file in (tmp_path / "model").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "trained.safetensors", "tokenizer.json"} <= set(files)
    assert "model.safetensors" not in files
    assert not any(".train_only." in key for key in load_file(tmp_path / "model" / "trained.safetensors"))
    again = load_model(tmp_path / "model")
    assert torch.equal(torch.random.get_rng_state(), state), "loading draws nothing"
    assert lora_of(again.model) == lora_of(assembly.model)
    in_fp32(assembly)
    assert same(probe(again, VICUNA), probe(assembly, VICUNA))
    save_model(again, tmp_path / "again", VICUNA)
    for file in ("config.json", "adapter_config.json", "generation_config.json"):
        assert (tmp_path / "again" / file).read_text() == (tmp_path / "model" / file).read_text(), file
    for file in ("adapter_model.safetensors", "trained.safetensors"):
        first, second = (load_file(tmp_path / folder / file) for folder in ("model", "again"))
        assert first.keys() == second.keys()
        assert all(torch.equal(value.float(), second[key]) for key, value in first.items()), file
    for key, value in plain_state(assembly.model).items():
        if ".train_only." not in key:
            assert torch.equal(value.float(), plain_state(again.model)[key].float()), key


def test_a_stage_goes_on_from_the_folder(tiny, tmp_path):
    """Same record: the adapters go on, and are saved over the first base again. None: they are merged."""
    save_model(make(tiny, stage_of(lora=PISSA)), tmp_path / "one", VICUNA)
    assembly = load_model(tmp_path / "one")
    before = probe(assembly, VICUNA)
    prepare_stage(assembly, stage_of(lora=PISSA))
    assert same(probe(assembly, VICUNA), before)
    jolt(assembly)
    save_model(assembly, tmp_path / "two", VICUNA)
    assert same(probe(load_model(tmp_path / "two"), VICUNA), probe(assembly, VICUNA))
    prepare_stage(assembly, stage_of())
    assert lora_of(assembly.model) is None
    assert save_model(assembly, tmp_path / "three", VICUNA) == []


@pytest.mark.parametrize("methods", [[], [TOY]], ids=["stock", "own"])
def test_the_base_may_be_a_whole_model(methods, tiny, tmp_path):
    """What `init_from` names; peft reads the files over that model."""
    save_model(make(tiny, stage_of(trainable=["connector"]), methods=methods), tmp_path / "base", VICUNA)
    assembly = load_model(tmp_path / "base")
    prepare_stage(assembly, stage_of(lora=LORA))
    jolt(assembly)
    save_model(assembly, tmp_path / "model", VICUNA)
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "base")
    assert same(probe(load_model(tmp_path / "model"), VICUNA), probe(assembly, VICUNA))
    if not methods:
        import peft
        from transformers import AutoModelForImageTextToText

        base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base")
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "model").eval()
        ids = torch.arange(2, 20).unsqueeze(0)
        with torch.no_grad():
            torch.testing.assert_close(
                theirs(input_ids=ids).logits, assembly.model(input_ids=ids).logits, atol=1e-5, rtol=0
            )


def test_a_language_model_that_trained_before_is_saved_whole(tiny, tmp_path):
    """No base would give it back. Saving leaves the model in training as it is."""
    assembly = make(tiny, stage_of(), stage_of(lora=LORA))
    before = probe(assembly, VICUNA)
    assert save_model(assembly, tmp_path / "model", VICUNA) == []
    assert lora_of(assembly.model) is not None
    assert same(probe(assembly, VICUNA), before)
    for ours, theirs in zip(before, probe(load_model(tmp_path / "model"), VICUNA), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_four_bits_without_adapters_are_saved_as_what_they_stand_for(tiny, tmp_path):
    pytest.importorskip("bitsandbytes")
    assembly = make(tiny, stage_of(trainable=["connector"], **NF4))
    assert save_model(assembly, tmp_path / "model", VICUNA) == []
    in_fp32(assembly)
    assert same(probe(load_model(tmp_path / "model"), VICUNA), probe(assembly, VICUNA))


def test_it_can_be_asked(tiny, tmp_path):
    assembly = make(tiny, stage_of(lora=LORA))
    save_model(assembly, tmp_path / "run" / "model", VICUNA)
    merge(assembly)
    save_model(assembly, tmp_path / "merged", VICUNA)
    answers = [
        Assistant(path).answers([[]], ["Is snow white?"], max_new_tokens=4)
        for path in (tmp_path / "run", tmp_path / "merged")
    ]
    assert answers[0] == answers[1]


class TestRefused:
    @pytest.fixture
    def model(self, tiny, tmp_path) -> Path:
        save_model(make(tiny, stage_of(lora=LORA)), tmp_path / "model", VICUNA)
        return tmp_path / "model"

    @staticmethod
    def edit(path: Path, change) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    def rebase(self, model: Path, **changes) -> None:
        config = json.loads((model / "config.json").read_text())
        config["base"] |= changes
        (model / "config.json").write_text(json.dumps(config))

    def test_another_base(self, model, tiny):
        self.rebase(model, language=str(tiny["tied"]))
        with pytest.raises(SightlineError, match=r"trained on another language model than .*tied' is now"):
            load_model(model)

    def test_a_base_whose_weights_changed(self, model):
        digest = json.loads((model / "config.json").read_text())["base"]["hash"]
        self.rebase(model, hash=digest | {"vision": "0" * 64})
        with pytest.raises(SightlineError, match="trained on another vision model than"):
            load_model(model)

    def test_a_base_that_is_gone(self, model):
        self.rebase(model, language="/nowhere/lm")
        with pytest.raises(SightlineError, match="holds adapters, and the model under them: no folder '/nowhere/lm'"):
            load_model(model)

    @pytest.mark.parametrize("file", ["adapter_model.safetensors", "trained.safetensors"])
    def test_missing_unexpected_and_misshapen_weights(self, file, model):
        whole = (model / file).read_bytes()
        self.edit(model / file, lambda tensors: tensors.pop(min(tensors)))
        with pytest.raises(SightlineError, match="lacks the weight"):
            load_model(model)
        (model / file).write_bytes(whole)
        self.edit(model / file, lambda tensors: tensors.update(zzz=torch.zeros(1)))
        with pytest.raises(SightlineError, match=rf"{file} has 1 weights that the model has no place for \(zzz\)"):
            load_model(model)
        (model / file).write_bytes(whole)
        self.edit(model / file, lambda tensors: tensors.update({min(tensors): torch.zeros(3, 3)}))
        with pytest.raises(SightlineError, match="shape"):
            load_model(model)

    @pytest.mark.parametrize("file", ["adapter_model.safetensors", "trained.safetensors", "config.json"])
    def test_a_damaged_file(self, file, model):
        (model / file).write_bytes(b"x" * 64)
        with pytest.raises(SightlineError, match=str(model)):
            load_model(model)

    def test_a_record_that_is_not_there(self, model):
        config = json.loads((model / "config.json").read_text())
        del config["base"]
        (model / "config.json").write_text(json.dumps(config))
        with pytest.raises(SightlineError, match="says nothing of them in `base`"):
            load_model(model)

    def test_a_save_stopped_midway_leaves_the_old_folder(self, model, tiny, monkeypatch):
        before = {file.name: file.read_bytes() for file in model.iterdir()}

        def stop(*_args, **_options):
            raise OSError("disk full")

        monkeypatch.setattr("sightline.checkpoints.adapters.save_file", stop)
        with pytest.raises(SightlineError, match="disk full"):
            save_model(make(tiny, stage_of(lora=LORA | {"rank": 2})), model, VICUNA)
        assert {file.name: file.read_bytes() for file in model.iterdir()} == before
