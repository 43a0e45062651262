"""The whole job on the small world, once: what `make demo` runs.

Every step is a command that a user could type, and is shown as one. The model and its blind twin go side by side, one
thread each, since threads of tiny models cost more than they give.
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

from .errors import SightlineError
from .files import claim_empty

ASKED = ("colour", "relation", "reading")
SHORT = {
    "world": ["--train", "48", "--validation", "16", "--test", "16", "--novel", "16"],
    "train": ["stages.0.steps=3", "stages.1.steps=3", "stages.0.batch_size=8", "stages.1.batch_size=8"],
}


def run_demo(out: Path, *, short: bool = False) -> Path:
    """Make the world, train model and twin, evaluate both, ask, and write one page.

    Args:
        out: a new or empty folder; it receives `world/`, the run folders `run/` and `twin/`, and the page.
        short: a few steps only, to see that everything works; its scores mean nothing.

    Returns:
        The page's path.

    Raises:
        SightlineError: if `out` is not empty.
    """
    claim_empty(out, "the demo")
    console = Console(stderr=True)
    began = time.monotonic()
    world, run, twin = out / "world", out / "run", out / "twin"
    recipe = Path(__file__).parent / "recipes" / "world.yaml"
    _say(console, "1. a small world: pictures, captions, questions, with the truth known")
    _run(console, "world", "make", str(world), *(SHORT["world"] if short else []))

    files = [
        f"stages.0.data.path={world / 'pretrain.json'}",
        f"stages.0.validation.path={world / 'validation.captions.json'}",
        f"stages.1.data.path={world / 'instruct.json'}",
        f"stages.1.validation.0.path={world / 'validation.instruct.json'}",
        f"stages.1.validation.1.path={world / 'validation.text.json'}",
        *(SHORT["train"] if short else []),
    ]
    _say(console, "2. two stages of training; a twin that sees only grey images trains beside it")
    blind = ["train", str(recipe), "name=twin", f"out={twin}", "blank_images=true", *files]
    with _beside(console, out / "twin.log", *blind):
        _run(console, "train", str(recipe), "name=demo", f"out={run}", *files)

    _say(console, "3. questions on pictures that training never showed, and on colour-shape pairs that it never showed")
    for split in ("validation", "novel"):
        questions = str(world / f"{split}.questions.jsonl")
        with _beside(console, out / f"twin.{split}.log", "eval", str(twin), "--data", questions, "--blank-images"):
            _run(console, "eval", str(run), "--data", questions)

    _say(console, "4. ask it")
    for picture, question in _examples(world / "validation.questions.jsonl"):
        _run(console, "ask", str(run), str(world / "images" / picture), question)

    _say(console, "5. one page")
    page = out / "report.html"
    _run(console, "report", str(run), "--twin", str(twin), "--first", "validation.questions", "--out", str(page))
    console.print(f"done in {time.monotonic() - began:.0f} s; open {page} in a browser")
    return page


def _examples(questions: Path) -> list[tuple[str, str]]:
    """The first question of each of a few abilities, with its picture."""
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    chosen = {row["ability"]: row for row in reversed(rows)}
    return [(chosen[a]["image"], chosen[a]["question"]) for a in ASKED if a in chosen]


def _say(console: Console, text: str) -> None:
    console.print(f"\n{text}", style="bold")


@contextmanager
def _beside(console: Console, log: Path, *arguments: str) -> Iterator[None]:
    """Runs a command in the background, what it says into `log`, and waits for it at the end."""
    with log.open("w", encoding="utf-8") as stream:
        console.print(f"$ sightline {shlex.join(arguments)} > {log} &", style="dim", soft_wrap=True)
        process = subprocess.Popen(_command(list(arguments)), env=_environment(), stdout=stream, stderr=stream)
        try:
            yield
            if process.poll() is None:
                console.print("waiting for the twin")
            code = process.wait()
        finally:
            process.kill()
    if code:
        raise SightlineError(f"`sightline {arguments[0]}` of the twin stopped with code {code}. Its log: {log}")


def _run(console: Console, *arguments: str) -> None:
    console.print(f"$ sightline {shlex.join(arguments)}", style="dim", soft_wrap=True)
    code = subprocess.run(_command(list(arguments)), env=_environment(), check=False).returncode
    if code:
        raise SightlineError(f"`sightline {arguments[0]}` stopped with code {code}; what it said stands above.")


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "sightline", *arguments]


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}
