"""Models on disk: stock where stock can say it, proved by a process without Sightline; strict on the way back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from sightline.checkpoints import load_model, save_model, why_not_stock
from sightline.checkpoints.model import model_folder
from sightline.checkpoints.stock import from_stock, to_stock
from sightline.data.collate import collate
from sightline.data.templates import IMAGE, get_template
from sightline.errors import SightlineError
from sightline.files import atomic_folder
from sightline.models.assemble import Assembly, assemble
from sightline.models.modeling import SightlineForConditionalGeneration
from sightline.models.processing import SightlineProcessor
from sightline.types import Turn

VICUNA = get_template("vicuna_v1")
TOY, NUDGE, WATCHER = ({"name": f"toy:{name}"} for name in ("Toy", "Nudge", "Watcher"))
PICTURES = (Image.new("RGB", (40, 30), (220, 30, 30)), Image.new("RGB", (20, 50), (30, 30, 220)))
QUESTIONS = {"one": ("What is this?", 1), "two": ("The same?", 2), "none": ("Is snow white?", 0)}

STOCK = {
    "mlp": ("clip", "llama", {}),
    "linear": ("clip", "llama", {"connector": "linear"}),
    "layers": ("siglip", "qwen2", {"vision_layer": [-2, -1]}),
    "layer-0": ("clip", "gemma", {"vision_layer": 0}),
    "full": ("registers", "phi3", {"vision_select": "full"}),
    "tied": ("dinov2", "tied", {"image_fit": "crop"}),
    "watched": ("clip", "llama", {"methods": [WATCHER]}),
}

WITHOUT_SIGHTLINE = """
import json, sys
sys.modules["sightline"] = None  # importing it now fails
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
root, questions = sys.argv[1], json.loads(sys.argv[2])
pictures = [Image.new("RGB", (40, 30), (220, 30, 30)), Image.new("RGB", (20, 50), (30, 30, 220))]
out = {}
for name in json.loads(sys.argv[3]):
    model, info = AutoModelForImageTextToText.from_pretrained(f"{root}/{name}", output_loading_info=True)
    assert type(model).__module__.startswith("transformers."), type(model)
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(f"{root}/{name}")
    for key, (question, images) in questions.items():
        content = [{"type": "image", "image": picture} for picture in pictures[:images]]
        messages = [{"role": "user", "content": content + [{"type": "text", "text": question}]}]
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**inputs).logits
            new = model.generate(**inputs, do_sample=False, max_new_tokens=8)[:, inputs["input_ids"].shape[1] :]
        text = processor.batch_decode(new, skip_special_tokens=True)[0]
        out[f"{name} {key}"] = {"ids": inputs["input_ids"], "logits": logits, "text": text}
torch.save(out, f"{root}/out.pt")
"""


def make(tiny, vision: str, language: str, **options) -> Assembly:
    torch.manual_seed(0)
    return assemble(str(tiny[vision]), str(tiny[language]), **options)


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def prompt_batch(assembly: Assembly, question: str, images: int):
    process = assembly.processor(VICUNA)
    turns = [Turn("user", f"{IMAGE}\n" * images + question)]
    return collate([process.prompt(PICTURES[:images], turns)], pad_id=process.pad_id, side="left")


def answer(assembly: Assembly, question: str, images: int) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Ids, logits and generated text, through our processor and our model."""
    batch = prompt_batch(assembly, question, images)
    inputs = {name: getattr(batch, name) for name in ("input_ids", "attention_mask", "view_counts", "kinds")}
    inputs |= {"pixel_values": batch.pixel_values} if images else {}
    with torch.no_grad():
        logits = assembly.model(**inputs).logits
        new = assembly.model.generate(**inputs, do_sample=False, max_new_tokens=8)[:, batch.input_ids.shape[1] :]
    return batch.input_ids, logits, assembly.tokenizer.batch_decode(new, skip_special_tokens=True)[0]


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory) -> tuple[Path, dict[str, Assembly]]:
    """Every stock kind of model, saved, and as it was in memory."""
    root = tmp_path_factory.mktemp("stock")
    made = {name: make(tiny, vision, language, **options) for name, (vision, language, options) in STOCK.items()}
    for name, assembly in made.items():
        assert save_model(assembly, root / name, VICUNA) == []
    return root, made


