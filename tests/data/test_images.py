"""Images: every mode a user brings becomes the RGB that a person would see, and a bad file says which it is."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from sightline.data.images import BLANK, blank_like, load_image, resolve_image, to_rgb
from sightline.errors import SightlineError

ROTATE_90_CLOCKWISE = 6
"""EXIF's orientation 6: the camera was held so that the picture must turn 90 degrees clockwise to stand upright."""


def saved(folder: Path, image: Image.Image, name: str, **options) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def top_left(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_exif_rotation_is_applied(tmp_path):
    """A 2x1 picture, red then blue, turned clockwise: red on top, blue below."""
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = ROTATE_90_CLOCKWISE
    loaded = load_image(saved(tmp_path, image, "a.png", exif=exif))
    assert loaded.size == (1, 2)
    assert [loaded.getpixel((0, y)) for y in (0, 1)] == [(255, 0, 0), (0, 0, 255)]


def test_cmyk(tmp_path):
    """No ink is white; full cyan is no red."""
    image = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    red, green, blue = top_left(load_image(saved(tmp_path, image, "a.tif")))
    assert (red, green, blue) == (0, 255, 255)
    assert top_left(load_image(saved(tmp_path, Image.new("CMYK", (8, 8)), "b.tif"))) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("L", 90, (90, 90, 90)),
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        # half of 51 and half of white: 51 * 0.502 + 255 * 0.498 = 152.6
        ("RGBA", (51, 51, 51, 128), (153, 153, 153)),
        ("LA", (40, 0), (255, 255, 255)),
        ("LA", (40, 255), (40, 40, 40)),
    ],
)
def test_modes_on_white(tmp_path, mode, pixel, expected):
    loaded = load_image(saved(tmp_path, Image.new(mode, (3, 2), pixel), "a.png"))
    assert loaded.size == (3, 2)
    assert top_left(loaded) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_palette_with_transparency(tmp_path, name):
    """Colour 0 is red and transparent, colour 1 is blue: white, then blue."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    loaded = load_image(saved(tmp_path, image, name, transparency=0))
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_palette_without_transparency(tmp_path):
    image = Image.new("P", (1, 1))
    image.putpalette([12, 34, 56])
    assert top_left(load_image(saved(tmp_path, image, "a.png"))) == (12, 34, 56)


@pytest.mark.parametrize(("value", "expected"), [(0, 0), (255, 0), (256, 1), (32768, 128), (65535, 255)])
def test_sixteen_bit_grey_is_scaled(tmp_path, value, expected):
    """value // 256: a plain convert("RGB") would clip everything above 255 to white."""
    image = Image.fromarray(np.full((2, 3), value, dtype=np.uint16))
    assert image.mode == "I;16"
    loaded = load_image(saved(tmp_path, image, "a.png"))
    assert loaded.size == (3, 2)
    assert top_left(loaded) == (expected,) * 3


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("I", [0, 65535], [0, 255]),
        ("I", [0, 200], [0, 200]),
        ("F", [0.0, 0.5], [0, 127]),
        ("F", [0.0, 128.0], [0, 128]),
        ("F", [-5.0, 300.0], [0, 1]),
    ],
)
def test_wide_modes_are_scaled_by_their_range(mode, values, expected):
    """Up to 1 it is a share, up to 255 a byte, above that sixteen bits (300 / 65535 * 255 = 1.2)."""
    dtype = np.int32 if mode == "I" else np.float32
    image = to_rgb(Image.fromarray(np.array([values], dtype=dtype)))
    assert [image.getpixel((x, 0))[0] for x in range(len(values))] == expected


def test_values_that_are_not_numbers_are_black():
    values = np.array([[np.nan, 0.5]], dtype=np.float32)
    assert to_rgb(Image.fromarray(values)).getpixel((0, 0)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["HSV", "LAB", "YCbCr", "RGBX", "RGBa", "La", "PA"])
