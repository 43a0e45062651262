"""Benchmarks that are answered by letter: ScienceQA, AI2D, SEED, MMBench."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .files import each, embedded, first, folder, image, image_of, load, table
from .items import LETTER, LETTER_CN, Answered, Item, Scores
from .letters import LETTERS, chosen, listed, rotated
from .scoring import by_group, mean

ROUND = 1_000_000
"""MMBench's files give a question again with its options moved on, under its index plus a million."""


def scienceqa(root: Path) -> list[Item]:
    """The test split: questions with a picture and without."""
    path, splits = first(root, "problems.json"), first(root, "pid_splits.json")
    problems, items = load(path), []
    for number in load(splits)["test"]:
        ((where, entry),) = each(path, [problems[number]], "question", "choices", "answer", "hint", "image")
        picture = (
            image(folder(root, "images/test", "test") / number / entry["image"], where) if entry["image"] else None
        )
        context = f"Context: {entry['hint']}\n" if entry["hint"] else ""
        options = dict(zip(LETTERS, entry["choices"], strict=False))
        truth = {
            "letter": LETTERS[entry["answer"]],
            "options": entry["choices"],
            "kind": "image" if picture else "text",
        }
        prompt = f"{context}{entry['question']}\n{listed(options)}{LETTER}"
        items.append(Item(number, prompt, (picture,) if picture else (), truth))
    return items


def ai2d(root: Path) -> list[Item]:
    """The test split: questions about the images in its list."""
    base = folder(root, "ai2d")
    test = set(first(root, "ai2d_test_ids.csv", "ai2d/ai2d_test_ids.csv").read_text(encoding="utf-8").split())
    items = []
    for path in sorted((base / "questions").glob("*.json")) or [first(base, "questions/*.json")]:
        content = load(path)
        if Path(content["imageName"]).stem not in test:
            continue
        picture = image(base / "images" / content["imageName"], path.name)
        for asked, entry in content["questions"].items():
            ((_, entry),) = each(path, [entry], "answerTexts", "correctAnswer")
            options = dict(zip(LETTERS, entry["answerTexts"], strict=False))
            truth = {"letter": LETTERS[int(entry["correctAnswer"])], "options": entry["answerTexts"]}
            items.append(
                Item(f"{path.stem}-{asked}", f"{asked}\n{listed(options)}{LETTER}", (picture,), truth, str(picture))
            )
    return items


def seed(root: Path) -> list[Item]:
    """Images, and videos as their middle frames where these are there."""
    path = first(root, "SEED-Bench.json")
    frames = {"image": folder(root, "SEED-Bench-image"), "video": root / "SEED-Bench-video-image"}
    items = []
    fields = ("question_id", "question", "answer", "data_type", "data_id", "choice_a", "choice_b")
    for where, entry in each(path, load(path).get("questions"), *fields):
        kind = entry["data_type"]
        if kind == "video" and not frames["video"].is_dir():
            continue
        choices = [entry[f"choice_{letter.lower()}"] for letter in LETTERS[:4] if f"choice_{letter.lower()}" in entry]
        stem = entry["data_id"] if kind == "image" else entry["question_id"]
        named = frames[kind] / str(stem)
        picture = named if named.is_file() else image_of(frames[kind], Path(str(stem)).stem, where)
        prompt = f"{entry['question']}\n{listed(dict(zip(LETTERS, choices, strict=False)))}{LETTER}"
        truth = {"letter": entry["answer"], "options": choices, "kind": kind}
        items.append(Item(str(entry["question_id"]), prompt, (picture,), truth, str(picture)))
    return items


def mmbench(root: Path) -> list[Item]:
    """The English development split, each question once for every way to begin its options."""
    return _mmbench(first(root, "MMBench_DEV_EN*.tsv", "mmbench_dev_en*.tsv", "mmbench_dev_2*.tsv"), LETTER)


def mmbench_cn(root: Path) -> list[Item]:
    """The Chinese development split."""
    return _mmbench(first(root, "MMBench_DEV_CN*.tsv", "mmbench_dev_cn*.tsv"), LETTER_CN)


def _mmbench(path: Path, suffix: str) -> list[Item]:
    entries = list(each(path, table(path), "index", "question", "answer", "image", "A", "B"))
    pictures = {entry["index"]: entry["image"] for _, entry in entries}
    circled = any(int(entry["index"]) >= ROUND for _, entry in entries)
    items = []
    for where, entry in entries:
        letters = [letter for letter in LETTERS[:4] if _given(entry.get(letter))]
        options = [entry[letter] for letter in letters]
        right = entry[entry["answer"]]
        data = pictures.get(entry["image"], entry["image"])  # a rotated row may name the row that has the image
        base = int(entry["index"]) % ROUND
        for turn in range(1 if circled else len(options)):
            moved = rotated(options, turn)
            hint = f"{entry['hint']}\n" if _given(entry.get("hint")) else ""
            prompt = f"{hint}{entry['question']}\n{listed(dict(zip(LETTERS, moved, strict=False)))}{suffix}"
            truth = {"letter": LETTERS[moved.index(right)], "options": moved, "question": str(base)}
            if _given(entry.get("category")):
                truth["category"] = entry["category"]
            key = entry["index"] if circled else str(int(entry["index"]) + turn * ROUND)
            items.append(Item(key, prompt, (embedded(where, data),), truth, str(base)))
    return items


def _given(value: Any) -> bool:
    return isinstance(value, str) and value.strip().lower() not in ("", "nan")


def right(row: Answered) -> float:
    """Whether the right letter was chosen."""
    return float(chosen(row.said, row.item.truth["options"]) == row.item.truth["letter"])


def by_letter(rows: Sequence[Answered]) -> Scores:
    """The share of right letters, and that of each kind of question."""
    values = [right(row) for row in rows]
    kinds = by_group(values, rows, lambda row: row.item.truth.get("kind"))
    return {"all": mean(values, rows)} | (kinds if len(kinds) > 1 or "image" in kinds else {})


def circular(rows: Sequence[Answered]) -> Scores:
    """The share of questions whose every rotation is right; and of single rotations."""
    rounds: dict[str, list[Answered]] = defaultdict(list)
    for row in rows:
        rounds[row.item.truth["question"]].append(row)
    firsts = [group[0] for group in rounds.values()]
    values = [float(all(right(row) for row in group)) for group in rounds.values()]
    categories = by_group(values, firsts, lambda row: row.item.truth.get("category"))
    single = mean([right(row) for row in rows], rows)
    return {"circular": mean(values, firsts), "single": single} | {f"circular/{k}": v for k, v in categories.items()}
