"""4-bit weights (QLoRA) through bitsandbytes, which has a CPU backend: what is held, what trains, what comes back."""

import pytest
import torch
from torch import nn

from sightline.config import Stage
from sightline.data.collate import collate
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.models.adapters import changed_names, check_stage, merge, plain_state, prepare_stage
from sightline.models.assemble import Assembly, assemble
from sightline.models.parts import owner_of
from sightline.models.precision import base_linears, base_weight, check_nf4, hold_part, is_adapter, is_nf4, nf4_linear
from sightline.train.engine import Engine
from sightline.train.objective import Objective
from sightline.train.setup import build_optimizer, set_modes, set_trainable
from sightline.train.step import take_step

pytest.importorskip("bitsandbytes")
pytest.importorskip("peft")

NF4 = {"frozen": "nf4", "precision": "bf16"}
LORA = {"rank": 4, "alpha": 8}


def stage_of(**changes) -> Stage:
    constant = {"schedule": "constant", "warmup": 0, "lr": 0.01}
    stage = {"name": "s", "data": {"path": "x"}, "trainable": ["connector", "language"]}
    return Stage.model_validate(stage | constant | changes)


def make(tiny, language: str = "llama") -> Assembly:
    torch.manual_seed(0)
    return assemble(str(tiny["clip"]), str(tiny[language]))


def train_two_steps(assembly: Assembly, stage: Stage, pictures) -> list[float]:
    process = assembly.processor(get_template("vicuna_v1"))
    batch = collate([process(sample) for sample in read_llava_json(pictures / "chats.json")[:4]], pad_id=0)
    model = assembly.model
    prepare_stage(assembly, stage)
    optimizer = build_optimizer(model, set_trainable(model, stage), stage)
    engine, losses = Engine(Objective(model, {}), stage), []
    for step in (1, 2):
        torch.manual_seed(step)
        set_modes(model, stage)
        losses.append(take_step(engine, [batch], optimizer, stage, step=step).losses["loss"])
    model.eval()
    return losses


@pytest.mark.parametrize("shape", [(32, 64), (30, 33), (512, 96)])
def test_rounding_is_of_the_size_that_four_bits_have_and_rounding_again_changes_nothing(shape):
    torch.manual_seed(0)
    linear = nn.Linear(*shape, bias=False)
    once = base_weight(nf4_linear(linear, "cpu"))
    error = (once - linear.weight).norm() / linear.weight.norm()
    assert 0.05 < error < 0.12, "uniform weights in blocks of 64"
    again = nn.Linear(*shape, bias=False)
    again.weight.data = once
    assert torch.equal(base_weight(nf4_linear(again, "cpu")), once)


def test_forward_and_gradient_are_those_of_the_rounded_weight():
    torch.manual_seed(0)
    made = nf4_linear(nn.Linear(64, 32), "cpu")
    plain = nn.Linear(64, 32)
    plain.weight.data, plain.bias.data = base_weight(made), made.bias.data.float()
    given, same = (torch.ones(3, 64).mul_(0.1).requires_grad_() for _ in range(2))
    out, expected = made(given), plain(same)
    torch.testing.assert_close(out, expected, atol=0.02, rtol=0.02)
    out.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(given.grad, same.grad, atol=0.05, rtol=0.05)
    with torch.no_grad():  # where bitsandbytes may repack on some CPUs
        torch.testing.assert_close(made.eval()(given), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("language", ["llama", "phi3", "tied"])
@pytest.mark.parametrize("init", ["lora", "pissa"])
def test_qlora_trains_adapters_and_connector_over_four_bits(language, init, tiny, pictures):
    assembly = make(tiny, language)
    stage = stage_of(lora=LORA | {"init": init}, **NF4)
    prepare_stage(assembly, stage)
    before = {name: value.clone() for name, value in assembly.model.state_dict().items()}
    losses = train_two_steps(assembly, stage, pictures)
    assert losses[1] < losses[0]
    for name, value in assembly.model.state_dict().items():
        moved = name.startswith("model.multi_modal_projector.") or is_adapter(name)
        assert torch.equal(value, before[name]) != moved, name
    assert all(is_nf4(linear) for _, linear in base_linears(assembly.model.model.language_model))
    for name, p in assembly.model.named_parameters():
        if not p.requires_grad and p.dtype != torch.uint8:
            assert p.dtype == torch.bfloat16, name
    assert not is_nf4(assembly.model.lm_head)


def test_a_connector_trains_through_four_bits(tiny, pictures):
    """LLaVA's stage 1 on a small GPU, with checkpointing; then adapters go over the same weights."""
    assembly = make(tiny)
    stage = stage_of(trainable=["connector"], activation_checkpointing=True, **NF4)
    losses = train_two_steps(assembly, stage, pictures)
    assert losses[1] < losses[0]
    rounded = plain_state(assembly.model)
    train_two_steps(assembly, stage_of(lora=LORA, **NF4), pictures)
    for name, linear in base_linears(assembly.model.model.language_model):
        plain = f"model.language_model.{name.removesuffix('.base_layer')}.weight"
        assert torch.equal(base_weight(linear), rounded[plain]), name
    with pytest.raises(SightlineError, match="trains the language model's own weights"):
        prepare_stage(assembly, stage_of())


def test_merging_leaves_what_was_trained_in_full_precision(tiny, pictures):
    """Not rounded to 4 bits once more: the same weights, to fp32, as the rounded ones plus the update."""
    assembly = make(tiny)
    train_two_steps(assembly, stage_of(lora=LORA, **NF4), pictures)
    layer = assembly.model.model.language_model.layers[0].self_attn.q_proj
    expected = base_weight(layer.base_layer) + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    state = plain_state(assembly.model)
    merge(assembly)
    merged = assembly.model.model.language_model.layers[0].self_attn.q_proj
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged.weight, expected.detach(), atol=1e-7, rtol=0)
    assert all(torch.equal(value, state[name]) for name, value in assembly.model.state_dict().items())
    assert {owner_of(name) for name in state} == {"vision", "connector", "language"}


