"""Several scales for one tower: against a slow reference, tile by tile; such a model trains, saves, answers."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import parts
from sightline.checkpoints import load_model, save_model, why_not_stock
from sightline.config import check
from sightline.data.templates import get_template
from sightline.diagnostics.subject import Subject
from sightline.doctor.models import skeleton
from sightline.errors import SightlineError
from sightline.generation import Assistant
from sightline.models.assemble import assemble
from sightline.models.parts import owner_of
from sightline.models.scales import from_tiles, num_tiles, resize, to_tiles
from sightline.train import train

VICUNA = get_template("vicuna_v1")


def slow_reference(model, pixels: torch.Tensor, scales: list[int]) -> torch.Tensor:
    """The paper's S2, one tile at a time, each patch put at its place by hand, each cell averaged by hand."""
    config, side = model.config, parts.SIDE
    layers = config.vision_feature_layer
    layers = [layers] if isinstance(layers, int) else layers
    views = []
    for view in pixels:
        of_scales = []
        for scale in scales:
            small = view[None]
            if scale < 3:
                small = F.interpolate(small, size=scale * side, mode="bicubic", antialias=True)
            places = {}
            for down in range(scale):
                for right in range(scale):
                    tile = small[:, :, down * side : (down + 1) * side, right * side : (right + 1) * side]
                    states = model.vision_tower(tile, output_hidden_states=True).hidden_states
                    patches = torch.cat([states[layer][0, config.tower.prefix :] for layer in layers], dim=-1)
                    for number, patch in enumerate(patches):
                        row, column = divmod(number, 4)
                        places[down * 4 + row, right * 4 + column] = patch
            cells = []
            for row in range(4):
                for column in range(4):
                    own = [places[row * scale + i, column * scale + j] for i in range(scale) for j in range(scale)]
                    cells.append(torch.stack(own).mean(0))
            of_scales.append(torch.stack(cells))
        views.append(torch.cat(of_scales, dim=-1))
    return torch.stack(views)


@pytest.mark.parametrize(
    ("vision", "options"),
    [("clip", {}), ("siglip", {"vision_layer": [-2, 1]}), ("dinov2", {"vision_layer": -1}), ("registers", {})],
)
@pytest.mark.parametrize("scales", [[1, 3], [1, 2, 3]])
@torch.no_grad()
def test_encode_is_the_slow_reference(assembled, vision: str, options: dict, scales: list[int]) -> None:
    """Smallest scale first; layers within a scale."""
    model = assembled(vision, vision_scales=scales, **options).model.model
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 96, 96)
    patches = model.encode(pixels)
    assert patches.shape == (2, 16, model.sizes.d_vision) and model.sizes.tokens == 16
    assert model.sizes.d_vision == 32 * len(scales) * (2 if vision == "siglip" else 1)
    torch.testing.assert_close(patches, slow_reference(model, pixels, scales), atol=1e-5, rtol=1e-5)


def test_tiles_by_hand() -> None:
    """A 2 x 2 tower: the base is the image made smaller, then four tiles row by row; and the way back."""
    image = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    tiles = to_tiles(image, [1, 2], 2)
    assert tiles.shape == (5, 3, 2, 2) and num_tiles([1, 2, 3]) == 14 and num_tiles(None) == 1
    by_hand = [[[0, 1], [4, 5]], [[2, 3], [6, 7]], [[8, 9], [12, 13]], [[10, 11], [14, 15]]]
    assert tiles[1:, 0].tolist() == by_hand
    patches = torch.cat([torch.zeros(1, 4, 1), tiles[1:, 0].reshape(4, 4, 1)])  # each pixel its own patch
    means = from_tiles(patches, [1, 2])[0]
    assert means.tolist() == [[0, 2.5], [0, 4.5], [0, 10.5], [0, 12.5]], "the means of the image's 2 x 2 squares"


def test_resizing_is_pillows() -> None:
    """Bicubic with antialiasing, as Pillow makes images smaller; at its own size an image is left as it is."""
    values = np.random.default_rng(0).normal(size=(96, 96)).astype(np.float32)
    pixels = torch.from_numpy(values).expand(1, 3, 96, 96)
    for side in (32, 64):
        theirs = np.array(Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC))
        torch.testing.assert_close(resize(pixels, side)[0, 0], torch.from_numpy(theirs), atol=1e-5, rtol=0)
    assert resize(pixels, 96) is pixels
    half = resize(pixels.bfloat16(), 32)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), resize(pixels.bfloat16().float(), 32), atol=1e-2, rtol=1e-2)


