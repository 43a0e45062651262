"""A recipe examined: rows, images, tokens, parts, one batch. Each step adds to one report, and none stops the next."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..config import Recipe, Stage, load_recipe
from ..data.templates import get_template
from ..errors import SightlineError
from ..methods.base import AlignmentMethod
from ..models.assemble import Assembly
from ..train.processes import pick_device
from ..types import Sample
from . import checks, models
from .batches import SoundRows, overfit_stages
from .findings import Finding, from_error
from .images import decode_all
from .look import Looked
from .place import about_run_folder
from .reading import Table, tables
from .report import DataRecord, Report
from .rows import BATCH, RowReader, VisualTokens

EMBEDDED_BYTES = 2**28
"""Of images inside rows of Parquet that are held, to be decoded together by several processes."""


def examine_file(
    path: str | Path, overrides: Sequence[str] = (), *, workers: int | None = None, model: bool = True, console: Console
) -> Report:
    """Examine a recipe's file; what is wrong in the recipe itself is in the report too."""
    try:
        recipe = load_recipe(path, list(overrides))
    except SightlineError as error:
        report = Report(str(path))
        heading, *problems = str(error).splitlines()
        fix = "Mend the recipe; `sightline recipes --keys` lists every key."
        for problem in problems or [heading]:
            report.add(Finding("error", "recipe", str(path), problem.strip(), fix))
        return report
    return examine(recipe, workers=workers, model=model, console=console)


def examine(recipe: Recipe, *, workers: int | None = None, model: bool = True, console: Console) -> Report:
    """Everything that can be known about a recipe before it trains.

    Args:
        workers: processes that decode images; by default one for each core.
        model: load the model, where it is small enough, and overfit one batch.
        console: where progress goes.
    """
    return _Examination(recipe, _cores() if workers is None else workers, model, console).run()