@pytest.fixture(scope="module")
def outside(saved) -> dict[str, dict]:
    """What a process that cannot import Sightline makes of them."""
    root, made = saved
    arguments = [str(root), json.dumps(QUESTIONS), json.dumps(list(made))]
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_SIGHTLINE, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        cwd=root,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(root / "out.pt")


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("name", STOCK)
def test_transformers_alone_says_what_we_say(saved, outside, name, question):
    """A folder and `AutoModelForImageTextToText`, `AutoProcessor`: same prompt, logits to 1e-5, same generated text."""
    ids, logits, text = answer(saved[1][name], *QUESTIONS[question])
    theirs = outside[f"{name} {question}"]
    assert torch.equal(theirs["ids"], ids)
    torch.testing.assert_close(theirs["logits"], logits, atol=1e-5, rtol=0)
    assert theirs["text"] == text


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_checkpoint_loads_back_bit_equal(saved, name):
    root, made = saved
    config = json.loads((root / name / "config.json").read_text())
    assert config["model_type"] == "llava"
    assert not {"connector", "methods", "slot_token_ids", "vision_select"} & config.keys()
    before, after = made[name], load_model(root / name)
    # A method that serves training alone is not in the model that ships.
    before.model.model.methods, kept = after.model.model.methods, before.model.model.methods
    assert same_weights(before.model, after.model)
    before.model.model.methods = kept
    assert after.model.config.connector == before.model.config.connector
    assert after.model.config.vision_select == before.model.config.vision_select
    for question in QUESTIONS.values():
        ours, again = answer(before, *question), answer(after, *question)
        assert torch.equal(ours[0], again[0])
        assert torch.equal(ours[1], again[1])
        assert ours[2] == again[2]


@pytest.mark.parametrize("name", STOCK)
def test_saving_what_was_loaded_gives_the_same_file(saved, tmp_path, name):
    root, _ = saved
    save_model(load_model(root / name), tmp_path / "again", VICUNA)
    first, second = (load_file(folder / "model.safetensors") for folder in (root / name, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    for file in ("config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (root / name / file).read_text() == (tmp_path / "again" / file).read_text(), file


def test_others_llava_loads(saved, tmp_path):
    """A checkpoint that transformers itself wrote, with nothing of ours in its config."""
    root, _ = saved
    stock = LlavaForConditionalGeneration.from_pretrained(root / "mlp")
    del stock.config.sightline
    stock.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(root / "mlp").save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.model.config.connector == "mlp"
    assert same_weights(to_stock(ours.model), stock)


def test_to_stock_and_from_stock_share_weights(tiny):
    """No copy of the large parts; the tables, tied, are one."""
    assembly = make(tiny, "clip", "tied")
    stock = to_stock(assembly.model)
    ours = from_stock(stock)
    for model in (stock, ours):
        for name in ("model.language_model.layers.0.mlp.up_proj.weight", "lm_head.weight"):
            assert model.get_parameter(name).data_ptr() == assembly.model.get_parameter(name).data_ptr()
        assert model.lm_head.weight is model.get_input_embeddings().weight
        assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])


def test_a_linear_connector_that_others_trained_on_is_no_longer_linear(saved, tmp_path):
    """Saved as stock, its second layer is an identity. Once others have trained that, it must not be dropped."""
    root, _ = saved
    stock = LlavaForConditionalGeneration.from_pretrained(root / "linear")
    with torch.no_grad():
        stock.model.multi_modal_projector.linear_2.weight += 0.1
    stock.save_pretrained(tmp_path)
    AutoProcessor.from_pretrained(root / "linear").save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    batch = prompt_batch(loaded, "What?", 1)
    inputs = {"input_ids": batch.input_ids, "pixel_values": batch.pixel_values}
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(**inputs).logits, stock(**inputs).logits, atol=1e-5, rtol=0)


def test_tokens_survive(saved):
    root, made = saved
    for name, assembly in made.items():
        words, before = load_model(root / name).tokenizer, assembly.tokenizer
        processor = AutoProcessor.from_pretrained(root / name)
        assert len(words) == len(before)
        assert words.pad_token_id == before.pad_token_id is not None
        assert words.convert_tokens_to_ids(IMAGE) == assembly.model.config.image_token_id
        assert (processor.image_token, processor.image_token_id) == (IMAGE, assembly.model.config.image_token_id)
        assert processor.tokenizer.padding_side == "left"
        text = "réd <image>🎉</s> <pad>"
        assert words(text)["input_ids"] == before(text)["input_ids"]


OWN = {
    "toy": ("clip", "llama", {"methods": [TOY, NUDGE]}),
    "tied": ("clip", "tied", {"methods": [NUDGE]}),
    "registers": ("registers", "qwen2", {}),
}


