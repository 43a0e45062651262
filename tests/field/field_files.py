"""A few rows of every benchmark, in the form of its own files."""

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image


def picture(path: Path, colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)


def data64(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(file, "JPEG")
    return base64.b64encode(file.getvalue()).decode()


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def put_lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_all(root: Path) -> Path:
    """Every benchmark in a folder of its name."""
    ten = [{"answer": "red"}] * 8 + [{"answer": "pink"}] * 2
    place = root / "vqav2"
    put(
        place / "v2_OpenEnded_mscoco_val2014_questions.json",
        {"questions": [{"question_id": n, "image_id": n, "question": "What colour is it?"} for n in (1, 2)]},
    )
    put(
        place / "v2_mscoco_val2014_annotations.json",
        {
            "annotations": [
                {"question_id": n, "answers": ten, "answer_type": kind} for n, kind in ((1, "other"), (2, "yes/no"))
            ]
        },
    )
    for n in (1, 2):
        picture(place / "val2014" / f"COCO_val2014_{n:012d}.jpg")

    place = root / "gqa"
    put(place / "testdev_balanced_questions.json", {"07": {"question": "Is it red?", "imageId": "n1", "answer": "yes"}})
    picture(place / "images" / "n1.jpg")

    place = root / "vizwiz"
    put(place / "val.json", [{"image": "v1.jpg", "question": "What is this?", "answers": ten}])
    picture(place / "val" / "v1.jpg")

    for name in ("textvqa", "textvqa-ocr"):
        place = root / name
        put(
            place / "TextVQA_0.5.1_val.json",
            {"data": [{"question_id": 5, "image_id": "ab", "question": "what does it say?", "answers": ["red"] * 10}]},
        )
        put(place / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": [{"image_id": "ab", "ocr_tokens": ["STOP", "RED"]}]})
        picture(place / "train_images" / "ab.jpg")

    place = root / "stvqa"
    put(
        place / "test_task_3.json",
        {"data": [{"question_id": 3, "question": "Which word?", "file_path": "coco/1.jpg", "answers": ["red"]}]},
    )
    picture(place / "coco" / "1.jpg")

    place = root / "docvqa"
    put(
        place / "val_v1.0_withQT.json",
        {
            "data": [
                {"questionId": 9, "question": "Which date?", "image": "documents/d.png", "answers": ["may 3", "3 may"]}
            ]
        },
    )
    picture(place / "documents" / "d.png")

    place = root / "chartqa" / "test"
    put(place / "test_human.json", [{"imgname": "1.png", "query": "How many?", "label": "10"}])
    put(place / "test_augmented.json", [{"imgname": "1.png", "query": "How much?", "label": "50%"}])
    picture(place / "png" / "1.png")

    place = root / "scienceqa"
    rows = {
        "11": {
            "question": "Which is red?",
            "choices": ["box", "sky"],
            "answer": 0,
            "hint": "Look.",
            "image": "image.png",
        },
        "12": {"question": "Which is wet?", "choices": ["sand", "sea", "sun"], "answer": 1, "hint": "", "image": None},
    }
    put(place / "problems.json", rows)
    put(place / "pid_splits.json", {"test": ["11", "12"], "train": []})
    picture(place / "images" / "test" / "11" / "image.png")

    place = root / "ai2d" / "ai2d"
    for name in ("1.png", "2.png"):
        put(
            place / "questions" / f"{name}.json",
            {"imageName": name, "questions": {"What is A?": {"answerTexts": ["egg", "frog"], "correctAnswer": 1}}},
        )
        picture(place / "images" / name)
    (root / "ai2d" / "ai2d_test_ids.csv").write_text("1\n")

    place = root / "seed"
    both = {
        "question": "What?",
        "answer": "B",
        "choice_a": "a cat",
        "choice_b": "a dog",
        "choice_c": "a car",
        "choice_d": "a bus",
    }
    put(
        place / "SEED-Bench.json",
        {
            "questions": [
                both | {"question_id": "1", "data_type": "image", "data_id": "1_2"},
                both | {"question_id": "2", "data_type": "video", "data_id": "x.webm"},
            ]
        },
    )
    picture(place / "SEED-Bench-image" / "1_2.jpg")
    picture(place / "SEED-Bench-video-image" / "2.png")

    for name, file in (("mmbench", "MMBench_DEV_EN.tsv"), ("mmbench-cn", "MMBench_DEV_CN.tsv")):
        rows = ["index\tquestion\thint\tA\tB\tC\tD\tanswer\tcategory\timage"]
        rows.append(f"1\tWhich?\tnan\tred\tblue\tgreen\tnan\tA\tcolour\t{data64('red')}")
        rows.append(f"2\tWho?\tA hint.\tyou\tme\t\t\tB\tperson\t{data64('blue')}")
        (root / name).mkdir(parents=True)
        (root / name / file).write_text("\n".join(rows) + "\n", encoding="utf-8")

    place = root / "pope"
    for split in ("random", "popular", "adversarial"):
        put_lines(
            place / "coco" / f"coco_pope_{split}.json",
            [
                {"question_id": n, "image": "c.jpg", "text": f"Is there a {thing} in the image?", "label": label}
                for n, (thing, label) in enumerate((("box", "yes"), ("cat", "no")))
            ],
        )
    picture(place / "val2014" / "c.jpg")

    from sightline.benchmarks.yesno import COGNITION, PERCEPTION

    for part in (*PERCEPTION, *COGNITION):
        place = root / "mme" / "MME_Benchmark_release_version" / part
        picture(place / "images" / "1.png")
        (place / "questions_answers_YN").mkdir(parents=True)
        (place / "questions_answers_YN" / "1.txt").write_text(
            "Is it red? Please answer yes or no.\tYes\nIs it blue? Please answer yes or no.\tNo\n"
        )

    place = root / "coco"
    put(
        place / "coco_karpathy_test.json",
        [
            {"image": "val2014/c.jpg", "caption": ["a red box", "a box in red"]},
            {"image": "val2014/d.jpg", "caption": ["a blue sea"]},
        ],
    )
    for name in ("c.jpg", "d.jpg"):
        picture(place / "val2014" / name)

    place = root / "textcaps"
    put(
        place / "TextCaps_0.1_val.json",
        {"data": [{"image_id": "ab", "reference_strs": ["a sign that says stop", "a stop sign"]}] * 2},
    )
    picture(place / "train_images" / "ab.jpg")

    place = root / "llava-bench"
    put_lines(
        place / "questions.jsonl",
        [
            {"question_id": n, "image": "001.jpg", "text": "What is it?", "category": kind}
            for n, kind in ((0, "conv"), (1, "detail"))
        ],
    )
    put_lines(place / "answers_gpt4.jsonl", [{"question_id": n, "text": "A red box."} for n in (0, 1)])
    put_lines(place / "context.jsonl", [{"image": "001.jpg", "caption": "A box that is red."}])
    picture(place / "images" / "001.jpg")

    place = root / "mm-vet"
    put(
        place / "mm-vet.json",
        {
            "v1_0": {
                "imagename": "v1_0.png",
                "question": "What is x?",
                "answer": "-1<AND>-5",
                "capability": ["ocr", "math"],
            }
        },
    )
    picture(place / "images" / "v1_0.png")

    for folder, name, letters in (("dev", "anatomy_dev.csv", "ABCDA"), ("test", "anatomy_test.csv", "DC")):
        path = root / "mmlu" / "data" / folder / name
        path.parent.mkdir(parents=True)
        path.write_text(
            "".join(f'"What is {n}, if any?",one,two,three,four,{letter}\n' for n, letter in enumerate(letters))
        )
    return root
