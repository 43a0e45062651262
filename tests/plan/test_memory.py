"""Memory by formula against what a really built tiny model holds and what autograd really saves."""

import copy

import pytest
import torch
from peak import Peak, build, checkpoint_decoder, make_rows
from test_flops import make_batch, make_stage, rows_of
from torch.autograd.graph import saved_tensors_hooks

from sightline.config import Stage
from sightline.plan.flops import Rows
from sightline.plan.memory import LIBRARIES, NF4, Setting, activations, frozen_bytes, step_memory
from sightline.plan.run import trained_of, training_of
from sightline.plan.shapes import shapes
from sightline.train.objective import Objective
from sightline.train.setup import build_optimizer, set_trainable

TOLERANCE = 0.1
"""Activations by formula may be so far from the bytes that autograd saves in a model of a few thousand parameters."""
LOWEST, HIGHEST = 0.97, 1.1
"""And the whole estimate, libraries apart, as a share of the peak of a step of a model of 2M parameters."""


def saved_bytes(model, batch, *, precision: str) -> int:
    """Bytes of the storages that a forward pass keeps for its backward pass, parameters and their casts apart."""
    objective, kept = Objective(model, {}), {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes_of_weights = {tuple(p.shape) for p in model.parameters() if p.ndim == 2}
    shapes_of_weights |= {shape[::-1] for shape in shapes_of_weights}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights and tuple(tensor.shape) not in shapes_of_weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        sums = objective(batch)
    assert sums["answer"].requires_grad
    return sum(kept.values())


def hold(model, stage: Stage) -> None:
    """Frozen weights as the stage says."""
    if stage.frozen == "bf16":
        parts = {"vision": [model.model.vision_tower], "language": [model.model.language_model, model.lm_head]}
        for part, modules in parts.items():
            if part not in stage.trainable or (part == "language" and stage.lora is not None):
                for module in modules:
                    module.to(torch.bfloat16)


@pytest.mark.parametrize("language", ["llama", "qwen2", "gemma"])
@pytest.mark.parametrize(
    ("precision", "frozen", "trainable"),
    [
        ("fp32", "fp32", ["connector"]),
        ("fp32", "fp32", ["connector", "language"]),
        ("bf16", "bf16", ["connector"]),
        ("bf16", "fp32", ["connector"]),
        ("bf16", "bf16", ["connector", "language"]),
        ("fp32", "fp32", ["vision", "connector"]),
        ("bf16", "bf16", ["vision", "connector", "language"]),
    ],
)
def test_activations_are_what_autograd_saves(assembled, language, precision, frozen, trainable):
    assembly = assembled("clip", language)
    stage = make_stage(trainable=trainable, precision=precision, frozen=frozen)
    model = copy.deepcopy(assembly.model)
    model.config.text_config.attention_dropout = 0.0
    set_trainable(model, stage)
    hold(model, stage)
    batch = make_batch(assembly, rows=4, text="a small red ball and a large blue box " * 6)
    sizes, rows = shapes(model), rows_of(batch)
    setting, training = Setting(stage.precision, stage.frozen, "ddp"), training_of(stage, model)
    planned = activations(sizes, rows, setting, training) - batch.pixel_values.nbytes
    planned += rows.supervised * sizes.vocabulary * 4  # the log-softmax, which is counted as working memory
    real = saved_bytes(model, batch, precision=precision)
    assert planned == pytest.approx(real, rel=TOLERANCE)


def train_two_steps(model, stage: Stage, batch, table) -> tuple[Peak, torch.optim.Optimizer]:
    objective, optimizer = Objective(model, {}), build_optimizer(model, table, stage)
    peak = Peak(*model.parameters(), *model.buffers(), batch.pixel_values)
    with peak:
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=stage.precision == "bf16"):
                sums = objective(batch)
                loss = objective.total(sums, objective.counts(batch))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    return peak, optimizer