def test_modes_that_only_memory_holds(mode):
    made = Image.new(mode.upper() if mode in ("RGBa", "La") else mode, (2, 2)).convert(mode)
    image = to_rgb(made)
    assert (image.mode, image.size) == ("RGB", (2, 2))
    if mode in ("RGBa", "La"):
        assert top_left(image) == (255, 255, 255)


def test_an_animation_shows_its_first_picture(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert top_left(load_image(path)) == (255, 0, 0)


def test_an_image_in_memory_is_taken_as_it_is():
    image = Image.new("L", (2, 2), 7)
    assert top_left(load_image(image)) == (7, 7, 7)
    assert image.mode == "L"


def test_blank_is_grey_and_as_large():
    blank = blank_like(Image.new("RGB", (5, 9), "red"))
    assert (blank.size, top_left(blank)) == ((5, 9), BLANK)


def test_what_cannot_be_loaded_says_so(tmp_path):
    whole = saved(tmp_path, Image.effect_noise((64, 64), 50), "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    for name, message in {
        "nowhere.png": "image not found: .*nowhere.png. Check its name, or the image folder",
        "half.png": "cannot decode image .*half.png: .*Replace the file or remove its row",
        "text.jpg": "cannot decode image .*text.jpg",
        "empty.jpg": "cannot decode image .*empty.jpg",
        "": "is a folder, not an image. Check the row's `image` field",
        "a\0b": "cannot decode image",
        "x" * 300: "cannot decode image",
        "text.jpg/inner.png": "cannot decode image",
    }.items():
        with pytest.raises(SightlineError, match=message):
            load_image(tmp_path / name)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_damaged_avif(tmp_path):
    """Pillow raises a RuntimeError here, not an OSError."""
    path = saved(tmp_path, Image.effect_noise((24, 17), 80).convert("RGB"), "a.avif")
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = bytes(len(data) - start)
    path.write_bytes(data)
    with pytest.raises(SightlineError, match=r"cannot decode image .*a.avif"):
        load_image(path)


FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "ICO", "PPM", "TGA", "JPEG2000", "PCX", "SGI", "DDS", "BLP")


@pytest.fixture(scope="module")
def encoded() -> dict[str, bytes]:
    exif = Image.Exif()
    exif[0x0112] = ROTATE_90_CLOCKWISE
    out = {}
    for name in FORMATS:
        buffer = io.BytesIO()
        options = {"exif": exif} if name in ("JPEG", "PNG", "TIFF", "WEBP") else {}
        Image.effect_noise((24, 17), 80).convert("P" if name == "BLP" else "RGB").save(buffer, name, **options)
        out[name] = buffer.getvalue()
    return out


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=400)
@given(
    name=st.sampled_from(FORMATS),
    keep=st.floats(0, 1),
    flips=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=6),
)
def test_a_damaged_file_gives_an_image_or_our_error(encoded, tmp_path_factory, name, keep, flips):
    """Files cut short and with bytes changed, near the start more than elsewhere: Pillow raises many kinds of error."""
    data = bytearray(encoded[name][: max(1, int(len(encoded[name]) * keep))])
    for place, byte in flips:
        data[int(place**2 * len(data))] = byte
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    try:
        assert load_image(path).mode == "RGB"
    except SightlineError as error:
        assert str(path) in str(error)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(SightlineError, match=r"cannot decode image .*a.png: it is a pipe or a device"):
        load_image(tmp_path / "a.png")


def test_links_inside_the_folder_are_followed(tmp_path):
    """Names may not lead out; a link is the user's own, and large folders are often linked."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "images").mkdir()
    saved(tmp_path / "elsewhere", Image.new("RGB", (3, 2)), "a.png")
    (tmp_path / "images/coco").symlink_to(tmp_path / "elsewhere")
    assert load_image(resolve_image(tmp_path / "images", "coco/a.png", "row 0")).size == (3, 2)
