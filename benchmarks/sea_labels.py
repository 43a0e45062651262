"""What SEA's labels cost beyond the tower's forward pass, at the size of CLIP-L/336 with random weights.

Written down before the first run: an image has 576 patches of width 1024; labelling is the tower's post-norm, its
projection to 768, unit length, the 10 best of 41,242 words, and packing them as u16 ids and u8 scores. The target: at
most half of the time of the plain fp32 product of the 576 x 768 patches with the words, on random features, in the
same run; and exact, which is checked here on every setting against the product in fp64.

Arms take turns, in an order that is shuffled, after one turn that is not counted. A ratio is the median over turns of
an arm's time over that of the plain product of the same turn, once by the clock and once by processor time: others may
use the machine, and then the clock says more of them than of us. Threads that wait sleep (OMP_WAIT_POLICY=passive),
for all arms. Features in a narrow cone have this cosine between any two patches, as between any two words; "hard"
has the noise orthogonal to the other side's direction, so that all patches share no favourite words, which makes the
gaps between scores as small as they get. Peak memory is what a call takes beyond what was held before it.

    python benchmarks/sea_labels.py            # writes benchmarks/results/sea_labels.json and .md
    python benchmarks/sea_labels.py --quick    # a size of seconds, as the tests run it
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import argparse
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import CLIPVisionConfig, CLIPVisionModel

from sightline.annotate.nearest import Found, WordTable

RESULT = Path(__file__).parent / "results" / "sea_labels.json"
BEST = 10


@dataclass(frozen=True)
class Size:
    """Of the images and of the list."""

    words: int
    patches: int
    hidden: int
    width: int
    repeats: int
    images: tuple[int, ...]
    """Images at once, for memory."""


FULL = Size(words=41_242, patches=576, hidden=1024, width=768, repeats=7, images=(1, 8, 32))
QUICK = Size(words=2_000, patches=64, hidden=48, width=32, repeats=2, images=(1, 3))
CONES = ((0.0, False), (0.5, False), (0.7, False), (0.9, False), (0.5, True), (0.7, True), (0.9, True))


def cone(rows: int, width: int, cosine: float, axis: Tensor, avoid: Tensor | None = None) -> Tensor:
    """Unit vectors around `axis`, with this cosine between any two."""
    noise = torch.randn(rows, width)
    for direction in () if avoid is None else (axis, avoid):
        noise -= (noise @ direction)[:, None] * direction
    return normalize(cosine**0.5 * axis + (1 - cosine) ** 0.5 * normalize(noise, dim=1), dim=1)


def features(size: Size, cosine: float, *, hard: bool, images: int = 1) -> tuple[Tensor, Tensor]:
    """Patches and words in cones of their own."""
    torch.manual_seed(0)
    here, there = torch.linalg.qr(torch.randn(size.width, 2)).Q.T.contiguous()
    patches = cone(images * size.patches, size.width, cosine, here, there if hard else None)
    return patches, cone(size.words, size.width, cosine, there, here if hard else None)


class Labels:
    """What follows the tower's last layer, on random hidden states: post-norm, projection, unit length, words, packing.

    Random states make random features. Features in a cone are given instead, after the same work has been done.
    """

    def __init__(self, size: Size, table: WordTable, *, given: Tensor | None = None) -> None:
        torch.manual_seed(1)
        self.norm = nn.LayerNorm(size.hidden)
        self.project = nn.Linear(size.hidden, size.width, bias=False)
        self.hidden = torch.randn(size.patches, size.hidden)
        self.table = table
        self.given = given

    @torch.no_grad()
    def features(self) -> Tensor:
        patches = normalize(self.project(self.norm(self.hidden)), dim=-1)
        return patches if self.given is None else self.given

    def __call__(self) -> Found:
        found = self.table.top(self.features(), BEST)
        kept = found.scores.clamp(min=0)
        top = kept.max().clamp(min=1e-12)
        (kept * (255 / top)).round().to(torch.uint8)
        found.ids.masked_fill(kept == 0, 65535).to(torch.uint16)
        return found


def timed(size: Size, arms: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Milliseconds of each arm, and its time over that of the first arm in the same turn."""
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in clocks} for name in arms}
    draw = torch.Generator().manual_seed(0)
    names = list(arms)
    for turn in range(size.repeats + 1):
        for at in torch.randperm(len(names), generator=draw).tolist():
            began = {clock: read() for clock, read in clocks.items()}
            arms[names[at]]()
            for clock, read in clocks.items():
                if turn:
                    seconds[names[at]][clock].append(read() - began[clock])
    results = {}
    for name in names:
        results[name] = {}
        for clock in clocks:
            mine, first = seconds[name][clock], seconds[names[0]][clock]
            results[name][f"{clock}_ms"] = round(1000 * statistics.median(mine), 1)
            ratios = [one / other for one, other in zip(mine, first, strict=True)]
            results[name][f"{clock}_ratio"] = round(statistics.median(ratios), 3)
            if name == names[0]:
                results[name][f"{clock}_fastest_ms"] = round(1000 * min(first), 1)
                results[name][f"{clock}_slowest_ms"] = round(1000 * max(first), 1)
    return results


def label(cosine: float, *, hard: bool) -> str:
    """The name of a setting."""
    return "random" if cosine == 0 else f"cosine {cosine}{', hard' if hard else ''}"


