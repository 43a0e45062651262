"""The command line: thin, every command calls one public function, and nothing heavy is imported for `--help`."""

import io
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .compare.cli import compare
from .diagnostics.cli import diagnose
from .diagnostics.lens_cli import lens
from .errors import SightlineError
from .eval_cli import Precision, evaluate, tables, weights
from .export_cli import export, import_
from .paint_cli import paint
from .reconstruct_cli import reconstruct
from .report.cli import report
from .world.cli import app as world

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Build, train, measure and ship vision-language models whose images and words are aligned.\n\n"
    "Start with `sightline demo`, which does the whole job on a small world in a few minutes. With your own data: "
    "write a recipe (`sightline recipes` lists the shipped ones), then `train`, `eval`, `ask`, `report`.",
)
app.add_typer(world, name="world")
for command in (diagnose, lens, reconstruct, paint, report, compare, export, tables):
    app.command()(command)
app.command("import")(import_)
app.command("eval")(evaluate)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"sightline {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file (YAML), or a shipped recipe's name.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it, as key=value.", metavar="[KEY=VALUE]...")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in its folder; start it if there is none.")
    ] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Refuse operations that give other bits on each call.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parts, steps, FLOPs and memory by number of GPUs; load nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The dry run as JSON on standard output.")] = False,
    text_tokens: Annotated[
        int | None, typer.Option(min=0, help="Text tokens of a row for the dry run; else counted or assumed.")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            help="Images for the dry run.",
            metavar="WxH",
            show_default="the tower's size; four crops for models that see several views",
        ),
    ] = None,
) -> None:
    """Run every stage of a recipe and save the model.

    Any key of the recipe can be changed on the way, with dots for what is inside:

        sightline train recipe.yaml seed=1 out=runs/seed1 stages.0.lr=2e-3

    The run folder (`runs/<name>`, or the recipe's `out`) receives `recipe.yaml` with every default spelled out,
    `run.json` with versions and seed, `metrics.jsonl` with a line for each step, and `model/`: unless a method changes
    the forward pass, a stock `llava` checkpoint that transformers loads without Sightline.

    Ctrl-C and SIGTERM finish the step and write a checkpoint; after those, a crash or a kill, `--resume` goes on and
    ends with the same weights. On several GPUs: `torchrun --nproc-per-node 8 -m sightline train RECIPE`.
    """
    from .config import load_recipe

    resolved = load_recipe(recipe, [*(overrides or []), *(["deterministic=true"] if deterministic else [])])
    if dry_run:
        from .plan.report import print_plan

        print_plan(resolved, as_json=as_json, text_tokens=text_tokens, image=read_size(image_size))
        raise typer.Exit
    for option, given in (
        ("--json", as_json),
        ("--text-tokens", text_tokens is not None),
        ("--image-size", image_size is not None),
    ):
        if given:
            raise SightlineError(f"{option} goes with --dry-run. Add it, or leave {option} out.")
    from .train import train as run
    from .train.folder import check_place, how_to_go_on

    if resume:
        check_place(Path(recipe), resolved)
    try:
        folder = run(resolved, resume=resume)
    except KeyboardInterrupt:
        way = how_to_go_on(resolved.run_folder)
        typer.echo(f"\nstopped at once; the last checkpoint, if there is one, is kept. Go on: {way}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{folder / 'model'}")
    typer.echo(f'next: sightline ask {folder / "model"} IMAGE "your question"', err=True)


@app.command()
def annotate(
    recipe: Annotated[str, typer.Argument(help="A recipe file (YAML), or a shipped recipe's name.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it, as key=value.", metavar="[KEY=VALUE]...")
    ] = None,
    features: Annotated[bool, typer.Option("--features", help="What the frozen vision tower gives.")] = False,
    method: Annotated[
        str | None, typer.Option(help="What a method of the recipe annotates; `all` of them.", metavar="NAME")
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Say and draw what the method annotated: scores, words used and not.")
    ] = False,
) -> None:
    """Compute once what does not change while a recipe trains; `train` uses it by itself when it is there.

    With `--method sea`: the words of every patch of every image of the stages that train with them. `aligngpt`: how
    well each pair agrees. `reconstruct`: latents. `cognition`: codes and colours.

        sightline annotate recipe.yaml --method sea

    With `--features`: what the frozen vision tower gives for every image of every stage that does not train it.
    Training then decodes no image and does not run the tower; what it computes is the same.

        sightline annotate recipe.yaml --features

    Files go to the recipe's `annotations` folder. The disk that they take is printed first, and refused if it is not
    there. Stopped at any moment, the same command goes on where it was; other images are added to those that are there.
    Several GPUs share the work: `torchrun --nproc-per-node 8 -m sightline annotate RECIPE --features`
    """
    if not features and method is None:
        raise SightlineError(
            "say what to compute: --method NAME for what a method annotates, --features for what the frozen vision "
            "tower gives"
        )
    from .config import load_recipe

    resolved = load_recipe(recipe, overrides or [])
    from .train.annotate import annotate_features, annotate_method

    try:
        folders = annotate_features(resolved) if features else []
        folders += annotate_method(resolved, method, report=report) if method is not None else []
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    for folder in folders:
        typer.echo(str(folder))


