"""What a run says while it trains: to the terminal, and to `metrics.jsonl`, one line for each step and validation."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..config import Stage
from .setup import PartRow
from .trackers import Tracker

if TYPE_CHECKING:
    from ..data.dataset import Dropped
    from .step import StepResult

PLAIN_EVERY = 10.0
"""Seconds between lines where there is no terminal to draw a bar on."""
SMOOTHING = 0.9
PATIENCE = 2.0
"""Seconds of reading before a bar is worth showing."""


class Reporter:
    """Progress on the terminal and metrics on disk. A context manager: leaving it closes both."""

    def __init__(self, folder: Path, *, console: Console | None = None, quiet: bool = False, main: bool = True) -> None:
        """
        Args:
            folder: the run folder.
            main: of several processes one speaks and writes; in the others nothing comes of what is reported.
        """
        self.console = console if console is not None else Console(stderr=True, quiet=quiet or not main)
        self._metrics, self._dropped_path = folder / "metrics.jsonl", folder / "dropped.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = self._metrics.open("a", encoding="utf-8") if main else None
        self._dropped: Counter[tuple[str, str]] = Counter()
        self.trackers: Sequence[Tracker] = ()
        """Where steps and validations go beside the terminal and the files; closed with the reporter."""
        self._bar: Progress | None = None
        self._task: Any = None
        self._stage = ""
        self._total = self._done = 0
        self._last_line = 0.0
        self._began = time.monotonic()
        self._rate = 0.0

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_bar()
        for tracker in self.trackers:
            tracker.close()
        if self._file is not None:
            self._file.close()

    def say(self, text: str) -> None:
        """One line for the user."""
        self.console.print(text, highlight=False)

    def mark(self) -> dict[str, int]:
        """Where the files end now: what a checkpoint must know to `rewind` to it."""
        if self._file is None:
            return {}
        return {path.name: path.stat().st_size for path in (self._metrics, self._dropped_path) if path.exists()}

    def sync(self) -> None:
        """Have the disk hold the metrics, before a checkpoint relies on them."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def rewind(self, mark: Mapping[str, int]) -> None:
        """Forget the lines written after `mark`: the steps that they speak of are done again."""
        if self._file is None:
            return
        for path in (self._metrics, self._dropped_path):
            size = mark.get(path.name, 0)
            there = path.stat().st_size if path.exists() else 0
            if there < size:
                self.say(f"{path} is shorter than when the checkpoint was made: lines of earlier steps are lost")
            if there:
                os.truncate(path, path.read_bytes().rfind(b"\n", 0, size) + 1)
        if self._dropped_path.exists():
            rows = [json.loads(line) for line in self._dropped_path.read_text(encoding="utf-8").splitlines()]
            self._dropped = Counter((row["stage"], row["reason"]) for row in rows)

    def start_stage(self, stage: Stage, table: list[PartRow], *, total: int, num_rows: int, done: int = 0) -> None:
        """Print the table of parts and start the stage's bar, after `done` steps."""
        self._end_bar()
        self._stage, self._total, self._done = stage.name, total, done
        self._last_line, self._began, self._rate = 0.0, time.monotonic(), 0.0
        rows = f"{num_rows:,} rows, {total:,} steps of {stage.batch_size} x {stage.accumulate}"
        rows += f", from step {done:,}" if done else ""
        self.console.print(parts_table(table, title=f"stage {stage.name}: {rows}"))
        unused = [name for row in table for name in row.unused]
        if unused:
            self.say(f"not used by the forward pass, so left as they are: {len(unused)} tensors, {unused[0]} ...")
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._bar.start()
            self._task = self._bar.add_task(stage.name, total=total, completed=done, note="")

    def step(self, step: int, *, epoch: float, result: "StepResult", rates: dict[str, float], seconds: float) -> None:
        """One optimizer step."""
        rate = result.samples / max(seconds, 1e-9)
        self._rate = rate if not self._rate else SMOOTHING * self._rate + (1 - SMOOTHING) * rate
        values = {
            "epoch": round(epoch, 6),
            **result.losses,
            "grad_norm": result.grad_norm,
            **result.visual,
            **result.measures,
            **({"skipped": True} if result.skipped else {}),
            **rates,
            "samples": result.samples,
            "tokens": result.tokens,
            **{f"tokens/{kind}": count for kind, count in result.kinds.items()},
            "samples_per_s": round(rate, 3),
            "tokens_per_s": round(result.tokens / max(seconds, 1e-9), 3),
        }
        self._write({"stage": self._stage, "step": step, **values, "time": round(time.time(), 3)})
        self._track(step, values)
        parts = {name.removeprefix("loss/"): value for name, value in result.losses.items() if name != "loss"}
        note = f"loss {result.losses['loss']:.3f}"
        note += "".join(f"  {name} {value:.3f}" for name, value in parts.items()) if len(parts) > 1 else ""
        note += f"  {self._rate:.0f} samples/s  {self._rate * result.tokens / result.samples:,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif time.monotonic() - self._last_line > PLAIN_EVERY or step == self._total:
            self._last_line = time.monotonic()
            left = (time.monotonic() - self._began) / (step - self._done) * (self._total - step)
            self.say(f"{self._stage} {step}/{self._total}  {note}  {left:.0f} s left")

    def dropped(self, step: int, rows: Iterable["Dropped"], *, split: str | None = None) -> None:
        """Rows that a policy left out or shortened: listed in `dropped.jsonl`, counted for the stage's end."""
        lines = []
        for row in rows:
            self._dropped[self._stage, row.reason] += 1
            where = {"stage": self._stage, "step": step} | ({"split": split} if split else {})
            lines.append(json.dumps(where | asdict(row)) + "\n")
        if lines and self._file is not None:
            with self._dropped_path.open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def end_stage(self, skipped: int = 0) -> None:
        """Say what the stage left out: rows by policy, and steps that were not finite."""
        self._end_bar()
        for (stage, reason), count in self._dropped.items():
            if stage == self._stage:
                self.say(f"{stage}: {count} rows {reason}, listed in {self._dropped_path}")
        if skipped:
            self.say(f"{self._stage}: {skipped} of {self._total} steps were not finite and left the model as it was")

    def validation(self, step: int, losses: dict[str, float], name: str = "") -> None:
        """A validation's losses and accuracy, of the set called `name` where a stage has several."""
        where = {"stage": self._stage, "step": step, "split": "validation"} | ({"set": name} if name else {})
        self._write({**where, **losses, "time": round(time.time(), 3)})
        path = f"validation/{name}/" if name else "validation/"
        self._track(step, {path + key: value for key, value in losses.items()})
        told = f"validation loss {losses['loss']:.4f}, {losses['accuracy']:.1%} of rows right"
        self.say(f"{self._stage} {step}/{self._total}  {told}{f' ({name})' if name else ''}")

    def _write(self, row: dict[str, Any]) -> None:
        if self._file is None:
            return
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def _track(self, step: int, values: Mapping[str, float]) -> None:
        for tracker in self.trackers:
            tracker.log(self._stage, step, values)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def parts_table(rows: list[PartRow], *, title: str) -> Table:
    """The parts of the model: parameters, whether they train, learning rate and weight decay."""
    table = Table(title=title, title_justify="left")
    for heading in ("part", "parameters", "trains", "lr", "weight decay"):
        table.add_column(heading, justify="left" if heading in ("part", "trains") else "right")
    for row in rows:
        shown = (f"{row.lr:g}", f"{row.weight_decay:g}") if row.trainable else ("", "")
        trains = "frozen" if not row.trainable else "yes" if row.trained == row.parameters else f"{row.trained:,}"
        table.add_row(row.part, f"{row.parameters:,}", trains, *shown)
    return table