@pytest.mark.parametrize("supervised", [16, 200], ids=["captions", "conversations"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize(
    ("precision", "frozen", "trainable"),
    [
        ("fp32", "fp32", ["connector", "language"]),
        ("bf16", "bf16", ["connector"]),
        ("bf16", "fp32", ["connector"]),
        ("bf16", "bf16", ["connector", "language"]),
        ("bf16", "bf16", ["vision", "connector", "language"]),
    ],
)
def test_the_estimate_is_the_peak_of_a_real_step(precision, frozen, trainable, checkpointing, supervised):
    """Weights, gradients, optimizer, activations, loss: the most that is alive at once in the second step."""
    stage = make_stage(trainable=trainable, precision=precision, frozen=frozen, activation_checkpointing=checkpointing)
    model, batch = build(), make_rows(4, 256, supervised)
    table = set_trainable(model, stage)
    model.eval()
    hold(model, stage)
    if checkpointing:
        checkpoint_decoder(model)
    rows = Rows(4, 256, views=4, supervised=4 * supervised)
    setting, training = Setting(stage.precision, stage.frozen, "ddp"), training_of(stage, model)
    sizes = shapes(model)
    planned = step_memory(sizes, rows, trained_of(table, sizes, training), training, setting)
    peak, optimizer = train_two_steps(model, stage, batch, table)
    assert LOWEST < (planned.total - LIBRARIES) / peak.peak < HIGHEST

    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    moments = [state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert planned.weights == sum(p.nbytes for p in model.parameters())
    assert planned.gradients == gradients
    assert planned.optimizer == sum(moments)


@pytest.mark.parametrize(
    ("precision", "trainable"),
    [("fp32", ["connector"]), ("bf16", ["connector"]), ("bf16", ["vision", "connector", "language"])],
)
def test_the_estimate_with_several_scales(precision, trainable):
    """A tower that sees fourteen tiles of each image: its states are the largest moment, unless it trains."""
    frozen = "bf16" if precision == "bf16" else "fp32"
    stage = make_stage(trainable=trainable, precision=precision, frozen=frozen)
    model, batch = build([1, 2, 3]), make_rows(8, 64, 16, scale=3)
    table = set_trainable(model, stage)
    model.eval()
    hold(model, stage)
    training, sizes = training_of(stage, model), shapes(model)
    planned = step_memory(
        sizes,
        Rows(8, 64, views=8, supervised=8 * 16),
        trained_of(table, sizes, training),
        training,
        Setting(stage.precision, stage.frozen, "ddp"),
    )
    peak, _ = train_two_steps(model, stage, batch, table)
    assert LOWEST < (planned.total - LIBRARIES) / peak.peak < HIGHEST


@pytest.mark.parametrize("frozen", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("checkpointing", "dropout"), [(False, 0.0), (False, 0.05), (True, 0.0)], ids=["kept", "dropout", "checkpointed"]
)
def test_the_estimate_with_adapters(checkpointing, frozen, dropout):
    """LoRA through peft on a language model in bf16."""
    peft = pytest.importorskip("peft")
    stage = make_stage(
        trainable=["connector", "language"],
        precision="bf16",
        frozen=frozen,
        lora={"rank": 8, "dropout": dropout},
        activation_checkpointing=checkpointing,
    )
    model, batch = build(), make_rows(4, 256, 100)
    sizes, training = shapes(model), training_of(stage, model)
    table = set_trainable(model, make_stage(trainable=["connector", "language"]))
    model.eval()
    hold(model, stage)
    for part in (model.model.language_model, model.lm_head):
        part.requires_grad_(False)
    targets = [layer.name.split(".")[-1] for layer in sizes.language.linears]
    peft.inject_adapter_in_model(
        peft.LoraConfig(r=8, lora_dropout=dropout, target_modules=targets), model.model.language_model
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train()
    if checkpointing:
        checkpoint_decoder(model)
    planned = step_memory(
        sizes,
        Rows(4, 256, views=4, supervised=400),
        trained_of(table, sizes, training),
        training,
        Setting("bf16", stage.frozen, "ddp"),
    )
    peak, _ = train_two_steps(model, stage, batch, table)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert planned.gradients == 4 * trained
    if dropout:  # the mask has four bytes a number on the CPU, and one on a GPU, which is what is planned
        inputs = sum(layer.inputs for layer in sizes.language.linears)
        peak.peak -= 3 * 4 * 256 * inputs * sizes.language.layers
    assert LOWEST < (planned.total - LIBRARIES) / peak.peak < HIGHEST


def test_fsdp_shares_out_and_ddp_copies(assembled):
    """Weights, gradients and optimizer by the number of processes; a frozen tower stays whole."""
    model = assembled("clip", "llama").model
    sizes, rows = shapes(model), Rows(2, 40, 2, 20)
    stage = make_stage(trainable=["connector", "language"])
    training = training_of(stage, model)
    trained = trained_of(set_trainable(copy.deepcopy(model), stage), sizes, training)

    def memory(parallel, processes):
        return step_memory(sizes, rows, trained, training, Setting("fp32", "fp32", parallel, processes))

    alone, shared, copied = memory("fsdp", 1), memory("fsdp", 4), memory("ddp", 4)
    assert alone == memory("ddp", 1)
    tower = 4 * sizes.parameters["vision"]
    assert shared.weights == pytest.approx(tower + (alone.weights - tower) / 4)
    assert (4 * shared.gradients, 4 * shared.optimizer) == (alone.gradients, alone.optimizer)
    assert shared.working > alone.working
    assert shared.activations == alone.activations == copied.activations
    assert (copied.gradients, copied.weights) == (alone.gradients, alone.weights)


def test_nf4_takes_what_bitsandbytes_takes(assembled):
    """Four bits and a scale for each 64 numbers, for the decoder's linears; the rest of the language model is bf16."""
    functional = pytest.importorskip("bitsandbytes").functional
    packed, state = functional.quantize_4bit(torch.randn(256, 512), blocksize=64, quant_type="nf4")
    assert packed.nbytes + state.absmax.nbytes == NF4 * 256 * 512
    sizes = shapes(assembled("clip", "llama").model)
    matrices = sizes.language.layers * sizes.language.weights
    assert frozen_bytes(sizes, "language", "nf4") == round(
        NF4 * matrices + 2 * (sizes.parameters["language"] - matrices)
    )
    assert frozen_bytes(sizes, "vision", "nf4") == 2 * sizes.parameters["vision"]
    assert frozen_bytes(sizes, "connector", "nf4") == 4 * sizes.parameters["connector"]
