"""What SEA adds to a training step of stage 1.

Written down before the first run. The targets: at most 1% more floating-point operations, by torch's counter, and less
than 5% more time, by interleaved pairs. Both arms train the same model on the same batches with `take_step`, which is
what `sightline train` runs; SEA's also draws its labels from those of every patch, as its rows do in training. Words
are drawn from 8,000 alike, so nearly every window has one of its own and the loss is as large as it can be. Arms take
turns on each batch, in an order that is shuffled; processor time, since others may use the machine; the interval is
bootstrapped over batches. One step in ten also measures gradients at the visual tokens, and is among those timed.

At the size of LLaVA-1.5 7B nothing is run; the operations are those of the formulas: 4,608 pairs (32 rows of 144
windows) of width 4,096, forward and backward, beside 16.6 TF an image.

    python benchmarks/sea_step.py            # writes benchmarks/results/sea_step.json and .md
    python benchmarks/sea_step.py --quick    # a size of seconds, as the tests run it
"""

import argparse
import json
import platform
import tempfile
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llava_sizes import SIZES, batches, build, processor_for, samples
from torch.utils.flop_counter import FlopCounterMode
from train_step import ratio_of

from sightline.annotate.drawing import How
from sightline.config import Recipe, check
from sightline.methods.base import Setting
from sightline.methods.sea import DRAWN, LOSS
from sightline.models.assemble import attach_methods
from sightline.train.engine import Engine
from sightline.train.objective import Objective
from sightline.train.setup import build_optimizer, set_modes, set_trainable
from sightline.train.step import take_step
from sightline.types import Batch

RESULTS = Path(__file__).parent / "results"
WORDS, TOP = 8000, 10
PLANS = {"tiny": (4, 2), "1M": (16, 30), "10M": (16, 20), "60M": (8, 12)}
"""Rows of a batch, and batches that are timed, by size."""
COUNTED = 10
"""Steps whose operations are counted: one of them looks at the gradients."""
LLAVA = {"rows": 32, "windows": 144, "width": 4096, "tflops an image": 16.6}


