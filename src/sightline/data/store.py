"""The annotation store: values computed once, offline, kept by key in sharded safetensors.

    provenance.json                       what the values depend on, in words
    <group>-index.<sha256>.safetensors    the keys of one annotation, in order, and how many make a shard
    <group>-00012.<sha256>.safetensors    the values of its thirteenth shard

Every file carries the hash of its bytes in its name and appears under it at once, by a rename. So a file that is there
is whole, one that was altered or torn shows, and a run that was killed goes on with the shards that are not there.
Which keys make a shard is fixed by the index before the first one is written: whoever computes it, and whenever, writes
the same file. A group is named by its index.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from ..errors import SightlineError
from .sources.files import reading

ENDS = ".ends"
"""Beside each tensor of a shard, where the values of each key end in it."""
KEY_BYTES, END_BYTES = 32, 8
"""Of a key in the index, and of an end, beside the values."""
OPEN = 64
"""Shards that a process keeps mapped."""

_verified: set[tuple[str, int, int]] = set()
"""Files whose bytes this process has compared with their names: path, size, time of change."""


@dataclass(frozen=True)
class Shard:
    """A stretch of an index."""

    stem: str
    """The name of its file, but for the hash."""
    number: int
    keys: tuple[str, ...]


class Store:
    """The values in a folder, read at random. It can be pickled; each process maps the files that it reads."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            SightlineError: if an index is damaged.
        """
        self.folder = folder
        self.shards: list[Shard] = []
        self._open: OrderedDict[int, tuple[Any, dict[str, np.ndarray]]] = OrderedDict()
        for path in sorted(folder.glob("*-index.*.safetensors")):
            self.shards += _read_index(path)
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def refresh(self) -> None:
        """See which shards are there now."""
        files = sorted(path.name for path in self.folder.glob("*.safetensors"))
        names = {name.split(".", 1)[0]: name for name in files}
        self._files = [names.get(shard.stem) for shard in self.shards]
        there = [number for number, file in enumerate(self._files) if file is not None]
        keys = [key for number in there for key in self.shards[number].keys]
        order = np.argsort(np.array(keys, dtype="S64"), kind="stable")
        self._keys = np.array(keys, dtype="S64")[order]
        sizes = [len(self.shards[number].keys) for number in there]
        self._shard = np.repeat(np.array(there, dtype=np.int64), sizes)[order]
        rows = [np.arange(size) for size in sizes]
        self._row = (np.concatenate(rows) if rows else np.empty(0, dtype=np.int64))[order]

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def __len__(self) -> int:
        """How many keys have values."""
        return len(self._keys)

    @property
    def keys(self) -> list[str]:
        """The keys that have values, shard by shard, in the order of their index."""
        there = (shard for shard, file in zip(self.shards, self._files, strict=True) if file is not None)
        return [key for shard in there for key in shard.keys]

    def another(self, key: str, further: int = 0) -> str:
        """The key that stands half of all keys, and `further` ones, away from this one, in their order.

        Raises:
            KeyError: if this one has no values.
        """
        if key not in self:
            raise KeyError(key)
        at = int(np.searchsorted(self._keys, key.encode()))
        return self._keys[(at + len(self._keys) // 2 + further) % len(self._keys)].decode()

    def missing(self) -> list[Shard]:
        """Shards that an index plans and that are not there."""
        return [shard for shard, file in zip(self.shards, self._files, strict=True) if file is None]

    def read(self, key: str) -> dict[str, Tensor]:
        """The values of a key, by name.

        Raises:
            KeyError: if there are none.
        """
        found = self._find(key)
        if found is None:
            raise KeyError(key)
        shard, row = found
        file, ends = self._map(shard)
        return {
            name: file.get_slice(name)[int(last[row - 1]) if row else 0 : int(last[row])] for name, last in ends.items()
        }

    def damaged(
        self, keys: Iterable[str] | None = None, progress: Callable[[int, int], None] | None = None
    ) -> list[Path]:
        """Files whose bytes are not those that were written: of the shards of `keys`, or of all that are there.

        A file is read once in a process; again if its size or time of change is another.
        """
        if keys is None:
            numbers = {number for number, file in enumerate(self._files) if file is not None}
        else:
            numbers = {place[0] for key in keys if (place := self._find(key)) is not None}
        bad = []
        for done, number in enumerate(sorted(numbers)):
            path = self.folder / str(self._files[number])
            if not intact(path):
                bad.append(path)
            if progress is not None:
                progress(done + 1, len(numbers))
        return bad

    def plan(self, keys: Sequence[str], rows: int) -> None:
        """Fix the shards of new keys: `rows` each, in order, the last one what is left."""
        digests = torch.tensor(bytearray(b"".join(bytes.fromhex(key) for key in keys)), dtype=torch.uint8)
        data = save({"keys": digests.view(-1, KEY_BYTES), "rows": torch.tensor([rows])})
        name = hashlib.sha256(data).hexdigest()
        path = _write(self.folder, f"{name[:12]}-index", data)
        self.shards += _read_index(path)
        self.refresh()

    def write(self, shard: Shard, values: Sequence[Mapping[str, Tensor]]) -> None:
        """Write a shard: for each of its keys, in order, its tensors by name. Their first size may differ."""
        assert len(values) == len(shard.keys), f"{len(values)} values for {len(shard.keys)} keys"
        tensors: dict[str, Tensor] = {}
        for name in values[0]:
            tensors[name] = torch.cat([value[name] for value in values]).contiguous()
            tensors[name + ENDS] = torch.tensor([len(value[name]) for value in values]).cumsum(0)
        _write(self.folder, shard.stem, save(tensors))

    def _find(self, key: str) -> tuple[int, int] | None:
        at = int(np.searchsorted(self._keys, key.encode()))
        if at == len(self._keys) or self._keys[at] != key.encode():
            return None
        return int(self._shard[at]), int(self._row[at])

    def _map(self, number: int) -> tuple[Any, dict[str, np.ndarray]]:
        if number not in self._open:
            path = self.folder / str(self._files[number])
            try:
                file: Any = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise SightlineError(f"cannot read {path}: {error}. Run sightline annotate again.") from None
            names = [name for name in file.keys() if not name.endswith(ENDS)]  # noqa: SIM118  (no mapping)
            self._open[number] = (file, {name: file.get_tensor(name + ENDS).numpy() for name in names})
        self._open.move_to_end(number)
        if len(self._open) > OPEN:
            self._open.popitem(last=False)
        return self._open[number]


def intact(path: Path) -> bool:
    """Whether a file's bytes have the hash that its name says."""
    with reading(path):
        state = path.stat()
        seen = (str(path), state.st_size, state.st_mtime_ns)
        if seen in _verified:
            return True
        with path.open("rb") as file:
            same = hashlib.file_digest(file, "sha256").hexdigest() == path.name.split(".")[1]
    if same:
        _verified.add(seen)
    return same


def _read_index(path: Path) -> list[Shard]:
    if not intact(path):
        raise SightlineError(
            f"{path} is damaged: its bytes are not those that were written, so what its shards hold is not known. "
            f"Remove it with its shards, and run sightline annotate again: rm '{path.parent}'/{path.name[:12]}-*"
        )
    tensors = load(path.read_bytes())
    rows = int(tensors["rows"])
    keys = [bytes(row).hex() for row in tensors["keys"].numpy()]
    group = path.name.partition("-")[0]
    return [
        Shard(f"{group}-{number:05d}", number, tuple(keys[begin : begin + rows]))
        for number, begin in enumerate(range(0, len(keys), rows))
    ]


def _write(folder: Path, stem: str, data: bytes) -> Path:
    """Put a file under its name at once, on the disk before it has it; what a killed run began of it is removed."""
    path = folder / f"{stem}.{hashlib.sha256(data).hexdigest()}.safetensors"
    work = folder / f".{stem}.{os.getpid()}.part"
    try:
        with work.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
    except FileNotFoundError:
        if not path.exists():  # another process that shares the work wrote the same index, and removed what was left
            raise
    finally:
        for left in folder.glob(f".{stem}.*.part"):
            left.unlink(missing_ok=True)
    return path
