"""Trackers: TensorBoard for real; wandb and trackio against modules that write down their calls, and for real where
they are installed."""

import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sightline.errors import SightlineError
from sightline.train.trackers import STATE, Steps, check_trackers, open_trackers

CONFIG = {"name": "demo", "stages": [{"lr": 1e-3}]}


def log_a_run(folder: Path, name: str) -> None:
    """Three steps of one stage and a validation, then five of another, and the process is gone: nothing is closed."""
    (tracker,) = open_trackers([name], folder, "demo", CONFIG)
    for step in (1, 2, 3):
        tracker.log("pretrain", step, {"loss": 1.0 / step, "lr/connector": 0.1})
    tracker.log("pretrain", 3, {"validation/loss": 0.5})
    for step in (1, 2, 3, 4, 5):
        tracker.log("instruct", step, {"loss": 10.0 + step})
    if name == "tensorboard":
        tracker._writer.flush()  # pyright: ignore


def resume_it(folder: Path, name: str) -> None:
    """From a checkpoint after two steps of the second stage; then a third stage."""
    (tracker,) = open_trackers([name], folder, "demo", CONFIG, resume=("instruct", 2))
    for step in (3, 4, 5, 6):
        tracker.log("instruct", step, {"loss": 10.0 + step})
    tracker.log("polish", 1, {"loss": 0.25})
    tracker.close()