class _Examination:
    def __init__(self, recipe: Recipe, workers: int, model: bool, console: Console) -> None:
        self.recipe, self.workers, self.model, self.console = recipe, workers, model, console
        self.report = Report(recipe.name)
        self.tables: list[Table] = []
        self.sizes: dict[Path | str, tuple[int, int]] = {}
        """Sizes of the images that could be decoded."""
        self.sound: dict[str, SoundRows] = {}
        """A few rows of each stage with nothing wrong, to overfit."""
        self.assemblies: dict[str, Assembly] = {}

    def run(self) -> Report:
        with self._step("recipe", None):
            self._recipe()
        with self._step("parts", None):
            self._parts()
        with self._step("rows", None) as tick:
            uses = self._rows(tick)
        with self._step("images", len(uses)) as tick:
            self._images(uses, tick)
        with self._step("tokens", sum(len(table) for table in self.tables)) as tick:
            self._tokens(tick)
        with self._step("one batch", None) as tick:
            overfit_stages(
                self.recipe, self.report, self.sound, self.assemblies, device=self.device, model=self.model, tick=tick
            )
        return self.report

    @contextmanager
    def _step(self, name: str, total: int | None) -> Iterator[Any]:
        began = time.monotonic()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        drawn = self.console.is_terminal
        with Progress(*columns, console=self.console, transient=True, disable=not drawn) as progress:
            task = progress.add_task(name, total=total)
            yield lambda count: progress.advance(task, count)
        self.report.seconds[name] = time.monotonic() - began
        if not drawn:
            self.console.print(f"{name}: {self.report.seconds[name]:.1f} s", highlight=False)

    def _recipe(self) -> None:
        try:
            self.device = pick_device(self.recipe.device)
        except SightlineError as error:
            self.device = torch.device("cpu")
            self.report.add(from_error(error, severity="error", check="recipe/device", where=self.recipe.name))
        self.report.add(*about_run_folder(self.recipe))

    def _rows(self, tick: Any) -> dict[Any, tuple[str, int, bool]]:
        """Check every row's words; for each image (first place, rows that show it, whether it stops training)."""
        uses: dict[Any, tuple[str, int, bool]] = {}
        embedded: list[tuple[Any, tuple[str, int, bool]]] = []
        held = 0
        seen: dict[str, checks.Seen] = {}
        for table in tables(self.recipe):
            self.tables.append(table)
            stage, file = table.stage, table.data.path
            record = DataRecord(stage.name, table.role, file, table.data.template, self.recipe.max_length)
            record.rows, record.broken = len(table), len(table.problems)
            self.report.data.append(record)
            self.report.add(*checks.broken_rows(table.problems, file))
            if table.source is not None and table.source.notice:
                fix = "Nothing need be done, unless its order matters."
                self.report.add(Finding("note", "rows/notice", file, table.source.notice, fix))
            try:
                template = get_template(table.data.template)
            except SightlineError as error:
                where = f"stage '{stage.name}'"
                self.report.add(from_error(error, severity="error", check="recipe/template", where=where))
                continue
            mine = seen.setdefault(stage.name, checks.Seen())
            stops = stage.bad_images == "raise"
            assembly = self.assemblies.get(stage.name)
            columns = tuple(assembly.model.model.methods.columns(stage)) if assembly is not None else ()
            for where, sample in table:
                self.report.add(*checks.text_of_row(where, sample, template))
                if table.role == "data":
                    self.report.add(*mine.row(where, sample, columns))
                else:
                    self.report.add(*mine.held_out(where, sample))
                record.images += len(sample.images)
                for image in sample.images:
                    data = getattr(image, "data", None)
                    if data is not None:  # bytes in a row of Parquet: not kept until later
                        embedded.append((image, (where, 1, stops)))
                        held += len(data)
                        if held > EMBEDDED_BYTES:
                            held = self._embedded(embedded)
                        continue
                    place, count, stop = uses.get(image, (where, 0, False))
                    uses[image] = (place, count + 1, stop or stops)
                tick(1)
        self._embedded(embedded)
        self._needs_images()
        return uses

    def _embedded(self, images: list[tuple[Any, tuple[str, int, bool]]]) -> int:
        """Decode images whose bytes are at hand, and let go of them. Returns the bytes that are still held: none."""
        sources = [image for image, _ in images]
        with closing(decode_all(sources, workers=self.workers, tick=lambda count: None)) as results:
            for number, looked in results:
                self._looked(_key(sources[number]), looked, images[number][1], self.report)
        images.clear()
        return 0

    def _needs_images(self) -> None:
        for stage in self.recipe.stages:
            mine = [r for r in self.report.data if r.stage == stage.name and r.role == "data"]
            if "language" not in stage.trainable and sum(r.rows for r in mine) and not sum(r.images for r in mine):
                message = f"no row has an image, and only {', '.join(stage.trainable)} would train: nothing would move."
                fix = "Give the rows images, or train the language model."
                self.report.add(Finding("error", "coverage/no-images", f"stage '{stage.name}'", message, fix))

    def _images(self, uses: dict[Any, tuple[str, int, bool]], tick: Any) -> None:
        sources, ledger = list(uses), Report(self.recipe.name)
        with closing(decode_all(sources, workers=self.workers, tick=tick)) as results:
            for number, looked in results:
                self._looked(_key(sources[number]), looked, uses[sources[number]], ledger)
        groups = [group for group in ledger.ledger if group.check == "images/missing"]
        missing = sum(group.count for group in groups)
        if missing >= 5 and missing > len(sources) / 2:
            roots = ", ".join(f"'{root}'" for root in dict.fromkeys(table.root for table in self.tables))
            message = f"{missing} of {len(sources)} images are not there."
            fix = "Set data.images to the folder that the rows' image names start from."
            self.report.add(Finding("error", "images/folder-of-data", roots, message, fix))
        self.report.ledger.take(ledger.ledger)

    def _looked(self, key: Path | str, looked: Looked, use: tuple[str, int, bool], report: Report) -> None:
        """Note what became of an image; a row's policy decides whether its trouble stops training."""
        place, count, stops = use
        seen = self.report.images
        seen["files"] += 1
        seen["decoded" if looked.size is not None else "broken"] += 1
        if looked.size is not None:
            self.sizes[key] = looked.size
        for trouble in looked.troubles:
            more = f" and {count - 1} more rows" if count > 1 else ""
            severity, message = trouble.severity, trouble.message
            if severity == "error" and not stops:
                severity, message = "warning", f"{message} Its rows are skipped."
            report.add(Finding(severity, trouble.check, f"{key} ({place}{more})", message, trouble.fix))

    def _parts(self) -> None:
        assembly: Assembly | None = None
        for stage in self.recipe.stages:
            where = f"stage '{stage.name}'"
            try:
                assembly = models.skeleton(self.recipe, stage, assembly)
                parts = models.table(assembly, stage)
            except SightlineError as error:
                self.report.add(from_error(error, severity="error", check="parts/model", where=where))
                if assembly is not None:
                    self.assemblies[stage.name] = assembly
                continue
            except Exception as error:  # a config of others that transformers itself fails on
                fix = "Check that its folder holds a model that transformers loads."
                message = f"the model's shapes cannot be built: {error}."
                self.report.add(Finding("error", "parts/model", where, message, fix))
                continue
            self.assemblies[stage.name] = assembly
            self.report.parts.append(parts)
            self.report.add(*models.odd_rates(stage, parts))
            self._columns(stage, assembly, where)

    def _columns(self, stage: Stage, assembly: Assembly, where: str) -> None:
        """What methods annotate; whether it is there is known when they open it, which takes weights."""
        methods = assembly.model.model.methods
        annotate = {method.name for method in methods.all if type(method).annotation is not AlignmentMethod.annotation}
        for column, name in methods.columns(stage).items():
            message = f"method '{name}' needs column '{column}'"
            if name in annotate:
                fix = f"Nothing, if this was run: sightline annotate RECIPE --method {name}"
                self.report.add(Finding("note", "parts/columns", where, f"{message}, which it annotates.", fix))
            else:
                fix = "Train from Python, with the column in memory: train(recipe, columns=...)."
                self.report.add(Finding("error", "parts/columns", where, f"{message}, which is not there.", fix))

    def _tokens(self, tick: Any) -> None:
        left: Counter[tuple[str, str]] = Counter()
        for table, record in zip(self.tables, self.report.data, strict=True):
            stage = table.stage
            if stage.name not in self.assemblies or not len(table):
                continue
            try:
                processor = models.processor(self.assemblies[stage.name], self.recipe, table.data.template)
            except SightlineError as error:
                where = f"stage '{stage.name}'"
                self.report.add(from_error(error, severity="error", check="template/tokenizer", where=where))
                continue
            reader = RowReader(
                processor,
                seed=self.recipe.seed,
                training=table.role == "data",
                long_rows=stage.long_rows,
                visual=VisualTokens(processor, lambda image: self.sizes.get(_key(image))),
            )
            sound = self.sound.setdefault(stage.name, SoundRows())
            special = checks.special_pattern(processor.tokenizer.all_special_tokens)
            waiting: list[tuple[int, str, Sample]] = []
            for number, (where, sample) in enumerate(table):
                self.report.add(*checks.special_tokens(where, sample, special))
                waiting.append((number, where, sample))
                if len(waiting) == BATCH or number + 1 == len(table):
                    found = reader.read(waiting)
                    self.report.add(*found)
                    if table.role == "data":
                        sound.keep(waiting, found, processor, lambda image: _key(image) in self.sizes)
                    tick(len(waiting))
                    waiting = []
            record.budget = reader.budget.summary(self.recipe.max_length)
            if stage.bad_images == "skip" or stage.long_rows != "raise":
                left[stage.name, table.role] += reader.left
        self.report.add(*(checks.none_left(name, role) for (name, role), count in left.items() if not count))


def _key(image: Any) -> Path | str:
    """What an image is called: its path, or its name in the file that holds it."""
    return image if isinstance(image, Path) else str(getattr(image, "name", image))


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else (os.cpu_count() or 1)