@app.command()
def doctor(
    recipe: Annotated[str, typer.Argument(help="A recipe file (YAML), or a shipped recipe's name.", metavar="RECIPE")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it, as key=value.", metavar="[KEY=VALUE]...")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report as JSON on standard output.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that decode images; by default one for each core.")
    ] = None,
    no_model: Annotated[bool, typer.Option("--no-model", help="Load no weights, and overfit no batch.")] = False,
) -> None:
    """Examine a recipe before it trains: every row and image, tokens, parts, one batch overfitted; one verdict.

    Nothing is written. Exit code 0 if training would run, 1 if it would fail.
    """
    from rich.console import Console

    from .doctor.report import show
    from .doctor.run import examine_file

    report = examine_file(recipe, overrides or [], workers=workers, model=not no_model, console=Console(stderr=True))
    if as_json:
        import json

        typer.echo(json.dumps(report.record(), indent=2, ensure_ascii=False))
    else:
        show(report, Console())
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="A model folder, or a hub id of a LLaVA model.", metavar="MODEL")],
    arguments: Annotated[
        list[str], typer.Argument(help="Images, if any, then the question.", metavar="[IMAGE]... [QUESTION]")
    ],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of the answer.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")] = "auto",
    dtype: Annotated[Precision, typer.Option(help="Of the weights; bf16 takes half the memory.")] = "fp32",
    level: Annotated[
        str | None, typer.Option(help="Of a model with AlignGPT: a level to answer at, or `all` of them.", metavar="K")
    ] = None,
) -> None:
    """Ask a model about images; the answer streams.

    sightline ask runs/demo/model photo.jpg "What colour is the ball?"

    A model that was trained on captions alone, as after stage 1, needs no question: `sightline ask MODEL photo.jpg`
    """
    from .ask import ask as run

    run(model, arguments, level=level, max_new_tokens=max_new_tokens, device=device, dtype=weights(dtype))


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="A new or empty folder.")] = Path("runs/demo"),
    short: Annotated[bool, typer.Option("--short", help="A few steps only, to see that everything works.")] = False,
) -> None:
    """Do the whole job on the small world: make it, train a baseline and all methods, evaluate, ask, write a page."""
    from .demo import run_demo

    typer.echo(str(run_demo(out, short=short)))


@app.command()
def recipes(
    keys: Annotated[bool, typer.Option("--keys", help="Every key of a recipe, with its default and meaning.")] = False,
) -> None:
    """List the shipped recipes: name, file and a line on each. `sightline train NAME` takes them by name."""
    if keys:
        from .config import reference

        for place, default, meaning in reference():
            typer.echo(f"{place} ({default})\n    {meaning}")
        return
    from .config import shipped_recipes

    for name, path in shipped_recipes().items():
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        typer.echo(f"{name}  ({path})\n    {first.lstrip('# ')}")


def read_size(text: str | None) -> tuple[int, int] | None:
    """Width and height as a user writes them, 672x448.

    Raises:
        SightlineError: for anything else.
    """
    if text is None:
        return None
    width, by, height = text.lower().partition("x")
    if not (by and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise SightlineError(f"--image-size {text} is no size. Write width and height in pixels: 672x448")
    return int(width), int(height)


def main() -> None:
    """The entry point: errors of the user, and of the disk, in one place, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that is not UTF-8 shows what it can
    try:
        app()
    except SightlineError as error:
        typer.echo(f"error: {error}" if error.exit_code == 2 else str(error), err=True)
        leave(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        place = f" '{error.filename}'" if error.filename else ""
        typer.echo(f"error: cannot read or write{place}: {error.strerror or error}. Choose another place.", err=True)
        leave(2)


def leave(code: int) -> None:
    """Exit with an error. Of several processes none may wait at its end for one that has gone (DDP's threads can)."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