def test_tensorboard_reads_back_as_one_run(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log_a_run(tmp_path, "tensorboard")
    resume_it(tmp_path, "tensorboard")
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()

    def curve(tag: str) -> list[tuple[int, float]]:
        return [(event.step, event.value) for event in events.Scalars(tag)]

    assert [step for step, _ in curve("pretrain/loss")] == [1, 2, 3]
    assert curve("pretrain/validation/loss") == [(3, 0.5)]
    assert curve("instruct/loss") == [(3 + step, 10.0 + step) for step in (1, 2, 3, 4, 5, 6)]
    assert curve("polish/loss") == [(10, 0.25)]
    assert len(curve("pretrain/lr/connector")) == 3
    assert "recipe/text_summary" in events.Tags()["tensors"]


class Recorder:
    """The run of a fake tracker: what `init` was given, what was logged."""

    def __init__(self, **given) -> None:
        self.given, self.logged, self.closed = given, [], False
        self.step = 9 if given["resume"] == "allow" else 0

    def log(self, values, step) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.closed = True


@pytest.fixture
def fakes(monkeypatch) -> dict[str, list[Recorder]]:
    """wandb and trackio as modules with just the calls that are used, signatures as in 0.31 and 0.43."""
    runs: dict[str, list[Recorder]] = {"wandb": [], "trackio": []}

    def init_wandb(*, project, name, id, dir, config, resume, settings):
        runs["wandb"].append(Recorder(project=project, name=name, id=id, config=config, resume=resume))
        return runs["wandb"][-1]

    def init_trackio(*, project, name, config, resume, embed):
        runs["trackio"].append(Recorder(project=project, name=name, config=config, resume=resume))
        return runs["trackio"][-1]

    for name, members in (
        ("wandb", {"init": init_wandb, "Settings": SimpleNamespace}),
        ("trackio", {"init": init_trackio}),
    ):
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return runs


def test_wandb_goes_on_with_its_run(fakes, tmp_path):
    log_a_run(tmp_path, "wandb")
    resume_it(tmp_path, "wandb")
    first, second = fakes["wandb"]
    assert first.given["project"] == "sightline"
    assert first.given["config"] == CONFIG
    assert (first.given["resume"], second.given["resume"]) == (None, "allow")
    assert first.given["id"] == second.given["id"]
    steps = [step for step, _ in first.logged]
    assert steps == sorted(steps) == [1, 2, 3, 3, 4, 5, 6, 7, 8]
    assert first.logged[3] == (3, {"pretrain/validation/loss": 0.5})
    assert second.logged == [(9, {"instruct/loss": 16.0}), (10, {"polish/loss": 0.25})]
    assert second.closed


def test_trackio_goes_on_under_its_name(fakes, tmp_path):
    log_a_run(tmp_path / "a", "trackio")
    resume_it(tmp_path / "a", "trackio")
    log_a_run(tmp_path / "b", "trackio")
    first, second, other = fakes["trackio"]
    assert first.given["name"] == second.given["name"] != other.given["name"]
    assert first.given["name"].startswith("demo-")
    assert (first.given["resume"], second.given["resume"]) == ("never", "allow")
    assert [step for step, _ in second.logged] == [6, 7, 8, 9, 10]


def test_several_trackers_share_their_steps(fakes, tmp_path):
    trackers = open_trackers(["wandb", "trackio", "wandb"], tmp_path, "demo", CONFIG)
    assert len(trackers) == 2
    for step in (1, 2):
        for stage in ("a", "b"):
            for tracker in trackers:
                tracker.log(stage, step, {"loss": 1.0})
    assert [s for s, _ in fakes["wandb"][0].logged] == [s for s, _ in fakes["trackio"][0].logged] == [1, 2, 2, 3]


def test_a_tracker_that_does_not_start_says_what_to_do(fakes, tmp_path, monkeypatch):
    def refuse(**_):
        raise RuntimeError("api_key not configured (no-tty).\nsecond line")

    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    with pytest.raises(SightlineError, match=r"^wandb does not start: api_key not configured \(no-tty\)\. Run `wandb"):
        open_trackers(["trackio", "wandb"], tmp_path, "demo", CONFIG)
    assert fakes["trackio"][0].closed


def test_a_tracker_that_is_not_installed_is_an_error_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setattr("sightline.train.trackers.find_spec", lambda name: None if name == "trackio" else object())
    check_trackers(["tensorboard"])
    with pytest.raises(SightlineError, match=r"metrics to trackio, which is not installed.* pip install trackio"):
        check_trackers(["tensorboard", "trackio"])
    with pytest.raises(SightlineError, match="is not installed"):
        open_trackers(["trackio"], tmp_path, "demo", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_no_tracker_writes_nothing(tmp_path):
    assert open_trackers([], tmp_path, "demo", CONFIG) == []
    assert list(tmp_path.iterdir()) == []


def test_steps_forget_the_stages_that_are_done_again(tmp_path):
    """Killed in the second stage, resumed at the end of the first: the second begins there again."""
    steps = Steps(tmp_path, None)
    assert [steps.of("a", 1), steps.of("a", 4), steps.of("b", 1), steps.of("b", 2)] == [1, 4, 5, 6]
    again = Steps(tmp_path, ("a", 4))
    assert (again.last, again.of("b", 1)) == (4, 5)
    earlier = Steps(tmp_path, ("a", 2))
    assert [earlier.of("a", 3), earlier.of("b", 1)] == [3, 4]
    assert json.loads((tmp_path / STATE).read_text())["starts"] == {"a": 0, "b": 3}
    assert Steps(tmp_path / "new", ("b", 7)).of("b", 8) == 8


def test_wandb_for_real(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tracker,) = open_trackers(["wandb"], tmp_path, "demo", CONFIG)
    for step in (1, 2, 3):
        tracker.log("a", step, {"loss": 1.0 / step})
    assert tracker._run.step == 3  # pyright: ignore
    tracker.close()
    (tracker,) = open_trackers(["wandb"], tmp_path, "demo", CONFIG, resume=("a", 2))
    tracker.log("a", 3, {"loss": 1 / 3})
    tracker.close()
    runs = [path.name.rpartition("-")[2] for path in (tmp_path / "wandb").glob("offline-run-*")]
    assert len(runs) == 2 and len(set(runs)) == 1


def test_trackio_for_real(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    log_a_run(tmp_path, "trackio")
    trackio.finish()
    resume_it(tmp_path, "trackio")
    (run,) = trackio.Api().runs("sightline")
    assert run.name.startswith("demo-")
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    rows = storage.get_logs("sightline", run.name)
    assert max(row["step"] for row in rows) == 10
