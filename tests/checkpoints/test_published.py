"""Weights in the layout of AlignGPT's public code: they compute what was published, and nothing less is accepted.

The checkpoint is tiny and random, its names and shapes are those of the public code (AlignGPT-VL/AlignGPT at b3ddf5dc):
576 visual tokens, 8 indicators, a gate of 576 -> 256 -> 7. The reference below is written from the paper's equations 2
and 3 and the description of that code, row by row, from the checkpoint's own tensors.
"""

import json
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from typer.testing import CliRunner

import parts
from sightline.checkpoints import import_aligngpt, import_model, load_model
from sightline.cli import app
from sightline.data.collate import collate
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.generation import Assistant
from sightline.models.assemble import Assembly, attach_methods
from sightline.types import Turn

VICUNA = get_template("vicuna_v1")
D, LEVELS = 32, 8
PICTURES = (Image.new("RGB", (50, 30), (200, 40, 40)), Image.effect_noise((48, 48), 90).convert("RGB"))
PAPER = [{"name": "aligngpt", "preset": "aligngpt_paper"}]


@pytest.fixture(scope="module")
def public(tmp_path_factory) -> dict[str, Path]:
    """A tower of 576 patches, a base language model, a stage-1 file and a whole checkpoint as public code saves it."""
    root = tmp_path_factory.mktemp("public")
    torch.manual_seed(0)
    body = {"hidden_size": D, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**body, image_size=48, patch_size=2))
    tower.save_pretrained(root / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}).save_pretrained(
        root / "clip"
    )
    words = parts.tokenizer()
    config = LlamaConfig(**body, vocab_size=len(words), bos_token_id=0, eos_token_id=1)
    LlamaForCausalLM(config).save_pretrained(root / "llama")
    words.save_pretrained(root / "llama")

    stage_1 = {
        "mm_projector.0.weight": torch.randn(D, D),
        "mm_projector.0.bias": torch.randn(D),
        "mm_projector.2.weight": torch.randn(D, D),
        "mm_projector.2.bias": torch.randn(D),
        "align_indicators.indicator_embs": torch.randn(LEVELS, D),
    }
    (root / "pretrain").mkdir()
    torch.save(stage_1, root / "pretrain" / "mm_projector_align.bin")

    tuned = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    whole = {key: value.clone() for key, value in tuned.state_dict().items()} | stage_1
    whole |= {
        "gated_weight_layer.mlp.0.weight": 0.1 * torch.randn(256, 576),
        "gated_weight_layer.mlp.0.bias": torch.randn(256),
        "gated_weight_layer.mlp.2.weight": 0.3 * torch.randn(7, 256),
        "gated_weight_layer.mlp.2.bias": torch.randn(7),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8),
        "vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(577).unsqueeze(0),
    }
    named = {key.removeprefix("vision_model."): value.bfloat16() for key, value in tower.state_dict().items()}
    named.pop("embeddings.position_ids", None)
    whole |= {f"vision_tower.vision_tower.vision_model.{key}": value for key, value in named.items()}
    write(root / "whole", whole)
    words.save_pretrained(root / "whole")
    values = config.to_dict() | {
        "model_type": "aligngpt",
        "architectures": ["AlignGPTForCausalLM"],
        "mm_vision_tower": "./playground/model/clip-vit-large-patch14-336",
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "image_aspect_ratio": "pad",
        "use_mm_proj": True,
    }
    (root / "whole" / "config.json").write_text(json.dumps(values))
    return {path.name: path for path in root.iterdir()}


def write(folder: Path, weights: dict[str, Tensor]) -> None:
    """Two pickled shards and their index, as transformers 4.31 wrote them."""
    folder.mkdir(exist_ok=True)
    names = sorted(weights)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, mine in shards.items():
        torch.save({name: weights[name] for name in mine}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, mine in shards.items() for name in mine}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def read(folder: Path) -> dict[str, Tensor]:
    shards = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.bin"))]
    return {key: value for shard in shards for key, value in shard.items()}


