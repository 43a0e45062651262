"""Writing so that a crash leaves either the old file or the new one, never half of it."""

import base64
import io
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import SightlineError

if TYPE_CHECKING:
    from PIL import Image

SMALL, FEW_COLOURS, LITTLE = 128, 4096, 65_536
"""Pixels along a side, or colours, up to which a PNG is tried, and the bytes up to which it is taken."""


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path`, replacing what was there, when the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield work
        work.chmod(0o755)
        for file in (path for path in work.rglob("*") if path.is_file()):
            file.chmod(0o644)  # safetensors writes for its owner alone
        old = work.with_name(work.name + ".old")
        if path.exists():
            path.rename(old)
        try:
            work.rename(path)
        except BaseException:
            if old.exists():
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    work = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        work.write_bytes(data)
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def check_png(path: Path) -> None:
    """Refuse a place that a picture cannot be written to, before it is made.

    Raises:
        SightlineError: for a folder, or a name that is no PNG's.
    """
    if path.is_dir() or path.suffix.lower() != ".png":
        raise SightlineError(f"'{path}' cannot be written: the picture is a PNG file. Give --out a name like x.png.")


def write_png(path: Path, image: "Image.Image") -> None:
    """Write a picture atomically."""
    file = io.BytesIO()
    image.save(file, "PNG")
    write_bytes(path, file.getvalue())


def picture_uri(image: "Image.Image", side: int | None = None) -> str:
    """A picture as a data URI: exact where that takes little room, as of drawn scenes; else as JPEG.

    Args:
        side: to which larger ones are then reduced, in pixels.
    """
    kind, file = "png", io.BytesIO()
    if max(image.size) <= SMALL or image.getcolors(FEW_COLOURS) is not None:
        image.save(file, "PNG")
    if not 0 < file.tell() <= LITTLE:
        kind, file, image = "jpeg", io.BytesIO(), image.copy()
        image.thumbnail((side, side) if side is not None else image.size)
        image.save(file, "JPEG", quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented and with a newline at its end."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def claim_empty(path: Path, what: str) -> None:
    """Refuse to write `what` over anything.

    Raises:
        SightlineError: if `path` is a file or a folder with something in it.
    """
    try:
        taken = path.is_file() or (path.is_dir() and any(path.iterdir()))
    except (ValueError, OSError) as error:
        raise SightlineError(f"no folder can be called {str(path)!r}: {error}. Name another one.") from None
    if taken:
        raise SightlineError(
            f"'{path}' is not empty, and {what} would overwrite it, so nothing was done. Name another folder, or "
            f"remove this one: rm -r '{path}'"
        )
