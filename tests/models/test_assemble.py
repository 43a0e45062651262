"""Assembly: any parts that fit, refusals with their reason for those that do not, and what it does to the parts."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CohereConfig,
    CohereForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PhiConfig,
    PhiForCausalLM,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

import parts
from sightline.checkpoints import load_model, save_model
from sightline.data.templates import IMAGE, get_template
from sightline.errors import SightlineError
from sightline.models.assemble import assemble, attach_methods
from sightline.models.backbones import add_tokens, resolve
from sightline.models.parts import named_parts

TOY = {"name": "toy:Toy"}


@pytest.fixture
def folders(tiny) -> tuple[str, str]:
    return str(tiny["clip"]), str(tiny["llama"])


class TestRefusals:
    def test_a_soft_cap_on_the_logits(self, tiny):
        """Gemma-2 caps its logits at 30 after the head. These random weights give logits near 0, where the cap hardly
        shows; the model is refused all the same."""
        with pytest.raises(
            SightlineError, match=r"changes its logits after the output layer \(a soft cap or a scale\)"
        ):
            assemble(str(tiny["clip"]), str(tiny["gemma2"]))

    def test_a_scale_on_the_logits(self, tiny, tmp_path):
        """Cohere multiplies them by logit_scale, 1/16."""
        body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        words = parts.tokenizer()
        config = CohereConfig(
            **body, vocab_size=len(words), bos_token_id=0, eos_token_id=1, pad_token_id=1, num_key_value_heads=2
        )
        CohereForCausalLM(config).save_pretrained(tmp_path)
        words.save_pretrained(tmp_path)
        with pytest.raises(SightlineError, match="changes its logits after the output layer"):
            assemble(str(tiny["clip"]), str(tmp_path))

    @pytest.mark.parametrize(
        ("vision", "language", "message"),
        [
            ("llama", "llama", "vision tower of type 'llama' is not supported. Supported: clip_vision_model, siglip"),
            ("clip", "clip", "cannot load .*clip"),
            ("/nowhere/clip", "llama", "no folder '/nowhere/clip'. Give a local folder, a hub id, or world:clip"),
            ("./nowhere", "llama", "no folder './nowhere'"),
            ("a/b/c", "llama", "no folder 'a/b/c'"),
            ("clip", "~/nowhere", "no folder '~/nowhere'"),
            (
                "openai/none-such",
                "llama",
                "cannot load 'openai/none-such': .* Give an intact local folder or a hub id that can",
            ),
            ("clip", "none such", "cannot load 'none such': .* Give an intact local folder or a hub id"),
            (
                "world:clop",
                "llama",
                "the small world has no 'clop'; did you mean 'clip'. It has clip, clip-contrast, lm",
            ),
            ("clip", "world:xyzzy", r"the small world has no 'xyzzy'\. It has clip, clip-contrast, lm"),
        ],
    )
    def test_parts_that_are_not_there(self, tiny, vision, language, message):
        with pytest.raises(SightlineError, match=message):
            assemble(str(tiny.get(vision, vision)), str(tiny.get(language, language)))

    @pytest.mark.parametrize("layer", [4, -5, [], [-2, 9]])
    def test_a_layer_out_of_range(self, folders, layer):
        """Three layers give four states, with the embeddings."""
        with pytest.raises(SightlineError, match=r"vision_layer .* is not among the tower's 4 states \(0 to 3, or -1"):
            assemble(*folders, vision_layer=layer)

    @pytest.mark.parametrize(
        ("part", "file", "content"),
        [
            ("clip", "model.safetensors", None),
            ("clip", "model.safetensors", b"x" * 100),
            ("clip", "config.json", None),
            ("clip", "config.json", b"{"),
            ("clip", "config.json", b'{"model_type": "none-such"}'),
            ("clip", "preprocessor_config.json", None),
            ("llama", "model.safetensors", None),
            ("llama", "model.safetensors", b"x" * 100),
            ("llama", "model.safetensors", "half"),
            ("llama", "config.json", b"[]"),
            ("llama", "tokenizer.json", None),
            ("llama", "tokenizer.json", b"{}"),
        ],
    )
    def test_a_folder_that_is_damaged(self, tiny, tmp_path, part, file, content):
        """One line that names the folder, whatever transformers, safetensors or tokenizers raise."""
        broken = shutil.copytree(tiny[part], tmp_path / part)
        if content is None:
            (broken / file).unlink()
        else:
            old = (broken / file).read_bytes()
            (broken / file).write_bytes(old[: len(old) // 2] if content == "half" else content)
        folders = [str(broken if name == part else tiny[name]) for name in ("clip", "llama")]
        with pytest.raises(SightlineError) as caught:
            assemble(*folders)
        assert str(broken) in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_weights_that_do_not_fit(self, tiny, tmp_path):
        wide = shutil.copytree(tiny["llama"], tmp_path / "wide")
        config = json.loads((wide / "config.json").read_text())
        (wide / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
        with pytest.raises(SightlineError, match="does not hold its whole language model: mismatched"):
            assemble(str(tiny["clip"]), str(wide))
        (wide / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
        with pytest.raises(SightlineError, match=r"does not hold its whole language model: missing .* and . more"):
            assemble(str(tiny["clip"]), str(wide))

    def test_an_image_processor_of_another_size(self, tiny, tmp_path):
        other = shutil.copytree(tiny["clip"], tmp_path / "clip")
        path = other / "preprocessor_config.json"
        size = {"crop_size": {"height": 48, "width": 48}, "size": {"shortest_edge": 48}}
        path.write_text(json.dumps(json.loads(path.read_text()) | size))
        with pytest.raises(SightlineError, match=r"gives \(48, 48\) pixels and its tower takes 32x32. Use .*=pad"):
            assemble(str(other), str(tiny["llama"]), image_fit="crop")
        assert assemble(str(other), str(tiny["llama"]), image_fit="pad").image_processor.crop_size["height"] == 32

    def test_other_methods_than_it_has(self, folders):
        assembly = assemble(*folders, methods=[TOY])
        attach_methods(assembly, [TOY])
        with pytest.raises(SightlineError, match=r"was made with methods .* Make them agree"):
            attach_methods(assembly, [{"name": "toy:Nudge"}])


def test_a_head_with_a_bias_is_refused(tiny, tmp_path):
    words = parts.tokenizer()
    body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = PhiConfig(**body, vocab_size=len(words), bos_token_id=0, eos_token_id=1)
    PhiForCausalLM(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(SightlineError, match="has an output layer with a bias"):
        assemble(str(tiny["clip"]), str(tmp_path))


def test_a_language_model_with_positions_of_its_own(tiny, tmp_path):
    """GPT-2 has learnt positions and calls its parts by other names; tied, stock LLaVA cannot hold it."""
    words = parts.tokenizer()
    body = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1}
    for name, tied in (("tied", True), ("gpt2", False)):
        GPT2LMHeadModel(GPT2Config(**body, tie_word_embeddings=tied)).save_pretrained(tmp_path / name)
        words.save_pretrained(tmp_path / name)
    with pytest.raises(SightlineError, match="ties its output layer to a table that is not called `embed_tokens`"):
        assemble(str(tiny["clip"]), str(tmp_path / "tied"))
    assembly = assemble(str(tiny["clip"]), str(tmp_path / "gpt2"))
    save_model(assembly, tmp_path / "model", get_template("plain"))
    ids = torch.arange(5, 12).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "model").model(ids).logits, assembly.model(ids).logits)


class TestPixels:
    """What the tower sees of a 64x32 picture, left half red and right half blue, at 32x32."""

    picture = Image.fromarray(np.array([[[255, 0, 0]] * 32 + [[0, 0, 255]] * 32] * 32, dtype=np.uint8))

    def seen(self, assembly) -> np.ndarray:
        processor = assembly.image_processor
        pixels = processor([self.picture], return_tensors="pt")["pixel_values"][0].permute(1, 2, 0).numpy()
        return pixels * np.array(processor.image_std) + np.array(processor.image_mean)

    def test_pad_shows_all_of_it_on_the_mean_colour(self, assembled):
        """Padded to 64x64 with CLIP's mean and halved: rows 0-7 and 24-31 are the mean, between them both halves."""
        assembly = assembled("clip", "llama", image_fit="pad")
        seen, mean = self.seen(assembly), np.array(assembly.image_processor.image_mean)
        np.testing.assert_allclose(seen[[0, 5, 26, 31]], np.broadcast_to(mean, (4, 32, 3)), atol=1 / 255)
        np.testing.assert_allclose(seen[16, [2, 29]], [[1, 0, 0], [0, 0, 1]], atol=1 / 255)

    def test_crop_shows_the_middle(self, assembled):
        """Its height is 32 already, and the middle 32 columns are 16 red and 16 blue."""
        seen = self.seen(assembled("clip", "llama", image_fit="crop"))
        np.testing.assert_allclose(seen[:, :15], np.broadcast_to([1, 0, 0], (32, 15, 3)), atol=1e-2)
        np.testing.assert_allclose(seen[:, 17:], np.broadcast_to([0, 0, 1], (32, 15, 3)), atol=1e-2)

    @pytest.mark.parametrize("fit", ["pad", "crop"])
    def test_the_towers_own_numbers_are_kept(self, tiny, tmp_path, fit):
        folder = shutil.copytree(tiny["clip"], tmp_path / "clip")
        path = folder / "preprocessor_config.json"
        own = {"resample": 1, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "rescale_factor": 0.002}
        path.write_text(json.dumps(json.loads(path.read_text()) | own))
        processor = assemble(str(folder), str(tiny["llama"]), image_fit=fit).image_processor
        assert {name: np.array(getattr(processor, name)).tolist() for name in own} == own

    def test_siglips_own_processor(self, tiny, tmp_path):
        """It has no crop: it stretches. Its mean is grey and its name for sizes another."""
        folder = shutil.copytree(tiny["siglip"], tmp_path / "siglip")
        SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
        stretched = self.seen(assemble(str(folder), str(tiny["llama"]), image_fit="crop"))
        np.testing.assert_allclose(stretched[:, [2, 29]], [[[1, 0, 0], [0, 0, 1]]] * 32, atol=1e-2)
        padded = self.seen(assemble(str(folder), str(tiny["llama"]), image_fit="pad"))
        np.testing.assert_allclose(padded[[0, 31]], np.full((2, 32, 3), 0.5), atol=1 / 255)


