"""Runs that stop and go on: killed, asked to stop, out of room, with a dead worker, with damaged checkpoints."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from sightline.checkpoints import load_model
from sightline.checkpoints.resume import Checkpoints, NotWritten, verified
from sightline.cli import main
from sightline.config import Recipe, check, dump
from sightline.errors import SightlineError
from sightline.train import loop, signals, train
from sightline.train import run as run_module
from sightline.train import step as step_module
from sightline.train.processes import Processes
from sightline.train.progress import Reporter

TORTURE = Path(__file__).parents[2] / "benchmarks" / "resume_torture.py"
TIMES = ("time", "samples_per_s", "tokens_per_s")


def recipe(tiny: dict[str, Path], pictures: Path, out: Path, *, stage: dict | None = None, **changes) -> Recipe:
    """Two stages of six steps, a checkpoint every second one; dropout in the language model."""
    shared = {"batch_size": 4, "steps": 6, "save_every": 2, "validate_every": 3} | (stage or {})
    captions = {"path": str(pictures / "captions.json"), "template": "plain"}
    pretrain = {"name": "pretrain", "data": captions, "validation": captions, "trainable": ["connector"]}
    tune = {"name": "tune", "data": {"path": str(pictures / "chats.json")}, "trainable": ["connector", "language"]}
    model = {"vision": str(tiny["clip"]), "language": str(tiny["llama"])}
    values = {
        "name": "run",
        "out": str(out),
        "device": "cpu",
        "model": model,
        "stages": [pretrain | shared, tune | shared],
    }
    return check(values | changes)


def metrics(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def same(one: Path, two: Path) -> None:
    """The same metrics, times apart, and the same bits of every weight."""
    assert metrics(one) == metrics(two)
    first, second = (load_model(run / "model").model.state_dict() for run in (one, two))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def stop_after(monkeypatch: pytest.MonkeyPatch, made: Recipe, checkpoint: str, *, resume: bool = False) -> None:
    """Run a recipe until `checkpoint` is written, and no further: an error stands in for the power cut."""
    save = Checkpoints.save

    def once(self, name, tensors, state):
        path = save(self, name, tensors, state)
        if name == checkpoint:
            raise PowerCut
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", once)
        with pytest.raises(PowerCut):
            train(made, resume=resume, quiet=True)


class PowerCut(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tiny: dict[str, Path], pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    return train(recipe(tiny, pictures, tmp_path_factory.mktemp("whole") / "run"), quiet=True)


def torture(kills: int, out: Path, *more: str) -> dict:
    done = subprocess.run(
        [sys.executable, str(TORTURE), "--kills", str(kills), "--out", str(out), *more],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(out.read_text())


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    """SIGKILL at three random points of three runs, with 0 and 2 workers; the points differ from day to day."""
    seed = str(int(time.time()) // 86400)
    result = torture(3, tmp_path / "result.json", "--kills-per-trial", "1", "--seed", seed)
    assert result["kills"] >= 3 and result["trials_with_the_same_bits"] == result["trials"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_twenty_kills(tmp_path: Path) -> None:
    result = torture(20, tmp_path / "result.json", "--kills-per-trial", "2", "--seed", "1")
    assert result["kills"] >= 20 and result["trials_with_the_same_bits"] == result["trials"]


@pytest.mark.parametrize("checkpoint", ["00-pretrain-0000002", "00-pretrain-0000006", "01-tune-0000004"])
def test_a_run_goes_on_from_its_checkpoint(
    checkpoint: str, whole: Path, tiny: dict, pictures: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    made = recipe(tiny, pictures, tmp_path / "run")
    stop_after(monkeypatch, made, checkpoint)
    with pytest.raises(SightlineError, match=r"a run that is not finished.*sightline train .*recipe\.yaml --resume"):
        train(made, quiet=True)
    train(made, quiet=True, resume=True)
    same(whole, tmp_path / "run")
    assert train(made, resume=True) == tmp_path / "run"
    assert "is finished; nothing was done" in capsys.readouterr().err
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["01-tune-0000004", "01-tune-0000006"], "the last two are kept"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE = {
    "a flipped bit in a shard": (lambda folder: flip(next(folder.glob("shard-*"))), "its hash differs"),
    "a shard cut short": (lambda folder: cut(next(folder.glob("shard-*"))), r"has \d+ bytes of \d+"),
    "a shard gone": (lambda folder: next(folder.glob("shard-*")).unlink(), "No such file"),
    "a torn state": (lambda folder: cut(folder / "state.json"), "damaged"),
    "another step in the state": (
        lambda folder: (folder / "state.json").write_text(
            (folder / "state.json").read_text().replace('"step": 4', '"step": 5')
        ),
        "not as it was written",
    ),
    "an empty folder": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "No such file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_used(
    damage: str, whole: Path, tiny: dict, pictures: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    made = recipe(tiny, pictures, tmp_path / "run")
    stop_after(monkeypatch, made, "01-tune-0000004")
    harm, message = DAMAGE[damage]
    harm(tmp_path / "run" / "checkpoints" / "01-tune-0000004")
    with pytest.raises(SightlineError, match=message):
        verified(tmp_path / "run" / "checkpoints" / "01-tune-0000004")
    train(made, resume=True)
    said = "".join(capsys.readouterr().err.split())  # the terminal breaks long lines
    assert "01-tune-0000004isdamagedandwasnotused" in said
    assert "fromstep2" in said
    same(whole, tmp_path / "run")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(
    signum: signal.Signals, whole: Path, tiny: dict, pictures: Path, tmp_path: Path
) -> None:
    """The command line as a scheduler meets it: asked to stop in the first stage, it ends soon, with 128 + signal."""
    made = recipe(tiny, pictures, tmp_path / "run", stage={"workers": 2, "save_every": 100})
    file = tmp_path / "recipe.yaml"
    file.write_text(dump(made))
    command = [sys.executable, "-m", "sightline", "train", str(file)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not (tmp_path / "run" / "metrics.jsonl").read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signum)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + signum, error
    assert f"Go on: sightline train {tmp_path / 'run' / 'recipe.yaml'} --resume" in " ".join(error.split())
    assert "Traceback" not in error
    train(made, quiet=True, resume=True)
    same(whole, tmp_path / "run")


def test_a_signal_that_comes_twice_at_once_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm may signal torchrun and its processes, and torchrun passes on what it got."""
    now = [0.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    with signals.listening() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        now[0] = 2.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("step", [0, 3])
def test_a_stop_after_a_validation_does_not_validate_twice(
    tiny: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The checkpoint of such a stop is of the step before the validation, which a run that goes on does again."""
    made = [recipe(tiny, pictures, tmp_path / name, stage={"save_every": 100}) for name in ("whole", "stopped")]
    train(made[0], quiet=True)
    validate = loop.validate

    left = iter([step > 0, False])

    def stops(*args, **options):
        found = validate(*args, **options)
        if not next(left):
            os.kill(os.getpid(), signal.SIGTERM)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", stops)
        with pytest.raises(signals.Stopped, match=f"after step {step} of 6"):
            train(made[1], quiet=True)
    train(made[1], quiet=True, resume=True)
    same(tmp_path / "whole", tmp_path / "stopped")


def test_a_full_disk_loses_nothing(whole: Path, tiny: dict, pictures: Path, tmp_path: Path) -> None:
    """Files may not grow past a size (a limit of the process stands in for the disk): later checkpoints do not fit."""
    made = recipe(tiny, pictures, tmp_path / "run")
    sizes = [file.stat().st_size for file in (whole / "checkpoints").rglob("shard-*")]
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (min(sizes) // 2, min(sizes) // 2))
        try:
            train(made, quiet=True)
        except SightlineError as error:
            (tmp_path / "said").write_text(str(error))
            os._exit(2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WEXITSTATUS(status) == 2
    said = (tmp_path / "said").read_text()
    assert "cannot write checkpoint" in said and "Make room on the disk" in said and "--resume" in said, said
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["00-pretrain-0000004", "00-pretrain-0000006"], "those of the first stage are small enough"
    train(made, quiet=True, resume=True)
    same(whole, tmp_path / "run")


def test_a_dead_worker_loses_nothing(
    whole: Path, tiny: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tiny, pictures, tmp_path / "run", stage={"workers": 2, "save_every": 100})
    from sightline.data.dataset import Rows

    fetch, owner = Rows.fetch, os.getpid()

    def dies(self, key):
        if os.getpid() != owner and key[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return fetch(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(Rows, "fetch", dies)
        with pytest.raises(
            SightlineError, match=r"prepares batches died.*out of memory.*steps are safe\. Go on: sight"
        ):
            train(made, quiet=True)
    train(made, quiet=True, resume=True)
    same(whole, tmp_path / "run")


def test_a_worker_that_dies_does_not_interrupt_a_step() -> None:
    """Whatever handler was there (torch's own, of an earlier loader, in use), none is while steps are taken."""
    rows = [0, 1, 2]

    def handler(*_: object) -> None: ...

    before = signal.signal(signal.SIGCHLD, handler)
    try:
        batches = loop._alive(DataLoader(rows, num_workers=1))  # pyright: ignore
        next(batches)
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
        batches.close()  # pyright: ignore
        assert signal.getsignal(signal.SIGCHLD) is handler
    finally:
        signal.signal(signal.SIGCHLD, before)


def explode_at(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Have the loss be no number at some steps of the stage `tune`."""
    means = loop.means
    count = {"tune": 0}

    def spoiled(objective, sums, counts):
        losses = means(objective, sums, counts)
        if any(p.requires_grad for p in objective.model.lm_head.parameters()):
            count["tune"] += 1
            if count["tune"] in steps:
                return losses | {"loss": float("nan")}
        return losses

    for module in (loop, step_module):
        monkeypatch.setattr(module, "means", spoiled)


def test_a_loss_that_is_not_finite_loses_nothing(
    whole: Path, tiny: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tiny, pictures, tmp_path / "run")
    with monkeypatch.context() as patch:
        explode_at(patch, {4})
        message = r"stage 'tune' is nan at step 4, in rows .*non_finite=skip.*The first 3 steps are safe\. Go on"
        with pytest.raises(SightlineError, match=message):
            train(made, quiet=True)
    train(made, quiet=True, resume=True)
    same(whole, tmp_path / "run")


def test_steps_that_are_not_finite_are_skipped_and_counted(
    tiny: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    explode_at(monkeypatch, {2, 5})
    train(recipe(tiny, pictures, tmp_path / "run", stage={"non_finite": "skip"}))
    rows = [row for row in metrics(tmp_path / "run") if row["stage"] == "tune"]
    assert [row.get("skipped", False) for row in rows] == [False, True, False, False, True, False]
    assert rows[1]["loss"] is None, "no NaN in JSON"
    assert "tune: 2 of 6 steps were not finite" in capsys.readouterr().err


def test_what_may_not_change_may_not_change(
    whole: Path, tiny: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(tiny, pictures, tmp_path / "run")
    stop_after(monkeypatch, made, "01-tune-0000002")
    other = recipe(tiny, pictures, tmp_path / "run", stage={"lr": 0.5, "workers": 2}, seed=3)
    with pytest.raises(
        SightlineError, match=r"(?s)another recipe.*seed: 0 then, 3 now\n.*stages\.0\.lr: 0\.001 then"
    ) as e:
        train(other, quiet=True, resume=True)
    assert "workers" not in str(e.value), "how batches are prepared may change"

    replaced = tmp_path / "llama"
    shutil.copytree(tiny["llama"], replaced)
    model = {"vision": str(tiny["clip"]), "language": str(replaced)}
    begun = recipe(tiny, pictures, tmp_path / "two", model=model)
    stop_after(monkeypatch, begun, "00-pretrain-0000002")
    shutil.rmtree(replaced)
    shutil.copytree(tiny["tied"], replaced)
    with pytest.raises(SightlineError, match="weights that do not train are not those that the run began with"):
        train(begun, quiet=True, resume=True)


def test_a_checkpoint_of_another_run_is_refused(
    whole: Path, tiny: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same parts, same data, another seed: every tensor would fit."""
    made = recipe(tiny, pictures, tmp_path / "run", seed=1)
    stop_after(monkeypatch, made, "01-tune-0000002")
    name = "checkpoints/01-tune-0000004"
    shutil.copytree(whole / name, tmp_path / "run" / name)
    with pytest.raises(SightlineError, match=r"01-tune-0000004 cannot be gone on with: .*another recipe"):
        train(made, quiet=True, resume=True)


def test_files_that_were_cut_short_end_in_whole_lines(tmp_path: Path, capsys) -> None:
    line = json.dumps({"stage": "tune", "reason": "over max_length"}) + "\n"
    for name in ("metrics.jsonl", "dropped.jsonl"):
        (tmp_path / name).write_text(3 * line)
    with Reporter(tmp_path) as reporter:
        mark = reporter.mark()
        cut(tmp_path / "metrics.jsonl")
        cut(tmp_path / "dropped.jsonl")
        reporter.rewind(mark)
    assert (tmp_path / "metrics.jsonl").read_text() == (tmp_path / "dropped.jsonl").read_text() == line
    assert "linesofearliersteps" in "".join(capsys.readouterr().err.split())


def test_a_run_folder_that_was_moved_says_where_its_run_would_go(
    tiny: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    made = recipe(tiny, pictures, tmp_path / "run")
    stop_after(monkeypatch, made, "01-tune-0000002")
    moved = (tmp_path / "run").rename(tmp_path / "moved here")
    monkeypatch.setattr(sys, "argv", ["sightline", "train", str(moved / "recipe.yaml"), "--resume"])
    with pytest.raises(SystemExit, match="2"):
        main()
    error = capsys.readouterr().err
    assert f"its run is to be in '{tmp_path / 'run'}'" in error
    assert f"sightline train '{moved}/recipe.yaml' --resume 'out={moved}'" in error
    assert not (tmp_path / "run").exists(), "nothing was begun there"


def test_other_rows_are_refused(tiny: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(pictures, tmp_path / "data")
    made = recipe(tiny, tmp_path / "data", tmp_path / "run")
    stop_after(monkeypatch, made, "00-pretrain-0000002")
    rows = json.loads((tmp_path / "data" / "captions.json").read_text())
    (tmp_path / "data" / "captions.json").write_text(json.dumps(rows[:-1]))
    with pytest.raises(SightlineError, match="the data has other rows than when the run began"):
        train(made, quiet=True, resume=True)


def test_resuming_where_nothing_is_starts(whole: Path, tiny: dict, pictures: Path, tmp_path: Path) -> None:
    """So that a job that is queued again and again can always say --resume."""
    train(recipe(tiny, pictures, tmp_path / "run"), quiet=True, resume=True)
    same(whole, tmp_path / "run")


def test_one_run_has_one_process(tiny: dict, pictures: Path, tmp_path: Path) -> None:
    made = recipe(tiny, pictures, tmp_path / "run")
    with run_module.held(tmp_path / "run", Processes()):
        child = os.fork()
        if child == 0:
            try:
                train(made, quiet=True, resume=True)
            except SightlineError as error:
                os._exit(7 if "another process is training in" in str(error) else 1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WEXITSTATUS(status) == 7


def test_deterministic_runs_have_the_same_bits(whole: Path, tiny: dict, pictures: Path, tmp_path: Path) -> None:
    train(recipe(tiny, pictures, tmp_path / "run", deterministic=True), quiet=True)
    same(whole, tmp_path / "run")
    assert not torch.are_deterministic_algorithms_enabled(), "put back as it was"


def test_a_deterministic_run_refuses_what_is_not(
    tiny: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sightline.train import stage as stage_module

    seen = []
    begin = stage_module.train_stage

    def look(run):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return begin(run)

    monkeypatch.setattr(stage_module, "train_stage", look)
    train(recipe(tiny, pictures, tmp_path / "run", deterministic=True), quiet=True)
    assert seen == [True, True]


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, processes=Processes())
    checkpoints.save("00-a-0000001", {"model/x": torch.ones(3)}, {"stage": 0})
    (tmp_path / "checkpoints" / ".00-a-0000002").write_text("a file where a folder should be made")
    with pytest.raises(NotWritten, match="Earlier checkpoints are untouched"):
        checkpoints.save("00-a-0000002", {"model/x": torch.ones(3)}, {"stage": 0})
    found = checkpoints.latest(print)
    assert found is not None and found.path.name == "00-a-0000001"
