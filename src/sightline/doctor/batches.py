"""The rows that a batch to overfit is made of, and which stages are tried."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..config import Recipe, Stage
from ..data.collate import collate
from ..data.processor import Processor
from ..errors import SightlineError
from ..models.assemble import Assembly
from ..train.run import seed_everything, start
from ..types import Sample
from .findings import Finding, from_error
from .overfit import Overfit, overfit, too_large
from .report import Report

ROWS = 4
"""Rows of the batch."""


class SoundRows:
    """A few rows of a stage with nothing wrong, those with images first, each with the processor that lays it out."""

    def __init__(self) -> None:
        self.rows: list[tuple[Processor, Sample]] = []

    def keep(
        self,
        rows: list[tuple[int, str, Sample]],
        found: list[Finding],
        processor: Processor,
        decodes: Callable[[Any], bool],
    ) -> None:
        """Keep those of `rows` (number, place, sample) that nothing was found about and whose images decode."""
        if len(self.rows) >= ROWS and all(sample.images for _, sample in self.rows):
            return
        odd = {finding.where.partition(" (id '")[0] for finding in found}
        sound = [s for _, where, s in rows if where not in odd and all(decodes(image) for image in s.images)]
        merged = [*self.rows, *((processor, sample) for sample in sound)]
        self.rows = sorted(merged, key=lambda row: not row[1].images)[:ROWS]


def overfit_stages(
    recipe: Recipe,
    report: Report,
    sound: Mapping[str, SoundRows],
    assemblies: Mapping[str, Assembly],
    *,
    device: torch.device,
    model: bool,
    tick: Callable[[int], None],
) -> None:
    """Overfit one batch of the first stage and one of the last; what cannot be tried is reported with its reason.

    The last stage starts from the same fresh model as the first, unless it names another.
    """
    loaded: Assembly | None = None
    for stage in [recipe.stages[0], *recipe.stages[1:][-1:]]:
        where = f"stage '{stage.name}'"
        reason = "--no-model" if not model else why_not(stage, report, sound, assemblies, device)
        if not reason:
            try:
                seed_everything(recipe.seed)
                loaded = start(recipe, stage, loaded).to(device)
                rows = sound[stage.name].rows
                batch = collate([processor(sample) for processor, sample in rows], pad_id=rows[0][0].pad_id)
                result, found = overfit(loaded, stage, batch, seed=recipe.seed, device=device, tick=tick)
                report.overfit.append(result)
                report.add(*found)
                continue
            except SightlineError as error:
                report.add(from_error(error, severity="error", check="parts/model", where=where))
                reason = "the model cannot be loaded"
            except (RuntimeError, MemoryError) as error:
                reason = f"a training step fails: {str(error).partition(chr(10))[0] or type(error).__name__}"
                fix = "Use another device or precision, or a smaller model."
                report.add(Finding("error", "overfit/failed", where, f"{reason}.", fix))
        report.overfit.append(Overfit(stage.name, "skipped", reason))


def why_not(
    stage: Stage,
    report: Report,
    sound: Mapping[str, SoundRows],
    assemblies: Mapping[str, Assembly],
    device: torch.device,
) -> str:
    """Why a stage cannot be tried; empty if it can."""
    if stage.name not in {parts.stage for parts in report.parts}:
        return "the model cannot be built"
    if stage.name not in sound or not sound[stage.name].rows:
        return "no row of it has nothing wrong"
    if columns := list(assemblies[stage.name].model.model.methods.columns(stage)):
        return f"its method needs column '{columns[0]}'"
    return too_large(assemblies[stage.name], device)
