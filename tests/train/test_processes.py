"""Several processes: DDP and FSDP2 against one process, and checkpoints that cross from one number to another."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from sightline.checkpoints import load_model
from sightline.config import check, dump
from sightline.data.order import Order
from sightline.errors import SightlineError
from sightline.train import train
from sightline.train.processes import Processes
from sightline.train.run import check_shares

SCRIPT = Path(__file__).with_name("two_processes.py")
CHECKS = [
    f"{name} {parallel}"
    for parallel in ("ddp", "fsdp")
    for name in ("additive", "text_on_one", "short_step", "held_out", "gathered")
]


def recipe(tiny: dict[str, Path], pictures: Path, out: Path, **changes):
    """Two stages without dropout, four micro-batches a step, validated and checkpointed on the way."""
    shared = {"batch_size": 2, "accumulate": 2, "save_every": 2, "lr": 1e-3}
    pretrain = {"name": "pretrain", "data": {"path": str(pictures / "captions.json"), "template": "plain"}}
    pretrain |= {"trainable": ["connector"], "validation": pretrain["data"]}
    tune = {"name": "tune", "data": {"path": str(pictures / "chats.json")}, "trainable": ["connector", "language"]}
    values = {"name": "run", "out": str(out), "device": "cpu", "keep_checkpoints": 100}
    values |= {"model": {"vision": str(tiny["clip"]), "language": str(tiny["tied"])}}
    return check(values | {"stages": [pretrain | shared, tune | shared]} | changes)


def interrupt(run: Path, target: Path, checkpoint: str) -> None:
    """A copy of a finished run as if it had been killed after `checkpoint`."""
    shutil.copytree(run, target)
    shutil.rmtree(target / "model")
    for path in (target / "checkpoints").iterdir():
        if path.name > checkpoint:
            shutil.rmtree(path)
    facts = json.loads((target / "run.json").read_text())
    del facts["seconds"]
    (target / "run.json").write_text(json.dumps(facts))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_model(run / "model").model.state_dict()


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def write_words_of_patches(folder: Path) -> None:
    """Labels of patches for SEA, of all pictures; of two of them there are none."""
    words = ("red", "blue", "green", "box", "two", "cat", "yes", "table", "ball")
    (folder / "words.txt").write_text("\n".join(words))
    rows = []
    for n in range(12):
        of_patches = [[] if n in (2, 5) else [words[(n + place) % 7], words[place % 9]] for place in range(16)]
        rows.append({"image": f"images/{n}.png", "patches": [{"words": of_patch} for of_patch in of_patches]})
    (folder / "patches.jsonl").write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.timeout(280)
def test_two_processes_do_what_one_does(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    """One launch, since importing torch twice is most of it; the checks are in two_processes.py, the runs here.

    A whole run on two processes ends where that of one does, and so does one that changes their number half way.
    """
    (tmp_path / "parts").symlink_to(tiny["clip"].parent)
    (tmp_path / "pictures").symlink_to(pictures)
    write_words_of_patches(tmp_path)
    one = train(recipe(tiny, pictures, tmp_path / "one"), quiet=True)
    interrupt(one, tmp_path / "onwards", "00-pretrain-0000002")
    interrupt(one, tmp_path / "later", "01-tune-0000002")
    names = {"whole": "ddp", "onwards": "fsdp", "later": "ddp", "shared": "fsdp"}
    for name, parallel in names.items():
        text = dump(recipe(tiny, pictures, tmp_path / name, parallel=parallel))
        (tmp_path / f"{name}.yaml").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(SCRIPT), str(tmp_path), *names],
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    said = set(done.stdout.splitlines())
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert said >= {f"ok {name}" for name in [*CHECKS, "put_together_again", *names]}
    interrupt(tmp_path / "shared", tmp_path / "back", "01-tune-0000002")
    train(recipe(tiny, pictures, tmp_path / "back"), quiet=True, resume=True)

    expected = weights(one)
    for name in [*names, "back"]:
        assert losses(tmp_path / name) == pytest.approx(losses(one), abs=1e-4), name
        for key, value in weights(tmp_path / name).items():
            torch.testing.assert_close(value, expected[key], atol=2e-4, rtol=0, msg=f"{name}: {key}")
    assert yaml.safe_load((tmp_path / "onwards" / "recipe.yaml").read_text())["parallel"] == "fsdp"
    assert json.loads((tmp_path / "onwards" / "run.json").read_text())["resumed"][0]["machine"]["processes"] == 2


def test_processes_share_a_step_out() -> None:
    """Every micro-batch is counted once, every process runs as many as the others, for every world and step."""
    order = Order(0, (37,), batch_size=3, accumulate=4)
    whole = list(order.micro_batches(order.steps_per_epoch))
    for world in (1, 2, 3, 4):
        shares = [list(order.micro_batches(order.steps_per_epoch, rank=rank, world=world)) for rank in range(world)]
        seen, places = [], [0] * world
        for step in range(order.steps_per_epoch):
            rounds = order.rounds_of(step, world)
            for rank in range(world):
                mine = shares[rank][places[rank] : places[rank] + rounds]
                assert len(mine) == rounds
                places[rank] += rounds
                seen += mine[: order.counted(step, rank, world)]
        assert sorted(map(str, seen)) == sorted(map(str, whole)), world


def test_more_processes_than_forward_passes_are_refused(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    made = recipe(tiny, pictures, tmp_path)
    check_shares(made, Processes(0, 2))
    with pytest.raises(SightlineError, match=r"2 forward passes of 2 rows.*3 processes.*batch_size=1 accumulate=3"):
        check_shares(made, Processes(0, 3))
