"""A run's metrics in TensorBoard: through stages, and through a resume."""

from pathlib import Path

import pytest
from test_resume import recipe, stop_after

from sightline.train import train

accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    events = accumulator.EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_a_tracked_run_goes_on_as_one(tiny, pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train(recipe(tiny, pictures, tmp_path / "whole", trackers=["tensorboard"]), quiet=True)
    made = recipe(tiny, pictures, tmp_path / "run", trackers=["tensorboard"])
    stop_after(monkeypatch, made, "01-tune-0000004")
    train(made, quiet=True, resume=True)
    expected, got = scalars(whole), scalars(tmp_path / "run")
    assert [step for step, _ in expected["tune/loss"]] == [7, 8, 9, 10, 11, 12], "one count through both stages"
    for name in ("pretrain/loss", "tune/loss", "pretrain/validation/loss", "tune/lr/language"):
        assert got[name] == expected[name], name