@torch.no_grad()
def test_the_base_does_not_depend_on_the_others(assembled) -> None:
    """The first columns are what a model of one scale gives for the image made smaller, whatever follows them."""
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 96, 96)
    alone = assembled().model.model.encode(resize(pixels, 32))
    for scales in ([1, 3], [1, 2, 3]):
        patches = assembled(vision_scales=scales).model.model.encode(pixels)
        torch.testing.assert_close(patches[..., :32], alone, atol=1e-6, rtol=1e-5)
    three = assembled(vision_scales=[1, 3]).model.model.encode(pixels)
    torch.testing.assert_close(patches[..., 64:], three[..., 32:], atol=1e-6, rtol=1e-5)


def test_gradients_reach_the_tower_through_every_scale(assembled) -> None:
    """Those of a slow pass; zeros, but gradients, without an image; none for a frozen tower."""
    model = copy.deepcopy(assembled(vision_scales=[1, 2, 3]).model.model)
    weight = model.vision_tower.embeddings.patch_embedding.weight
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 96, 96)
    seed = torch.randn(1, 16, 96)
    ours = torch.autograd.grad((model.encode(pixels) * seed).sum(), weight)[0]
    theirs = torch.autograd.grad((slow_reference(model, pixels, [1, 2, 3]) * seed).sum(), weight)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    empty = model.encode(pixels[:0])
    assert empty.shape == (0, 16, 96) and empty.requires_grad
    assert not torch.autograd.grad(empty.sum(), weight)[0].any()
    model.vision_tower.requires_grad_(False)
    assert not model.encode(pixels).requires_grad
    assert model.encode(pixels[:0]).shape == (0, 16, 96)


@pytest.mark.parametrize("scales", [[], [1], [2, 3], [1, 1], [1, 3, 2]])
def test_odd_scales_are_refused(tiny, scales: list[int]) -> None:
    with pytest.raises(SightlineError, match=r"should be multiples of the tower's size, ascending from 1, such as"):
        assemble(str(tiny["clip"]), str(tiny["llama"]), vision_scales=scales)
    stage = {"name": "s", "data": {"path": "x"}, "trainable": ["connector"]}
    model = {"vision": "v", "language": "l", "vision_scales": scales}
    with pytest.raises(SightlineError, match=r"model: vision_scales .* ascending from 1"):
        check({"name": "r", "model": model, "stages": [stage]})


