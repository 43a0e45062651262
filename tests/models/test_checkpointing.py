"""Activation checkpointing of the decoder: the same gradients from fewer bytes, frozen or not, whatever the mode."""

from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from sightline.config import Stage
from sightline.data.collate import collate
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.models.adapters import prepare_stage
from sightline.models.assemble import Assembly, assemble
from sightline.train.objective import Objective
from sightline.train.setup import set_modes, set_trainable
from sightline.types import Batch


def stage_of(**changes) -> Stage:
    return Stage.model_validate({"name": "s", "data": {"path": "x"}, "trainable": ["connector", "language"]} | changes)


def batch_for(assembly: Assembly, pictures: Path) -> Batch:
    process = assembly.processor(get_template("vicuna_v1"))
    return collate([process(sample) for sample in read_llava_json(pictures / "chats.json")[:4]], pad_id=0)


def backward(assembly: Assembly, stage: Stage, batch: Batch) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of a step, and the bytes kept for it, parameters apart."""
    model = assembly.model
    prepare_stage(assembly, stage)
    set_trainable(model, stage)
    set_modes(model, stage)
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        if value.data_ptr() not in own:
            kept[value.data_ptr()] = value.numel() * value.element_size()
        return value

    torch.manual_seed(1)
    objective = Objective(model, {})
    with saved_tensors_hooks(keep, lambda value: value):
        sums = objective(batch)
    objective.total(sums, objective.counts(batch)).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, sum(kept.values())


@pytest.mark.parametrize("language", ["llama", "phi3", "gemma", "qwen2"])
@pytest.mark.parametrize("trainable", [["connector"], ["connector", "language"]])
def test_gradients_are_the_same_bits_from_fewer_bytes(language, trainable, tiny, pictures):
    """With the language model frozen too, whose layers are in evaluation mode; Llama's has dropout, drawn again."""
    torch.manual_seed(0)
    assembly = assemble(str(tiny["clip"]), str(tiny[language]))
    batch = batch_for(assembly, pictures)
    plain, kept = backward(assembly, stage_of(trainable=trainable), batch)
    again, fewer = backward(assembly, stage_of(trainable=trainable, activation_checkpointing=True), batch)
    assert plain.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in plain.items())
    assert any(value.any() for value in plain.values())
    assert fewer < 0.6 * kept, (fewer, kept)
    _, back = backward(assembly, stage_of(trainable=trainable), batch)
    assert back == kept, "the next stage is without it"


def test_frozen_dropout_stays_off_and_modes_stay_as_they_are(tiny, pictures):
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
    stage = stage_of(trainable=["connector"], activation_checkpointing=True)
    batch = batch_for(assembly, pictures)
    backward(assembly, stage, batch)
    language = assembly.model.model.language_model
    assert not any(module.training for module in language.modules())
    sums = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        sums.append(Objective(assembly.model, {})(batch)["answer"])
    assert torch.equal(*sums)


def test_it_is_off_where_nothing_goes_backward(tiny, pictures, monkeypatch):
    """Validation and generation, which keeps its cache."""
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
    batch = batch_for(assembly, pictures)
    backward(assembly, stage_of(activation_checkpointing=True), batch)

    def never(*_args, **_options):
        raise AssertionError("checkpointed")

    monkeypatch.setattr("sightline.models.modeling.checkpoint", never)
    with torch.no_grad():
        Objective(assembly.model, {})(batch)
        given = {"input_ids": batch.input_ids[-1:, :4], "attention_mask": batch.attention_mask[-1:, :4]}
        assembly.model.generate(**given, max_new_tokens=2, do_sample=False)
    with pytest.raises(AssertionError, match="checkpointed"):
        Objective(assembly.model, {})(batch)
