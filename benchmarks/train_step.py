"""A training step of Sightline against the loop that a competent user writes on stock transformers.

Written down before the first run. The user's loop: `LlavaForConditionalGeneration`, the same parts frozen by
`requires_grad_(False)`, padded batches with labels masked, `model(**batch).loss`, backward, clipping at 1, torch's
AdamW. Ours: `take_step`, what `sightline train` runs. Both get the same weights, the same batches, the same precision;
data preparation is left out of both. Before anything is timed, losses agree to 1e-4 and norms of gradients to 1e-3.

Arms take turns on each batch, in an order that is shuffled (on a GPU, whose memory does not hold them all, one follows
the other). A ratio is the user's time over ours for the same rows, with a 95% interval from bootstrapping the batches
(none where the batches are others); on a CPU it is processor time, since others may use the machine. Peak memory is
that of one step in a process of its own, beyond what model and optimizer hold. Expected: at least 1.3 in stage 1, 2
with features given, 1.5 in stage 2 with packing, and never below 1.

    python benchmarks/train_step.py                  # writes benchmarks/results/train_step.json and .md
    python benchmarks/train_step.py --gpu --peak-tflops 989   # bf16 at Llama-3-8B's layer sizes, with MFU
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llava_sizes import SIZES, Kind, Size, batches, build, processor_for, samples, text_lengths
from torch import nn

from sightline.checkpoints.model import to_stock
from sightline.config import Stage
from sightline.data.order import Order
from sightline.models.modeling import SightlineForConditionalGeneration
from sightline.models.packing import cheapest_bins
from sightline.train.engine import Engine
from sightline.train.objective import Objective
from sightline.train.setup import build_optimizer, set_modes, set_trainable
from sightline.train.step import take_step
from sightline.types import Batch

RESULTS = Path(__file__).parent / "results"
RATE = 1e-4

Step = Callable[[Batch], tuple[float, float]]
"""One optimizer step; its loss and the norm of its gradient before clipping."""


@dataclass(frozen=True)
class Arm:
    """One way to run a stage."""

    name: str
    stock: bool = False
    packing: bool = False
    features: bool = False
    """Whether the tower's patches are given, as a cache of features gives them."""
    grouped: bool = False
    """Whether it sees the same rows in batches of like length."""


@dataclass(frozen=True)
class Scenario:
    """A stage with its data and arms; the first arm is the user's loop."""

    name: str
    kind: Kind
    trainable: tuple[str, ...]
    arms: tuple[Arm, ...]


STOCK = Arm("stock transformers", stock=True)
SCENARIOS = (
    Scenario(
        "stage 1",
        "captions",
        ("connector",),
        (STOCK, Arm("sightline"), Arm("sightline, packing", packing=True), Arm("sightline, features", features=True)),
    ),
    Scenario(
        "stage 2",
        "conversations",
        ("connector", "language"),
        (
            STOCK,
            Arm("sightline"),
            Arm("sightline, packing", packing=True),
            Arm("sightline, group_by_length", grouped=True),
            Arm("sightline, both", packing=True, grouped=True),
        ),
    ),
)


@dataclass(frozen=True)
class Plan:
    """How much is run of a size: rows of a batch, and batches that are timed, for each scenario."""

    batch_size: dict[str, int]
    pairs: dict[str, int]
    grouped: bool = True
    """Whether the arms with grouped rows are run; they show as much on the smaller sizes."""


PLANS = {
    "tiny": Plan({"stage 1": 4, "stage 2": 4}, {"stage 1": 2, "stage 2": 2}),
    "1M": Plan({"stage 1": 16, "stage 2": 8}, {"stage 1": 8, "stage 2": 5}),
    "10M": Plan({"stage 1": 16, "stage 2": 8}, {"stage 1": 5, "stage 2": 4}),
    "60M": Plan({"stage 1": 8, "stage 2": 8}, {"stage 1": 3, "stage 2": 2}, grouped=False),
    "8B-layers": Plan({"stage 1": 32, "stage 2": 8}, {"stage 1": 20, "stage 2": 20}),
}


