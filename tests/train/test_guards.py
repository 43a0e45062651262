"""Guards: parameters that should train and do not, frozen ones that move, layers that nothing uses."""

import json
from pathlib import Path

import pytest
import torch
from test_resume import recipe
from torch import nn

from sightline.config import Stage
from sightline.errors import SightlineError
from sightline.methods.base import AlignmentMethod, LossSpec, MethodConfig, Needs, Sizes
from sightline.models.assemble import assemble
from sightline.train import train
from sightline.train.guards import GradientGuard, NoGradient, added_up, assert_unmoved, fingerprint, hash_bits
from sightline.train.processes import Processes
from sightline.train.setup import set_trainable


class Idle(AlignmentMethod):
    """Has a weight that no loss depends on, and one whose gradient is always zero."""

    name = "idle"

    def __init__(self, config: MethodConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.unused = nn.Linear(2, 2)
        self.zeros = nn.Parameter(torch.ones(2))

    @property
    def needs(self) -> Needs:
        return Needs(losses=(LossSpec("idle/nothing", scope="micro-batch"),))

    def losses(self, trace, batch):
        return {"idle/nothing": (self.zeros * 0).sum()}


def run_of(tiny, pictures, out: Path, method: str, *, steps: int = 6):
    made = recipe(tiny, pictures, out, methods=[{"name": f"test_guards:{method}"}], stage={"steps": steps})
    trainable = [*made.stages[0].trainable, method.lower()]
    weights = {"idle/nothing": 1.0} if method == "Idle" else {}
    stage = made.stages[0].model_copy(update={"trainable": trainable, "weights": weights})
    return made.model_copy(update={"stages": [stage]})


@pytest.mark.parametrize("steps", [6, 25])
def test_a_parameter_without_gradient_stops_the_run_by_name(steps: int, tiny, pictures, tmp_path: Path, capsys) -> None:
    made = run_of(tiny, pictures, tmp_path / "run", "Idle", steps=steps)
    message = (
        rf"'model\.methods\.idle\.unused\.bias' and 'model\.methods\.idle\.unused\.weight' .* in {min(steps, 20)} st"
    )
    with pytest.raises(SightlineError, match=message):
        train(made)
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(SightlineError, match=r"had no gradient"):
        train(made, resume=True)


def test_zero_gradients_are_reported_and_no_reason_to_stop(capsys) -> None:
    used, zero = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    guard = GradientGuard({"used": used, "zero": zero}, "s")
    said: list[str] = []
    for step in range(1, 5):
        used.grad, zero.grad = torch.ones(2), torch.zeros(2)
        guard.look(step, 4, Processes(), said.append)
    assert said == ["s: the gradients of 'zero' were zero throughout the first 4 steps"]


def test_what_the_guard_saw_survives_a_resume() -> None:
    """A gradient that came in the first part of a run counts in the second."""
    early, never = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    guard = GradientGuard({"early": early, "never": never}, "s")
    early.grad = torch.ones(2)
    guard.look(1, 20, Processes(), print)
    early.grad = None
    again = GradientGuard({"early": early, "never": never}, "s", past=json.loads(json.dumps(guard.record())))
    with pytest.raises(NoGradient, match=r"^'never' of stage 's' had no gradient in 20 steps"):
        again.look(20, 20, Processes(), print)
    again.look(21, 30, Processes(), print)


def test_a_frozen_parameter_that_moves_stops_the_run(
    tiny, pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sightline.train import stage as stage_module

    made = recipe(tiny, pictures, tmp_path / "run")
    begin = stage_module.train_stage

    def meddle(run):
        for step in begin(run):
            with torch.no_grad():
                run.engine.objective.model.model.vision_tower.get_parameter("embeddings.class_embedding")[0] += 1
            yield step

    monkeypatch.setattr(stage_module, "train_stage", meddle)
    with pytest.raises(SightlineError, match=r"class_embedding' moved in stage 'pretrain', which does not train it"):
        train(made, quiet=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.uint8])
def test_the_fingerprint_sees_one_bit(dtype: torch.dtype) -> None:
    values = torch.arange(1000).to(dtype)
    before = hash_bits(values)
    assert added_up([hash_bits(values[:300]), hash_bits(values[300:])]) == before, "shards put together"
    values.view(torch.uint8)[7] ^= 1
    assert hash_bits(values) != before
    frozen = nn.Parameter(torch.ones(3), requires_grad=False)
    trained = nn.Parameter(torch.ones(3))
    assert list(fingerprint([("a", frozen), ("b", trained)], Processes())) == ["a"]
    with pytest.raises(SightlineError, match=r"'a' moved"):
        assert_unmoved({"a": [1, 0]}, {"a": [2, 0]}, stage="s")


def test_the_fingerprint_sees_a_norm_scaled_as_one() -> None:
    """Equal bits cancel out of an exclusive or."""
    assert hash_bits(torch.ones(8)) != hash_bits(torch.ones(8) * 0.999)


@pytest.mark.parametrize("tower", ["clip", "siglip", "dinov2", "registers"])
@pytest.mark.parametrize("layer", [-2, -1, 1, [1, 2]])
def test_layers_past_the_selected_one_are_left_out_by_name(tower: str, layer, tiny, pictures) -> None:
    """What the meta device says has no gradient is what has none in a real backward pass."""
    torch.manual_seed(0)
    assembly = assemble(str(tiny[tower]), str(tiny["llama"]), vision_layer=layer)
    stage = Stage.model_validate({"name": "s", "data": {"path": "x"}, "trainable": ["vision"]})
    row = next(row for row in set_trainable(assembly.model, stage) if row.part == "vision")
    model = assembly.model
    model.requires_grad_(True)
    model.model.connect(model.model.encode(torch.randn(2, 3, 32, 32))).sum().backward()
    without = {name for name, p in model.named_parameters() if "vision_tower" in name and p.grad is None}
    assert set(row.unused) == without
    assert row.trained == row.parameters - sum(model.get_parameter(name).numel() for name in without)
    assert (layer == -1) or any("layers.2" in name or "layer.2" in name for name in without)


def test_a_tower_trains_with_its_last_layers_left_out(tiny, pictures, tmp_path: Path, capsys) -> None:
    made = recipe(tiny, pictures, tmp_path / "run")
    stages = [made.stages[0].model_copy(update={"trainable": ["vision", "connector"]})]
    train(made.model_copy(update={"stages": stages}))
    said = " ".join(capsys.readouterr().err.split())
    assert "not used by the forward pass, so left as they are: 18 tensors, model.vision_tower" in said