def test_tokens_beside_the_grid_and_other_pixels_are_refused(tiny, assembled) -> None:
    with pytest.raises(SightlineError, match=r"vision_select=full has tokens beside them. Say vision_select=patch"):
        assemble(str(tiny["clip"]), str(tiny["llama"]), vision_scales=[1, 2], vision_select="full")
    stage = {"name": "s", "data": {"path": "x"}, "trainable": ["connector"]}
    model = {"vision": "v", "language": "l", "vision_scales": [1, 2], "vision_select": "full"}
    with pytest.raises(SightlineError, match="say vision_select=patch"):
        check({"name": "r", "model": model, "stages": [stage]})
    with pytest.raises(SightlineError, match=r"pixels of 32 x 32 for a model that takes 64 x 64: scales \[1, 2\] of a"):
        assembled(vision_scales=[1, 2]).model.model.encode(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("vision", ["clip", "siglip"])
def test_an_image_keeps_its_detail(assembled, vision: str, fit: str) -> None:
    """At the largest scale, pixel for pixel; nothing is resized before it is normalised."""
    assembly = assembled(vision, vision_scales=[1, 2, 3], image_fit=fit)
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    processor = assembly.processor(VICUNA)
    pixels = processor.pixels([Image.fromarray(noise)])
    mean, std = (torch.tensor(getattr(assembly.image_processor, f"image_{of}")) for of in ("mean", "std"))
    expected = ((torch.from_numpy(noise) / 255 - mean) / std).permute(2, 0, 1)
    torch.testing.assert_close(pixels[0], expected.float(), atol=1e-5, rtol=0)
    assert processor.pixels([]).shape == (0, 3, 96, 96)
    assert processor.pixels([Image.new("RGB", (40, 300))]).shape == (1, 3, 96, 96)


@pytest.mark.parametrize("options", [{}, {"connector": "linear"}, {"connector": "pool"}, {"image_fit": "crop"}])
@pytest.mark.parametrize("vision", ["clip", "registers"])
def test_save_load_generate(tiny: dict[str, Path], tmp_path: Path, vision: str, options: dict) -> None:
    """Through our class, through `Auto*`, and through transformers' own processor: the same tokens and answers."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.manual_seed(1)
    assembly = assemble(str(tiny[vision]), str(tiny["llama"]), vision_scales=[1, 2, 3], **options)
    reasons = save_model(assembly, tmp_path / "model", VICUNA)
    assert "its tower sees an image at scales [1, 2, 3], and LLaVA's sees it at one" in reasons
    assert reasons == why_not_stock(assembly.model)
    loaded = load_model(tmp_path / "model")
    assert loaded.model.config.vision_scales == [1, 2, 3]
    for key, value in assembly.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[key]), key

    noise = np.random.default_rng(0).integers(0, 256, (120, 80, 3), dtype=np.uint8)
    images = [[Image.fromarray(noise)], [Image.new("RGB", (32, 32), "blue")] * 2, []]
    assistant = Assistant(tmp_path / "model")
    answers = assistant.answers(images, ["What?", "And these?", "Is snow white?"], max_new_tokens=5)
    own = assistant.prompts.batch(images[:1], ["What?"])
    assert own["pixel_values"].shape == (1, 3, 96, 96)
    tokens = assembly.model.model.sizes.tokens
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

    subject = Subject(tmp_path / "model")
    (patches,) = subject.patches(images[0])
    assert torch.equal(patches, assembly.model.model.encode(own["pixel_values"])[0])
    assert len(subject.visual(images[0])[0]) == tokens


def test_one_scale_is_saved_as_before(tiny, tmp_path: Path) -> None:
    """Without scales the config of a stock model does not know the word, and the connector is drawn the same."""
    torch.manual_seed(0)
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
    assert save_model(assembly, tmp_path / "model", VICUNA) == []
    assert "vision_scales" not in (tmp_path / "model" / "config.json").read_text()


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_it_trains(tiny: dict[str, Path], pictures: Path, tmp_path: Path, lora: dict | None) -> None:
    """The connector alone, then with the language model, whole or through adapters; and again from what was saved."""
    if lora is not None:
        pytest.importorskip("peft")
    stage = {
        "name": "a",
        "data": {"path": str(pictures / "chats.json")},
        "trainable": ["connector"],
        "batch_size": 4,
        "steps": 2,
        "lr": 1e-2,
    }
    values = {
        "name": "scales",
        "out": str(tmp_path / "run"),
        "device": "cpu",
        "model": {"vision": str(tiny["clip"]), "language": str(tiny["llama"]), "vision_scales": [1, 2]},
        "stages": [stage, {**stage, "name": "b", "trainable": ["connector", "language"], "lora": lora}],
    }
    folder = train(check(values), quiet=True)
    trained = load_model(folder / "model").model
    assert trained.config.vision_scales == [1, 2] and trained.model.sizes.d_vision == 64
    if lora is None:
        torch.manual_seed(0)
        fresh = assemble(str(tiny["clip"]), str(tiny["llama"]), vision_scales=[1, 2]).model.state_dict()
        for key, value in trained.state_dict().items():
            assert torch.equal(value, fresh[key]) == (owner_of(key) == "vision"), key
    saved = [{**stage, "init_from": str(folder), "steps": 1}]
    again = train(check(values | {"model": None, "out": str(tmp_path / "again"), "stages": saved}), quiet=True)
    assert load_model(again / "model").model.config.vision_scales == [1, 2]


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_the_doctor_sees_the_same_shapes(tiny: dict[str, Path], assembled, fit: str) -> None:
    parts_ = {"vision": str(tiny["clip"]), "language": str(tiny["llama"]), "vision_scales": [1, 3], "image_fit": fit}
    stage = {"name": "s", "data": {"path": "x"}, "trainable": ["connector"]}
    recipe = check({"name": "r", "model": parts_, "stages": [stage]})
    empty, real = skeleton(recipe, recipe.stages[0], None), assembled(vision_scales=[1, 3], image_fit=fit)
    picture = Image.new("RGB", (50, 20))
    pixels = [made.processor(VICUNA).pixels([picture]) for made in (empty, real)]
    assert torch.equal(*pixels)
    assert empty.model.model.sizes == real.model.model.sizes