@dataclass(frozen=True)
class Case:
    """What an arm needs to run: a size, a scenario, and where."""

    size: str
    scenario: Scenario
    device: torch.device

    @property
    def bf16(self) -> bool:
        return self.device.type == "cuda"

    @property
    def batch_size(self) -> int:
        return PLANS[self.size].batch_size[self.scenario.name]

    def model(self) -> SightlineForConditionalGeneration:
        torch.manual_seed(0)
        return build(SIZES[self.size]).model.to(self.device)  # pyright: ignore

    def data(self, num_batches: int, *, grouped: bool = False) -> list[Batch]:
        size, kind = SIZES[self.size], self.scenario.kind
        with torch.device("meta"):  # only the number of its image tokens is asked of this model
            processor = processor_for(build(size), kind)
        rows = [processor(row) for row in samples(kind, num_batches * self.batch_size, size)]
        return [batch.to(self.device) for batch in batches(rows, self.batch_size, grouped=grouped)]

    @property
    def arms(self) -> list[Arm]:
        return [arm for arm in self.scenario.arms if not arm.grouped or PLANS[self.size].grouped]

    def now(self) -> float:
        """Seconds: of the clock on a GPU, of this process' processor time on a CPU, which others may share."""
        if self.device.type != "cuda":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


# --- the two loops ---


def user_loop(model: nn.Module, case: Case) -> Step:
    """What one writes on stock transformers."""
    parts = {"connector": ["model.multi_modal_projector"], "language": ["model.language_model", "lm_head"]}
    trained = tuple(prefix for part in case.scenario.trainable for prefix in parts[part])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0, fused=case.device.type == "cuda")
    precision = torch.autocast("cuda", dtype=torch.bfloat16) if case.bf16 else nullcontext()

    def step(batch: Batch) -> tuple[float, float]:
        with precision:
            loss = model(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                pixel_values=batch.pixel_values,
                labels=batch.labels,
                use_cache=False,
            ).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item(), norm.item()

    return step


def our_loop(model: SightlineForConditionalGeneration, case: Case, arm: Arm) -> Step:
    """What `sightline train` runs for a step."""
    stage = Stage.model_validate(
        {
            "name": "benchmark",
            "data": {"path": "none"},
            "trainable": case.scenario.trainable,
            "lr": RATE,
            "precision": "bf16" if case.bf16 else "fp32",
            "packing": arm.packing,
        }
    )
    table = set_trainable(model, stage)
    optimizer = build_optimizer(model, table, stage)
    engine = Engine(Objective(model, stage.weights, packing=stage.packing), stage)
    done = 0

    def step(batch: Batch) -> tuple[float, float]:
        nonlocal done
        done += 1
        set_modes(model, stage)
        result = take_step(engine, [batch], optimizer, stage, step=done)
        return result.losses["loss"], result.grad_norm

    if not arm.features:
        return step
    kept: dict[tuple[str, ...], Batch] = {}

    def prepare(batch: Batch) -> None:
        with torch.no_grad():
            kept[batch.ids] = replace(batch, patches=model.model.encode(batch.pixel_values))

    def step_with_features(batch: Batch) -> tuple[float, float]:
        return step(kept[batch.ids])

    step_with_features.prepare = prepare  # pyright: ignore[reportFunctionMemberAccess]
    return step_with_features


def start(case: Case, arm: Arm, data: list[Batch]) -> Step:
    """An arm with its own model, the same weights in each, ready for its first step."""
    model = case.model()
    step = user_loop(to_stock(model), case) if arm.stock else our_loop(model, case, arm)
    if arm.features:
        for batch in data:
            step.prepare(batch)  # pyright: ignore[reportFunctionMemberAccess]
    return step


# --- time ---


def timed(case: Case) -> list[dict[str, Any]]:
    """Every arm of a scenario, taking turns on each batch."""
    pairs = PLANS[case.size].pairs[case.scenario.name]
    plain, grouped = case.data(pairs), case.data(pairs, grouped=True)
    arms = case.arms
    rng = np.random.default_rng(0)
    first: dict[str, tuple[float, float]] = {}
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    for together in [arms] if case.device.type == "cpu" else [[arm] for arm in arms]:
        steps = {arm.name: start(case, arm, plain) for arm in together}
        first |= {name: step(plain[0]) for name, step in steps.items()}
        agree(first, case)
        for number in range(pairs):
            for at in rng.permutation(len(together)):
                arm = together[at]
                batch = (grouped if arm.grouped else plain)[number]
                began = case.now()
                steps[arm.name](batch)
                seconds[arm.name].append(case.now() - began)
        del steps
        gc.collect()
        torch.cuda.empty_cache()
    rows = sum(len(batch) for batch in plain)
    flops = sum(useful_flops(SIZES[case.size], case.scenario, batch) for batch in plain)
    results = []
    for arm in arms:
        ratio, low, high = ratio_of(seconds[STOCK.name], seconds[arm.name])
        results.append(
            {
                "size": case.size,
                "stage": case.scenario.name,
                "arm": arm.name,
                "batch_size": case.batch_size,
                "batches": pairs,
                "ms_per_sample": round(1000 * sum(seconds[arm.name]) / rows, 3),
                "ratio": round(ratio, 3),
                "low": None if arm.grouped else round(low, 3),
                "high": None if arm.grouped else round(high, 3),
                "tflops": round(flops / sum(seconds[arm.name]) / 1e12, 4),
            }
        )
    return results


