"""Operations by formula against torch's own counter, forward and backward, on tiny real models."""

import copy

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from sightline.config import LoRA, Stage
from sightline.data.collate import collate
from sightline.data.templates import get_template
from sightline.plan.flops import Rows, decode_step, decoder_forward, step_flops
from sightline.plan.run import training_of
from sightline.plan.shapes import shapes
from sightline.train.objective import Objective
from sightline.train.setup import set_trainable
from sightline.types import IGNORE, Sample, Turn

TOLERANCE = 2e-3
"""The rotary embedding's outer product is a matrix product to the counter, and left out of the formulas."""


def make_batch(assembly, rows: int = 3, text: str = "a small red ball and a large blue box"):
    """Rows of equal length with an image each, so that no padding is counted."""
    processor = assembly.processor(get_template("vicuna_v1"))
    turns = (Turn("user", "<image>\nWhat is it?"), Turn("assistant", text))
    picture = Image.new("RGB", (32, 32), "red")
    examples = [processor(Sample(str(i), (picture,), turns)) for i in range(rows)]
    return collate(examples, pad_id=processor.pad_id)


def make_stage(**changes) -> Stage:
    return Stage.model_validate({"name": "s", "data": {"path": "x"}, "trainable": ["connector"]} | changes)


def rows_of(batch) -> Rows:
    count, length = batch.input_ids.shape
    return Rows(count, length, len(batch.pixel_values), int((batch.labels[:, 1:] != IGNORE).sum()))


def counted(model, batch) -> tuple[int, int]:
    """What the counter sees of the objective's forward pass, and of its backward one."""
    objective = Objective(model, {})
    with FlopCounterMode(display=False) as counter:
        sums = objective(batch)
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        objective.total(sums, objective.counts(batch)).backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize(
    ("vision", "language"), [("clip", "llama"), ("dinov2", "qwen2"), ("registers", "phi3"), ("clip", "gemma")]
)
@pytest.mark.parametrize(
    "trainable",
    [["connector"], ["connector", "language"], ["language"], ["vision", "connector", "language"], ["vision"]],
    ids="+".join,
)
def test_flops_are_those_of_the_real_model(assembled, vision, language, trainable):
    assembly = assembled(vision, language)
    model, stage = copy.deepcopy(assembly.model), make_stage(trainable=trainable)
    model.set_attn_implementation("eager")
    set_trainable(model, stage)
    batch = make_batch(assembly)
    planned = step_flops(shapes(model), rows_of(batch), training_of(stage, model))
    forward, backward = counted(model, batch)
    assert planned.vision + planned.connector + planned.decoder + planned.head == pytest.approx(forward, rel=TOLERANCE)
    back = planned.vision_backward + planned.connector_backward + planned.decoder_backward + planned.head_backward
    assert back == pytest.approx(backward, rel=TOLERANCE)
    assert planned.recomputed == 0


def test_a_list_of_layers_and_a_linear_connector(assembled):
    """No gradient goes beyond the deepest layer that is taken."""
    assembly = assembled("clip", "llama", vision_layer=[1, 2], connector="linear")
    model, stage = copy.deepcopy(assembly.model), make_stage(trainable=["vision"])
    model.set_attn_implementation("eager")
    set_trainable(model, stage)
    batch = make_batch(assembly)
    sizes = shapes(model)
    assert sizes.deepest == 2
    planned = step_flops(sizes, rows_of(batch), training_of(stage, model))
    _, backward = counted(model, batch)
    back = planned.vision_backward + planned.connector_backward + planned.decoder_backward + planned.head_backward
    assert back == pytest.approx(backward, rel=TOLERANCE)


@pytest.mark.parametrize("trainable", [["connector"], ["vision", "connector", "language"]], ids="+".join)
def test_several_scales(assembled, trainable):
    """The tower runs on 1 + 4 + 9 tiles of each image; what comes after it is three times as wide."""
    assembly = assembled("clip", "llama", vision_scales=[1, 2, 3])
    model, stage = copy.deepcopy(assembly.model), make_stage(trainable=trainable)
    model.set_attn_implementation("eager")
    set_trainable(model, stage)
    batch, sizes = make_batch(assembly), shapes(model)
    assert (sizes.scales, sizes.tiles, sizes.tokens, sizes.connector[0].inputs) == ((1, 2, 3), 14, 16, 96)
    planned = step_flops(sizes, rows_of(batch), training_of(stage, model))
    once = step_flops(shapes(assembled("clip", "llama").model), rows_of(batch), training_of(stage, model))
    assert (planned.vision, planned.vision_backward) == (14 * once.vision, 14 * once.vision_backward)
    assert planned.decoder == once.decoder
    forward, backward = counted(model, batch)
    assert planned.vision + planned.connector + planned.decoder + planned.head == pytest.approx(forward, rel=TOLERANCE)
    back = planned.vision_backward + planned.connector_backward + planned.decoder_backward + planned.head_backward
    assert back == pytest.approx(backward, rel=TOLERANCE)


def test_adapters(assembled):
    """LoRA through peft: the adapters' own products, and no gradient of the weights under them."""
    peft = pytest.importorskip("peft")
    assembly = assembled("clip", "llama")
    stage = make_stage(trainable=["connector", "language"], lora={"rank": 4})
    model = copy.deepcopy(assembly.model)
    sizes, training = shapes(model), training_of(stage, model)
    model.set_attn_implementation("eager")
    set_trainable(model, make_stage())
    assert stage.lora is not None
    targets = [layer.name.split(".")[-1] for layer in sizes.language.linears]
    peft.inject_adapter_in_model(peft.LoraConfig(r=stage.lora.rank, target_modules=targets), model.model.language_model)
    batch = make_batch(assembly)
    planned = step_flops(sizes, rows_of(batch), training)
    forward, backward = counted(model, batch)
    assert planned.vision + planned.connector + planned.decoder + planned.head == pytest.approx(forward, rel=TOLERANCE)
    back = planned.connector_backward + planned.decoder_backward + planned.head_backward
    assert back == pytest.approx(backward, rel=TOLERANCE)


def test_only_the_named_linears_are_adapted(assembled):
    stack = shapes(assembled("clip", "llama").model).language
    adapted = stack.adapted(LoRA(targets=["q_proj", "v_proj"]))
    assert [layer.name for layer in adapted] == ["self_attn.q_proj", "self_attn.v_proj"]
    assert stack.adapted(LoRA()) == stack.linears


def test_checkpointing_adds_a_forward_pass_of_the_decoder(assembled):
    model = assembled("clip", "llama").model
    sizes, batch = shapes(model), Rows(rows=2, sequence=40, views=2, supervised=9)
    kept, again = (
        step_flops(sizes, batch, training_of(make_stage(activation_checkpointing=on), model)) for on in (False, True)
    )
    assert again.total - kept.total == kept.decoder == decoder_forward(sizes, 2, 40)


def test_a_step_of_generation(assembled):
    """One token at a time on a cache, against the counter."""
    model = copy.deepcopy(assembled("clip", "llama").model)
    model.set_attn_implementation("eager")
    ids = torch.ones(2, 12, dtype=torch.long)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
        with FlopCounterMode(display=False) as counter:
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    assert decode_step(shapes(model), rows=2, cached=12) == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)
