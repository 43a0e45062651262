"""Does the two-stage model use its images? Model against blind twin, several seeds, on the world's `test` split.

Written down before the first run. Primary outcome: accuracy of the model minus accuracy of its blind twin on the
questions of `test`, for colour and for background, each with a paired 95% bootstrap interval over images; the claim "it
sees" holds for an ability if the lower bound is above zero for every seed. Secondary: shape, count, existence, and the
same on `novel`. Seeds are 0, 1, 2; no arm and no seed is left out; settings are those of the shipped recipe `world`.

    python benchmarks/blind_twin.py                # writes benchmarks/results/blind_twin.json and prints the table
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from sightline.evaluation import compare, read_scores

RESULT = Path(__file__).parent / "results" / "blind_twin.json"
SPLITS = ("test", "novel")


def main() -> None:
    """Train, evaluate and compare every seed; write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder), options.seeds)
    facts = {name: version(name) for name in ("sightline", "torch", "transformers")}
    result = {"machine": platform.platform(), "cores": os.cpu_count(), "versions": facts, "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


def run(folder: Path, seeds: list[int]) -> list[dict]:
    """One row for each seed, split and ability."""
    sightline("world", "make", str(folder / "world"))
    rows = []
    for seed in seeds:
        data = [f"stages.0.data.path={folder}/world/pretrain.json", f"stages.1.data.path={folder}/world/instruct.json"]
        data += [f"stages.0.validation.path={folder}/world/validation.captions.json", f"seed={seed}"]
        arms = {"model": [], "twin": ["blank_images=true"]}
        started = [
            start("train", "world", f"name={arm}", f"out={folder}/{arm}{seed}", *data, *more)
            for arm, more in arms.items()
        ]
        for process in started:
            if process.wait():
                raise SystemExit("a training failed; see above")
        for split in SPLITS:
            both = []
            for arm in arms:
                out = folder / f"{arm}{seed}" / "eval" / split
                blank = ["--blank-images"] if arm == "twin" else []
                questions = f"{folder}/world/{split}.questions.jsonl"
                sightline("eval", f"{folder}/{arm}{seed}", "--data", questions, "--out", str(out), *blank)
                both.append(out)
            rows += [{"seed": seed, "split": split, **row} for row in differences(*both)]
    return rows


def differences(model: Path, twin: Path) -> list[dict]:
    """Accuracies and their paired difference, overall and by ability."""
    scores = [read_scores(path / "scores.json") for path in (model, twin)]
    paired = compare(model / "predictions.jsonl", twin / "predictions.jsonl")
    named = {"overall": (scores[0].overall, scores[1].overall, paired.overall, scores[0].baseline)}
    for ability, difference in paired.by_ability.items():
        both = (scores[0].by_ability[ability], scores[1].by_ability[ability])
        named[ability] = (*both, difference, scores[0].baseline_by_ability[ability])
    return [
        {
            "ability": ability,
            "model": round(model_score.value, 4),
            "twin": round(twin_score.value, 4),
            "majority": round(majority, 4),
            "difference": round(difference.value, 4),
            "low": round(difference.low, 4),
            "high": round(difference.high, 4),
            "n": difference.n,
        }
        for ability, (model_score, twin_score, difference, majority) in named.items()
    ]


def table(rows: list[dict]) -> str:
    """The result as Markdown."""
    lines = [
        "| split | ability | seed | model | twin | majority | difference | 95% interval | n |",
        "|---|---|--|--|--|--|--|--|--|",
    ]
    for row in sorted(rows, key=lambda row: (row["split"], row["ability"], row["seed"])):
        interval = f"{row['low']:+.3f} to {row['high']:+.3f}"
        lines.append(
            f"| {row['split']} | {row['ability']} | {row['seed']} | {row['model']:.3f} | {row['twin']:.3f} | "
            f"{row['majority']:.3f} | {row['difference']:+.3f} | {interval} | {row['n']} |"
        )
    return "\n".join(lines)


def start(*arguments: str) -> subprocess.Popen:
    """A `sightline` command on one thread, in the background."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "sightline", *arguments], env=environment)


def sightline(*arguments: str) -> None:
    """A `sightline` command, to its end."""
    if start(*arguments).wait():
        raise SystemExit(f"sightline {' '.join(arguments)} failed; see above")


if __name__ == "__main__":
    main()