class TestTokens:
    def test_new_rows_are_the_mean_of_the_old(self, tiny):
        """`<image>` and, where the tokenizer has none, a pad token; in the input table and in the head."""
        assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
        before = AutoModelForCausalLM.from_pretrained(tiny["llama"])
        old = before.config.vocab_size
        assert len(assembly.tokenizer) == old + 2
        for name in ("get_input_embeddings", "get_output_embeddings"):
            table, had = getattr(assembly.model, name)().weight, getattr(before, name)().weight
            assert torch.equal(table[:old], had)
            torch.testing.assert_close(table[old:], had.mean(0).expand(2, -1), atol=1e-6, rtol=0)
        assert assembly.model.config.text_config.vocab_size == old + 2
        assert assembly.model.config.image_token_id == assembly.tokenizer.convert_tokens_to_ids(IMAGE)

    def test_spare_rows_are_used_and_set(self, tiny, tmp_path):
        """Qwen's table is longer than its vocabulary: a new token takes a row that was never trained."""
        lm, words = AutoModelForCausalLM.from_pretrained(tiny["llama"]), AutoTokenizer.from_pretrained(tiny["llama"])
        used = len(words)
        lm.resize_token_embeddings(used + 10, mean_resizing=False)
        table = lm.get_input_embeddings().weight
        add_tokens(lm, words, [IMAGE, "<slot>"])
        assert lm.get_input_embeddings().weight is table
        torch.testing.assert_close(table[used : used + 3], table[:used].mean(0).expand(3, -1), atol=1e-6, rtol=0)

    def test_a_slots_token_grows_a_model_that_is_whole(self, folders):
        assembly = assemble(*folders)
        size = len(assembly.tokenizer)
        attach_methods(assembly, [TOY])
        assert len(assembly.tokenizer) == size + 1
        assert assembly.model.config.slot_token_ids == {"<toy>": size}
        assert assembly.model.lm_head.weight.shape[0] == assembly.model.config.text_config.vocab_size == size + 1
        assert assembly.model.get_input_embeddings().weight.shape[0] == size + 1

    @pytest.mark.parametrize("methods", [[], [TOY]], ids=["trunk", "toy"])
    def test_tied_tables_stay_tied(self, tiny, tmp_path, methods):
        """After assembling, saving and loading, by storage and by gradient."""
        assembly = assemble(str(tiny["clip"]), str(tiny["tied"]), methods=methods)
        save_model(assembly, tmp_path / "model", get_template("plain"))
        for model in (assembly.model, load_model(tmp_path / "model").model):
            table, head = model.get_input_embeddings().weight, model.lm_head.weight
            assert table is head
            assert sum(parameter is table for parameter in model.parameters()) == 1
            model(torch.arange(9).unsqueeze(0)).logits.sum().backward()
            assert head.grad is table.grad
            assert model.config.tie_word_embeddings

    def test_untied_tables_stay_apart(self, folders, tmp_path):
        assembly = assemble(*folders)
        save_model(assembly, tmp_path / "model", get_template("plain"))
        for model in (assembly.model, load_model(tmp_path / "model").model):
            assert model.get_input_embeddings().weight.data_ptr() != model.lm_head.weight.data_ptr()

    def test_a_pad_token_that_is_there_is_kept(self, tiny, tmp_path):
        folder = shutil.copytree(tiny["llama"], tmp_path / "lm")
        words = AutoTokenizer.from_pretrained(folder)
        words.pad_token = words.eos_token
        words.save_pretrained(folder)
        assembly = assemble(str(tiny["clip"]), str(folder))
        assert assembly.tokenizer.pad_token == "</s>"
        assert assembly.model.generation_config.pad_token_id == assembly.tokenizer.eos_token_id == 1


