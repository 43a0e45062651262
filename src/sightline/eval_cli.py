"""`sightline eval`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from .errors import SightlineError

if TYPE_CHECKING:
    import torch


Precision = Literal["fp32", "bf16"]
KEY = "OPENAI_API_KEY"
"""The environment's name for what a judge's endpoint may want."""
WIDE = 240
"""Columns of a table that no terminal shows."""


def evaluate(
    model: Annotated[str, typer.Argument(help="A run or model folder, or a hub id of a LLaVA model.", metavar="MODEL")],
    data: Annotated[Path | None, typer.Option(help="A question file (JSON or JSONL).")] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="Benchmarks of the field instead: pope,gqa or `all` that are there.", metavar="NAMES"),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="The folder of the benchmarks' files: each in a folder of its name, or one here."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="The folder of a question file's images; by default `images` beside it, or its own folder."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where scores and answers go; by default `eval/<name>` in the run folder."),
    ] = None,
    most: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of each benchmark the first so many questions: to try. By default in `eval/first-N`."
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most tokens of an answer to a question file; benchmarks have their own.", show_default="16"
        ),
    ] = None,
    blank_images: Annotated[
        bool, typer.Option("--blank-images", help="Show grey images instead (a blind score); question files alone.")
    ] = False,
    judge: Annotated[str | None, typer.Option(help="The model that marks LLaVA-Bench and MM-Vet.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Where it answers, of OpenAI's kind: http://localhost:8000/v1", metavar="URL")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="How a benchmark's questions are asked.", show_default="as the checkpoint says")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[Precision, typer.Option(help="Of the weights; bf16 takes half the memory.")] = "fp32",
) -> None:
    """Score a model on a question file, or on benchmarks of the field.

    A question file: exact match, and for yes/no questions precision, recall, F1 and yes-ratio. Each line holds
    `question`, `answer` (or `answers`), and if it has them `image`, `id`, `ability`; LLaVA rows with one question and
    its answer work too. `scores.json` records the settings, `predictions.jsonl` every answer.

        sightline eval runs/mine --data test.questions.jsonl

    Benchmarks are read from their own files, asked in LLaVA's words, and scored by their own rules:

        sightline eval runs/mine --benchmark pope,gqa --root ~/benchmarks

    Stopped, the same command goes on. LLaVA-Bench and MM-Vet are marked by a judge: without --endpoint the requests are
    written, for any tool that sends OpenAI's batches; put its answers beside them, and run the command again.

    Every score has a 95% interval. `docs/benchmarks.md` says which files are read, and what a number can be held
    against.
    """
    if (data is None) == (benchmark is None):
        raise SightlineError("say what to score on: --data FILE, or --benchmark NAMES --root FOLDER")
    if data is not None:
        theirs = {"root": root, "most": most, "judge": judge, "endpoint": endpoint, "template": template}
        _leave_out(theirs, "--benchmark")
        _on_file(model, data, images, out, batch_size, max_new_tokens or 16, blank_images, device, dtype)
        return
    assert benchmark is not None
    _leave_out({"images": images, "max-new-tokens": max_new_tokens, "blank-images": blank_images or None}, "--data")
    if endpoint is not None and judge is None:
        raise SightlineError("an endpoint answers as one of its models, and none was named. Name it: --judge NAME")
    if root is None or not root.is_dir():
        raise SightlineError(
            f"--benchmark reads its own files, and {f'{root} is no folder' if root else 'no folder was named'}. Say "
            "where they are: --root FOLDER"
        )
    from rich.console import Console

    from .benchmarks.items import Marking
    from .benchmarks.marks import judge_of, judged
    from .benchmarks.run import answer, items_of, write_scores
    from .benchmarks.speaker import Speaking
    from .benchmarks.suite import there
    from .benchmarks.tables import scores_table
    from .train.processes import pick_device

    place, chosen = pick_device(device), there(benchmark.split(","), root)
    asked = [(each, items_of(each, root, most)) for each in chosen]
    speaker = Speaking(model, device=place, dtype=weights(dtype), template=template)
    parent = out or eval_folder(model) / (f"first-{most}" if most else "")
    for each, items in asked:
        folder = parent / each.name
        settings = {
            "model": Path(model).as_posix(),
            "dtype": dtype,
            "template": speaker.template,
            "max_new_tokens": each.max_new_tokens,
            "decoding": "greedy",
            "weights": speaker.digest,
        }
        try:
            rows = answer(each, items, speaker, folder, settings=settings, batch_size=batch_size)
        except KeyboardInterrupt:
            typer.echo(f"stopped. What was answered is in {folder}; the same command goes on.", err=True)
            raise
        ids = [item.id for item in items]
        if isinstance(each.score, Marking):
            scores = judged(each, rows, folder, judge, endpoint, os.environ.get(KEY), typer.echo)
        else:
            scores = each.score(rows)
        if scores is not None:
            marked_by = judge_of(folder)
            recorded = settings | {"batch_size": batch_size, "device": str(place), "ids": ids, "judge": marked_by}
            write_scores(each, scores, folder, recorded)
            Console().print(scores_table(each, scores))
            typer.echo(f"{folder / 'scores.json'}")


def _leave_out(options: Mapping[str, object], of: str) -> None:
    """Refuse what the other kind of evaluation alone would heed, rather than do without it in silence."""
    if given := [f"--{name}" for name, value in options.items() if value is not None]:
        raise SightlineError(f"{', '.join(given)} would change nothing here: it goes with {of}. Leave it out.")


def tables(
    paper: Annotated[str | None, typer.Argument(help="SEA, VLSA or AlignGPT; all by default.")] = None,
    runs: Annotated[Path, typer.Option(help="Where your runs are, each in a folder of its recipe's name.")] = Path(
        "runs"
    ),
) -> None:
    """Print the papers' tables: each row's recipe, what was published, and what your run of it scored.

    Train a row by its recipe, score it on benchmarks, and it stands under the published one:

        sightline train sea-llava-1.5-7b
        sightline eval runs/sea-llava-1.5-7b --benchmark pope,gqa --root ~/benchmarks
        sightline tables SEA

    None of the papers' rows has been trained by us.
    """
    from rich.console import Console

    from .benchmarks.published import published, table

    console = Console()
    if not console.is_terminal:  # a file or a pipe is as wide as it needs to be
        console.width = WIDE
    for of in published(paper):
        console.print(table(of, runs))
        console.print()


def _on_file(
    model: str,
    data: Path,
    images: Path | None,
    out: Path | None,
    batch_size: int,
    max_new_tokens: int,
    blank_images: bool,
    device: str,
    dtype: Precision,
) -> None:
    from .data.images import image_folder
    from .evaluation import read_questions

    questions = read_questions(data, image_folder(data, images))
    from rich.console import Console

    from .evaluation import evaluate as run
    from .evaluation import scores_table
    from .generation import Assistant
    from .train.processes import pick_device

    place = pick_device(device)
    target = out or default_eval_folder(model, data, blank=blank_images)
    settings = {"model": model, "data": str(data), "device": str(place), "dtype": dtype}
    scores = run(
        Assistant(model, device=place, dtype=weights(dtype)),
        questions,
        out=target,
        settings=settings,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        blank_images=blank_images,
        progress=True,
    )
    Console().print(scores_table(scores))
    typer.echo(f"{target / 'scores.json'}")


def weights(dtype: Precision) -> "torch.dtype":
    """torch's word for a precision."""
    import torch

    return torch.float32 if dtype == "fp32" else torch.bfloat16


def default_eval_folder(model: str, data: Path, *, blank: bool) -> Path:
    """`eval/<file>` in the run folder of a local model, else `runs/eval/<model>/<file>`."""
    return eval_folder(model) / (data.name.removesuffix(data.suffix) + ("-blank" if blank else ""))


def eval_folder(model: str) -> Path:
    """`eval` in the run folder of a local model, else `runs/eval/<model>`."""
    folder = Path(model)
    if folder.is_dir():
        return (folder.parent if folder.name == "model" else folder) / "eval"
    return Path("runs") / "eval" / model.replace("/", "--")
