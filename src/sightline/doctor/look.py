"""One image, decoded as training decodes it: its size, or its trouble with cause and fix."""

import logging
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data.images import load_image
from ..errors import SightlineError
from .findings import Severity

SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "MPO": (".jpg", ".jpeg", ".mpo"), "PNG": (".png",),
    "WEBP": (".webp",), "GIF": (".gif",), "BMP": (".bmp",), "TIFF": (".tif", ".tiff"), "AVIF": (".avif",),
}  # fmt: skip
IMAGE_SUFFIXES = {suffix for suffixes in SUFFIXES.values() for suffix in suffixes}
MAGIC = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"RIFF")
"""How the files of common formats begin."""
HEADS: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the image", "Run `git lfs pull` in that folder."),
    (b"<!doctype html", "a web page, not an image: the download failed", "Download it again."),
    (b"<html", "a web page, not an image: the download failed", "Download it again."),
    (b"<?xml", "XML, perhaps a drawing (SVG) or an error page", "Turn it into a PNG or download it again."),
    (b"<svg", "a drawing (SVG), which has no pixels", "Turn it into a PNG."),
    (b"%pdf", "a PDF document", "Turn its page into a PNG."),
    (b"pk\x03\x04", "a ZIP archive", "Unpack it."),
    (b"\x1f\x8b", "compressed with gzip", "Unpack it with gunzip."),
    (b"{", "JSON, perhaps a server's error message", "Download the image again."),
    (b"\x93numpy", "a NumPy array", "Save it as a PNG."),
    (b"\x1aE\xdf\xa3".lower(), "a video (Matroska)", "Take a frame out of it."),
)  # fmt: skip


@dataclass(frozen=True)
class Trouble:
    """What is wrong with an image."""

    severity: Severity
    check: str
    message: str
    fix: str


@dataclass(frozen=True)
class Looked:
    """What became of one image: its upright size, if it could be decoded, and its troubles."""

    size: tuple[int, int] | None
    troubles: tuple[Trouble, ...] = ()


def look_at(source: Any) -> Looked:
    """Decode one image as training does. Pillow's warnings become findings of ours. Nothing is raised."""
    try:
        if isinstance(source, Path) and (trouble := before_opening(source)):
            return Looked(None, (trouble,))
        with warnings.catch_warnings(record=True) as said, _silent_pillow():
            warnings.simplefilter("always")
            image = load_image(source)
            odd = about_file(source) if isinstance(source, Path) else []
        troubles = [*(_said(warning.message) for warning in said), *odd]
        return Looked(image.size, (*dict.fromkeys(troubles), *about_size(image.size)))
    except MemoryError:
        return Looked(
            None, (Trouble("error", "images/memory", "needs more memory than there is.", "Make it smaller."),)
        )
    except (SightlineError, OSError, ValueError) as error:
        return Looked(None, (why(source, error),))


