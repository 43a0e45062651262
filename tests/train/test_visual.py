"""How losses pull at the visual tokens: against gradients of each loss alone, and without changing what is trained."""

import math
from pathlib import Path

import pytest
import torch

from sightline.config import Stage
from sightline.data.collate import collate
from sightline.data.dataset import Rows
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.models.assemble import assemble
from sightline.train.engine import Engine
from sightline.train.objective import Objective
from sightline.train.setup import build_optimizer, set_trainable
from sightline.train.step import StepResult, take_step
from sightline.train.visual import EVERY

WEIGHTS = {"toy/norm": 0.3, "toy/spread": 2.0}


class Bench:
    """A model with a method of two losses, and micro-batches of rows: with one image, with none, with two."""

    def __init__(self, tiny: dict[str, Path], pictures: Path, weights: dict[str, float] = WEIGHTS) -> None:
        torch.manual_seed(4)
        methods = [{"name": "toy:Toy"}] if weights else []
        self.assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=methods)
        samples = read_llava_json(pictures / "chats.json")
        columns = {"toy/level": {sample.id: torch.tensor(1) for sample in samples}} if weights else {}
        rows = Rows(samples, self.assembly.processor(get_template("vicuna_v1")), seed=0, columns=columns)
        self.batches = [collate([rows[(0, n)] for n in numbers], pad_id=rows.processor.pad_id) for numbers in GROUPS]
        trains = ["connector", *(["toy"] if weights else [])]
        record = {"name": "s", "data": {"path": "x"}, "trainable": trains, "lr": 1e-2, "clip_norm": None}
        self.stage = Stage.model_validate(record)
        table = set_trainable(self.assembly.model, self.stage)
        self.engine = Engine(Objective(self.assembly.model, weights), self.stage)
        self.optimizer = build_optimizer(self.assembly.model, table, self.stage)

    def step(self, number: int) -> StepResult:
        return take_step(self.engine, self.batches, self.optimizer, self.stage, step=number)

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.assembly.model.parameters()]


GROUPS = ([0, 13, 12], [1, 2, 3], [13, 13, 13])


@pytest.fixture
def alone(tiny: dict[str, Path], pictures: Path) -> dict[str, torch.Tensor]:
    """The gradient of each loss at the visual tokens of all micro-batches, from a backward pass of its own."""
    bench = Bench(tiny, pictures)
    objective, found = bench.engine.objective, {}
    counts = [objective.counts(batch) for batch in bench.batches]
    counts = {name: torch.stack([count[name] for count in counts]).sum() for name in counts[0]}
    objective.watched = True
    for term in objective.terms:
        parts = []
        for batch in bench.batches:
            loss = objective.weighted(term, objective(batch), counts)
            visual = objective.visual
            assert visual is not None
            (part,) = torch.autograd.grad(loss, visual, allow_unused=True)
            parts.append(torch.zeros_like(visual) if part is None else part)
        found[term.name] = torch.cat(parts)
    return found


def test_norms_and_cosines_are_those_of_the_losses_alone(tiny, pictures, alone: dict[str, torch.Tensor]):
    visual = Bench(tiny, pictures).step(1).visual
    assert visual.keys() == {
        *(f"visual_grad/{name}" for name in ("language", *WEIGHTS)),
        *(f"visual_grad/cosine/{name}" for name in WEIGHTS),
    }
    language = alone["language"]
    for name, gradient in alone.items():
        assert visual[f"visual_grad/{name}"] == pytest.approx(float(gradient.norm()), rel=1e-4)
        if name != "language":
            cosine = torch.cosine_similarity(gradient.flatten(), language.flatten(), dim=0)
            assert visual[f"visual_grad/cosine/{name}"] == pytest.approx(float(cosine), abs=1e-4)
    assert 1e-6 < visual["visual_grad/language"] < math.inf


def test_looking_changes_no_bit(tiny, pictures):
    seen, unseen = Bench(tiny, pictures), Bench(tiny, pictures)
    looked, passed_by = seen.step(EVERY + 1), unseen.step(EVERY)
    assert looked.visual and not passed_by.visual
    assert looked.losses == passed_by.losses and looked.grad_norm == passed_by.grad_norm
    assert all(torch.equal(a, b) for a, b in zip(seen.weights(), unseen.weights(), strict=True))
    assert seen.engine.objective.visual is None, "the graph of a step is not kept"


def test_without_a_methods_loss_there_is_nothing_to_compare(tiny, pictures):
    assert Bench(tiny, pictures, {}).step(1).visual == {}
