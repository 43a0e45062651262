"""`packing: true` in a recipe."""

import json
from pathlib import Path

import pytest
from test_train import recipe

from sightline.errors import SightlineError
from sightline.models.modeling import SightlineModel
from sightline.train import train


def test_a_packed_run_is_the_same_run(tiny: dict[str, Path], pictures: Path, tmp_path: Path, monkeypatch) -> None:
    """`packing: true` reaches the language model, in training and in validation, and changes no loss."""
    packed = []
    decode = SightlineModel.decode_packed
    monkeypatch.setattr(SightlineModel, "decode_packed", lambda *a: packed.append(a[0].training) or decode(*a))
    losses = []
    for packing in (False, True):
        made = recipe(tiny, pictures, tmp_path / str(packing))
        stages = [stage.model_copy(update={"packing": packing}) for stage in made.stages]
        folder = train(made.model_copy(update={"stages": stages}), quiet=True)
        losses.append([json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()])
        assert bool(packed) == packing
    of_stage_1 = 13
    assert losses[0][:of_stage_1] == pytest.approx(losses[1][:of_stage_1], rel=1e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-2), "the language model of stage 2 has dropout"
    assert len(packed) == 6 + 7 + 7 * 3, "micro-batches of stage 1, of stage 2, of seven validations"


def test_packing_is_refused_where_rows_cannot_be_kept_apart(tiny, pictures, tmp_path, monkeypatch) -> None:
    def refuse(_model) -> None:
        raise SightlineError("a row changes with its neighbours")

    monkeypatch.setattr("sightline.train.rows.check_packing", refuse)
    made = recipe(tiny, pictures, tmp_path / "run")
    stages = [stage.model_copy(update={"packing": True}) for stage in made.stages]
    with pytest.raises(SightlineError, match="changes with its neighbours"):
        train(made.model_copy(update={"stages": stages}), quiet=True)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
