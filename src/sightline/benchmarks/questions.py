"""Benchmarks that are answered in words: VQAv2, GQA, VizWiz, TextVQA, ST-VQA, DocVQA, ChartQA."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import each, first, folder, image, image_of, load
from .items import SHORT, UNANSWERABLE, WORD, Item


def vqav2(root: Path) -> list[Item]:
    """The validation split: its questions and its ten answers each."""
    asked, told = (
        first(root, "v2_OpenEnded_mscoco_val2014_questions.json"),
        first(root, "v2_mscoco_val2014_annotations.json"),
    )
    answers = {
        entry["question_id"]: entry
        for _, entry in each(told, load(told).get("annotations"), "question_id", "answers", "answer_type")
    }
    pictures = folder(root, "val2014", "images")
    items = []
    for where, entry in each(asked, load(asked).get("questions"), "question_id", "image_id", "question"):
        truth = answers[entry["question_id"]]
        path = image(pictures / f"COCO_val2014_{int(entry['image_id']):012d}.jpg", where)
        texts = [answer["answer"] for answer in truth["answers"]]
        items.append(_item(entry["question_id"], entry["question"] + SHORT, path, texts, type=truth["answer_type"]))
    return items


def gqa(root: Path) -> list[Item]:
    """testdev_balanced."""
    path = first(root, "testdev_balanced_questions.json")
    entries = load(path)
    pictures = folder(root, "images")
    items = []
    for number, entry in entries.items():
        ((where, entry),) = each(path, [entry], "question", "imageId", "answer")
        picture = image_of(pictures, str(entry["imageId"]), where)
        items.append(_item(number, entry["question"] + SHORT, picture, [entry["answer"]]))
    return items


def vizwiz(root: Path) -> list[Item]:
    """val.json, whose answers are public."""
    path, pictures = first(root, "val.json", "Annotations/val.json"), folder(root, "val", "images")
    return [
        _item(
            number,
            entry["question"] + UNANSWERABLE + SHORT,
            image(pictures / entry["image"], where),
            [answer["answer"] for answer in entry["answers"]],
        )
        for number, (where, entry) in enumerate(each(path, load(path), "image", "question", "answers"))
    ]


def textvqa(root: Path) -> list[Item]:
    """The validation split, the question alone."""
    return _textvqa(root, {})


def textvqa_ocr(root: Path) -> list[Item]:
    """With the tokens that an OCR system read, as LLaVA-1.5, SEA and AlignGPT ask it."""
    path = first(root, "TextVQA_Rosetta_OCR_v0.2_val.json")
    return _textvqa(
        root,
        {
            entry["image_id"]: entry["ocr_tokens"]
            for _, entry in each(path, load(path).get("data"), "image_id", "ocr_tokens")
        },
    )


def _textvqa(root: Path, read: Mapping[str, list[str]]) -> list[Item]:
    path, pictures = first(root, "TextVQA_0.5.1_val.json"), folder(root, "train_images", "images")
    items = []
    for where, entry in each(path, load(path).get("data"), "question_id", "image_id", "question", "answers"):
        seen = f"\nReference OCR token: {', '.join(read[entry['image_id']])}" if entry["image_id"] in read else ""
        picture = image_of(pictures, entry["image_id"], where)
        items.append(_item(entry["question_id"], entry["question"] + seen + SHORT, picture, entry["answers"]))
    return items


def docvqa(root: Path) -> list[Item]:
    """The validation split."""
    path = first(root, "val_v1.0_withQT.json", "val_v1.0.json", "val/val_v1.0.json")
    parent = path.parent
    return [
        _item(entry["questionId"], entry["question"] + SHORT, image(parent / entry["image"], where), entry["answers"])
        for where, entry in each(path, load(path).get("data"), "questionId", "question", "image", "answers")
    ]


def stvqa(root: Path) -> list[Item]:
    """Task 3's rows that have answers (the test split's are the server's)."""
    path = first(root, "*task_3.json")
    return [
        _item(
            entry["question_id"], entry["question"] + SHORT, image(root / entry["file_path"], where), entry["answers"]
        )
        for where, entry in each(path, load(path).get("data"), "question_id", "question", "file_path", "answers")
    ]


def chartqa(root: Path) -> list[Item]:
    """The test split's two halves: what people asked, and what was made from captions."""
    items = []
    base = folder(root, "test")
    for half in ("human", "augmented"):
        path = first(base, f"test_{half}.json")
        for number, (where, entry) in enumerate(each(path, load(path), "imgname", "query", "label")):
            picture = image(folder(base, "png", "images") / entry["imgname"], where)
            items.append(_item(f"{half}-{number}", entry["query"] + WORD, picture, [str(entry["label"])], half=half))
    return items


def _item(key: Any, prompt: str, picture: Path, answers: list[str], **truth: Any) -> Item:
    return Item(str(key), prompt, (picture,), {"answers": answers} | truth, cluster=str(picture))