class Arm:
    """A model with its optimizer; with SEA, what its rows bring too."""

    def __init__(self, size: str, words: Path, *, sea: bool) -> None:
        torch.manual_seed(0)
        assembly = build(SIZES[size])
        recipe = stage_1(words)
        attach_methods(assembly, recipe.methods)
        self.model, self.stage = assembly.model, recipe.stages[0]
        if not sea:
            self.stage = self.stage.model_copy(update={"weights": {}})
        method = self.model.model.methods["sea"]
        method.begin(Setting(recipe.model_copy(update={"stages": [self.stage]}), 0, assembly, torch.device("cpu")))
        table = set_trainable(self.model, self.stage)
        self.optimizer = build_optimizer(self.model, table, self.stage)
        self.engine = Engine(Objective(self.model, self.stage.weights), self.stage)
        self.how = How(grid=SIZES[size].side // 14, seed=0) if sea else None
        self.done = 0

    def step(self, batch: Batch, ids: np.ndarray, scores: np.ndarray) -> None:
        """One step; `ids` and `scores` are those of each row's image."""
        self.done += 1
        if self.how is not None:
            drawn = [self.how.draw(row, self.done, *labels) for row, labels in enumerate(zip(ids, scores, strict=True))]
            rows = [self.how.rows(0, row, self.done, found) for row, found in enumerate(drawn)]
            batch = replace(batch, columns={DRAWN: [torch.from_numpy(row) for row in rows]})
        set_modes(self.model, self.stage)
        take_step(self.engine, [batch], self.optimizer, self.stage, step=self.done)


def stage_1(words: Path) -> Recipe:
    """Stage 1 with SEA; nothing that it names is read but the words."""
    stage: dict[str, Any] = {"name": "pretrain", "data": {"path": "none"}, "trainable": ["connector", "sea"]}
    return check(
        {
            "name": "step",
            "model": {"vision": "none", "language": "none"},
            "methods": [{"name": "sea", "words": str(words)}],
            "stages": [stage | {"weights": {LOSS: 1.0}, "lr": 1e-4}],
        }
    )


def measured(size: str, words: Path) -> dict[str, Any]:
    """Operations and time of both arms."""
    rows, count = PLANS[size]
    data_of, number = SIZES[size], min(WORDS, SIZES[size].words - 4)
    with torch.device("meta"):  # only the number of its image tokens is asked of this model
        processor = processor_for(build(data_of), "captions")
    words.write_text("\n".join(f"w{word}" for word in range(4, 4 + number)) + "\n")
    data = batches([processor(row) for row in samples("captions", rows * count, data_of)], rows)
    rng, patches = np.random.default_rng(0), (data_of.side // 14) ** 2
    ids, scores = rng.integers(number, size=(rows, patches, TOP)), rng.random((rows, patches, TOP), dtype=np.float32)
    arms = {"baseline": Arm(size, words, sea=False), "sea": Arm(size, words, sea=True)}
    flops = {}
    for name, arm in arms.items():
        with FlopCounterMode(display=False) as counter:
            for _ in range(COUNTED):
                arm.step(data[0], ids, scores)
        flops[name] = counter.get_total_flops() / COUNTED
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for batch in data:
        for name in rng.permutation([*arms]):
            began = time.process_time()
            arms[name].step(batch, ids, scores)
            seconds[name].append(time.process_time() - began)
    ratio, low, high = ratio_of(seconds["sea"], seconds["baseline"])
    return {
        "size": size,
        "rows": rows,
        "batches": count,
        "gflops": round(flops["baseline"] / 1e9, 3),
        "more_flops": round(flops["sea"] / flops["baseline"] - 1, 5),
        "ms": round(1000 * float(np.mean(seconds["baseline"])), 1),
        "more_time": round(ratio - 1, 4),
        "low": round(low - 1, 4),
        "high": round(high - 1, 4),
    }


def at_llavas_size() -> float:
    """SEA's share of a step of LLaVA-1.5 7B: cosines of all pairs forward, and two products of that size backward."""
    pairs = LLAVA["rows"] * LLAVA["windows"]
    return 3 * 2 * pairs**2 * LLAVA["width"] / (LLAVA["rows"] * LLAVA["tflops an image"] * 1e12)


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# What SEA adds to a step of stage 1",
        "",
        "Written by `benchmarks/sea_step.py`, whose docstring says what was compared and what was wanted: at most 1%",
        "more operations, less than 5% more time.",
        f"Machine: {result['machine']}. Versions: {', '.join(f'{k} {v}' for k, v in result['versions'].items())}.",
        "",
        "| size | rows | GFLOP of a step | more with SEA | ms of a step | more with SEA | 95% interval |",
        "|---|--|--|--|--|--|--|",
    ]
    for row in result["sizes"]:
        lines.append(
            f"| {row['size']} | {row['rows']} | {row['gflops']:,.1f} | {row['more_flops']:.2%} | {row['ms']:,.0f} | "
            f"{row['more_time']:.1%} | {row['low']:.1%} to {row['high']:.1%} |"
        )
    lines += ["", f"By the formulas, at the size of LLaVA-1.5 7B: {result['llava']:.2%} more operations."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a size of seconds")
    parser.add_argument("--out", type=Path, default=RESULTS / "sea_step.json", help="where the JSON goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = ["tiny"] if arguments.quick else ["1M", "10M", "60M"]
        rows = [measured(size, Path(folder) / "words.txt") for size in sizes]
    result = {
        "machine": f"{platform.platform()}, 1 thread, fp32",
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("torch", "transformers")}},
        "sizes": rows,
        "llava": at_llavas_size(),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    text = markdown(result)
    arguments.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
