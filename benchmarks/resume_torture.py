"""Is a killed run, resumed, the run that was never killed? SIGKILL at random points, then bits compared.

Written down before the first run. Primary outcome: of all trials, how many end with the same bits as a run that was
never killed: the finished weights, `metrics.jsonl` without its time fields, and the list of dropped rows. The claim
"exact resume" holds if all of them do. Each trial kills its run several times before it lets it finish, with SIGKILL:

    event    just before the n-th change to the run folder (a file opened to write, renamed, removed, ...), n uniform
             over all of them, so that checkpoints, metrics and the finished model are hit while they are written
    moment   at a time uniform over the length of a run, so that steps, validations and start-up are hit too

Trials take turns with 0 and 2 workers. Each run is a process forked from one that has only imported the library.

    python benchmarks/resume_torture.py                # 200 kills; writes benchmarks/results/resume_torture.json
    python benchmarks/resume_torture.py --kills 3 --kills-per-trial 1
"""

import argparse
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from sightline.config import Recipe, check
from sightline.errors import SightlineError
from sightline.train import train
from sightline.world.make import make_world

RESULT = Path(__file__).parent / "results" / "resume_torture.json"
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree")
TIMES = ("time", "samples_per_s", "tokens_per_s")


def main() -> None:
    """Run the reference, then every trial; write and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--kills-per-trial", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="draws the points")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    began = time.time()
    with tempfile.TemporaryDirectory() as name:
        rows = torture(Path(name), options.kills, options.kills_per_trial, random.Random(options.seed))
    same = sum(row["same"] for row in rows)
    kills = [kill for row in rows for kill in row["kills"] if kill["died"]]
    result = {
        "machine": platform.platform(),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("sightline", "torch", "transformers")},
        "minutes": round((time.time() - began) / 60, 1),
        "kills": len(kills),
        "by_kind": {kind: sum(kill["kind"] == kind for kill in kills) for kind in ("event", "moment")},
        "trials": len(rows),
        "trials_with_the_same_bits": same,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{len(kills)} kills in {len(rows)} trials; {same} of {len(rows)} ended with the same bits")
    sys.exit(0 if same == len(rows) else 1)


def torture(folder: Path, kills: int, per_trial: int, rng: random.Random) -> list[dict]:
    """All trials: what was done to each, and whether it ended as the reference did."""
    make_world(folder / "world", train=24, validation=8, test=1, novel=1)
    spoil(folder / "world")
    reference = folder / "reference"
    began = time.monotonic()
    events = run(folder, reference, workers=0)["events"]
    length = time.monotonic() - began
    expected = remains(reference)
    print(f"reference: {events} changes to the run folder in {length:.1f} s", flush=True)
    rows = []
    while sum(kill["died"] for row in rows for kill in row["kills"]) < kills:
        number, target, workers = len(rows), folder / f"trial{len(rows)}", len(rows) % 2 * 2
        done = []
        for _ in range(per_trial):
            kind = rng.choice(("event", "moment"))
            point = rng.randint(1, events) if kind == "event" else rng.uniform(0, length)
            outcome = run(folder, target, workers=workers, kill=(kind, point))
            done.append({"kind": kind, "point": round(point, 3), "at": outcome["at"], "died": outcome["died"]})
            if not outcome["died"]:
                break
        run(folder, target, workers=workers)
        same = remains(target) == expected
        rows.append({"trial": number, "workers": workers, "same": same, "kills": done})
        print(f"trial {number}: {len(done)} kills, {'same bits' if same else 'DIFFERENT'}", flush=True)
        if same:
            shutil.rmtree(target)
    return rows


def recipe(folder: Path, out: Path, workers: int) -> Recipe:
    """Three short stages that use what a resume could get wrong: adapters with dropout, validation, dropped rows,
    accumulation."""
    world = folder / "world"
    shared = {"batch_size": 4, "save_every": 2, "validate_every": 3, "workers": workers, "bad_images": "skip"}
    pretrain = shared | {
        "name": "pretrain",
        "data": {"path": str(world / "pretrain.json"), "template": "plain"},
        "validation": {"path": str(world / "validation.captions.json"), "template": "plain"},
        "trainable": ["connector"],
        "steps": 7,
        "save": True,
    }
    tune = shared | {
        "name": "tune",
        "data": {"path": str(world / "instruct.json")},
        "trainable": ["connector", "language"],
        "accumulate": 2,
        "steps": 6,
    }
    adapt = tune | {"name": "adapt", "lora": {"rank": 4, "dropout": 0.2}, "accumulate": 1, "packing": True}
    model = {"vision": "world:clip", "language": "world:lm"}
    stages = [pretrain, tune, adapt]
    return check({"name": "torture", "out": str(out), "device": "cpu", "model": model, "stages": stages})


def spoil(world: Path) -> None:
    """Break one image, so that a policy has something to count."""
    first = json.loads((world / "pretrain.json").read_text(encoding="utf-8"))[0]["image"]
    (world / "images" / first).write_bytes(b"no image")


def run(folder: Path, out: Path, *, workers: int, kill: tuple[str, float] | None = None) -> dict:
    """Train in a forked process, resuming what is there; perhaps killed.

    Returns:
        `died`: whether it was killed; `at`: the change it was about to make; `events`: how many it made.
    """
    note = out.with_suffix(".note")
    note.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            count_changes(out, note, kill[1] if kill is not None and kill[0] == "event" else None)
            train(recipe(folder, out, workers), quiet=True, resume=True)
        except SightlineError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            os._exit(2)
        except BaseException as error:
            print(f"unexpected: {error!r}", file=sys.stderr, flush=True)
            os._exit(3)
        os._exit(0)
    if kill is not None and kill[0] == "moment":
        time.sleep(kill[1])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    died = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert died or os.WEXITSTATUS(status) == 0, f"a run ended with status {status}"
    told = note.read_text(encoding="utf-8").splitlines() if note.exists() else []
    return {"died": died, "events": len(told), "at": told[-1] if told else ""}


def count_changes(out: Path, note: Path, fatal: float | None) -> None:
    """Write down every change that this process makes under `out`; die just before number `fatal`."""
    log = os.open(note, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    state = {"count": 0}
    owner = os.getpid()

    def watch(event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            changes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        else:
            path, changes = (arguments[0], True) if event in CHANGES else (None, False)
        if (
            not changes
            or not isinstance(path, str | Path)
            or not str(path).startswith(str(out))
            or os.getpid() != owner
        ):
            return
        state["count"] += 1
        os.write(log, f"{event} {Path(path).relative_to(out)}\n".encode())
        if state["count"] == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def remains(out: Path) -> dict[str, str | list]:
    """What a run must leave the same: hashes of all weights, its metrics without times, its dropped rows."""
    weights = {str(path.relative_to(out)): path for path in sorted(out.glob("**/model/*.safetensors"))}
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in weights.items()}
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    metrics = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    return {"weights": list(hashes.items()), "metrics": metrics, "dropped": (out / "dropped.jsonl").read_text()}


if __name__ == "__main__":
    main()
