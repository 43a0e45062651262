"""Checkpoints to resume from: written whole or not at all, verified by hash when read, the last few kept.

    checkpoints/01-tune-0000120/
        shard-00001-....safetensors   what has trained so far and its optimizer's state, by torch's distributed
                                      checkpoints (DCP); one file from each process, read by any number of them
        state.json                    where the run stood, and the hash of every file

A folder is made under a hidden name and renamed when all of it is on the disk, so a kill leaves whole checkpoints only.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ..errors import SightlineError
from ..files import write_json

STATE = "state.json"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, SafetensorError)


class NotWritten(SightlineError):
    """A checkpoint could not be written."""


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was found whole."""

    path: Path
    state: dict[str, Any]

    def read_into(self, tensors: Mapping[str, Tensor], *, several: bool) -> None:
        """Fill `tensors` (whole or sharded, as they are now) with the values that were saved under their names.

        Raises:
            SightlineError: if a name or a shape is not the one that was saved.
        """
        try:
            with alone_is_fine():
                load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(self.path)), no_dist=not several)
        except (CheckpointException, *UNREADABLE, RuntimeError) as error:
            raise SightlineError(
                f"checkpoint {self.path} does not fit this recipe's model: {first_line(error)}. "
                "Resume with the recipe and the libraries that made it, or start in another folder."
            ) from None


class Checkpoints:
    """The checkpoints of a run folder."""

    def __init__(self, folder: Path, *, keep: int, processes: Any) -> None:
        self.folder = folder
        self.keep = keep
        self.processes = processes

    def save(self, name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and let go of the oldest ones; every process calls it.

        Raises:
            NotWritten: if it cannot be written; earlier ones are untouched.
        """
        final, work = self.folder / name, self.folder / f".{name}"
        hashes: dict[str, dict[str, Any]] = {}

        def clear() -> None:
            if self.processes.main:
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)

        def write() -> None:
            writer = HuggingFaceStorageWriter(str(work), save_distributed=True)
            with alone_is_fine():
                save(dict(tensors), storage_writer=writer, no_dist=not self.processes.several)

        def hash_mine() -> None:
            for path in work.glob(f"shard-{self.processes.rank + 1:05d}-*"):
                sync(path)
                hashes[path.name] = {"bytes": path.stat().st_size, "sha256": sha256(path)}

        def finish() -> None:
            if self.processes.main:
                write_state(work / STATE, {**state, "files": files})
                if final.exists():
                    self._remove(final)
                work.rename(final)
                sync(self.folder)
                self._prune()

        files: dict[str, Any] = {}
        for act in (clear, write, hash_mine):
            self._together(act, final, work)
        for part in self.processes.gather(hashes):
            files |= part
        self._together(finish, final, work)
        return final

    def _together(self, act: Callable[[], None], final: Path, work: Path) -> None:
        """Have every process do something, and all of them know if one could not."""
        trouble = None
        try:
            act()
        except (CheckpointException, *UNREADABLE) as error:
            trouble = first_line(error)
        if any(troubles := self.processes.gather(trouble)):
            if self.processes.main:
                shutil.rmtree(work, ignore_errors=True)
            reason = next(text for text in troubles if text)
            raise NotWritten(
                f"cannot write checkpoint {final}: {reason}. Earlier checkpoints are untouched, and nothing is lost "
                "but the steps since the last one. Make room on the disk."
            )

    def latest(self, say: Callable[[str], None]) -> Saved | None:
        """The last checkpoint that is whole, saying what is wrong with those after it; None if there is none."""
        found = sorted(path for path in self.folder.glob("*") if path.is_dir() and not path.name.startswith("."))
        for path in reversed(found):
            try:
                return Saved(path, verified(path))
            except SightlineError as error:
                say(str(error))
        return None

    def sweep(self) -> None:
        """Remove what a killed process left half written or half removed."""
        for path in self.folder.glob(".*"):
            shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        found = sorted(path for path in self.folder.glob("*") if path.is_dir() and not path.name.startswith("."))
        for path in found[: -self.keep]:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        """Out of sight in one step, so that a kill leaves no half of it."""
        gone = path.with_name(f".gone-{path.name}")
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def alone_is_fine() -> Iterator[None]:
    """Without torch's warning that one process saves and loads without the others."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def verified(path: Path) -> dict[str, Any]:
    """The state of a checkpoint whose every file is as it was written.

    Raises:
        SightlineError: naming the file that is not.
    """
    try:
        envelope = json.loads((path / STATE).read_text(encoding="utf-8"))
        state = envelope["state"]
        if envelope["sha256"] != digest(state):
            raise ValueError(f"{STATE} is not as it was written")
        for name, entry in state["files"].items():
            file = path / name
            if file.stat().st_size != entry["bytes"]:
                raise ValueError(f"{name} has {file.stat().st_size} bytes of {entry['bytes']}")
            if sha256(file) != entry["sha256"]:
                raise ValueError(f"{name} is not as it was written (its hash differs)")
    except UNREADABLE as error:
        raise SightlineError(f"checkpoint {path} is damaged and was not used: {first_line(error)}") from None
    return state


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """The state with a hash of its own, on the disk before it returns."""
    write_json(path, {"sha256": digest(state), "state": state})
    sync(path)


def digest(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the disk hold a file, or a folder's entries, before going on."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def first_line(error: BaseException) -> str:
    """What went wrong in one line; of several processes' failures, the first."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
