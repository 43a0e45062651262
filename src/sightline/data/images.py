"""Images from disk to RGB, one way for training, evaluation and asking."""

import stat
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..errors import ImageError, SightlineError
from ..types import ImageSource

BLANK = (127, 127, 127)


def load_image(source: ImageSource) -> Image.Image:
    """An upright RGB image: EXIF rotation applied, transparency laid on white, 16-bit grey scaled to 8.

    Raises:
        ImageError: if the file is missing or cannot be decoded, with its path.
    """
    if isinstance(source, Image.Image):
        return to_rgb(source)
    file, name = (source, str(source)) if isinstance(source, Path) else (BytesIO(source.read()), source.name)
    try:
        if isinstance(file, Path) and not (stat.S_ISREG(mode := file.stat().st_mode) or stat.S_ISDIR(mode)):
            raise OSError("it is a pipe or a device")  # a pipe without a writer would be waited for
        with Image.open(file) as image:
            image.load()
            return to_rgb(image)
    except FileNotFoundError:
        raise ImageError(
            f"image not found: {source}. Check its name, or the image folder given with the data."
        ) from None
    except IsADirectoryError:
        raise ImageError(f"'{source}' is a folder, not an image. Check the row's `image` field.") from None
    except Exception as error:  # Pillow's decoders raise what they like on damaged files (AVIF: RuntimeError)
        raise ImageError(f"cannot decode image {name}: {error}. Replace the file or remove its row.") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` upright, in mode RGB. Wide modes (I, I;16, F) are scaled to 0..255 before they lose their depth."""
    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        top = 65535.0 if values.max(initial=0) > 255 else 255.0 if values.max(initial=0) > 1 else 1.0
        return Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBa", "La"):  # colours already multiplied by their opacity
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def blank_like(image: Image.Image) -> Image.Image:
    """A grey image of the same size: what a blind twin sees."""
    return Image.new("RGB", image.size, BLANK)


def image_folder(data: Path, given: Path | None) -> Path:
    """Where the images of a data file are: the folder given, else `images` beside the file, else the file's folder."""
    if given is not None:
        return given
    beside = data.parent / "images"
    return beside if beside.is_dir() else data.parent


def resolve_image(root: Path, name: str, where: str) -> Path:
    """The path of image `name` inside `root`.

    Raises:
        SightlineError: if the name leads out of the folder; `where` names the row in the message.
    """
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise SightlineError(f"{where}: image '{name}' leads out of the image folder {root}. Use a path inside it.")
    return path