def copied(public: dict[str, Path], to: Path, weights: dict[str, Tensor], **config) -> Path:
    """The whole checkpoint with other weights, or another config."""
    write(to, weights)
    for file in public["whole"].iterdir():
        if not file.name.startswith("pytorch_model"):
            (to / file.name).write_bytes(file.read_bytes())
    values = json.loads((to / "config.json").read_text()) | config
    (to / "config.json").write_text(json.dumps(values))
    return to


def published_logits(public: dict[str, Path], ids: list[int], image: int, pixels: Tensor) -> Tensor:
    """The logits of one row: BOS, the indicator, then the text with the visual tokens where `image` stands."""
    w = read(public["whole"])
    tower = CLIPVisionModel.from_pretrained(public["clip"]).eval()
    config = LlamaConfig.from_pretrained(public["llama"])
    llama = LlamaForCausalLM(config).eval()
    llama.load_state_dict({key: value for key, value in w.items() if key in llama.state_dict()})

    patches = tower(pixels.unsqueeze(0), output_hidden_states=True).hidden_states[-2][0, 1:]
    hidden = F.gelu(F.linear(patches, w["mm_projector.0.weight"], w["mm_projector.0.bias"]))
    visual = F.linear(hidden, w["mm_projector.2.weight"], w["mm_projector.2.bias"])

    table = w["model.embed_tokens.weight"]
    text = [table[token] for token in ids if token != image]
    mean = torch.zeros(D)
    for word in text[1:]:  # all but BOS
        mean += word / len(text[1:])
    dots = torch.tensor([float(token @ mean) for token in visual])
    first = F.linear(dots, w["gated_weight_layer.mlp.0.weight"], w["gated_weight_layer.mlp.0.bias"])
    scores = F.linear(F.gelu(first), w["gated_weight_layer.mlp.2.weight"], w["gated_weight_layer.mlp.2.bias"])
    alpha = scores.exp() / scores.exp().sum()
    indicator = w["align_indicators.indicator_embs"][-1].clone()
    for level in range(LEVELS - 1):
        indicator += alpha[level] * w["align_indicators.indicator_embs"][level]

    sequence = [table[ids[0]], indicator]
    for token in ids[1:]:
        sequence += list(visual) if token == image else [table[token]]
    return llama(inputs_embeds=torch.stack(sequence).unsqueeze(0)).logits[0]


@torch.no_grad()
def check_against_the_reference(public: dict[str, Path], assembly: Assembly) -> None:
    process = assembly.processor(VICUNA)
    seen = []
    for picture, question in zip(
        PICTURES, ("What colour is the ball?", "how many boxes are there on a table"), strict=True
    ):
        batch = collate([process.prompt([picture], [Turn("user", f"<image>\n{question}")])], pad_id=process.pad_id)
        given = ("input_ids", "attention_mask", "kinds", "turn_ids", "prompt_mask", "pixel_values", "view_counts")
        ours = assembly.model(**{name: getattr(batch, name) for name in given}).logits[0]
        image, slot = process.image_token_id, process.slot_token_ids["<aligngpt>"]
        ids = [token for token in batch.input_ids[0].tolist() if token != slot]
        short = [*ids[: ids.index(image)], image, *ids[ids.index(image) + 576 :]]
        reference = published_logits(public, short, image, batch.pixel_values[0])
        assert ours.shape[0] == reference.shape[0] == len(short) + 576
        old = reference.shape[1]  # our tokens come after theirs
        torch.testing.assert_close(ours[:, :old], reference, atol=1e-4, rtol=1e-4)
        seen.append(reference[-1])
    assert float((seen[0] - seen[1]).abs().max()) > 1e-2


def test_a_whole_checkpoint_computes_what_was_published(public, tmp_path):
    assembly = import_aligngpt(public["whole"], vision=str(public["clip"]))
    check_against_the_reference(public, assembly)
    for name in ("levels.weight", "gate.first.weight"):
        changed = import_aligngpt(public["whole"], vision=str(public["clip"]))
        changed.model.state_dict()[f"model.methods.aligngpt.{name}"].mul_(0.5)
        with pytest.raises(AssertionError):
            check_against_the_reference(public, changed)
    done = import_model(public["whole"], tmp_path / "model", vision=str(public["clip"]))
    assert done.whole
    again = load_model(tmp_path / "model")
    assert again.model.config.methods == PAPER
    check_against_the_reference(public, again)
    attach_methods(again, PAPER)  # a recipe that goes on from it
    assert len(Assistant(tmp_path / "model").answers([[PICTURES[0]], []], ["What?", "Why?"], max_new_tokens=2)) == 2


