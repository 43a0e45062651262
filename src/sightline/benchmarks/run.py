"""Asking a model a benchmark's questions, batch by batch, and going on where it stopped."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from ..data.images import load_image
from ..errors import SightlineError
from ..evaluation.evaluate import versions
from ..evaluation.metrics import Estimate
from ..files import write_json
from ..progress import watched
from .items import Answered, Benchmark, Item, Scores

ANSWERS, SETTINGS, SCORES = "answers.jsonl", "settings.json", "scores.json"


class Speaker(Protocol):
    """A model that can be asked, greedily."""

    def answers(
        self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], *, max_new_tokens: int
    ) -> list[str]: ...

    def letters(self, prompts: Sequence[str], letters: str) -> list[str]:
        """The likeliest of some letters after each prompt."""
        ...


def items_of(benchmark: Benchmark, root: Path, most: int | None = None) -> list[Item]:
    """What a benchmark asks, from its own folder below the root, or the root itself.

    Raises:
        SightlineError: if its files are not there, or are not what they should be.
    """
    place = root / benchmark.name if (root / benchmark.name).is_dir() else root
    try:
        items = benchmark.read(place)
    except SightlineError as error:
        raise SightlineError(f"{benchmark.name}: {error} It reads {benchmark.files}, below {place}.") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise SightlineError(
            f"{benchmark.name}: its files in {place} are not what they should be ({type(error).__name__}: {error}). "
            f"Get the benchmark's own: {benchmark.files}."
        ) from None
    if len({item.id for item in items}) < len(items):
        raise SightlineError(f"{benchmark.name}: two of its questions have one id, so its files are not its own.")
    return items[:most]


def answer(
    benchmark: Benchmark,
    items: Sequence[Item],
    speaker: Speaker,
    out: Path,
    *,
    settings: Mapping[str, Any],
    batch_size: int = 16,
    progress: bool = True,
) -> list[Answered]:
    """Ask what was not asked yet, writing each batch's answers as they come.

    Args:
        out: the benchmark's folder: `settings.json` says what answers depend on, `answers.jsonl` has them by id.

    Raises:
        SightlineError: if the folder has answers of other settings, or an image cannot be decoded.
    """
    _settle(out / SETTINGS, {**settings, "benchmark": benchmark.name, "items": _digest(items), "asked": len(items)})
    said = read_answers(out / ANSWERS)
    left = [item for item in items if item.id not in said]
    with (out / ANSWERS).open("a", encoding="utf-8") as file:
        for batch in watched(left, benchmark.name, batch_size=batch_size, progress=progress):
            if benchmark.way == "letters":
                given = speaker.letters([item.prompt for item in batch], "ABCD")
            else:
                images = [[load_image(image) for image in item.images] for item in batch]
                prompts = [item.prompt for item in batch]
                given = speaker.answers(images, prompts, max_new_tokens=benchmark.max_new_tokens)
            for item, text in zip(batch, given, strict=True):
                file.write(json.dumps({"id": item.id, "said": text}, ensure_ascii=False) + "\n")
                said[item.id] = text
            file.flush()
            os.fsync(file.fileno())
    return [Answered(item, said[item.id]) for item in items]


def read_answers(path: Path) -> dict[str, str]:
    """Answers by the id of the question; a last line that was cut off is taken away."""
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        path.write_bytes(whole)
    rows = [json.loads(line) for line in whole.decode("utf-8").splitlines()]
    return {row["id"]: row["said"] for row in rows}


def write_scores(benchmark: Benchmark, scores: Scores, out: Path, settings: Mapping[str, Any]) -> None:
    """Write scores with all that they depend on."""
    about = {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "primary": benchmark.primary,
        "note": benchmark.note,
    }
    rows = {name: asdict(estimate) for name, estimate in scores.items()}
    write_json(out / SCORES, about | {"scores": rows, "settings": dict(settings), "versions": versions()})


def read_scores(path: Path) -> tuple[dict[str, Any], dict[str, Estimate]]:
    """What a `scores.json` says, and its scores."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content, {name: Estimate(**row) for name, row in content["scores"].items()}


def _digest(items: Sequence[Item]) -> str:
    found = hashlib.sha256()
    for item in items:
        found.update(json.dumps([item.id, item.prompt, item.truth], sort_keys=True).encode())
    return found.hexdigest()


def _settle(path: Path, settings: Mapping[str, Any]) -> None:
    """Note what answers depend on, or see that it is what they did depend on."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = sorted(key for key in {*before, *settings} if before.get(key) != settings.get(key))
    if "items" in changed:
        asked = f"to other questions ({before.get('asked')} then, {settings.get('asked')} now)"
    else:
        asked = f"with another {', '.join(changed)}"
    if changed:
        raise SightlineError(
            f"{path.parent} has answers {asked}, so they would be mixed. Give another --out, or remove the folder."
        )