def test_a_state_dict_with_four_bits_loads_back(tiny, pictures):
    """A checkpoint to resume from; strictly."""
    stage = stage_of(lora=LORA, **NF4)
    first, second = make(tiny), make(tiny)
    train_two_steps(first, stage, pictures)
    with torch.no_grad():
        second.model.model.language_model.layers[0].mlp.up_proj.weight.add_(1)
    prepare_stage(second, stage)
    state = {name: value.clone() for name, value in first.model.state_dict().items()}
    second.model.load_state_dict(state)
    again = second.model.state_dict()
    assert again.keys() == first.model.state_dict().keys()
    assert all(torch.equal(value, again[name]) for name, value in first.model.state_dict().items())
    plain, same = plain_state(first.model), plain_state(second.model)
    assert all(torch.equal(value, same[name]) for name, value in plain.items())
    gone = "model.language_model.layers.0.mlp.up_proj.base_layer.weight"
    with pytest.raises(RuntimeError, match=f"Missing key.*{gone}"):
        second.model.load_state_dict({name: value for name, value in state.items() if name != gone})


def test_a_trained_model_in_four_bits_is_given_back_in_place(tiny, pictures):
    """What changed is copied into a fresh model of the same shape, its 4 bits with their scales."""
    first, second = make(tiny), make(tiny)
    stages = [stage_of(), stage_of(lora=LORA | {"init": "pissa"}, **NF4)]
    for stage in stages:
        train_two_steps(first, stage, pictures)
        prepare_stage(second, stage)
    state, target = first.model.state_dict(), second.model.state_dict()
    names = changed_names(second.model) | {name for name in target if name.startswith("model.multi_modal_projector.")}
    assert any(name.endswith(".absmax") for name in names)
    for name in names:
        target[name].copy_(state[name])
    plain, same = plain_state(first.model), plain_state(second.model)
    assert all(torch.equal(value, same[name]) for name, value in plain.items())


def test_the_table_of_parts_counts_weights_not_bytes(tiny):
    assembly = make(tiny)
    stage = stage_of(trainable=["connector"], **NF4)
    before = {row.part: row.parameters for row in set_trainable(assembly.model, stage)}
    prepare_stage(assembly, stage)
    assert {row.part: row.parameters for row in set_trainable(assembly.model, stage)} == before


def test_four_bits_are_not_shared_out(tiny):
    with pytest.raises(SightlineError, match=r"not shared out by FSDP. Use parallel=ddp"):
        check_stage(make(tiny).model, stage_of(lora=LORA, **NF4), "cpu", sharded=True)


def test_held_in_fp32_again_it_is_a_plain_model(tiny):
    assembly = make(tiny)
    names = list(assembly.model.state_dict())
    hold_part(assembly.model, "language", "nf4")
    hold_part(assembly.model, "language", "fp32")
    assert sorted(assembly.model.state_dict()) == sorted(names)
    assert all(p.dtype == torch.float32 for p in assembly.model.parameters())


def test_a_device_that_bitsandbytes_does_not_know():
    with pytest.raises(SightlineError, match=r"cannot hold weights in 4 bits on device 'meta': .* Use frozen=bf16"):
        check_nf4("meta")