def test_a_file_of_stage_1_enters_base_models(public, tmp_path):
    """Its gate is fresh and follows from the seed; the slot holds its levels."""
    parts_ = {"vision": str(public["clip"]), "language": str(public["llama"])}
    file = public["pretrain"] / "mm_projector_align.bin"
    weights = torch.load(file, weights_only=True)
    gates = []
    for number, (path, seed) in enumerate([(file, 0), (public["pretrain"], 0), (file, 1)]):
        assert not import_model(path, tmp_path / str(number), **parts_, seed=seed).whole
        model = load_model(tmp_path / str(number)).model
        state = model.state_dict()
        assert torch.equal(state["model.methods.aligngpt.levels.weight"], weights["align_indicators.indicator_embs"])
        for ours, theirs in (("linear_1", "0"), ("linear_2", "2")):
            for kind in ("weight", "bias"):
                found = state[f"model.multi_modal_projector.{ours}.{kind}"]
                assert torch.equal(found, weights[f"mm_projector.{theirs}.{kind}"])
        assert model.config.methods == PAPER
        gates.append(state["model.methods.aligngpt.gate.first.weight"])
    assert torch.equal(gates[0], gates[1]) and not torch.equal(gates[0], gates[2])


def test_llavas_prefix_safetensors_and_a_linear_projector(public, tmp_path):
    """LLaVA keeps these parts under `model.`; other numbers of levels are read from the file."""
    weights = {"mm_projector.weight": torch.randn(D, D), "mm_projector.bias": torch.randn(D)}
    weights["align_indicators.indicator_embs"] = torch.randn(5, D)
    save_file({f"model.{key}": value for key, value in weights.items()}, tmp_path / "mm.safetensors")
    assembly = import_aligngpt(tmp_path / "mm.safetensors", vision=str(public["clip"]), language=str(public["llama"]))
    assert assembly.model.config.connector == "linear"
    assert assembly.model.config.methods == [{**PAPER[0], "levels": 5}]
    assert torch.equal(
        assembly.model.state_dict()["model.multi_modal_projector.linear.bias"], weights["mm_projector.bias"]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("gated_weight_layer.mlp.2.bias"), r"lacks gated_weight_layer\.mlp\.2\.bias\. Nothing was"),
        (lambda w: w.pop("mm_projector.0.weight"), r"lacks mm_projector\.0\.weight"),
        (lambda w: w.pop("align_indicators.indicator_embs"), r"lacks align_indicators\.indicator_embs"),
        (lambda w: w.pop("model.norm.weight"), r"does not hold its whole language model: missing model\.norm\.weight"),
        (lambda w: w.update({"mm_projector.4.weight": torch.ones(2)}), r"has, and .* has not, mm_projector\.4\.weight"),
        (lambda w: w.update({"model.extra": torch.ones(2)}), r"has, and AlignGPT's public code has not, model\.extra"),
        (
            lambda w: w.update({"gated_weight_layer.mlp.0.weight": torch.ones(256, 729)}),
            r"gated_weight_layer\.mlp\.0\.weight has shape \(256, 729\), and with these parts it is \(256, 576\)",
        ),
        (
            lambda w: w["mm_projector.2.bias"].fill_(float("nan")),
            r"mm_projector\.2\.bias holds infinities or what is no",
        ),
        (
            lambda w: w["vision_tower.vision_tower.vision_model.post_layernorm.weight"].add_(0.1),
            r"was trained with another vision tower than .*clip': post_layernorm\.weight differs",
        ),
        (
            lambda w: w.pop("vision_tower.vision_tower.vision_model.post_layernorm.weight"),
            r"lacks vision_tower\.post_layernorm\.weight",
        ),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(change, message, public, tmp_path):
    weights = read(public["whole"])
    change(weights)
    folder = copied(public, tmp_path / "broken", weights)
    with pytest.raises(SightlineError, match=message):
        import_model(folder, tmp_path / "out", vision=str(public["clip"]))
    assert not (tmp_path / "out").exists()