def before_opening(path: Path) -> Trouble | None:
    """What can be known of a file without decoding it: missing, empty, a folder, a pipe."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return _missing(path)
    except NotADirectoryError:
        return Trouble("error", "images/missing", f"'{path.parent}' is a file, not a folder.", "Check data.images.")
    except PermissionError:
        return _no_permission(path)
    except (OSError, ValueError) as error:
        message = f"the name cannot be a file's ({getattr(error, 'strerror', None) or error})."
        return Trouble("error", "images/name", message, "Check the row's image name.")
    if stat.S_ISDIR(status.st_mode):
        return Trouble("error", "images/folder", "is a folder, not an image.", "Name the file inside it in the row.")
    if not stat.S_ISREG(status.st_mode):
        return Trouble("error", "images/not-a-file", "is a pipe or a device, no file.", "Put the image's file there.")
    if status.st_size == 0:
        return Trouble("error", "images/empty", "is empty (0 bytes).", "Download or copy it again, or remove the row.")
    return None


def why(source: Any, error: BaseException) -> Trouble:
    """Why an image could not be decoded."""
    text = str(error)
    if "DecompressionBomb" in text or "exceeds limit" in text:
        return Trouble(
            "error",
            "images/bomb",
            f"has more pixels than Pillow takes (2 x {Image.MAX_IMAGE_PIXELS or 0:,}): it could fill the memory.",
            "Make it smaller; the vision tower sees a few hundred pixels a side.",
        )
    if isinstance(source, Path):
        try:
            with source.open("rb") as file:
                head = file.read(64)
        except PermissionError:
            return _no_permission(source)
        except OSError as problem:
            return Trouble("error", "images/unreadable", f"cannot be read: {problem}.", "Check the disk it is on.")
        low = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
        for start, what, fix in HEADS:
            if low.startswith(start):
                return Trouble("error", "images/not-an-image", f"is {what}.", fix)
        if head[4:8] == b"ftyp" and head[8:12] not in (b"avif", b"avis"):
            what = "a HEIC photograph" if head[8:12] in (b"heic", b"heix", b"mif1", b"msf1") else "a video (MP4)"
            return Trouble("error", "images/not-an-image", f"is {what}.", "Turn it into a JPEG or PNG.")
        if head and not head.strip(b"\0"):
            fix = "Download or copy it again, or remove the row."
            return Trouble("error", "images/damaged", "holds only zeros: it was never written to the end.", fix)
        if head.startswith(MAGIC):
            fix = "Download or copy it again, or remove the row."
            reason = text.partition(f"{source}: ")[2].partition(". Replace")[0].partition(" '/")[0] or text
            check = "images/truncated" if "truncated" in text.lower() else "images/damaged"
            cause = "is cut off" if check == "images/truncated" else "begins as an image and is damaged"
            return Trouble("error", check, f"{cause}: {reason}.", fix)
    if "cannot identify" in text:
        fix = "Put an image there (PNG or JPEG), or remove the row."
        return Trouble("error", "images/not-an-image", "is not an image that Pillow knows.", fix)
    cause = "is cut off" if "truncated" in text.lower() or "end of" in text.lower() else "is damaged"
    reason = text.partition(f"{source}: ")[2].partition(". Replace")[0] or text
    check = "images/truncated" if cause == "is cut off" else "images/damaged"
    return Trouble("error", check, f"{cause}: {reason}.", "Download or copy it again, or remove the row.")


def about_file(path: Path) -> list[Trouble]:
    """What is odd about an image that decodes: its extension, its frames."""
    with Image.open(path) as image:
        kind = str(image.format)
        try:
            frames = getattr(image, "n_frames", 1)
        except Exception as error:  # what follows a sound first frame may be anything
            fix = "Save its first frame as a PNG; it is read as it is."
            return [Trouble("warning", "images/odd", f"what follows its first frame is damaged: {error}.", fix)]
    found = []
    suffix = path.suffix.lower()
    if kind in SUFFIXES and suffix not in SUFFIXES[kind]:
        right = SUFFIXES[kind][0]
        fix = f"Rename it to {path.stem}{right}, and the row with it; Sightline reads it as it is."
        message = f"is a {kind} with the extension '{suffix or 'none'}': other tools may refuse it."
        found.append(Trouble("warning", "images/extension", message, fix))
    if frames > 1 and kind != "MPO":
        message = f"has {frames} frames, of which the first is seen."
        found.append(Trouble("warning", "images/frames", message, "Save the frame that the row is about as a PNG."))
    return found


def about_size(size: tuple[int, int]) -> list[Trouble]:
    """What is odd about an image's size."""
    short, long = sorted(size)
    shape = f"{size[0]}x{size[1]}"
    if long < 8:
        return [Trouble("warning", "images/tiny", f"has {shape} pixels: nothing can be seen in it.", "Check the file.")]
    if long > 20 * short:
        fix = "Cut it into pieces, or remove the row."
        return [Trouble("warning", "images/narrow", f"has {shape} pixels: a thin line after padding.", fix)]
    return []


@contextmanager
def _silent_pillow() -> Iterator[None]:
    """Pillow's own log kept from the terminal."""
    logger = logging.getLogger("PIL")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _said(message: Warning | str) -> Trouble:
    """A warning of Pillow's, in our words."""
    if isinstance(message, Image.DecompressionBombWarning):
        text = (
            f"is very large ({Image.MAX_IMAGE_PIXELS or 0:,} pixels or more): decoding it takes seconds, every epoch."
        )
        return Trouble("warning", "images/large", text, "Make it smaller; the vision tower sees a few hundred a side.")
    fix = "Save it again with an image program; it is read as it is."
    return Trouble("warning", "images/odd", f"is not quite as it should be: {message}.", fix)


def _missing(path: Path) -> Trouble:
    if path.is_symlink():
        message = f"is a link to '{path.readlink()}', which is not there."
        return Trouble("error", "images/missing", message, "Put the file there, or mend the link.")
    if not path.parent.is_dir():
        message = f"is not there, nor is its folder '{path.parent}'."
        return Trouble("error", "images/missing", message, "Check the image folder given with the data (data.images).")
    for other in (path.with_suffix(s) for suffix in sorted(IMAGE_SUFFIXES) for s in (suffix, suffix.upper())):
        if other.is_file():
            fix = f"Write '{other.name}' in the row."
            return Trouble("error", "images/missing", f"is not there, but '{other.name}' is.", fix)
    same = next((p.name for p in path.parent.iterdir() if p.name.lower() == path.name.lower()), None)
    if same is not None:
        fix = f"Write '{same}' in the row."
        return Trouble("error", "images/missing", f"is not there, but '{same}' is.", fix)
    fix = "Put it there, check data.images, or remove the row."
    return Trouble("error", "images/missing", "is not there.", fix)


def _no_permission(path: Path) -> Trouble:
    return Trouble("error", "images/permission", "may not be read.", f"Allow it: chmod u+r '{path}'")