def test_generation_ends_with_the_tokenizers_end(tiny, tmp_path):
    """Answers are taught to end with it, whatever the language model's own settings say."""
    folder = shutil.copytree(tiny["llama"], tmp_path / "lm")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8], "pad_token_id": 9}))
    assembly = assemble(str(tiny["clip"]), str(folder))
    assert assembly.model.generation_config.eos_token_id == 1
    save_model(assembly, tmp_path / "model", get_template("plain"))
    for made in (assembly, load_model(tmp_path / "model")):
        settings = made.model.generation_config
        assert (settings.eos_token_id, settings.pad_token_id) == (1, made.tokenizer.pad_token_id)
    saved = json.loads((tmp_path / "model" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == 1


def test_the_same_seed_gives_the_same_model(folders):
    """Connector and methods are drawn from torch's generator alone, and the parts are as they were on disk."""

    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return assemble(*folders, methods=[TOY]).model.state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    fresh = {name for name in first if not torch.equal(first[name], other[name])}
    assert {name.split(".")[1] for name in fresh} == {"multi_modal_projector", "methods"}


def test_every_parameter_belongs_to_a_part(folders):
    assembly = assemble(*folders, methods=[TOY])
    named = list(named_parts(assembly.model))
    assert {part for part, *_ in named} == {"vision", "connector", "language", "toy"}
    assert sum(parameter.numel() for *_, parameter in named) == assembly.model.num_parameters()
    assert {part for part, name, _ in named if name.startswith("lm_head")} == {"language"}


def test_everything_is_on_the_cpu_in_fp32(folders):
    """Nothing is left on the meta device that the model was made on."""
    model = assemble(*folders, methods=[TOY]).model
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        assert value.device.type == "cpu", name
        assert value.dtype in (torch.float32, torch.int64), name


def test_where_parts_are(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "lm").mkdir()
    assert resolve("~/lm") == str(tmp_path / "lm")
    assert resolve("openai/clip") == "openai/clip"
    assert resolve("world:clip").endswith("clip")


def test_a_sentencepiece_tokenizer(tiny, tmp_path):
    """Llama-2's kind, from a folder, with its unknown token and its bytes."""
    lm = shutil.copytree(tiny["llama"], tmp_path / "lm")
    words = parts.sentencepiece_tokenizer(legacy=True)
    model = AutoModelForCausalLM.from_pretrained(lm)
    model.resize_token_embeddings(len(words), mean_resizing=False)
    model.save_pretrained(lm)
    words.save_pretrained(lm)
    assembly = assemble(str(tiny["clip"]), str(lm))
    save_model(assembly, tmp_path / "model", get_template("vicuna_v1"))
    again = load_model(tmp_path / "model")
    text = "réd <image> box</s>USER: x"
    assert again.tokenizer(text)["input_ids"] == assembly.tokenizer(text)["input_ids"]
    assert isinstance(again.tokenizer.backend_tokenizer, Tokenizer)
