"""Benchmarks that are answered by yes or no: POPE, and MME's fourteen parts."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import SightlineError
from ..evaluation.metrics import Estimate, bootstrap_interval, parse_yes_no, says_yes_or_no, yes_no_scores
from .files import each, first, folder, image, lines
from .items import SHORT, Answered, Item, Scores

POPE = ("random", "popular", "adversarial")
PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"),
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
ASKED = "Please answer yes or no."
"""MME's questions end with it; LLaVA's prompt says another."""


def pope(root: Path) -> list[Item]:
    """Its three splits on COCO."""
    items = []
    pictures = folder(root, "val2014", "images")
    for split in POPE:
        path = first(root, f"coco/coco_pope_{split}.json", f"coco_pope_{split}.json")
        for where, entry in each(path, lines(path), "question_id", "image", "text", "label"):
            picture = image(pictures / entry["image"], where)
            truth = {"answer": entry["label"], "split": split}
            items.append(
                Item(f"{split}-{entry['question_id']}", entry["text"] + SHORT, (picture,), truth, str(picture))
            )
    return items


def pope_scores(rows: Sequence[Answered]) -> Scores:
    """LLaVA's way: F1 of each split, yes being positive, then their mean; answers are read by their first sentence."""
    found: dict = {}
    clusters = sorted({row.cluster for row in rows})
    columns = np.zeros((len(clusters), 3 * len(POPE)))
    for place, split in enumerate(POPE):
        own = [row for row in rows if row.item.truth["split"] == split]
        if not own:
            continue
        scores = yes_no_scores([r.said for r in own], [r.item.truth["answer"] for r in own], [r.cluster for r in own])
        found |= {f"{split}/f1": scores.f1, f"{split}/accuracy": scores.accuracy, f"{split}/yes": scores.yes_ratio}
        for row in own:
            said, true = parse_yes_no(row.said) == "yes", row.item.truth["answer"] == "yes"
            columns[clusters.index(row.cluster), 3 * place : 3 * place + 3] += (said and true, said, true)

    def f1(sums: np.ndarray) -> np.ndarray:
        each_one = [
            2 * sums[:, 3 * n] / np.maximum(sums[:, 3 * n + 1] + sums[:, 3 * n + 2], 1)
            for n in range(len(POPE))
            if columns[:, 3 * n : 3 * n + 3].any()
        ]
        return np.mean(each_one, axis=0)

    return {"f1": bootstrap_interval(columns, f1, bounds=(0.0, 1.0))} | found


def mme(root: Path) -> list[Item]:
    """Pairs of questions about each image: the answer to one is yes, to the other no."""
    base = folder(root, "MME_Benchmark_release_version/MME_Benchmark", "MME_Benchmark_release_version", "MME_Benchmark")
    items = []
    for part in (*PERCEPTION, *COGNITION):
        parent = base / part
        texts = folder(parent, "questions_answers_YN")
        pictures = folder(parent, "images")
        files = sorted(texts.glob("*.txt"))
        if not files:
            raise SightlineError(f"{parent} has no questions (*.txt). Put MME's folder '{part}' there.")
        for path in files:
            picture = next(
                (p for kind in ("jpg", "png", "jpeg") if (p := pictures / f"{path.stem}.{kind}").is_file()), None
            )
            if picture is None:
                raise SightlineError(f"{path} has no image {pictures / path.stem}.jpg. Put MME's images there.")
            for number, line in enumerate(path.read_text(encoding="utf-8").strip().splitlines()):
                question, tab, answer = line.partition("\t")
                if not tab or answer.strip().lower() not in ("yes", "no"):
                    raise SightlineError(f"{path} line {number + 1} is no question and answer. Get MME's own file.")
                prompt = question.replace(ASKED, "").strip() + SHORT
                truth = {"answer": answer.strip().lower(), "part": part}
                items.append(Item(f"{part}-{path.stem}-{number}", prompt, (picture,), truth, f"{part}/{path.stem}"))
    return items


def mme_right(row: Answered) -> bool:
    """Whether the right word was said; an answer that says neither is wrong."""
    return says_yes_or_no(row.said) and parse_yes_no(row.said) == row.item.truth["answer"]


def mme_scores(rows: Sequence[Answered]) -> Scores:
    """Points: of each part, the percentage of questions that are right and that of images both of whose are."""
    images: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        images[row.item.truth["part"]][row.cluster].append(mme_right(row))
    parts = {part: _points(list(images[part].values())) for part in (*PERCEPTION, *COGNITION) if part in images}
    return {"perception": _summed(parts, PERCEPTION), "cognition": _summed(parts, COGNITION)} | parts


def _points(images: Sequence[Sequence[bool]]) -> Estimate:
    columns = np.asarray([(sum(right), len(right), all(right), 1) for right in images], dtype=np.float64)
    return bootstrap_interval(
        columns, lambda sums: 100 * sums[:, 0] / sums[:, 1] + 100 * sums[:, 2] / sums[:, 3], bounds=(0.0, 200.0)
    )


def _summed(parts: Mapping[str, Estimate], chosen: Sequence[str]) -> Estimate:
    """A sum of parts, which share no image: their deviations add as squares."""
    own = [parts[part] for part in chosen if part in parts]
    value, most = sum((part.value for part in own), 0.0), 200.0 * len(chosen)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in own))
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in own))
    return Estimate(value, max(value - below, 0.0), min(value + above, most), sum(part.n for part in own))
