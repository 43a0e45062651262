"""AlignGPT's constant vector in a stock checkpoint: what plain transformers computes from it, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import (
    AddedToken,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaForConditionalGeneration,
)
from typer.testing import CliRunner

import parts
from sightline.checkpoints import export_model, load_model, save_model
from sightline.checkpoints.model import own_processor
from sightline.cli import app
from sightline.config import Stage
from sightline.data.collate import collate
from sightline.data.prefix import prefix_text
from sightline.data.templates import get_template
from sightline.diagnostics.subject import Subject
from sightline.errors import SightlineError
from sightline.generation import Assistant, Prompts
from sightline.models.adapters import prepare_stage
from sightline.models.assemble import Assembly, assemble, attach_methods
from sightline.models.precision import is_adapter
from sightline.types import Turn

VICUNA = get_template("vicuna_v1")
TOKEN = "<aligngpt>"
RED, BLUE = Image.new("RGB", (40, 30), (220, 30, 30)), Image.new("RGB", (20, 50), (30, 30, 220))
ASKED = [([RED], "What colour is it?"), ([], "Is snow white?"), ([RED, BLUE], "The same?"), ([BLUE], "Hm")]


def make(language: Path, clip: Path, mode: str, *, loud: float = 4.0, **options) -> Assembly:
    """A model whose weights and vectors are loud enough to decide answers."""
    torch.manual_seed(3)
    assembly = assemble(str(clip), str(language), methods=[{"name": "aligngpt", "mode": mode}], **options)
    with torch.no_grad():
        for name, parameter in assembly.model.named_parameters():
            if parameter.ndim > 1 and "methods" not in name:
                parameter *= loud
        assembly.model.model.methods["aligngpt"].levels.weight.normal_(std=2.0)  # pyright: ignore
    assembly.model.eval()
    return assembly


@pytest.fixture(scope="module")
def languages(tiny, tmp_path_factory) -> dict[str, Path]:
    """The tiny language models, and Llamas with both kinds of SentencePiece tokenizer."""
    found = dict(tiny)
    for name, legacy in (("legacy", True), ("metaspace", False)):
        words = parts.sentencepiece_tokenizer(legacy=legacy)
        body = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        found[name] = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**body, vocab_size=len(words))).save_pretrained(found[name])
        words.save_pretrained(found[name])
    return found


def conversations(rows) -> list:
    return [
        [{"role": "user", "content": [*({"type": "image", "image": i} for i in images), {"type": "text", "text": q}]}]
        for images, q in rows
    ]


@torch.inference_mode()
def generated(model, inputs, **options) -> torch.Tensor:
    out = model.generate(**inputs, do_sample=False, max_new_tokens=8, min_new_tokens=8, **options)
    return out[:, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize(
    ("language", "mode"),
    [
        ("llama", "fixed:3"),
        ("tied", "average"),
        ("gemma", "global"),
        ("qwen2", "fixed:1"),
        ("legacy", "fixed:8"),
        ("metaspace", "average"),
    ],
)
def test_plain_transformers_computes_the_same(language, mode, languages, tmp_path):
    """Ids, logits on the old vocabulary, and answers; nothing of Sightline is asked for the exported one. Gemma scales
    its embeddings and ties its head, Qwen has no BOS, SentencePiece puts spaces before first words."""
    ours = make(languages[language], languages["clip"], mode)
    save_model(ours, tmp_path / "trained", VICUNA)
    assert json.loads((tmp_path / "trained" / "config.json").read_text())["model_type"] == "sightline"
    ours = load_model(tmp_path / "trained")
    done = export_model(tmp_path / "trained", tmp_path / "out")
    assert done.kind == "a stock llava checkpoint with <aligngpt> baked in"
    assert done.difference <= done.tolerance == (1e-4 if language == "gemma" else 0)

    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert type(stock) is LlavaForConditionalGeneration
    assert stock.config.tie_word_embeddings == ours.model.config.tie_word_embeddings
    processor = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")
    theirs = processor.apply_chat_template(
        conversations(ASKED),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": True},
    )
    mine = Prompts(own_processor(ours, VICUNA)).batch(*zip(*ASKED, strict=True))
    for name in ("input_ids", "attention_mask", "pixel_values"):
        assert torch.equal(theirs[name], mine[name]), name

    token = ours.tokenizer.convert_tokens_to_ids(TOKEN)
    assert (theirs["input_ids"] == token).sum(1).tolist() == [1, 0, 1, 1], "with images, once"
    real = mine["attention_mask"] == 1
    with torch.inference_mode():
        first, second = ours.model(**mine).logits[real], stock(**theirs).logits[real]
    old = torch.arange(first.shape[-1]) != token
    torch.testing.assert_close(second[:, old], first[:, old], atol=1e-5 * float(first.abs().max()), rtol=1e-4)

    assert stock.generation_config.suppress_tokens == [token]
    if language == "tied":
        assert bool((second[:, token] > second[:, old].amax(1)).any()), "it would be said, were it not suppressed"
    never = {"suppress_tokens": [token]}
    assert torch.equal(generated(stock, theirs), generated(ours.model, mine, **never))
    again = load_model(tmp_path / "out")  # as ours: to measure it, or to train on
    third = generated(again.model, Prompts(own_processor(again, VICUNA)).batch(*zip(*ASKED, strict=True)))
    assert torch.equal(third, generated(stock, theirs))
    rows, words, said, losses = list(zip(*ASKED, strict=True)), ["yes", "a red ball", "no", "two"], [], []
    for folder in ("trained", "out"):
        subject = Subject(tmp_path / folder)
        said.append(subject.answers(subject.prompted(*rows)))
        losses.append(subject.loss(subject.prompted(*rows), words))
    assert said[0] == said[1], "a diagnosis hears what the model said before its export"
    torch.testing.assert_close(losses[0], losses[1], atol=0.05, rtol=0.05)


def test_the_vector_matters_and_is_the_level(tiny, tmp_path):
    """Another level is another model; text alone is the same one, whatever the level."""
    save_model(make(tiny["llama"], tiny["clip"], "both"), tmp_path / "trained", VICUNA)
    logits = {}
    for level in ("1", "2", "average"):
        export_model(tmp_path / "trained", tmp_path / level, level=level)
        assembly = load_model(tmp_path / level)
        process = assembly.processor(VICUNA)
        for name, images in (("image", [RED]), ("text", [])):
            turn = Turn("user", "<image>\nWhat?" if images else "What?")
            batch = collate([process.prompt(images, [turn])], pad_id=process.pad_id)
            inputs = {"input_ids": batch.input_ids} | ({"pixel_values": batch.pixel_values} if images else {})
            with torch.no_grad():
                logits[name, level] = assembly.model(**inputs).logits
    table = load_model(tmp_path / "trained").model.model.methods["aligngpt"].levels.weight  # pyright: ignore
    for level, vector in (("1", table[0]), ("2", table[1]), ("average", table[:-1].mean(0) + table[-1])):
        assembly = load_model(tmp_path / level)
        place = torch.tensor(assembly.tokenizer.convert_tokens_to_ids(TOKEN))
        assert torch.equal(assembly.model.get_input_embeddings()(place), vector)
    old = torch.arange(logits["text", "1"].shape[-1]) != place
    assert torch.equal(logits["text", "1"][..., old], logits["text", "2"][..., old])
    assert float((logits["image", "1"] - logits["image", "2"])[..., old].abs().max()) > 1e-2


@pytest.mark.parametrize("mode", ["both", "local"])
def test_a_live_gate_is_refused_with_the_reason(mode, tiny, tmp_path):
    save_model(make(tiny["llama"], tiny["clip"], mode), tmp_path / "trained", VICUNA)
    with pytest.raises(
        SightlineError,
        match=r"'aligngpt' computes what stands in its slot from the question and the image of each row, and a stock "
        r"llava checkpoint can only hold one vector for all\. .*--level K \(1 to 8.*\).*--live",
    ):
        export_model(tmp_path / "trained", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    done = export_model(tmp_path / "trained", tmp_path / "out", live=True)
    assert done.kind == "a Sightline model (method 'aligngpt' changes the forward pass)" and done.difference == 0
    assert load_model(tmp_path / "out").model.config.methods == [{"name": "aligngpt", "mode": mode}]


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("both", {"level": "9"}, r"AlignGPT has no level '9' to hold\. It has 1 to 8, or average\."),
        ("local", {"level": "average"}, r"AlignGPT has no level 'average' to hold\. It has 1 to 8\."),
        ("both", {"level": "2", "live": True}, r"Leave --live out, or leave --level out"),
    ],
)
def test_levels_that_cannot_be_held(mode, options, message, tiny, tmp_path):
    save_model(make(tiny["llama"], tiny["clip"], mode), tmp_path / "trained", VICUNA)
    with pytest.raises(SightlineError, match=message):
        export_model(tmp_path / "trained", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_where_something_else_keeps_it_from_being_stock(tiny, tmp_path):
    """Nothing is baked and nothing refused: the model is written as it always was."""
    save_model(make(tiny["llama"], tiny["clip"], "both", connector="pool"), tmp_path / "pool", VICUNA)
    assert "connector 'pool' is none of LLaVA's" in export_model(tmp_path / "pool", tmp_path / "out").kind
    with pytest.raises(SightlineError, match=r"this model can be none: connector 'pool' is none of LLaVA's"):
        export_model(tmp_path / "pool", tmp_path / "other", level="2")
    torch.manual_seed(0)
    save_model(assemble(str(tiny["clip"]), str(tiny["llama"])), tmp_path / "plain", VICUNA)
    with pytest.raises(SightlineError, match=r"level 2: no method of this model has levels to hold"):
        export_model(tmp_path / "plain", tmp_path / "other", level="2")


def test_with_adapters_and_in_half_precision(tiny, tmp_path):
    pytest.importorskip("peft")
    assembly = make(tiny["tied"], tiny["clip"], "fixed:2", loud=1.0)
    values = {"name": "s", "data": {"path": "x"}, "trainable": ["connector", "language"]}
    prepare_stage(assembly, Stage.model_validate(values | {"lora": {"rank": 4, "alpha": 8}}))
    for name, parameter in assembly.model.named_parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape) if is_adapter(name) else 0
    save_model(assembly, tmp_path / "trained", VICUNA)
    assert "adapters over its base" in export_model(tmp_path / "trained", tmp_path / "adapters").kind
    with pytest.raises(SightlineError, match=r"Add --merge, or leave --level out"):
        export_model(tmp_path / "trained", tmp_path / "other", level="3")
    for dtype in ("fp32", "bf16"):
        done = export_model(tmp_path / "trained", tmp_path / dtype, merge=True, dtype=dtype)
        assert done.kind == "a stock llava checkpoint with <aligngpt> baked in"
        assert 0 < done.difference <= done.tolerance


def test_what_is_exported_can_be_asked_trained_on_and_exported_again(tiny, tmp_path):
    save_model(make(tiny["tied"], tiny["clip"], "average"), tmp_path / "trained", VICUNA)
    export_model(tmp_path / "trained", tmp_path / "out")
    again = export_model(tmp_path / "out", tmp_path / "again")
    assert (again.kind, again.difference) == ("a stock llava checkpoint", 0)
    for folder in ("out", "again"):
        config = json.loads((tmp_path / folder / "config.json").read_text())
        assert list(config["sightline"]["prefix_tokens"]) == [TOKEN]
    with pytest.raises(SightlineError, match=r"has a vector of 'aligngpt' baked in, as the embedding of <aligngpt>"):
        attach_methods(load_model(tmp_path / "out"), [{"name": "aligngpt"}])
    both = load_model(tmp_path / "out")
    attach_methods(both, [{"name": "toy:Nudge"}])
    save_model(both, tmp_path / "nudged", VICUNA)
    for folder, template in (("out", None), ("out", "plain"), ("nudged", None), ("nudged", "plain")):
        assistant = Assistant(tmp_path / folder, template=template)
        ids = assistant.prompts.batch([[RED]], ["What?"])["input_ids"][0].tolist()
        assert ids.count(again_id := assistant.tokenizer.convert_tokens_to_ids(TOKEN)) == 1 and ids[1] == again_id


def test_chat_templates_put_it_in_with_images_alone(tiny, tmp_path):
    """However a client writes images: as items, or as text."""
    save_model(make(tiny["llama"], tiny["clip"], "average"), tmp_path / "trained", VICUNA)
    export_model(tmp_path / "trained", tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out", backend="pil")

    def text(*contents) -> str:
        roles = ["user", "assistant"] * len(contents)
        messages = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]
        return processor.apply_chat_template(messages, add_generation_prompt=True)

    assert text("<image>\nWhat?").startswith(f"{TOKEN}A chat")
    assert text("Hello", "Hi", [{"type": "image"}, {"type": "text", "text": "What?"}]).startswith(f"{TOKEN}A chat")
    assert text([{"type": "text", "text": "<image>\nWhat?"}]).count(TOKEN) == 1
    assert TOKEN not in text("What?") + text([{"type": "text", "text": "What?"}])


def test_a_tokenizer_that_splits_otherwise_behind_the_token_is_refused():
    """Here the token takes the space behind it, and without one the first word is another."""
    words = parts.sentencepiece_tokenizer(legacy=False)
    words.add_special_tokens({"additional_special_tokens": [AddedToken(TOKEN, rstrip=True, special=True)]})
    with pytest.raises(SightlineError, match=r"'vicuna_v1' otherwise behind <aligngpt> than without it"):
        prefix_text(words, VICUNA, [TOKEN])


def test_the_command_line(tiny, tmp_path):
    save_model(make(tiny["llama"], tiny["clip"], "both"), tmp_path / "trained", VICUNA)
    command = ["export", str(tmp_path / "trained"), "--out", str(tmp_path / "out")]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, SightlineError)
    result = CliRunner().invoke(app, [*command, "--level", "3"])
    assert result.exit_code == 0, result.output
    assert "a stock llava checkpoint with <aligngpt> baked in; largest difference of a logit 0" in result.stderr
