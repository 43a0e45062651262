"""Connectors with fewer tokens: their order by hand, their sizes; such a model trains, saves, loads and answers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import parts
from sightline.checkpoints import load_model, save_model, why_not_stock
from sightline.config import check
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.generation import Assistant
from sightline.models.assemble import assemble
from sightline.models.connectors import build_connector, pixel_shuffle, pool_grid, resolve_options
from sightline.models.parts import owner_of
from sightline.models.towers import TowerSpec
from sightline.train import train

VICUNA = get_template("vicuna_v1")
FEWER = {
    "pixel_shuffle": ({"connector": "pixel_shuffle"}, 4),
    "pool": ({"connector": "pool"}, 4),
    "pool3": ({"connector": "pool", "pooled_grid": 3}, 9),
}


def tower(grid: int, prefix: int = 1) -> TowerSpec:
    return TowerSpec(width=8, image_size=grid * 8, patch_size=8, prefix=prefix)


def test_pixel_shuffle_by_hand() -> None:
    """A 4 x 4 grid of patches numbered row by row: each token is a square of four, row by row."""
    numbered = torch.arange(16.0).view(1, 16, 1)
    by_hand = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert pixel_shuffle(numbered, 2).tolist() == [by_hand]
    wide = torch.stack([torch.arange(16.0), torch.arange(16.0) + 100], dim=-1).unsqueeze(0)
    assert pixel_shuffle(wide, 2)[0, 1].tolist() == [2, 102, 3, 103, 6, 106, 7, 107], "a patch stays together"
    assert pixel_shuffle(numbered, 4).tolist() == [[list(range(16))]]
    assert torch.equal(pixel_shuffle(numbered, 1), numbered)


@pytest.mark.parametrize(("side", "grid"), [(4, 2), (6, 3), (24, 12), (27, 13), (5, 2), (5, 3), (7, 5), (3, 3), (4, 1)])
def test_pooling_is_torchs_adaptive_average(side: int, grid: int) -> None:
    """Values and gradients, also for grids that do not divide."""
    torch.manual_seed(0)
    x = torch.randn(2, side**2, 3, dtype=torch.float64, requires_grad=True)
    reference = F.adaptive_avg_pool2d(x.unflatten(1, (side, side)).permute(0, 3, 1, 2), grid)
    reference = reference.permute(0, 2, 3, 1).flatten(1, 2)
    ours = pool_grid(x, grid)
    torch.testing.assert_close(ours, reference, atol=1e-12, rtol=0)
    seed = torch.randn_like(ours)
    theirs = torch.autograd.grad(reference, x, seed)[0]
    torch.testing.assert_close(torch.autograd.grad(ours, x, seed)[0], theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("name", ["pixel_shuffle", "pool"])
def test_connectors_are_llavas_mlp_around_the_grid(assembled, name: str, layers: int) -> None:
    """pixel_shuffle: shuffle, then the MLP. pool: the MLP, then averages."""
    options = {"vision_layer": -2 if layers == 1 else [-2, 0]}
    config = assembled(**options, connector=name).model.config
    connector = build_connector(config)
    patches = torch.randn(2, 16, 32 * layers)
    first, _, second = connector.mlp
    if name == "pixel_shuffle":
        expected = second(F.gelu(first(pixel_shuffle(patches, 2))))
    else:
        each = second(F.gelu(first(patches))).unflatten(1, (4, 4))
        expected = F.adaptive_avg_pool2d(each.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(connector(patches), expected)
    assert connector.num_tokens(16) == 4 == connector(patches).shape[1]


def test_defaults_and_refusals() -> None:
    assert resolve_options("pixel_shuffle", tower(24), "patch") == {"shuffle_factor": 2}
    assert resolve_options("pool", tower(24), "patch") == {"pooled_grid": 12}
    assert resolve_options("pool", tower(27), "patch") == {"pooled_grid": 14}, "an odd grid"
    assert resolve_options("mlp", tower(24), "full") == {}
    with pytest.raises(SightlineError, match=r"does not divide the tower's grid of 27 x 27 .* do: 3, 9, 27\. Or use"):
        resolve_options("pixel_shuffle", tower(27), "patch")
    with pytest.raises(SightlineError, match=r"pooled_grid is 25, .* Use 1 to 24"):
        resolve_options("pool", tower(24), "patch", pooled_grid=25)
    for name in ("pool", "pixel_shuffle"):
        with pytest.raises(SightlineError, match="reads a grid, and vision_select=full has 1 tokens beside it"):
            resolve_options(name, tower(24), "full")
    with pytest.raises(SightlineError, match="shuffle_factor belongs to connector 'pixel_shuffle'"):
        resolve_options("pool", tower(24), "patch", shuffle_factor=2)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"connector": "mlp", "pooled_grid": 4}, "pooled_grid belongs to connector pool"),
        ({"connector": "pool", "shuffle_factor": 2}, "shuffle_factor belongs to connector pixel_shuffle"),
        ({"connector": "pool", "vision_select": "full"}, "say vision_select=patch"),
        ({"connector": "pool", "pooled": 4}, "unknown key; did you mean 'pooled_grid'"),
        ({"connector": "pool", "pooled_grid": 0}, "pooled_grid"),
        ({"connector": "shuffle"}, "connector"),
    ],
)
def test_a_recipe_refuses_odd_options(keys: dict, problem: str) -> None:
    stage = {"name": "s", "data": {"path": "x"}, "trainable": ["connector"]}
    with pytest.raises(SightlineError, match=problem):
        check({"name": "r", "model": {"vision": "v", "language": "l"} | keys, "stages": [stage]})


@pytest.mark.parametrize("name", FEWER)
@pytest.mark.parametrize("vision", ["clip", "siglip", "registers"])
def test_save_load_generate(tiny: dict[str, Path], tmp_path: Path, name: str, vision: str) -> None:
    """Through our class, through `Auto*`, and through transformers' own processor: the same tokens and answers."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    options, tokens = FEWER[name]
    torch.manual_seed(1)
    assembly = assemble(str(tiny[vision]), str(tiny["llama"]), **options)
    assert assembly.model.model.sizes.tokens == tokens and assembly.model.model.sizes.patches == parts.GRID
    reasons = save_model(assembly, tmp_path / "model", VICUNA)
    assert f"connector '{options['connector']}' is none of LLaVA's" in reasons == why_not_stock(assembly.model)
    loaded = load_model(tmp_path / "model")
    for key, value in assembly.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[key]), key

    images = [[Image.new("RGB", (40, 30), "red")], [Image.new("RGB", (32, 32), "blue")] * 2]
    assistant = Assistant(tmp_path / "model")
    answers = assistant.answers(images, ["What?", "And these?"], max_new_tokens=5)
    own = assistant.prompts.batch(images[:1], ["What?"])
    assert int((own["input_ids"] == loaded.model.config.image_token_id).sum()) == tokens

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model", backend="pil")
    content = [{"type": "image", "image": images[0][0]}, {"type": "text", "text": "What?"}]
    given = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert torch.equal(given["input_ids"], own["input_ids"]) and torch.equal(given["pixel_values"], own["pixel_values"])
    out = model.generate(**given, do_sample=False, max_new_tokens=5)[0, given["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(out, skip_special_tokens=True).strip() == answers[0]


def test_registers_are_counted_by_transformers_processor(assembled) -> None:
    from sightline.checkpoints.stock import stock_processor

    processor = stock_processor(assembled("registers"), VICUNA)
    text = processor.replace_image_token({"pixel_values": torch.zeros(1, 3, 32, 32)}, 0)
    assert text.count("<image>") == parts.GRID


@pytest.mark.parametrize("name", ["pixel_shuffle", "pool3"])
def test_they_train(tiny: dict[str, Path], pictures: Path, tmp_path: Path, name: str) -> None:
    """From a recipe, alone and then with the language model; the run says why its model is not stock."""
    options, _ = FEWER[name]
    data = {"path": str(pictures / "chats.json")}
    stage = {"name": "a", "data": data, "trainable": ["connector"], "batch_size": 4, "steps": 3, "lr": 1e-2}
    values = {
        "name": "fewer",
        "out": str(tmp_path / "run"),
        "device": "cpu",
        "model": {"vision": str(tiny["clip"]), "language": str(tiny["llama"])} | options,
        "stages": [stage, {**stage, "name": "b", "trainable": ["connector", "language"]}],
    }
    folder = train(check(values), quiet=True)
    trained = load_model(folder / "model").model
    torch.manual_seed(0)
    fresh = assemble(str(tiny["clip"]), str(tiny["llama"]), **options).model.state_dict()
    for key, value in trained.state_dict().items():
        assert torch.equal(value, fresh[key]) == (owner_of(key) == "vision"), key
    assert json.loads((folder / "model" / "config.json").read_text())["connector"] == options["connector"]
    again = train(
        check(
            values
            | {
                "model": None,
                "out": str(tmp_path / "again"),
                "stages": [{**stage, "init_from": str(folder), "steps": 1}],
            }
        ),
        quiet=True,
    )
    assert load_model(again / "model").model.config.connector == options["connector"]


@pytest.mark.parametrize("order", ["before", "after"])
def test_auto_classes_load_it_once_sightline_is_imported(tiny: dict[str, Path], tmp_path: Path, order: str) -> None:
    """In a process of its own, whichever is imported first; importing Sightline alone imports no torch."""
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), connector="pool")
    save_model(assembly, tmp_path / "model", VICUNA)
    lines = [
        "import sys, sightline",
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules",
        "from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration",
    ]
    if order == "after":
        lines = ["from transformers import AutoModelForImageTextToText, AutoProcessor", "import sightline"]
    lines += [
        f"model = AutoModelForImageTextToText.from_pretrained({str(tmp_path / 'model')!r})",
        "print(type(model).__module__, model.config.pooled_grid)",
    ]
    out = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["sightline.models.modeling", "2"], out.stderr
