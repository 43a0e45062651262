"""The lens as a PNG: each token's word on a plate in its cell, over what the model saw."""

import io
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..files import write_bytes
from .lens import Cell, Lens

PLATES = {True: "#005a94", False: "#9c3a00", None: "#23272d"}
"""Behind right words, wrong ones and others: the colour-blind tell them apart, and white is legible on each."""
SIGNS = {True: "✓ ", False: "✗ ", None: ""}
KEYS = {True: "right", False: "wrong", None: "not judged"}
PAPER, INK, MUTED = "#fcfbf9", "#1e2126", "#5c636d"
LARGEST, SMALLEST, TEXT = 26, 9, 17
"""Sizes of type in pixels: of words, and of what stands around the picture."""
MARGIN = 20


def draw(lens: Lens, *, title: str) -> Image.Image:
    """The picture: a title, what the model saw with a word on each token, and a key."""
    side = lens.image.width
    cell = side // lens.grid
    picture = lens.image.copy()
    pen = ImageDraw.Draw(picture, "RGBA")
    for at in range(cell, side, cell):
        pen.line((at, 0, at, side), fill=(255, 255, 255, 90))
        pen.line((0, at, side, at), fill=(255, 255, 255, 90))
    for number, shown in enumerate(lens.cells):
        row, column = divmod(number, lens.grid)
        _draw_word(pen, shown, column * cell, row * cell, cell)

    lines = _wrapped([title, lens.summary()], side)
    head = MARGIN + len(lines) * (TEXT + 8) + 8
    foot = MARGIN + (TEXT + 14 if lens.judged else 0)
    page = Image.new("RGB", (side + 2 * MARGIN, head + side + foot), PAPER)
    page.paste(picture, (MARGIN, head))
    pen = ImageDraw.Draw(page, "RGBA")
    for number, (line, is_title) in enumerate(lines):
        place = (MARGIN, MARGIN - 4 + number * (TEXT + 8))
        pen.text(place, line, fill=INK if is_title else MUTED, font=_font(TEXT, bold=is_title))
    if lens.judged:
        _draw_key(pen, MARGIN, head + side + 14)
    return page


def write_png(lens: Lens, path: Path, *, title: str) -> None:
    """Write the picture, whole or not at all."""
    file = io.BytesIO()
    draw(lens, title=title).save(file, "PNG")
    write_bytes(path, file.getvalue())


def _draw_word(pen: ImageDraw.ImageDraw, cell: Cell, left: int, top: int, side: int) -> None:
    """The word on a plate in the middle of a cell; smaller if it is long, and cut where it would be too small."""
    text, font = _fitted(SIGNS[cell.right] + _plain(cell.word), side - 10)
    x0, _, x1, _ = font.getbbox(text)
    middle = (left + side / 2, top + side / 2)
    wide, high = (x1 - x0) / 2 + 4, font.size * 0.62 + 2
    strong = 150 if cell.padding else 225
    plate = (middle[0] - wide, middle[1] - high, middle[0] + wide, middle[1] + high)
    pen.rounded_rectangle(plate, radius=4, fill=(*_rgb(PLATES[cell.right]), strong))
    pen.text(middle, text, fill=(255, 255, 255, 190 if cell.padding else 255), font=font, anchor="mm")


def _draw_key(pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
    for right, meaning in KEYS.items():
        text = SIGNS[right] + meaning
        font = _font(TEXT)
        width = round(font.getlength(text))
        pen.rounded_rectangle((left, top - 3, left + width + 14, top + TEXT + 7), radius=4, fill=PLATES[right])
        pen.text((left + 7, top), text, fill="white", font=font)
        left += width + 26


def _fitted(text: str, width: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """A text and the largest font in which it is no wider than `width`; cut short if the smallest is too wide."""
    for size in range(LARGEST, SMALLEST - 1, -1):
        if _font(size).getlength(text) <= width and size * 1.4 <= width:
            return text, _font(size)
    font = _font(SMALLEST)
    while len(text) > 1 and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…", font


def _wrapped(texts: list[str], width: int) -> list[tuple[str, bool]]:
    """Lines of at most `width` pixels, each with whether it is of the first text, the title."""
    lines: list[tuple[str, bool]] = []
    for number, text in enumerate(texts):
        line = ""
        for word in _plain(text).split():
            longer = f"{line} {word}".strip()
            if line and _font(TEXT, bold=number == 0).getlength(longer) > width:
                lines.append((line, number == 0))
                longer = word
            line = longer
        lines.append((line, number == 0))
    return lines


def _plain(text: str) -> str:
    """A text as one line: control characters have no shape."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _rgb(colour: str) -> tuple[int, int, int]:
    return (int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16))


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, and the signs."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
