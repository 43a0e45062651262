"""`sightline export` and `sightline import`: models for others, and from others."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    model: Annotated[str, typer.Argument(help="A model or run folder, or a hub id of a LLaVA model.", metavar="MODEL")],
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    merge: Annotated[bool, typer.Option("--merge", help="Fold adapters into the weights.")] = False,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the weights that are written.")] = "fp32",
    template: Annotated[
        str | None, typer.Option(help="How turns become text, for a model that does not say so.")
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            help="Hold what AlignGPT's gate computes at a level (1, 2, ...) or all at equal weights (`average`)."
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Keep methods as they are, in a model that needs Sightline.")
    ] = False,
) -> None:
    """Write a model as a standalone standard one, and assert that it computes what it did.

    Logits with and without an image are compared before and after: equal, or to 1e-4 of the largest after `--merge`,
    5e-2 in bf16, 1e-2 in fp16. A model with adapters and no `--merge` is written as adapters over its base.

    AlignGPT's vector, where it is one for all questions, becomes the embedding of a token that the chat template puts
    after BOS. Where its gate computes one for each question, no stock checkpoint can: hold it with `--level` (the model
    then computes something else), or keep it with `--live`.
    """
    from .checkpoints import export_model

    done = export_model(model, out, merge=merge, dtype=dtype, template=template, level=level, live=live)
    typer.echo(f"{done.folder}")
    allowed = f"{done.tolerance:g} allowed" if done.tolerance else "none allowed"
    typer.echo(f"{done.kind}; largest difference of a logit {done.difference:.2g} of the largest ({allowed})", err=True)


def import_(
    path: Annotated[Path, typer.Argument(help="A file or folder of AlignGPT's public code.", metavar="PATH")],
    out: Annotated[Path, typer.Option(help="A new or empty folder.")],
    vision: Annotated[str, typer.Option(help="The CLIP that it was trained with: local folder or hub id.")],
    language: Annotated[
        str | None, typer.Option(help="For a file of stage 1: the language model that it was trained with.")
    ] = None,
    template: Annotated[str, typer.Option(help="How turns become text.")] = "vicuna_v1",
    image_fit: Annotated[
        Literal["pad", "crop"] | None, typer.Option(help="How images meet the tower; by default as its config says.")
    ] = None,
    dtype: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the weights that are written.")] = "fp32",
    seed: Annotated[int, typer.Option(min=0, help="For the gate of a stage-1 file, which is fresh.")] = 0,
) -> None:
    """Write AlignGPT's published weights as a model folder: `mm_projector_align.bin` of stage 1, or a whole checkpoint.

    Every weight must be there, have its shape, and be known. The folder is one for `ask` and `eval`, and for
    `init_from` in a recipe whose methods are `[{name: aligngpt, preset: aligngpt_paper}]`.
    """
    from .checkpoints import import_model

    done = import_model(
        path,
        out,
        vision=vision,
        language=language,
        template=template,
        image_fit=image_fit,
        dtype=dtype,
        seed=seed,
    )
    typer.echo(f"{done.folder}")
    typer.echo("a whole checkpoint" if done.whole else "connector and levels of stage 1; the gate is fresh", err=True)