@pytest.fixture(scope="module")
def own(tiny, tmp_path_factory) -> tuple[Path, dict[str, Assembly]]:
    root = tmp_path_factory.mktemp("own")
    made = {name: make(tiny, vision, language, **options) for name, (vision, language, options) in OWN.items()}
    for name, assembly in made.items():
        assert save_model(assembly, root / name, VICUNA) == why_not_stock(assembly.model) != []
    return root, made


class TestOwnClass:
    """What stock LLaVA cannot express is a registered class."""

    @pytest.mark.parametrize("name", OWN)
    def test_it_loads_back_bit_equal(self, own, name):
        """Through us and through the Auto classes; what serves training alone is not saved."""
        root, made = own
        assert json.loads((root / name / "config.json").read_text())["model_type"] == "sightline"
        assert not any(".train_only." in key for key in load_file(root / name / "model.safetensors"))
        before = {key: value for key, value in made[name].model.state_dict().items() if ".train_only." not in key}
        again = load_model(root / name)
        auto, info = AutoModelForImageTextToText.from_pretrained(root / name, output_loading_info=True)
        assert isinstance(auto, SightlineForConditionalGeneration)
        assert all(".train_only." in key for key in info["missing_keys"])
        assert not info["unexpected_keys"]
        for model in (again.model, auto):
            after = model.state_dict()
            assert all(torch.equal(after[key], value) for key, value in before.items())
        for question in QUESTIONS.values():
            ours, theirs = answer(made[name], *question), answer(again, *question)
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])
            assert ours[2] == theirs[2]

    def test_methods_come_back_with_their_options(self, own, tiny, tmp_path):
        record = {"name": "toy:Toy", "strength": 0.5, "turns": False}
        save_model(make(tiny, "clip", "llama", methods=[record]), tmp_path / "model", VICUNA)
        toy = load_model(tmp_path / "model").model.model.methods["toy"]
        assert (toy.config.strength, toy.config.turns) == (0.5, False)

    def test_the_processor_comes_with_it(self, own):
        root, made = own
        processor = AutoProcessor.from_pretrained(root / "toy")
        assert isinstance(processor, SightlineProcessor)
        assert processor.tokenizer.convert_tokens_to_ids("<toy>") == made["toy"].model.config.slot_token_ids["<toy>"]


LAYER = "language_model.model.layers.0.mlp.up_proj.weight"


