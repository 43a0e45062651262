"""What a run's model makes of a few pictures, as it lies in the run folder: `looks/looks.json` and PNG files beside it.

A page is written from these, also where the model cannot run. `looking` makes them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from PIL import Image

from .. import __version__
from ..data.images import load_image
from ..diagnostics.lens import Cell
from ..errors import SightlineError
from ..evaluation.metrics import Estimate
from ..files import atomic_folder, write_json

FOLDER, FILE = "looks", "looks.json"
BY_ITSELF = "by itself"
"""The caption of a model as it is; others are by the number of a level."""


@dataclass(frozen=True)
class Pictured:
    """A PNG file beside `looks.json`, and what it says in words."""

    file: str
    words: str


@dataclass(frozen=True)
class Map:
    """The lens of one picture: the words of each visual token, over what the model saw."""

    seen: str
    """A PNG file beside `looks.json`."""
    grid: int
    """Tokens along a side."""
    cells: tuple[Cell, ...]
    words: str
    """Its summary."""

    def __post_init__(self) -> None:
        if self.grid < 1 or len(self.cells) != self.grid**2 or not all(cell.words for cell in self.cells):
            raise ValueError(f"a map of {self.grid} x {self.grid} tokens, each with words, has {len(self.cells)} cells")


@dataclass(frozen=True)
class Look:
    """One picture."""

    picture: str
    """As the evaluation names it."""
    map: Map | None = None
    captions: Mapping[str, str] = field(default_factory=dict)
    """`by itself`, then by level, where the model has levels."""
    drawn: Pictured | None = None
    """Drawn again from visual tokens, beside the original (VLSA, Figure 3)."""
    painted: Pictured | None = None
    """A window as the model believes it to be, in codes and colours (VLSA's cognition)."""


@dataclass(frozen=True)
class Looks:
    """All that was looked at in a run."""

    key: str
    """Of the weights and the pictures; see `key_of`."""
    pictures: tuple[Look, ...]
    gate: Mapping[str, Mapping[str, Estimate]]
    """By type of question, all of them first, then by level: the gate's mean weight (AlignGPT)."""
    notes: tuple[str, ...] = ()
    """What could not be looked at, and why."""

    @property
    def files(self) -> list[str]:
        """The PNG files beside `looks.json`."""
        drawn = [one.file for look in self.pictures for one in (look.drawn, look.painted) if one is not None]
        return [look.map.seen for look in self.pictures if look.map is not None] + drawn


def key_of(run: Path, pictures: Sequence[Path]) -> str:
    """What looks depend on: the version, the model's files and the pictures, by name, size and time."""
    digest = hashlib.sha256(__version__.encode())
    for path in [*sorted((run / "model").glob("*")), *pictures]:
        if path.is_file():
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def read_looks(run: Path) -> Looks | None:
    """The looks in a run folder; None where there are none.

    Raises:
        SightlineError: if there are some that cannot be read.
    """
    from pydantic import TypeAdapter, ValidationError

    file = run / FOLDER / FILE
    try:
        return TypeAdapter(Looks).validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, ValidationError):
        raise SightlineError(f"{file} cannot be read, so what it shows is left out. Remove it: rm '{file}'") from None


def write_looks(run: Path, looks: Looks, images: Mapping[str, Image.Image]) -> None:
    """Write looks and their PNG files, all or nothing.

    Args:
        images: by the names of their files.
    """
    with atomic_folder(run / FOLDER) as work:
        for name, image in images.items():
            image.save(work / name, "PNG", optimize=True)
        write_json(work / FILE, asdict(looks))


def png_of(run: Path, name: str) -> Image.Image:
    """A picture beside `looks.json`.

    Raises:
        SightlineError: if it is not there, or damaged.
    """
    return load_image(run / FOLDER / Path(name).name)


def can_be_read(path: Path) -> bool:
    """Whether there is a picture in a file, all of it."""
    try:
        load_image(path)
    except SightlineError:
        return False
    return True
