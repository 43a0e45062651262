"""Benchmarks with open answers: captions of COCO and TextCaps by CIDEr; LLaVA-Bench and MM-Vet by a judge."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..evaluation.metrics import bootstrap_interval
from .cider import cider
from .files import each, first, folder, image, image_of, lines, load
from .items import CAPTION, Answered, Item, Scores
from .scoring import mean

TEN = (0.0, 1000.0)
"""CIDEr's range, times 100."""


def coco(root: Path) -> list[Item]:
    """Karpathy's test split, or the validation images of 2014 where that file is there instead."""
    path = first(root, "coco_karpathy_test.json", "captions_val2014.json", "annotations/captions_val2014.json")
    pictures = folder(root, "val2014", "images")
    content = load(path)
    if isinstance(content, list):
        return [
            _captioned(entry["image"], image(pictures / Path(entry["image"]).name, where), entry["caption"])
            for where, entry in each(path, content, "image", "caption")
        ]
    said: dict[int, list[str]] = defaultdict(list)
    for _, entry in each(path, content["annotations"], "image_id", "caption"):
        said[entry["image_id"]].append(entry["caption"])
    return [
        _captioned(str(entry["id"]), image(pictures / entry["file_name"], where), said[entry["id"]])
        for where, entry in each(path, content["images"], "id", "file_name")
    ]


def textcaps(root: Path) -> list[Item]:
    """The validation split: five captions of each image."""
    path, pictures = first(root, "TextCaps_0.1_val.json"), folder(root, "train_images", "images")
    items: dict[str, Item] = {}
    for where, entry in each(path, load(path).get("data"), "image_id", "reference_strs"):
        if entry["image_id"] not in items:
            picture = image_of(pictures, entry["image_id"], where)
            items[entry["image_id"]] = _captioned(entry["image_id"], picture, entry["reference_strs"])
    return list(items.values())


def _captioned(key: str, picture: Path, captions: Sequence[str]) -> Item:
    return Item(key, CAPTION, (picture,), {"captions": list(captions)}, str(picture))


def cider_scores(rows: Sequence[Answered]) -> Scores:
    """CIDEr x 100, the mean over images."""
    scores = cider({row.item.id: row.said for row in rows}, {row.item.id: row.item.truth["captions"] for row in rows})
    return {"cider": mean([100 * scores[row.item.id] for row in rows], rows, TEN)}


def llava_bench(root: Path) -> list[Item]:
    """LLaVA-Bench in the wild: sixty questions, each with a reference's answer and what is in the image in words."""
    path = first(root, "questions.jsonl")
    references = {entry["question_id"]: entry["text"] for entry in lines(first(root, "answers_gpt4.jsonl"))}
    contexts = {entry["image"]: entry.get("caption", "") for entry in lines(first(root, "context.jsonl"))}
    items = []
    for where, entry in each(path, lines(path), "question_id", "image", "text", "category"):
        picture = image(folder(root, "images") / entry["image"], where)
        truth = {"reference": references[entry["question_id"]], "context": contexts.get(entry["image"], "")}
        truth |= {"category": entry["category"], "question": entry["text"]}
        items.append(Item(str(entry["question_id"]), entry["text"], (picture,), truth, str(picture)))
    return items


def mm_vet(root: Path) -> list[Item]:
    """218 questions, each for several abilities at once."""
    path = first(root, "mm-vet.json")
    content = load(path)
    items = []
    for key, entry in content.items():
        ((where, entry),) = each(path, [entry], "imagename", "question", "answer")
        picture = image(folder(root, "images") / entry["imagename"], where)
        truth = {"reference": entry["answer"], "question": entry["question"], "abilities": entry.get("capability", [])}
        items.append(Item(key, entry["question"], (picture,), truth, str(picture)))
    return items


def relative(marks: Sequence[tuple[float, float]], rows: Sequence[Answered]) -> Scores:
    """LLaVA-Bench's score: the model's mean mark over the reference's, times 100.

    Args:
        marks: the judge's of the reference and of the model, for each row.
    """

    def of(chosen: Sequence[int]):
        columns = np.asarray([marks[place] for place in chosen], dtype=np.float64)
        return bootstrap_interval(
            columns,
            lambda sums: 100 * sums[:, 1] / np.maximum(sums[:, 0], 1e-12),
            [rows[place].cluster for place in chosen],
            bounds=(0.0, 1000.0),
        )

    kinds = sorted({row.item.truth["category"] for row in rows})
    parts = {kind: [n for n, row in enumerate(rows) if row.item.truth["category"] == kind] for kind in kinds}
    return {"score": of(range(len(rows)))} | {f"score/{kind}": of(chosen) for kind, chosen in parts.items()}


def marked(marks: Sequence[float], rows: Sequence[Answered]) -> Scores:
    """MM-Vet's score: the mean of the judge's marks, 0 to 1, times 100; and that of each ability."""
    abilities = sorted({ability for row in rows for ability in row.item.truth["abilities"]})

    def of(chosen: Sequence[int]):
        return mean([100 * marks[n] for n in chosen], [rows[n] for n in chosen], (0.0, 100.0))

    parts = {a: [n for n, row in enumerate(rows) if a in row.item.truth["abilities"]] for a in abilities}
    return {"score": of(range(len(rows)))} | {f"score/{name}": of(chosen) for name, chosen in parts.items()}