def agree(first: dict[str, tuple[float, float]], case: Case) -> None:
    """That all arms computed the same loss and gradient before they are timed."""
    loss, norm = first[STOCK.name]
    tolerance = 1e-2 if case.bf16 else 1e-4
    for name, (own_loss, own_norm) in first.items():
        if abs(own_loss - loss) > tolerance * loss or abs(own_norm - norm) > 10 * tolerance * norm:
            raise SystemExit(f"'{name}' has loss {own_loss} and norm {own_norm}; stock has {loss} and {norm}")


def ratio_of(stock: list[float], ours: list[float], *, draws: int = 10_000) -> tuple[float, float, float]:
    """Time of the same rows, stock over ours, with a 95% bootstrap interval over the batches."""
    both = np.array([stock, ours])
    picks = np.random.default_rng(0).integers(both.shape[1], size=(draws, both.shape[1]))
    drawn = both[:, picks].sum(2)
    low, high = np.quantile(drawn[0] / drawn[1], [0.025, 0.975])
    return float(both[0].sum() / both[1].sum()), float(low), float(high)


def useful_flops(size: Size, scenario: Scenario, batch: Batch) -> float:
    """Floating-point operations that a step cannot do without: real tokens, supervised logits, attention to the past.

    Two for each parameter and token forward, two backward through a part, two more for its weights where it trains.
    """
    lengths = batch.attention_mask.sum(1).double()
    attention = float((lengths**2).sum()) / 2 * 2 * size.width * size.layers
    supervised = float((batch.labels[:, 1:] >= 0).sum())
    decoder = size.language_parameters() * float(lengths.sum())
    head = size.width * size.words * supervised
    passes = 6 if "language" in scenario.trainable else 4
    patches = len(batch.pixel_values) * (size.side // 14) ** 2
    return passes * (decoder + head) + 6 * attention + 2 * size.vision_parameters() * patches


# --- padding ---


def padding(kind: Kind, batch_size: int, width: int, *, rows: int = 4096) -> dict[str, Any]:
    """The share of real tokens among those that the language model runs on, from the lengths of rows alone."""
    rng = np.random.default_rng(0)
    around = 147 if kind == "captions" else 185  # image tokens, BOS, end, the template's words
    lengths = (around + text_lengths(kind, rows, rng)).astype(np.int32)
    result: dict[str, Any] = {"rows": kind, "batch_size": batch_size, "width": width}
    for name, known in (("random", None), ("grouped", lengths)):
        order = Order(seed=0, sizes=(rows,), batch_size=batch_size, lengths=known)
        padded = packed = 0
        for batch in order.micro_batches(rows // batch_size):
            mine = lengths[[row for _, row in batch]].tolist()
            capacity, bins = cheapest_bins(mine, width)
            padded += max(mine) * len(mine)
            packed += capacity * len(bins)
        result[f"{name}, padded"] = round(int(lengths.sum()) / padded, 3)
        result[f"{name}, packed"] = round(int(lengths.sum()) / packed, 3)
    return result


# --- memory ---


def measured_alone(case: Case, arm: Arm) -> dict[str, float]:
    """Peak memory of one step in bytes, of an arm in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", case.size, case.scenario.name, arm.name]
    command += ["--gpu"] if case.device.type == "cuda" else []
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def memory(case: Case, arm: Arm) -> dict[str, float]:
    """Peak of one step beyond what model and optimizer hold. On a CPU resident memory, whose peak is reset before."""
    data = case.data(1)
    step = start(case, arm, data)
    step(data[0])  # the optimizer's state is there from the first step on
    if case.device.type == "cuda":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(data[0])
        return {"held": held, "peak": torch.cuda.max_memory_allocated() - held}
    ctypes.CDLL(None).malloc_trim(0)  # what the first step used and gave back is not held
    held = of_this_process("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step(data[0])
    return {"held": held, "peak": of_this_process("VmHWM") - held}


def of_this_process(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


# --- the whole ---


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), help="1M, 10M and 60M by default")
    parser.add_argument("--gpu", action="store_true", help="bf16 on CUDA at Llama-3-8B's layer sizes")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU in bf16, for the MFU (H100, H200: 989)")
    parser.add_argument("--out", type=Path, help="benchmarks/results/train_step[_gpu].json by default")
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device("cuda" if options.gpu else "cpu")
    scenarios = {scenario.name: scenario for scenario in SCENARIOS}
    if options.memory_of:
        size, name, arm_name = options.memory_of
        arm = next(arm for arm in scenarios[name].arms if arm.name == arm_name)
        print(json.dumps(memory(Case(size, scenarios[name], device), arm)))
        return
    out = options.out or RESULTS / ("train_step_gpu.json" if options.gpu else "train_step.json")
    rows = []
    for size in options.sizes or (["8B-layers"] if options.gpu else ["1M", "10M", "60M"]):
        for scenario in SCENARIOS:
            case = Case(size, scenario, device)
            for row, arm in zip(timed(case), case.arms, strict=True):
                if not arm.grouped:
                    used = measured_alone(case, arm)
                    row |= {"peak_mb": round(used["peak"] / 1e6, 1), "held_mb": round(used["held"] / 1e6, 1)}
                if options.peak_tflops:
                    row["mfu"] = round(row["tflops"] / options.peak_tflops, 3)
                print(row, file=sys.stderr, flush=True)
                rows.append(row)
    result = {
        "machine": platform.platform(),
        "processor": torch.cuda.get_device_name() if options.gpu else processor(),
        "threads": torch.get_num_threads(),
        "precision": "bf16" if options.gpu else "fp32",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("sightline", "torch", "transformers")},
        "padding": [
            padding(kind, batch_size, width)
            for kind in ("captions", "conversations")
            for batch_size in (8, 32)
            for width in (640, 4096)
        ],
        "rows": rows,
    }
    write(result, out)
    print(table(rows))


def write(result: dict[str, Any], out: Path) -> None:
    """The result as JSON, and as a page beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    out.with_suffix(".md").write_text(page(result), encoding="utf-8")


def processor() -> str:
    """The CPU as it names itself."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores"


def table(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    stock = {(row["size"], row["stage"], row["batch_size"]): row for row in rows if row["arm"] == STOCK.name}
    lines = [
        "| size | stage | rows | arm | ms a sample | faster | 95% interval | step memory MB | less memory |",
        "|---|---|--|---|--|--|--|--|--|",
    ]
    for row in rows:
        base = stock[row["size"], row["stage"], row["batch_size"]].get("peak_mb")
        peak = row.get("peak_mb")
        less = f"{base / peak:.2f}" if peak and base else ""
        interval = f"{row['low']:.2f} to {row['high']:.2f}" if row["low"] is not None else ""
        lines.append(
            f"| {row['size']} | {row['stage']} | {row['batch_size']} | {row['arm']} | {row['ms_per_sample']:.1f} | "
            f"{row['ratio']:.2f} | "
            f"{interval} | {peak if peak is not None else ''} | {less} |"
        )
    return "\n".join(lines)


def padding_table(rows: list[dict[str, Any]]) -> str:
    """The shares of real tokens as Markdown."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "--|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(str(value) for value in row.values()) + " |" for row in rows])


def page(result: dict[str, Any]) -> str:
    """The result as a page."""
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    return (
        "# A training step against stock transformers\n\n"
        "Written by `benchmarks/train_step.py`, whose docstring says what was compared and what was expected.\n"
        f"Machine: {result['machine']}, {result['processor']}, {result['threads']} thread(s), {result['precision']}.\n"
        f"Versions: {versions}.\n\n{table(result['rows'])}\n\n"
        "The share of real tokens among those that the language model runs on, by the lengths of rows alone:\n\n"
        f"{padding_table(result['padding'])}\n"
    )


if __name__ == "__main__":
    main()