def edit(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


class TestStrictness:
    @pytest.fixture(params=["stock", "own"])
    def model(self, request, tiny, tmp_path) -> Path:
        methods = [NUDGE] if request.param == "own" else []
        save_model(make(tiny, "clip", "llama", methods=methods), tmp_path / "model", VICUNA)
        return tmp_path / "model"

    @staticmethod
    def layer(tensors: dict) -> str:
        return next(name for name in tensors if name.endswith("layers.0.mlp.up_proj.weight"))

    def test_a_missing_weight(self, model):
        edit(model, lambda tensors: tensors.pop(self.layer(tensors)))
        with pytest.raises(
            SightlineError, match=r"does not fit its config: 1 weights are missing .*layers.0.mlp.up_proj"
        ):
            load_model(model)

    def test_a_missing_connector(self, model):
        """What a stage-1 checkpoint without its projector would be."""

        def drop(tensors):
            for name in [name for name in tensors if "multi_modal_projector" in name]:
                del tensors[name]

        edit(model, drop)
        with pytest.raises(SightlineError, match=r"4 weights are missing \(.*multi_modal_projector.* and 1 more\)"):
            load_model(model)

    def test_an_unexpected_weight(self, model):
        edit(model, lambda tensors: tensors.update({"stranger.weight": torch.zeros(2)}))
        with pytest.raises(SightlineError, match=r"1 weights are unexpected \(stranger.weight\)"):
            load_model(model)

    def test_a_weight_of_another_shape(self, model):
        def widen(tensors):
            tensors[self.layer(tensors)] = torch.zeros(3, 3)

        edit(model, widen)
        with pytest.raises(SightlineError, match=r"1 weights are of another shape \(.*layers.0.mlp.up_proj.weight\)"):
            load_model(model)

    @pytest.mark.parametrize(
        ("file", "content"),
        [
            ("model.safetensors", None),
            ("model.safetensors", b"x" * 64),
            ("config.json", None),
            ("config.json", b"{}"),
            ("config.json", b"[1]"),
            ("config.json", b'{"model_type": "llama"}'),
            ("config.json", b'{"model_type": ["llava"]}'),
            ("tokenizer.json", None),
            ("processor_config.json", b"{"),
        ],
    )
    def test_a_damaged_folder(self, model, file, content):
        if content is None:
            (model / file).unlink()
        else:
            (model / file).write_bytes(content)
        with pytest.raises(SightlineError) as caught:
            load_model(model)
        assert str(model) in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("name", ["/nowhere/model", "nowhere/model", "no such model", "a/b/c/d"])
    def test_no_model(self, name):
        with pytest.raises(SightlineError, match=f"no model at '{name}': .* Give a run or model folder, or a hub id"):
            load_model(name)

    def test_a_method_that_is_not_there(self, tiny, tmp_path):
        save_model(make(tiny, "clip", "llama", methods=[NUDGE]), tmp_path / "model", VICUNA)
        path = tmp_path / "model" / "config.json"
        path.write_text(path.read_text().replace("toy:Nudge", "toy:Gone"))
        with pytest.raises(SightlineError, match="method 'toy:Gone' cannot be imported"):
            load_model(tmp_path / "model")


class TestInterruption:
    """A crash leaves the old model or the new one, and nothing beside it."""

    @pytest.fixture
    def model(self, tiny, tmp_path) -> tuple[Assembly, Path]:
        assembly = make(tiny, "clip", "llama")
        save_model(assembly, tmp_path / "model", VICUNA)
        return assembly, tmp_path / "model"

    @pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
    def test_a_save_stopped_midway_leaves_the_old_model(self, model, monkeypatch, error):
        assembly, path = model
        before = {file.name: file.read_bytes() for file in path.iterdir()}
        with torch.no_grad():
            assembly.model.lm_head.weight += 1

        def stop(*_args, **_options):
            raise error

        monkeypatch.setattr(LlavaProcessor, "save_pretrained", stop)
        with pytest.raises(SightlineError if isinstance(error, OSError) else error, match=r"disk full|^$"):
            save_model(assembly, path, VICUNA)
        assert {file.name: file.read_bytes() for file in path.iterdir()} == before
        assert [entry.name for entry in path.parent.iterdir()] == ["model"]

    def test_a_swap_that_fails_brings_the_old_folder_back(self, tmp_path, monkeypatch):
        target = tmp_path / "model"
        target.mkdir()
        (target / "old").touch()
        rename, calls = Path.rename, []

        def fail_second(self, to):
            calls.append(to)
            if len(calls) == 2:
                raise OSError("no")
            return rename(self, to)

        monkeypatch.setattr(Path, "rename", fail_second)
        with pytest.raises(OSError, match="no"), atomic_folder(target) as folder:
            (folder / "new").touch()
        assert [file.name for file in target.iterdir()] == ["old"]
        assert [entry.name for entry in tmp_path.iterdir()] == ["model"]

    def test_saving_over_a_model_replaces_it_whole(self, model):
        assembly, path = model
        (path / "leftover").touch()
        with torch.no_grad():
            assembly.model.lm_head.weight += 1
        save_model(assembly, path, VICUNA)
        assert not (path / "leftover").exists()
        assert same_weights(load_model(path).model, assembly.model)

    def test_saving_over_what_was_loaded_from(self, model):
        """Weights that were loaded may still be mapped from the file that is being replaced."""
        _, path = model
        loaded = load_model(path)
        before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
        save_model(loaded, path, VICUNA)
        again = load_model(path).model.state_dict()
        assert all(torch.equal(again[name], value) for name, value in before.items())


def test_a_run_folder_is_its_model(saved, tmp_path):
    root, _ = saved
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(root / "mlp")
    assert model_folder(tmp_path / "run") == str(tmp_path / "run" / "model")
    assert model_folder(root / "mlp") == str(root / "mlp")
    assert model_folder("some/hub-id") == "some/hub-id"
    assert isinstance(load_model(tmp_path / "run"), Assembly)


def test_saving_leaves_the_model_as_it_was(tiny, tmp_path):
    """It may go on training: same weights, gradients on, and its own tokenizer settings."""
    assembly = make(tiny, "clip", "llama", methods=[WATCHER])
    assembly.model.train()
    assembly.model.model.vision_tower.requires_grad_(False)
    flags = [p.requires_grad for p in assembly.model.parameters()]
    before = {name: value.clone() for name, value in assembly.model.state_dict().items()}
    save_model(assembly, tmp_path / "model", VICUNA)
    after = assembly.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert [p.requires_grad for p in assembly.model.parameters()] == flags
    assert assembly.model.training
    assert assembly.model.model.language_model.training
