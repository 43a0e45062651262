"""Time of a step and of an answer, recipe beside recipe, for arms of a comparison whose runs shared a machine.

Written down before the first run. Each turn, in an order that is shuffled, trains every recipe for one step of its
first stage and a few of its last, and asks the model the same questions; the first recipe is what others are compared
with. A step's time is that of the last stage's metrics, the first steps left out; an answer's is that of `evaluate`
over its questions, tower included. One thread. Times of a turn are paired; the interval is bootstrapped over
turns. Where features are stored, training reads them, as it did in the comparison. Data and annotations must be there.

    python benchmarks/recipe_times.py world-high world-anyres world-perceiver world-vlsa
    # writes benchmarks/results/recipe_times.json and .md; changed keys follow a name: world-high+stages.1.packing=true
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from train_step import ratio_of

from sightline.config import load_recipe
from sightline.evaluation import evaluate, read_questions
from sightline.generation import Assistant
from sightline.train.run import train

RESULTS = Path(__file__).parent / "results"
WARM = 3
"""Steps that are left out."""


def main() -> None:
    """Measure all recipes; write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--questions", type=Path, default=Path("data/world-high/validation.questions.jsonl"))
    parser.add_argument("--asked", type=int, default=160)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "recipe_times.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    times: dict[str, dict[str, list[float]]] = {name: {"step": [], "answer": []} for name in options.recipes}
    order = np.random.default_rng(0)
    for turn in range(options.turns):
        for name in order.permutation(options.recipes):
            step, answer = measure(str(name), options)
            times[str(name)]["step"].append(step)
            times[str(name)]["answer"].append(answer)
            print(
                f"turn {turn + 1} of {options.turns}  {name}: {step:.3f} s a step, {answer:.4f} s an answer", flush=True
            )
    result = {
        "machine": platform.platform(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers")},
        },
        "turns": options.turns,
        "steps": options.steps,
        "asked": options.asked,
        "recipes": [row(name, times[name], times[options.recipes[0]]) for name in options.recipes],
    }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    options.out.with_suffix(".md").write_text(table(result), encoding="utf-8")
    print(table(result))


def measure(name: str, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a step of the last stage, the middle one, and of an answer, the mean."""
    with tempfile.TemporaryDirectory() as folder:
        name, *changed = name.split("+")
        last = len(load_recipe(name).stages) - 1
        short = [f"stages.{number}.steps={1 if number < last else WARM + options.steps}" for number in range(last + 1)]
        silent = [f"stages.{number}.validation=[]" for number in range(last + 1)]
        run = train(load_recipe(name, [*changed, *short, *silent, f"out={folder}/run", "device=cpu"]), quiet=True)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        steps = [row["samples"] / row["samples_per_s"] for row in rows][-options.steps :]
        assistant = Assistant(run / "model")
        questions = read_questions(options.questions, options.questions.parent / "images")[: options.asked]
        began = time.perf_counter()
        evaluate(assistant, questions, out=Path(folder) / "eval", batch_size=32, progress=False)
        return statistics.median(steps), (time.perf_counter() - began) / len(questions)


def row(name: str, times: dict[str, list[float]], against: dict[str, list[float]]) -> dict[str, Any]:
    """The middle times of a recipe, and how many times those of the first one they are."""
    found: dict[str, Any] = {"recipe": name}
    for what, seconds in times.items():
        ratio, low, high = ratio_of(seconds, against[what])
        found[what] = {"seconds": statistics.median(seconds), "times": ratio, "low": low, "high": high}
    return found


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    versions = ", ".join(f"{name} {of}" for name, of in result["versions"].items())
    lines = [
        "# Time of a step and of an answer",
        "",
        "Written by `benchmarks/recipe_times.py`, whose docstring says what was measured.",
        f"Machine: {result['machine']}, 1 thread. Versions: {versions}. {result['turns']} turns.",
        "",
        "| recipe | a step of the last stage (s) | times the first | an answer (ms) | times the first |",
        "|---|--|--|--|--|",
    ]
    for one in result["recipes"]:
        step, answer = one["step"], one["answer"]
        cells = [f"{step['seconds']:.3f}", _times(step), f"{1000 * answer['seconds']:.1f}", _times(answer)]
        lines.append(f"| {one['recipe']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _times(of: dict[str, float]) -> str:
    return f"{of['times']:.2f} ({of['low']:.2f} to {of['high']:.2f})"


if __name__ == "__main__":
    main()
