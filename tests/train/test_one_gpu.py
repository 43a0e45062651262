"""Whole runs with adapters and rounded weights: what is saved, taken up again, asked and exported."""

import json
from pathlib import Path

import pytest
import torch

from sightline.checkpoints import export_model, load_model
from sightline.config import Recipe, check
from sightline.errors import SightlineError
from sightline.models.adapters import lora_of
from sightline.train import loop, train

pytest.importorskip("peft")

LORA = {"rank": 4, "alpha": 8}
PISSA = LORA | {"init": "pissa"}
CASES = {
    "lora": ("fp32", None, LORA),
    "pissa-bf16": ("bf16", None, PISSA),
    "lora-then-pissa": ("bf16", LORA, PISSA),
    "lora-then-whole": ("fp32", LORA, None),
    "qlora": ("nf4", None, LORA),
    "qlora-after-another": ("nf4", PISSA, LORA),
}


def recipe(tiny: dict[str, Path], pictures: Path, out: Path, case: str) -> Recipe:
    """Captions, then conversations; checkpoints after every step."""
    frozen, first, second = CASES[case]
    shared = {"batch_size": 4, "frozen": frozen, "precision": "fp32" if frozen == "fp32" else "bf16"}
    captions = {"path": str(pictures / "captions.json"), "template": "plain"}
    trainable = ["connector"] + (["language"] if first else [])
    last = {"trainable": ["connector", "language"], "lora": second, "activation_checkpointing": True}
    values = {
        "name": "test",
        "out": str(out),
        "device": "cpu",
        "model": {"vision": str(tiny["clip"]), "language": str(tiny["llama"])},
        "stages": [
            {"name": "one", "data": captions, "trainable": trainable, "lora": first, **shared},
            {"name": "two", "data": {"path": str(pictures / "chats.json")}, **last, **shared},
        ],
    }
    return check(values)


def result(folder: Path) -> tuple[dict[str, torch.Tensor], list[float]]:
    losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return load_model(folder).model.state_dict(), losses


@pytest.mark.parametrize("case", CASES)
def test_a_run_is_saved_exported_and_taken_up_again_to_the_same_bits(case, tiny, pictures, tmp_path, monkeypatch):
    """Stopped in the second stage: where adapters were merged before it, at its first step, else at its third."""
    if "nf4" in CASES[case]:
        pytest.importorskip("bitsandbytes")
    folder = train(recipe(tiny, pictures, tmp_path / "run", case), quiet=True)
    weights, losses = result(folder)
    merged_before = CASES[case][1] is not None
    assert (lora_of(load_model(folder).model) is None) == merged_before, "over its base, or whole"
    done = export_model(folder, tmp_path / "exported", merge=True)
    assert done.kind == "a stock llava checkpoint"
    assert done.difference <= 1e-4
    take_step, steps = loop.take_step, iter(range(1, 100))

    def killed(*arguments, **options):
        if next(steps) == (4 if merged_before else 6):
            raise SystemExit
        return take_step(*arguments, **options)

    monkeypatch.setattr(loop, "take_step", killed)
    again = recipe(tiny, pictures, tmp_path / "stopped", case)
    with pytest.raises(SystemExit):
        train(again, quiet=True)
    monkeypatch.setattr(loop, "take_step", take_step)
    resumed, seen = result(train(again, quiet=True, resume=True))
    assert seen == losses
    assert resumed.keys() == weights.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())


def test_what_a_later_stage_cannot_do_is_said_before_the_first(tiny, pictures, tmp_path):
    made = recipe(tiny, pictures, tmp_path / "run", "lora")
    one, two = made.stages
    assert two.lora is not None
    wrong = two.model_copy(update={"lora": two.lora.model_copy(update={"targets": ["q_prj"]})})
    with pytest.raises(SightlineError, match="did you mean 'q_proj'"):
        train(made.model_copy(update={"stages": [one, wrong]}), quiet=True)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
