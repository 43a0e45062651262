"""The SA-Perceiver in a model: as many tokens for any image, nothing at the start but the small view, every layout."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, AutoProcessor

from sightline.checkpoints import load_model, save_model, why_not_stock
from sightline.config import Stage
from sightline.data.collate import collate
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.generation import Assistant
from sightline.methods.base import Sizes
from sightline.methods.compose import build_methods
from sightline.methods.vlsa.perception import WHOLE
from sightline.models.assemble import Assembly, assemble
from sightline.types import Batch, Turn

VICUNA = get_template("vicuna_v1")
SIZES = Sizes(d_vision=8, d_llm=16, patches=16, tokens=16)
PERCEIVER = {"name": "perceiver"}
ASPECTS = [(32, 32), (20, 9), (33, 32), (64, 64), (96, 96), (1, 4000), (4000, 1), (128, 32)]


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """An image with something everywhere."""
    image = Image.new("RGB", size, ("red", "blue", "green")[seed % 3])
    draw = ImageDraw.Draw(image)
    for step in range(0, max(size), 5):
        draw.line([(0, step), (step, 0)], fill=(255 - step % 200, 30 * seed % 255, step % 255))
    return image


def assembly_with(tiny: dict[str, Path], *methods: dict, seed: int = 0, **options) -> Assembly:
    torch.manual_seed(seed)
    return assemble(str(tiny["clip"]), str(tiny["llama"]), methods=list(methods), **options)


def trained(assembly: Assembly) -> Assembly:
    """With output matrices that are no longer zero."""
    torch.manual_seed(5)
    perceiver = assembly.model.model.methods["perceiver"].perceiver
    for last in (perceiver.w_o1, perceiver.w_o2):
        torch.nn.init.normal_(last.weight, std=0.2)
    assembly.model.eval()
    return assembly


def batch_of(assembly: Assembly, *rows: list[Image.Image], side: str = "left") -> Batch:
    processor = assembly.processor(VICUNA)
    prompts = [processor.prompt(images, [Turn("user", "<image>\n" * len(images) + "what?")]) for images in rows]
    return collate(prompts, pad_id=processor.pad_id, side=side)


@torch.no_grad()
def hidden(assembly: Assembly, batch: Batch) -> list[torch.Tensor]:
    """The states of each row without its padding."""
    states = assembly.model.model.trace(batch)[0].hidden
    return [row[mask.bool()] for row, mask in zip(states, batch.attention_mask, strict=True)]


@pytest.mark.parametrize("max_crops", [1, 4, 9])
@pytest.mark.parametrize("size", ASPECTS)
def test_every_image_has_as_many_tokens(tiny, size, max_crops):
    assembly = assembly_with(tiny, {**PERCEIVER, "max_crops": max_crops})
    batch = batch_of(assembly, [picture(size)])
    assert batch.visual_counts.tolist() == [16] and 1 <= int(batch.view_counts) <= max_crops + 1
    assert batch.image_sizes.tolist() == [[size[1], size[0]]]
    trace, _ = assembly.model.model.trace(batch)
    assert len(trace.visual) == 16 and trace.kept[WHOLE].shape == (1, 32)


@pytest.mark.parametrize("space", ["vision", "llm"])
def test_at_the_start_it_is_the_small_view(tiny, space):
    """Logits are those of the model without it that is shown the small view alone, bit for bit."""
    ours, plain = assembly_with(tiny, {**PERCEIVER, "space": space}), assembly_with(tiny)
    images = [picture((64, 50)), picture((31, 90), 1)]
    processor = ours.processor(VICUNA)
    small = [processor.cut(image)[0] for image in images]
    batch = batch_of(ours, images)
    alone = batch_of(plain, small)
    assert torch.equal(batch.input_ids, alone.input_ids) and len(batch.pixel_values) > len(alone.pixel_values)
    ours.model.eval(), plain.model.eval()
    (a,), (b,) = hidden(ours, batch), hidden(plain, alone)
    assert torch.equal(a, b)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options", [{}, {"positions": "sincos"}, {"positions": "covering"}, {"space": "llm"}, {"low": "original"}]
)
def test_a_row_does_not_know_its_neighbours(tiny, side, options):
    """Rows with one image of several crops, of one crop, with two images and with none: together as alone."""
    assembly = trained(assembly_with(tiny, {**PERCEIVER, **options}))
    rows = [[picture((64, 64))], [], [picture((20, 20), 1)], [picture((90, 30), 2), picture((32, 64))]]
    together = hidden(assembly, batch_of(assembly, *rows, side=side))
    for row, states in zip(rows, together, strict=True):
        (alone,) = hidden(assembly, batch_of(assembly, row))
        torch.testing.assert_close(states, alone, atol=2e-5, rtol=1e-4)


def test_crops_are_read(tiny):
    """What only a crop shows changes the tokens, once training has begun."""
    assembly = trained(assembly_with(tiny, PERCEIVER))
    batch = batch_of(assembly, [picture((64, 64))])
    pixels = batch.pixel_values.clone()
    pixels[3] += 0.5
    (a,), (b,) = hidden(assembly, batch), hidden(assembly, replace(batch, pixel_values=pixels))
    assert not torch.allclose(a, b, atol=1e-4)


def test_padding_is_not_read(tiny):
    """Whatever stands in crops' patches that lie wholly in padding."""
    assembly = trained(assembly_with(tiny, PERCEIVER))
    inner = assembly.model.model
    batch = batch_of(assembly, [picture((64, 40))])  # 2 x 2 crops of 32, 4 patches a side: 40 leaves 3 rows of padding
    patches = inner.encode(batch.pixel_values)
    changed = patches.clone()
    changed[3:, 4:] = 7.0
    with torch.no_grad():
        a, b = (inner.trace(replace(batch, patches=each))[0].visual for each in (patches, changed))
    torch.testing.assert_close(a, b)
    changed[3:, :4] = 7.0
    with torch.no_grad():
        assert not torch.allclose(a, inner.trace(replace(batch, patches=changed))[0].visual, atol=1e-4)


