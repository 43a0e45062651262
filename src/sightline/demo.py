"""The tour of the small world: what `make demo` runs.

A baseline and a model with all methods are trained once each and shown side by side. Every step is a command that a
user could type, and is shown as one. The two go side by side, one thread each, since threads of tiny models cost more
than they give.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from .compare.claims import read_shipped
from .errors import SightlineError
from .files import claim_empty

ASKED = ("colour", "relation", "reading")
TRAINED = {"baseline": "world-high", "composed": "world-full"}
"""The tour's runs and their recipes."""
SIZES = {"train": 700, "validation": 70, "test": 8, "novel": 8}
STEPS, BATCH = {"pretrain": 70, "text": 8, "instruct": 150}, 16
"""Pictures of the world, and steps of each stage and their rows: as many for both runs, fewer than the recipes say."""
SHORT_SIZES = {"train": 48, "validation": 16, "test": 8, "novel": 8}


def run_demo(out: Path, *, short: bool = False) -> Path:
    """Make the world, train the baseline and the composed model, evaluate both, ask, and write one page.

    Args:
        out: a new or empty folder; it receives `world/`, the run folders `baseline/` and `composed/`, and the page.
        short: a few steps only, to see that everything works; its scores mean nothing.

    Returns:
        The page's path.

    Raises:
        SightlineError: if `out` is not empty, or a step fails.
    """
    claim_empty(out, "the demo")
    console = Console(stderr=True)
    began = time.monotonic()
    world = out / "world"
    sizes = SHORT_SIZES if short else SIZES
    _say(console, "1. a small world in high resolution: pictures, captions, questions, with the truth known")
    options = [word for split, count in sizes.items() for word in (f"--{split}", str(count))]
    _run(console, "world", "make", str(world), "--view", "high", *options)

    _say(console, "2. a baseline, and a model with SEA, AlignGPT and all of VLSA: what its methods need, computed once")
    train = {name: ["train", recipe, *changes(name, out, short=short)] for name, recipe in TRAINED.items()}
    with _beside(console, out / "baseline.log", *train["baseline"]):
        _run(console, "annotate", *train["composed"][1:], "--method", "all")
        _say(console, "3. three stages of training, the baseline's two beside them")
        _run(console, *train["composed"])

    _say(console, "4. questions about pictures that training never showed")
    questions = str(world / "validation.questions.jsonl")
    asked = {name: ["eval", str(out / name), "--data", questions] for name in TRAINED}
    with _beside(console, out / "baseline.eval.log", *asked["baseline"]):
        _run(console, *asked["composed"])

    _say(console, "5. ask it")
    for picture, question in _examples(world / "validation.questions.jsonl"):
        _run(console, "ask", str(out / "composed"), str(world / "images" / picture), question)

    _say(console, "6. one page, with what several seeds say of each method beside it")
    page = out / "report.html"
    _run(console, "report", *(str(out / name) for name in TRAINED), "--comparison", "shipped", "--out", str(page))
    console.print(f"\ndone in {time.monotonic() - began:.0f} s. One seed: no claim. Over seeds (all on the page):")
    for line in seeds_say():
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    console.print(f"open {page} in a browser", markup=False, highlight=False, soft_wrap=True)
    return page


def changes(name: str, out: Path, *, short: bool) -> list[str]:
    """What a run of the tour changes of its recipe: where files are, and how long it trains."""
    world = out / "world"
    noisy = name == "composed"
    stages = list(STEPS) if noisy else ["pretrain", "instruct"]
    said = [f"name={name}", f"out={out / name}", f"annotations={out / 'annotations'}"]
    for number, stage in enumerate(stages):
        rows = {"pretrain": "pretrain.noisy.json" if noisy else "pretrain.json", "text": "pretrain.json"}
        said += [f"stages.{number}.data.path={world / rows.get(stage, 'instruct.json')}"]
        said += [f"stages.{number}.steps={2 if short else STEPS[stage]}"]
        said += [f"stages.{number}.batch_size={8 if short else BATCH}"]
        said += [f"stages.{number}.workers=1"] if noisy else []  # the baseline's core, once that is done
    last = len(stages) - 1
    said += [f"stages.0.validation.path={world / 'validation.captions.json'}"]
    said += [f"stages.{last}.validation.0.path={world / 'validation.instruct.json'}"]
    said += [f"stages.{last}.validation.0.limit=200"]
    said += [f"stages.{last}.validation.1.path={world / 'validation.text.json'}"]
    return [*said, *([f"methods.2.words={world / 'words.txt'}"] if noisy else [])]


def seeds_say() -> list[str]:
    """The first claim of each comparison that ships."""
    return [
        f"{one.name}: {claim.a} less {claim.b} {100 * claim.difference:+z.1f} points "
        f"({100 * claim.low:+z.1f} to {100 * claim.high:+z.1f}), {one.outcome}, {one.seeds} seeds"
        for one in read_shipped()
        for claim in one.claims[:1]
    ]


def _examples(questions: Path) -> list[tuple[str, str]]:
    """The first question of each of a few abilities, with its picture."""
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    chosen = {row["ability"]: row for row in reversed(rows)}
    return [(chosen[a]["image"], chosen[a]["question"]) for a in ASKED if a in chosen]


def _say(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold")


def _show(console: Console, command: str) -> None:
    console.print(f"$ sightline {command}", style="dim", markup=False, soft_wrap=True)


@contextmanager
def _beside(console: Console, log: Path, *arguments: str) -> Iterator[None]:
    """Runs a command in the background, what it says into `log`, and waits for it at the end."""
    with log.open("w", encoding="utf-8") as stream:
        _show(console, f"{shlex.join(arguments)} > {shlex.quote(str(log))} &")
        process = subprocess.Popen(_command(list(arguments)), env=_environment(), stdout=stream, stderr=stream)
        try:
            yield
            if process.poll() is None:
                console.print("waiting for the baseline")
            code = process.wait()
        finally:
            process.kill()
    if code:
        raise SightlineError(f"`sightline {arguments[0]}` of the baseline stopped with code {code}. Its log: {log}")


def _run(console: Console, *arguments: str) -> None:
    _show(console, shlex.join(arguments))
    code = subprocess.run(_command(list(arguments)), env=_environment(), check=False).returncode
    if code:
        raise SightlineError(f"`sightline {arguments[0]}` stopped with code {code}; what it said stands above.")


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "sightline", *arguments]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}