def test_settings_that_we_do_not_have_are_refused(public, tmp_path):
    folder = copied(public, tmp_path / "other", read(public["whole"]), mm_use_im_start_end=True)
    with pytest.raises(
        SightlineError, match="was trained with mm_use_im_start_end=True, which Sightline does not import"
    ):
        import_aligngpt(folder, vision=str(public["clip"]))
    (folder / "config.json").unlink()
    with pytest.raises(SightlineError, match=r"has no config\.json of its language model"):
        import_aligngpt(folder, vision=str(public["clip"]))


def test_parts_that_do_not_belong(public, tiny):
    clip, llama, file = (str(public[name]) for name in ("clip", "llama", "pretrain"))
    with pytest.raises(SightlineError, match=r"is a whole checkpoint with its own language model"):
        import_aligngpt(public["whole"], vision=clip, language=llama)
    with pytest.raises(SightlineError, match=r"has no language model: it is a file of stage 1\. .*--language"):
        import_aligngpt(file, vision=clip)
    with pytest.raises(SightlineError, match=r"gives 16 visual tokens, and the public code's gate reads 576"):
        import_aligngpt(file, vision=str(tiny["clip"]), language=llama)
    with pytest.raises(SightlineError, match=r"no weights at '.*clip/nothing'\. Give a \.bin or \.safetensors"):
        import_aligngpt(f"{clip}/nothing", vision=clip)


class Harm:
    """What a pickle could run."""

    def __reduce__(self):
        return (print, ("harm",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mm_projector.0.weight": Harm()}, r"is no file of tensors alone: loading it could run code"),
        ({"mm_projector.0.weight": [1.0]}, r"holds 'mm_projector\.0\.weight', which is no tensor"),
        ([torch.ones(2)], r"holds a list, not weights by name"),
        (b"PK\x03\x04 cut short", r"cannot read|no file of tensors alone"),
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_pickles_are_read_as_tensors_alone(content, message, old, public, tmp_path, capfd):
    file = tmp_path / "mm_projector_align.bin"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file, _use_new_zipfile_serialization=not old)
    with pytest.raises(SightlineError, match=message):
        import_aligngpt(file, vision=str(public["clip"]), language=str(public["llama"]))
    assert "harm" not in capfd.readouterr().out


def test_a_plain_pickle_and_a_broken_index_are_refused(public, tmp_path):
    file = tmp_path / "mm_projector_align.bin"
    file.write_bytes(pickle.dumps({"mm_projector.0.weight": Harm()}))
    with pytest.raises(SightlineError, match=r"is no file of tensors alone"):
        import_aligngpt(file, vision=str(public["clip"]), language=str(public["llama"]))
    folder = copied(public, tmp_path / "broken", read(public["whole"]))
    index = folder / "pytorch_model.bin.index.json"
    values = json.loads(index.read_text())
    values["weight_map"]["model.more"] = "pytorch_model-00001-of-00002.bin"
    index.write_text(json.dumps(values))
    with pytest.raises(SightlineError, match=r"and the files that it lists disagree on model\.more"):
        import_aligngpt(folder, vision=str(public["clip"]))
    values["weight_map"]["model.more"] = "../elsewhere.bin"
    index.write_text(json.dumps(values))
    with pytest.raises(SightlineError, match="lists no files beside it"):
        import_aligngpt(folder, vision=str(public["clip"]))


def test_the_command_line(public, tmp_path):
    command = ["import", str(public["whole"]), "--vision", str(public["clip"]), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--dtype", "bf16"])
    assert result.exit_code == 0, result.output
    assert (str(tmp_path / "out") in result.stdout, "a whole checkpoint" in result.stderr) == (True, True)
    again = CliRunner().invoke(app, command)
    assert "is not empty, and the import would overwrite it" in str(again.exception)
