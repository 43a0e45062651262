"""What the models of a page's runs make of pictures, picture by picture."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..diagnostics.lens_page import KINDS, SIGNS, label_of
from ..errors import SightlineError
from ..files import picture_uri
from .looks import BY_ITSELF, Look, Map, Pictured, png_of
from .series import Series

WRITTEN = 8
"""Tokens along a side, up to which a map has room for words."""


def seen_of(series: Sequence[Series], side: int, words: int, most: int) -> dict[str, Any]:
    """What there is to see, by kind; in each a row for every picture, in it an item for every run that has it.

    Args:
        side: of a picture, in pixels.
        words: of each token.
        most: pictures.
    """
    looks = [(one, one.run.looks) for one in series if one.run.looks is not None]
    pictures = list(dict.fromkeys(look.picture for _, found in looks for look in found.pictures))
    found: dict[str, Any] = {"maps": [], "captions": [], "drawn": [], "painted": []}
    for picture in pictures[:most]:
        own = [(one, look) for one, all_of in looks for look in all_of.pictures if look.picture == picture]
        rows = {
            "maps": [_map(one, look.map, side, words) for one, look in own if look.map is not None],
            "drawn": [_pictured(one, look.drawn, side) for one, look in own if look.drawn is not None],
            "painted": [_pictured(one, look.painted, side) for one, look in own if look.painted is not None],
            "captions": _captions(own, side),
        }
        for kind, items in rows.items():
            if items := [item for item in items if item is not None]:
                found[kind].append({"picture": picture, "items": items})
    gates = [(one, all_of.gate) for one, all_of in looks if all_of.gate]
    return found | {
        "gates": [{"series": one, "levels": list(next(iter(gate.values()))), "rows": gate} for one, gate in gates],
        "any": bool(looks),
        "left_out": len(pictures[most:]),
    }


def _map(series: Series, seen: Map, side: int, words: int) -> dict[str, Any] | None:
    if (uri := _uri(series, seen.seen, side)) is None:
        return None
    cells = []
    for number, cell in enumerate(seen.cells):
        place = divmod(number, seen.grid)
        cells.append(
            {
                "label": label_of(cell, *place, most=words),
                "kind": KINDS[cell.right],
                "sign": SIGNS[cell.right],
                "word": cell.word if seen.grid <= WRITTEN else "",
            }
        )
    rows = [cells[start : start + seen.grid] for start in range(0, len(cells), seen.grid)]
    return {"series": series, "uri": uri, "grid": seen.grid, "rows": rows, "words": seen.words}


def _pictured(series: Series, pictured: Pictured, side: int) -> dict[str, Any] | None:
    uri = _uri(series, pictured.file, 2 * side)
    return None if uri is None else {"series": series, "uri": uri, "words": pictured.words}


def _captions(own: Sequence[tuple[Series, Look]], side: int) -> list[dict[str, Any] | None]:
    """The captions of a picture: a row for each run, and each level of one that has levels."""
    items: list[dict[str, Any] | None] = []
    for series, look in own:
        if look.captions:
            shown = any(item["uri"] for item in items if item)  # a picture is shown once for all runs
            uri = _uri(series, look.map.seen, side // 2) if look.map is not None and not shown else None
            items.append({"series": series, "uri": uri, "said": _by_level(look.captions)})
    return items


def _by_level(captions: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name if name == BY_ITSELF else f"level {name}", said) for name, said in captions.items()]


def _uri(series: Series, name: str, side: int) -> str | None:
    """A picture of a run's looks; None where it is gone."""
    try:
        return picture_uri(png_of(series.run.path, name), side)
    except SightlineError:
        return None
