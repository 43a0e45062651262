"""What methods measure beside their losses: means over a whole step, and no change to what is trained."""

from pathlib import Path

import pytest
import torch

from sightline.config import Stage
from sightline.data.collate import collate
from sightline.data.dataset import Rows
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.methods.aligngpt import AlignGPT
from sightline.models.assemble import assemble
from sightline.train.engine import Engine
from sightline.train.objective import Objective
from sightline.train.processes import Processes
from sightline.train.setup import build_optimizer, set_trainable
from sightline.train.step import StepResult, mean_measures, take_step
from sightline.train.visual import EVERY
from sightline.types import Batch

ENTROPY, LARGEST = "aligngpt/entropy", "aligngpt/weight_max"


class Bench:
    """AlignGPT in a stage that trains its gate, and micro-batches of chats; row 12 has two images, row 13 none."""

    def __init__(self, tiny: dict[str, Path], pictures: Path, *groups: list[int], precision: str = "fp32") -> None:
        torch.manual_seed(4)
        self.assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=[{"name": "aligngpt"}])
        method = self.assembly.model.model.methods["aligngpt"]
        assert isinstance(method, AlignGPT) and method.gate is not None and method.gate.last is not None
        torch.nn.init.normal_(method.gate.last.weight, std=0.3)
        self.method = method
        samples = read_llava_json(pictures / "chats.json")
        rows = Rows(samples, self.assembly.processor(get_template("vicuna_v1")), seed=0)
        self.batches = [collate([rows[(0, n)] for n in numbers], pad_id=rows.processor.pad_id) for numbers in groups]
        record = {"name": "s", "data": {"path": "x"}, "trainable": ["connector", "aligngpt.gate"], "lr": 1e-2}
        self.stage = Stage.model_validate(record | {"precision": precision})
        table = set_trainable(self.assembly.model, self.stage)
        self.engine = Engine(Objective(self.assembly.model, {}), self.stage)
        self.optimizer = build_optimizer(self.assembly.model, table, self.stage)

    def step(self, number: int) -> StepResult:
        return take_step(self.engine, self.batches, self.optimizer, self.stage, step=number)

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.assembly.model.parameters()]

    @torch.no_grad()
    def alpha(self, batch: Batch) -> torch.Tensor:
        """The gate's weights of each row, from what it reads."""
        model = self.assembly.model.model
        embeds = model.splice(batch, model.connect(model.encode(batch.pixel_values)))
        return self.method.weights(embeds, batch)


def test_the_gates_entropy_is_over_the_rows_with_images(tiny, pictures):
    bench = Bench(tiny, pictures, [0, 13, 12], [1, 2, 3], [13, 13])
    alpha = torch.cat([bench.alpha(batch)[batch.image_counts > 0] for batch in bench.batches]).double()
    assert len(alpha) == 5
    measures = bench.step(1).measures
    assert measures.keys() == {ENTROPY, LARGEST}
    assert measures[ENTROPY] == pytest.approx(float(torch.distributions.Categorical(alpha).entropy().mean()), rel=1e-5)
    assert measures[LARGEST] == pytest.approx(float(alpha.max(1).values.mean()), rel=1e-5)
    assert 0 < measures[ENTROPY] < torch.tensor(7.0).log()


def test_accumulation_is_exact_and_text_alone_has_none(tiny, pictures):
    apart, together = Bench(tiny, pictures, [0, 13], [12, 1, 2]), Bench(tiny, pictures, [0, 13, 12, 1, 2])
    assert apart.step(1).measures == pytest.approx(together.step(1).measures, rel=1e-5)
    assert Bench(tiny, pictures, [13, 13]).step(1).measures == {}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measuring_changes_no_bit(tiny, pictures, precision):
    seen, unseen = (Bench(tiny, pictures, [0, 13, 12], [1, 2, 3], precision=precision) for _ in range(2))
    before = seen.weights()
    looked, passed_by = seen.step(EVERY + 1), unseen.step(EVERY)
    assert looked.measures and not passed_by.measures
    assert looked.losses == passed_by.losses and looked.grad_norm == passed_by.grad_norm
    assert all(torch.equal(a, b) for a, b in zip(seen.weights(), unseen.weights(), strict=True))
    gate = seen.method.gate
    assert gate is not None and gate.first.weight.grad is not None and bool(gate.first.weight.grad.any())
    assert sum(not torch.equal(a, b) for a, b in zip(before, seen.weights(), strict=True)) > 4
    assert not seen.engine.objective.measuring


def test_a_batch_that_only_keeps_step_is_not_measured():
    values = [
        {"m/a": torch.tensor([1.0, 2.0]), "m/b": torch.zeros(0)},
        {"m/a": torch.tensor([6.0]), "m/b": torch.zeros(0)},
    ]
    assert mean_measures(values, Processes()) == {"m/a": 3.0}
    assert mean_measures([{}], Processes()) == mean_measures([], Processes()) == {}