def measure(size: Size) -> dict[str, Any]:
    """Times of all arms on one image, and what is found against fp64."""
    patches, words = features(size, 0.0, hard=False)
    arms: dict[str, Callable[[], Any]] = {
        "fp32 product": lambda: patches @ words.t(),
        "fp32 product and topk": lambda: (patches @ words.t()).topk(BEST),
    }
    exact = {}
    for cosine, hard in CONES:
        given, list_ = features(size, cosine, hard=hard)
        labels = Labels(size, WordTable(list_), given=given if cosine else None)
        name = label(cosine, hard=hard)
        arms[f"labels, {name}"] = labels
        exact[name] = against_fp64(labels.features(), list_, labels())
        if not cosine:
            arms["top alone, random"] = lambda labels=labels, given=given: labels.table.top(given, BEST)
            arms["norm, projection, length"] = labels.features
    return {"times": timed(size, arms), "found": exact}


def against_fp64(patches: Tensor, words: Tensor, found: Found) -> dict[str, float]:
    """Share of rows that fell back, the largest loss of score against the best in fp64, and its error."""
    true = patches.double() @ words.double().t()
    got = true.gather(1, found.ids)
    best = true.topk(BEST).values
    return {
        "fallback_share": round(found.fallbacks / len(patches), 4),
        "largest_loss": float((best - got).abs().max()),
        "largest_error_of_score": float((found.scores - got).abs().max()),
        "smallest_cosine_to_mean_patch": round(float((patches @ normalize(patches.mean(0), dim=0)).min()), 3),
    }


def memory(size: Size, images: int) -> dict[str, float]:
    """Peak of one call in MB beyond what the table and the patches hold, run in a process of its own."""
    patches, words = features(size, 0.0, hard=False, images=images)
    table = WordTable(words)
    del words
    table.top(patches[: size.patches // 2], BEST)
    ctypes.CDLL(None).malloc_trim(0)
    held = of_this_process("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    table.top(patches, BEST)
    return {
        "images": images,
        "held_mb": round(held / 1e6, 1),
        "peak_mb": round((of_this_process("VmHWM") - held) / 1e6, 1),
    }


def of_this_process(name: str) -> int:
    """Bytes of a line of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forward_ms(size: Size) -> dict[str, float]:
    """One image through the tower, once, for context; CLIP-L/336's own config at the full size."""
    full = size is FULL
    config = CLIPVisionConfig(
        hidden_size=size.hidden,
        intermediate_size=4 * size.hidden,
        num_hidden_layers=24 if full else 2,
        num_attention_heads=16 if full else 2,
        image_size=336 if full else 112,
        patch_size=14,
    )
    tower, pixels = CLIPVisionModel(config).eval(), torch.randn(1, 3, config.image_size, config.image_size)
    began, used = time.perf_counter(), time.process_time()
    with torch.no_grad():
        tower(pixel_values=pixels)
    wall, processor = time.perf_counter() - began, time.process_time() - used
    return {"wall_ms": round(1000 * wall), "processor_ms": round(1000 * processor)}


def processor_name() -> str:
    """What /proc/cpuinfo calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def report(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    times, found, size = result["times"], result["found"], result["size"]
    labels = times["labels, random"]
    met = {clock: labels[f"{clock}_ratio"] <= 0.5 for clock in ("processor", "wall")}
    said = ", ".join(
        f"{labels[f'{clock}_ratio']:.2f} by {clock} time ({'met' if met[clock] else 'missed'})" for clock in met
    )
    product = times["fp32 product"]
    lines = [
        "# SEA labels beyond the tower's forward pass",
        "",
        f"{size['patches']} patches, {size['words']:,} words of width {size['width']}, {BEST} best. "
        f"{result['processor']}, {result['cores']} cores, {result['threads']} threads, load {result['load']} "
        f"before and {result['load_after']} after.",
        "Versions: " + ", ".join(f"{name} {value}" for name, value in result["versions"].items()) + ".",
        "",
        f"Target: labels on random features at most half of the plain fp32 product. Measured: {said}.",
        f"The plain product took {product['processor_fastest_ms']} to {product['processor_slowest_ms']} ms of "
        f"processor time and {product['wall_fastest_ms']} to {product['wall_slowest_ms']} ms by the clock. "
        f"{result['note']}",
        "",
        "| arm | processor ms | ratio | wall ms | ratio | rows that fell back |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in times.items():
        setting = found.get(name.removeprefix("labels, "))
        share = "" if setting is None else f"{100 * setting['fallback_share']:.2f}%"
        lines.append(
            f"| {name} | {row['processor_ms']} | {row['processor_ratio']:.2f} "
            f"| {row['wall_ms']} | {row['wall_ratio']:.2f} | {share} |"
        )
    worst = max(row["largest_loss"] for row in found.values())
    off = max(row["largest_error_of_score"] for row in found.values())
    lines += [
        "",
        f"Against the product in fp64, over all settings: no word is off the best by more than {worst:.1e}, no score "
        f"by more than {off:.1e}.",
        "",
        f"The tower's forward pass of one image, once: {result['forward']['processor_ms']:,} ms of processor time.",
        "",
        "| images at once | peak beyond what is held, MB |",
        "|---:|---:|",
        *(f"| {row['images']} | {row['peak_mb']} |" for row in result["memory"]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a size of seconds")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--note", default="", help="a sentence on the circumstances, kept with the result")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(memory(size, options.memory_of)))
        return
    load = [round(value, 1) for value in os.getloadavg()]
    command = [sys.executable, __file__, "--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    alone = [subprocess.run([*command, "--memory-of", str(n)], check=True, capture_output=True) for n in size.images]
    result = {
        "machine": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ["OMP_WAIT_POLICY"],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("sightline", "torch", "transformers")},
        "size": vars(size),
        "note": options.note,
        "load": load,
        **measure(size),
        "memory": [json.loads(done.stdout) for done in alone],
        "forward": forward_ms(size),
        "load_after": [round(value, 1) for value in os.getloadavg()],
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(report(result), encoding="utf-8")
    print(report(result))


if __name__ == "__main__":
    main()
