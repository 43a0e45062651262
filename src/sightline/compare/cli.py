"""`sightline compare`: a plan carried out, or written from recipes and carried out."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from ..errors import SightlineError

MOST_SEEDS = 10_000


def compare(
    files: Annotated[
        list[str], typer.Argument(help="One plan, or two recipes or more, the baseline first.", metavar="FILE...")
    ],
    seeds: Annotated[
        int | None, typer.Option(min=1, max=MOST_SEEDS, help="Of recipes: how many seeds, from 0 on.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Of recipes: the claim's question file.", show_default="test.questions.jsonl")
    ] = None,
    ability: Annotated[str | None, typer.Option(help="Of recipes: the questions that count; all by default.")] = None,
    smallest_effect: Annotated[
        float | None, typer.Option(help="Of recipes: the smallest difference that matters.", show_default="0.02")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of recipes: what the comparison is called.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The comparison's folder.", show_default="comparisons/<name>")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at once; GPUs are shared out among them.")] = 1,
    shard: Annotated[
        str, typer.Option(help="Which part of the runs: 2/5 is the second of five.", metavar="I/N")
    ] = "1/1",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps; by default each recipe's.")] = None,
    discard: Annotated[
        bool, typer.Option("--discard", help="Remove the weights of a run once its row is written.")
    ] = False,
    only_report: Annotated[bool, typer.Option("--report", help="Run nothing; compute results from the rows.")] = False,
    only_plan: Annotated[
        bool, typer.Option("--plan", help="Write the plan if it is of recipes, check it, and run nothing.")
    ] = False,
) -> None:
    """Compare recipes fairly: the plan first, the same seeds for every arm, intervals paired by seed, the compute.

        sightline compare plan.yaml --workers 2

        sightline compare baseline.yaml mine.yaml --seeds 10 --data data/test.questions.jsonl

    A plan names arms, seeds, the tuning that every arm gets, one primary outcome, and the smallest effect that matters
    (`docs/compare.md` has one). From recipes alone it is written first, to `comparisons/<name>.plan.yaml`. Once begun,
    it cannot change.

    Stopped or killed, the same command goes on. On a shared folder, start it on as many machines as you like; without
    one, `--shard`. The folder receives a row for each finished run, fit to be committed, `results.jsonl`, and
    `results.md`, which is printed too.
    """
    part = parse_shard(shard)
    from .checks import check_plan
    from .draft import SMALLEST_EFFECT, draft_plan
    from .folder import begun_comparison, jobs_of, open_comparison
    from .progress import Watch
    from .read import load_plan
    from .report import write_results
    from .run import run_comparison
    from .work import CommandLine, visible_gpus

    of_recipes = {
        "--seeds": seeds,
        "--data": data,
        "--ability": ability,
        "--smallest-effect": smallest_effect,
        "--name": name,
    }
    if len(files) > 1:
        home = out.parent if out is not None else Path("comparisons")
        path = draft_plan(
            files,
            folder=home,
            seeds=seeds or 10,
            data=data,
            ability=ability,
            smallest_effect=SMALLEST_EFFECT if smallest_effect is None else smallest_effect,
            name=name,
        )
        typer.echo(f"the plan is {path}", err=True)
    else:
        path = Path(files[0])
        plan = load_plan(path)
        given = next((option for option, value in of_recipes.items() if value is not None), None)
        if given is not None:
            raise SightlineError(
                f"{given} goes with recipes, and {path} is a plan that says it itself. Leave {given} out, or change "
                "the plan before its first run."
            )
    plan = load_plan(path)
    folder, jobs = out or Path("comparisons") / plan.name, jobs_of(plan)
    command = shlex.join(["sightline", "compare", str(path), *(["--out", str(out)] if out is not None else [])])
    if only_plan:
        check_plan(plan)
        typer.echo(f"{path} is a plan of {len(jobs)} runs; nothing was run. Carry it out: {command}", err=True)
        return
    if only_report:  # rows can be read where recipes and data have changed since, or have gone
        if not (folder / "plan.json").is_file():
            raise SightlineError(
                f"no comparison was begun in '{folder}', so there is nothing to report. Begin it: {command}"
            )
        comparison, _ = begun_comparison(plan, folder)
    else:
        comparison = open_comparison(plan, path.read_text(encoding="utf-8"), check_plan(plan), folder)
    typer.echo(f"{sum(map(comparison.done, jobs))} of {len(jobs)} runs are done; the folder is {folder}", err=True)
    failures: list[SightlineError] = []
    if not only_report:
        runner = CommandLine(threads=plan.threads, gpus=visible_gpus(device))
        watch = Watch(comparison, jobs[part[0] - 1 :: part[1]], workers)
        options = {"workers": workers, "shard": part, "device": device, "discard": discard}
        try:
            failures = run_comparison(comparison, runner, watch=watch, **options)
        except KeyboardInterrupt:
            typer.echo(f"\nstopped at once; finished runs are kept. Go on: {command}", err=True)
            raise typer.Exit(130) from None
    _, text = write_results(comparison, command)
    typer.echo(text)
    typer.echo(str(folder / "results.md"), err=True)
    if failures:
        lines = "\n".join(f"  {failure}" for failure in failures)
        count = "1 run" if len(failures) == 1 else f"{len(failures)} runs"
        raise SightlineError(f"{count} failed, so the claim waits:\n{lines}\nMend the cause, and go on: {command}")


def parse_shard(text: str) -> tuple[int, int]:
    """`2/5` as (2, 5).

    Raises:
        SightlineError: for anything that is not a part of a whole.
    """
    first, slash, second = text.partition("/")
    if (
        slash
        and text.isascii()
        and first.isdecimal()
        and second.isdecimal()
        and len(text) < 20
        and 1 <= int(first) <= int(second)
    ):
        return int(first), int(second)
    raise SightlineError(
        f"--shard {text} is no part of the runs, so nothing was run. Say which of how many: 1/2 and 2/2, for instance."
    )
