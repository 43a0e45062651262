"""One run of a comparison, through the command line: train, ask, and one row of what came out and what it cost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..config import Recipe, dump
from ..errors import SightlineError
from ..evaluation.scores import SCORES, Scores, read_scores
from ..files import write_text
from ..plan.build import stage_models
from ..plan.run import plan_stage
from ..plan.shapes import shapes
from ..runs import read_facts
from ..train.folder import fixed
from .diagnosed import diagnose_run
from .folder import Comparison, Job, Row
from .plan import Outcome, Tuning
from .read import arm_recipe

COLLECTING = threading.Lock()
"""Models are outlined on the meta device one at a time: transformers' logging is not made for threads."""


class RunFailed(SightlineError):
    """A run that did not end well; the others go on."""


@runtime_checkable
class Runner(Protocol):
    """What carries out a `sightline` command: its exit code."""

    def __call__(self, arguments: list[str], *, log: Path, worker: int, lock: int) -> int: ...

    def stop(self, signum: int) -> None: ...


class CommandLine:
    """Commands as processes of their own, which a signal to the terminal does not reach: they are stopped by `stop`."""

    def __init__(self, *, threads: int, gpus: list[str] | None = None) -> None:
        """
        Args:
            threads: CPU threads of each.
            gpus: names for CUDA_VISIBLE_DEVICES, shared out among the workers.
        """
        self.threads, self.gpus = threads, gpus or []
        self._running: set[subprocess.Popen] = set()
        self._stopped = False
        self._guard = threading.Lock()

    def __call__(self, arguments: list[str], *, log: Path, worker: int, lock: int) -> int:
        """Run a command to its end, what it says into `log`; it keeps the lock of its run while it lives."""
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[worker % len(self.gpus)]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as stream:
            with self._guard:
                if self._stopped:
                    return -signal.SIGTERM
                process = subprocess.Popen(
                    [sys.executable, "-m", "sightline", *arguments],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=stream,
                    pass_fds=(lock,),
                    start_new_session=True,
                )
                self._running.add(process)
            try:
                return process.wait()
            finally:
                self._running.discard(process)

    def stop(self, signum: int) -> None:
        """Pass a signal on, and start nothing more."""
        with self._guard:
            self._stopped = True
            for process in list(self._running):
                process.send_signal(signum)


def visible_gpus(device: str | None) -> list[str]:
    """The GPUs that workers share out, where training may use them."""
    if device not in (None, "auto", "cuda"):
        return []
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def work(
    comparison: Comparison,
    job: Job,
    runner: Runner,
    *,
    lock: int,
    worker: int = 0,
    device: str | None = None,
    discard: bool = False,
) -> Row:
    """Do a run, from its start or from where it was left, and write its row.

    Args:
        lock: the descriptor that holds the run.
        device: where to compute; by default where the recipe says.
        discard: keep metrics and scores, and remove the run's weights.

    Raises:
        RunFailed: if a command ended with an error; its log is named.
    """
    plan, run = comparison.plan, comparison.run_path(job)
    arm, log = plan.arm(job.arm), comparison.path / "logs" / f"{job.kind}.{job.key}.log"
    recipe = arm_recipe(plan, arm, seed=job.seed, setting=comparison.setting(job), out=run)
    if device is not None:
        recipe = recipe.model_copy(update={"device": device})
    file = run.with_name(f"{run.name}.yaml")
    write_text(file, dump(recipe))

    def command(*arguments: str) -> None:
        before = log.stat().st_size if log.is_file() else 0
        code = runner(list(arguments), log=log, worker=worker, lock=lock)
        if code:
            said = _last(log, before)
            raise RunFailed(f"{job.label}: `sightline {arguments[0]}` ended with code {code}: {said} Log: {log}")

    command("train", str(file), "--resume")
    scores: dict[str, Scores] = {}
    began = time.monotonic()
    for outcome in asked(comparison, job):
        name = Path(outcome.questions).name
        if name in scores:
            continue
        out = run / "eval" / name
        shutil.rmtree(out, ignore_errors=True)
        how = plan.evaluation
        options = ["--batch-size", str(how.batch_size), "--max-new-tokens", str(how.max_new_tokens)]
        options += ["--dtype", how.dtype, "--device", recipe.device]
        options += ["--images", outcome.images] if outcome.images else []
        options += ["--blank-images"] if arm.blank_images != "never" else []
        command("eval", str(run), "--data", outcome.questions, "--out", str(out), *options)
        scores[name] = read_scores(out / SCORES)
    row = finish(comparison, job, recipe, run, scores, time.monotonic() - began)
    if plan.diagnostics is not None and job.kind == "claim":
        row["diagnosed"] = diagnose_run(plan.diagnostics, recipe, run, command)
    write_text(comparison.row_path(job), json.dumps(row, ensure_ascii=False) + "\n")
    if discard:
        for weights in ("model", "checkpoints", "stages"):
            shutil.rmtree(run / weights, ignore_errors=True)
    return row