def test_covering_looks_at_its_own_place(tiny):
    """With `covering`, what a crop's patch shows reaches the token that covers it first; its neighbours, by eq. 2."""
    assembly = trained(assembly_with(tiny, {**PERCEIVER, "positions": "covering"}))
    torch.nn.init.zeros_(assembly.model.model.methods["perceiver"].perceiver.w_o2.weight)
    inner, batch = assembly.model.model, batch_of(assembly, [picture((64, 64))])
    patches = inner.encode(batch.pixel_values)
    changed = patches.clone()
    changed[2, 5] += 1.0  # second crop, second row and column: small patch 2 covers it
    with torch.no_grad():
        a, b = (inner.trace(replace(batch, patches=each))[0].visual for each in (patches, changed))
    moved = (a - b).abs().amax(1) > 1e-6
    assert moved.nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("positions", ["none", "sincos", "covering"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_answers(tiny, tmp_path, positions, dtype):
    save_model(trained(assembly_with(tiny, PERCEIVER | {"positions": positions})), tmp_path / "model", VICUNA)
    assert len(Assistant(tmp_path / "model", dtype=dtype).answers([[picture((64, 40))]], ["a?"], max_new_tokens=2)) == 1


@pytest.mark.parametrize("positions", ["none", "sincos", "covering"])
def test_the_original_alone_has_no_padding(tiny, positions):
    """low=original: an image of one crop is squeezed into its view, every patch of which is read."""
    assembly = trained(assembly_with(tiny, PERCEIVER | {"low": "original", "positions": positions}))
    batch = batch_of(assembly, [picture((20, 9))])
    inner = assembly.model.model
    with torch.no_grad():
        patches = inner.encode(batch.pixel_values)
        torch.nn.init.zeros_(
            inner.methods["perceiver"].perceiver.w_o2.weight
        )  # what the first attention gathers, alone
        changed = patches.clone()
        changed[0, 15] += 1
        a, b = (inner.trace(replace(batch, patches=each))[0].kept[WHOLE] for each in (patches, changed))
    assert (a - b).abs().max() > 1e-6, "the last patch is gathered, as all are"


def test_views_that_do_not_fit_their_sizes_are_refused(tiny, tmp_path):
    save_model(assembly_with(tiny, PERCEIVER), tmp_path / "model", VICUNA)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    inputs = processor(images=[[picture((64, 64))]], text=[text])
    with pytest.raises(SightlineError, match=r"images of \[\[32, 32\]\] .* have \[1\] views here, and \[5\] came"):
        model(**inputs | {"image_sizes": torch.tensor([[32, 32]])})


def test_a_view_loses_no_edge(tiny):
    """Also where the tower's own processor enlarges an image before it cuts its middle out."""
    assembly = assembly_with(tiny, PERCEIVER)
    assembly.image_processor.size = {"shortest_edge": 40}
    framed = Image.new("RGB", (64, 64), "black")
    framed.paste("red", (0, 0, 64, 1))
    processor = assembly.processor(VICUNA)
    views = processor.pixels(processor.cut(framed))
    assert views[1, 0, 0].min() > views[1, 0, 1].max(), "the first crop begins with the red line"


def test_what_it_keeps_for_the_backward_pass_is_counted(tiny):
    """As saved tensors of a real one have bytes, and linear in the crops."""
    method = assembly_with(tiny, PERCEIVER).model.model.methods["perceiver"]
    stage = Stage.model_validate({"name": "s", "data": {"path": "x"}, "trainable": ["perceiver"]})
    sizes = [method.kept(size, 32, stage) for size in ((64, 32), (96, 32), (128, 32))]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] > 0
    perceiver, low, high = method.perceiver, torch.randn(1, 16, 32), torch.randn(1, 48, 32)
    bytes_of = {}

    def pack(tensor):
        bytes_of[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in perceiver.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = perceiver(low, high, torch.ones(1, 16).bool(), torch.ones(1, 1, 48).bool())
    assert out.shape == (1, 17, 32)
    assert sizes[1] == sum(size for key, size in bytes_of.items() if key not in weights)


def test_generation_saves_and_loads(tiny, tmp_path):
    assembly = trained(assembly_with(tiny, PERCEIVER))
    assert why_not_stock(assembly.model) == ["method 'perceiver' changes the forward pass"]
    save_model(assembly, tmp_path / "model", VICUNA)
    batch = batch_of(assembly, [picture((64, 64))], [picture((90, 30), 2)])
    (a, b), (c, d) = hidden(assembly, batch), hidden(load_model(tmp_path / "model"), batch)
    assert torch.equal(a, c) and torch.equal(b, d)

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(images=[[picture((64, 64))], [picture((90, 30), 2)]], text=[text, text])
    full = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert torch.equal(full, model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False))
    beams = model.generate(**inputs, max_new_tokens=3, do_sample=False, num_beams=2)
    assert len(beams) == 2
    with pytest.raises(SightlineError, match="several views without `image_sizes`"):
        model(**{name: value for name, value in inputs.items() if name != "image_sizes"})

    assistant = Assistant(tmp_path / "model")
    rows = [[picture((64, 64))], [], [picture((20, 20), 1), picture((100, 20))]]
    asked = ["what is it?", "hi", "same or not?"]
    together = assistant.answers(rows, asked, max_new_tokens=5)
    assert together == [assistant.answers([i], [q], max_new_tokens=5)[0] for i, q in zip(rows, asked, strict=True)]


@pytest.mark.parametrize(
    ("record", "sizes", "message"),
    [
        ({"pinpoints": True, "max_crops": 1}, SIZES, "max_crops=1 leaves no raster of pinpoints"),
        ({"preset": ["vlsa_paper"]}, SIZES, "preset"),
        ({"heads": 3}, SIZES, "heads=3 does not divide the width 8"),
        ({}, replace(SIZES, patches=17, tokens=17), "a view has 17 tokens. Say model.vision_select=patch"),
        ({}, replace(SIZES, tokens=4), "4 tokens of 16 patches.*space=llm"),
        ({"max_crops": 0}, SIZES, "max_crops"),
        ({"low": "half"}, SIZES, "low"),
    ],
)
def test_what_does_not_fit_is_refused(record, sizes, message):
    with pytest.raises(SightlineError, match=message):
        build_methods([{**PERCEIVER, **record}], sizes)


def test_the_paper_as_printed():
    (method,) = build_methods([{**PERCEIVER, "preset": "vlsa_paper"}], SIZES).all
    assert (method.perceiver.attend.scale, method.perceiver.attend.normalise) == (False, False)


@pytest.mark.parametrize("separate", [False, True])
def test_its_operations_are_those_that_torch_counts(separate):
    (method,) = build_methods([{**PERCEIVER, "separate_values": separate}], SIZES).all
    low, high = torch.zeros(1, 16, 8), torch.zeros(1, 64, 8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        method.perceiver(low, high, torch.ones(1, 16, dtype=torch.bool), torch.ones(1, 1, 64, dtype=torch.bool))
    assert method.operations((64, 64), 32) == (counter.get_total_flops(), 2 * counter.get_total_flops())


def test_its_size_at_the_paper_s():
    """5.2M parameters and 16.5 GFLOP for four crops (design/methods.md, section 2)."""
    with torch.device("meta"):
        (method,) = build_methods([PERCEIVER], Sizes(d_vision=1024, d_llm=4096, patches=576, tokens=576)).all
    assert sum(p.numel() for p in method.parameters()) == pytest.approx(5.2e6, rel=0.01)
    assert method.operations((672, 672), 336)[0] == pytest.approx(16.5e9, rel=0.005)