def asked(comparison: Comparison, job: Job) -> list[Outcome | Tuning]:
    """What a run is asked: for tuning, nothing that the claim is about."""
    plan = comparison.plan
    if job.kind == "claim":
        return [*plan.outcomes]
    assert plan.tuning is not None
    return [plan.tuning]


def finish(
    comparison: Comparison, job: Job, recipe: Recipe, run: Path, scores: dict[str, Scores], seconds: float
) -> Row:
    """The row of a run: what it scored and what it cost, without a path of this machine.

    Args:
        scores: by the name of the question file.
        seconds: that the evaluation took.
    """
    facts = read_facts(run)
    return {
        "kind": job.kind,
        "arm": job.arm,
        "seed": job.seed,
        "setting": job.setting if job.setting is not None else comparison.chosen(job.arm),
        "scores": {name: _brief(score) for name, score in scores.items()},
        "curves": curves(run),
        "compute": {**spent(recipe, run), "evaluation_seconds": round(seconds, 1)},
        "recipe": fixed(recipe),
        "plan": comparison.hash,
        "versions": _throughout(facts, "versions"),
        "machine": _throughout(facts, "machine"),
        "resumed": len(facts.get("resumed", [])),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _throughout(facts: dict[str, Any], what: str) -> dict[str, Any]:
    """The versions or the machine of a run; where it went on with others, all of them in turn."""
    parts = [part.get(what, {}) for part in [facts, *facts.get("resumed", [])]]
    values = {key: list(dict.fromkeys(part[key] for part in parts if key in part)) for part in parts for key in part}
    return {key: seen[0] if len(seen) == 1 else " then ".join(map(str, seen)) for key, seen in values.items()}


def curves(run: Path) -> dict[str, list[dict[str, Any]]]:
    """What was measured of each named validation set while the run trained: stage, step, loss and accuracy."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in _metrics(run):
        if "set" in row:
            point = {key: round(row[key], 4) for key in ("loss", "accuracy") if row[key] is not None}
            found.setdefault(row["set"], []).append({"stage": row["stage"], "step": row["step"], **point})
    return found


def spent(recipe: Recipe, run: Path) -> dict[str, Any]:
    """What a training took, from its `metrics.jsonl`: seconds in its steps, samples, tokens, FLOPs.

    Steps that were lost to a kill and done again count once. FLOPs are the dry run's arithmetic (`plan.flops`) with the
    tokens of the mean row as it was and the samples as they were; None where a recipe cannot be planned.
    """
    steps = [row for row in _metrics(run) if "split" not in row]
    total: dict[str, Any] = {"training_seconds": 0.0, "steps": len(steps), "samples": 0, "tokens": 0, "flops": 0}
    by_stage: dict[str, tuple[int, int]] = {}
    for row in steps:
        total["training_seconds"] += row["tokens"] / max(row["tokens_per_s"], 1e-9)
        total["samples"] += row["samples"]
        total["tokens"] += row["tokens"]
        samples, tokens = by_stage.get(row["stage"], (0, 0))
        by_stage[row["stage"]] = (samples + row["samples"], tokens + row["tokens"])
    total["training_seconds"] = round(total["training_seconds"], 2)
    try:
        with COLLECTING:
            total["flops"] = _flops(recipe, by_stage)
    except SightlineError:
        total["flops"] = None
    return total


def _metrics(run: Path) -> list[dict[str, Any]]:
    file = run / "metrics.jsonl"
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise SightlineError(
            f"{file} cannot be read ({error}), so what its run cost is not known. Have it done again: rm -r '{run}'"
        ) from None


def _flops(recipe: Recipe, by_stage: dict[str, tuple[int, int]]) -> int:
    total = 0
    for stage, model in stage_models(recipe):
        samples, tokens = by_stage.get(stage.name, (0, 0))
        if not samples:
            continue
        rough = plan_stage(recipe, stage, model, (1,), None)
        visual = rough.rows.images * (rough.tokens_per_image + shapes(model).slots)
        text = max(0, round(tokens / samples - visual))
        planned = plan_stage(recipe, stage, model, (1,), text)
        total += planned.step.total * samples // (stage.batch_size * stage.accumulate)
    return total


def _brief(scores: Scores) -> dict[str, Any]:
    """Scores by ability with their intervals over questions, rounded to what counts."""

    def short(estimate: Any) -> dict[str, Any]:
        return {key: round(getattr(estimate, key), 6) for key in ("value", "low", "high")} | {"n": estimate.n}

    return {
        "overall": short(scores.overall),
        "by_ability": {name: short(estimate) for name, estimate in scores.by_ability.items()},
        "baseline": round(scores.baseline, 6),
        "baseline_by_ability": {name: round(value, 6) for name, value in scores.baseline_by_ability.items()},
    }


def _last(log: Path, before: int) -> str:
    """The last thing that a command said, after the `before` bytes of earlier ones."""
    try:
        lines = log.read_bytes()[before:].decode("utf-8", errors="replace").splitlines()
    except OSError:
        return "it said nothing."
    said = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("error:")), len(lines) - 1)
    return " ".join(line.strip() for line in lines[max(0, said) :])[:600] or "it said nothing."
