"""Benchmarks of every kind about the small world's pictures, in the files of the field's own.

With them `sightline eval --benchmark` can be tried from end to end where nothing can be downloaded, on a model whose
abilities are known: the questions are the world's, `sightline eval --data` asks the same, and the truth is drawn. Only
the form is a benchmark's, so a score here is no score on POPE or GQA.
"""

import argparse
import base64
import csv
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from sightline.benchmarks.yesno import COGNITION, PERCEPTION
from sightline.errors import SightlineError
from sightline.files import atomic_folder, claim_empty
from sightline.world.language import ANSWERS, caption, name_pair
from sightline.world.scene import Scene

Row = dict[str, Any]
LETTERS = "ABCD"
CAPTIONS = 5
"""Of each picture, as COCO has them."""
FEWEST = 24
"""Pictures in which every question of every benchmark has its turn."""
SHOTS = 5
"""Examples of each subject, as MMLU has them."""

EPILOG = """\
example:
  python examples/benchmarks/from_world.py data/world data/world-benchmarks
  sightline eval runs/world --benchmark all --root data/world-benchmarks
"""


@dataclass(frozen=True)
class World:
    """The pictures of a split, or the first of them, and what is known of them."""

    folder: Path
    split: str
    most: int | None = None

    def asked(self, *abilities: str) -> list[Row]:
        """The questions of some abilities; `number` is that of their picture."""
        rows = [row | {"number": int(Path(row["image"]).stem)} for row in self._lines(f"{self.split}.questions.jsonl")]
        return [row for row in rows if row["ability"] in abilities and row["number"] < len(self.scenes)]

    def facts(self) -> list[Row]:
        """Questions that text alone answers."""
        return [row for row in self._lines(f"{self.split}.text.jsonl") if row["ability"] == "fact"]

    def fact_words(self, fact: Row) -> list[str]:
        """The answers of all facts of its kind."""
        return sorted({row["answer"] for row in self.facts() if kind(row) == kind(fact)})

    @cached_property
    def scenes(self) -> list[Scene]:
        """What each picture shows."""
        rows = self._lines(f"truth/{self.split}.jsonl")[: self.most]
        return [TypeAdapter(Scene).validate_python(row["scene"]) for row in rows]

    def captions(self, number: int) -> list[str]:
        """What five people could write of a picture."""
        rng = np.random.default_rng([number, CAPTIONS])
        return [caption(self.scenes[number], rng) for _ in range(CAPTIONS)]

    def picture(self, number: int) -> Path:
        """Its file."""
        return self.folder / "images" / self.split / f"{number:06d}.png"

    def show(self, number: int, path: Path) -> None:
        """Copy a picture as it is to where a benchmark has it: whatever it is called, it stays a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.picture(number), path)

    def _lines(self, name: str) -> list[Row]:
        path = self.folder / name
        if not path.is_file():
            raise SightlineError(f"{path} is not there, so there is nothing to ask. Run: sightline world make DIR")
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def options(key: str, answer: str, words: Sequence[str]) -> tuple[list[str], int]:
    """Up to four of some words, and the place of the right one, in an order of the question's own."""
    rng = random.Random(key)
    shown = [answer, *rng.sample([word for word in words if word != answer], min(len(words), 4) - 1)]
    rng.shuffle(shown)
    return shown, shown.index(answer)


def coco_name(number: int) -> str:
    return f"COCO_val2014_{number:012d}.jpg"


def pope(world: World, out: Path) -> None:
    """Is there ...? The world has POPE's three kinds of what is absent."""
    for split in ("random", "popular", "adversarial"):
        rows = []
        for place, row in enumerate(world.asked(f"existence_{split}"), start=1):
            world.show(row["number"], out / "val2014" / coco_name(row["number"]))
            about = {"question_id": place, "image": coco_name(row["number"])}
            rows.append(about | {"text": row["question"], "label": row["answer"]})
        put_lines(out / "coco" / f"coco_pope_{split}.json", rows)


def mme(world: World, out: Path) -> None:
    """Of each picture a question with yes and one with no, all on existence; the fourteen parts take turns."""
    parts, pairs = (*PERCEPTION, *COGNITION), [[thing.pair for thing in scene.things] for scene in world.scenes]
    for number, mine in enumerate(pairs):
        place, later = number % len(parts), chain.from_iterable(pairs[number + 1 :] + pairs)
        other = next(pair for pair in later if pair not in mine)
        asked = [f"is there {name_pair(pair)}? Please answer yes or no." for pair in (mine[0], other)]
        part = out / "MME_Benchmark_release_version" / parts[place]
        pictures, texts = ("images", "questions_answers_YN") if place in range(4, 9) else ("", "")  # as in the release
        world.show(number, part / pictures / f"{number:04d}.png")
        put(part / texts / f"{number:04d}.txt", f"{asked[0]}\tYes\n{asked[1]}\tNo\n")


def vqav2(world: World, out: Path) -> None:
    """Ten people answer each; two of them otherwise, and counts in digits."""
    kinds = {"colour": "other", "background": "other", "count": "number"}
    digits = {word: str(place) for place, word in enumerate(ANSWERS["count"], start=1)}
    asked, told = [], []
    for place, row in enumerate(world.asked(*kinds)):
        world.show(row["number"], out / "val2014" / coco_name(row["number"]))
        answer = digits.get(row["answer"], row["answer"])
        wrong = next(word for word in ANSWERS[row["ability"]] if word != row["answer"])
        people = [{"answer": text, "answer_id": n} for n, text in enumerate([answer] * 8 + [wrong] * 2, start=1)]
        asked.append({"question_id": place, "image_id": row["number"], "question": row["question"]})
        told.append({"question_id": place, "image_id": row["number"], "answers": people})
        told[-1] |= {"answer_type": kinds[row["ability"]], "multiple_choice_answer": answer}
    put_json(out / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": asked})
    put_json(out / "v2_mscoco_val2014_annotations.json", {"annotations": told})


def gqa(world: World, out: Path) -> None:
    """Shapes, by exact match."""
    entries = {}
    for place, row in enumerate(world.asked("shape")):
        world.show(row["number"], out / "images" / f"n{row['number']}.jpg")
        entries[f"{place:06d}"] = {"question": row["question"], "imageId": f"n{row['number']}", "answer": row["answer"]}
    put_json(out / "testdev_balanced_questions.json", entries)


def docvqa(world: World, out: Path) -> None:
    """The letter on a sign."""
    rows = []
    for place, row in enumerate(world.asked("reading")):
        world.show(row["number"], out / "documents" / f"{row['number']}.png")
        about = {"questionId": place, "question": row["question"], "image": f"documents/{row['number']}.png"}
        rows.append(about | {"answers": [row["answer"]]})
    put_json(out / "val_v1.0_withQT.json", {"data": rows})


def chartqa(world: World, out: Path) -> None:
    """Counts as what people asked, backgrounds as what was made."""
    for half, ability in (("human", "count"), ("augmented", "background")):
        rows = []
        for row in world.asked(ability):
            world.show(row["number"], out / "test" / "png" / f"{row['number']}.png")
            rows.append({"imgname": f"{row['number']}.png", "query": row["question"], "label": row["answer"]})
        put_json(out / "test" / f"test_{half}.json", rows)


def scienceqa(world: World, out: Path) -> None:
    """Colours with a picture, facts without."""
    problems: dict[str, Row] = {}
    for row in (*world.asked("colour"), *world.facts()):
        key, picture = str(len(problems) + 1), "image.png" if "image" in row else None
        choices, right = options(row["id"], row["answer"], ANSWERS["colour"] if picture else world.fact_words(row))
        problems[key] = {"question": row["question"], "choices": choices, "answer": right, "hint": "", "image": picture}
        if picture:
            world.show(row["number"], out / "images" / "test" / key / picture)
    put_json(out / "problems.json", problems)
    put_json(out / "pid_splits.json", {"train": [], "val": [], "test": list(problems)})


def mmbench(world: World, out: Path) -> None:
    """Backgrounds of four options, sizes of two; the reader rotates them."""
    rows = [["index", "question", "hint", *LETTERS, "answer", "category", "image"]]
    for place, row in enumerate(world.asked("background", "size")):
        choices, right = options(row["id"], row["answer"], ANSWERS[row["ability"]])
        shown = [*choices, *["nan"] * (4 - len(choices))]
        image = base64.b64encode(world.picture(row["number"]).read_bytes()).decode()
        rows.append([str(place), row["question"], "nan", *shown, LETTERS[right], row["ability"], image])
    put_table(out / "MMBench_DEV_EN.tsv", rows, "\t")


def coco(world: World, out: Path) -> None:
    """Captions in Karpathy's file."""
    rows = []
    for number in range(len(world.scenes)):
        world.show(number, out / "val2014" / coco_name(number))
        rows.append({"image": f"val2014/{coco_name(number)}", "caption": world.captions(number)})
    put_json(out / "coco_karpathy_test.json", rows)


def mm_vet(world: World, out: Path) -> None:
    """A few questions of every ability, by MM-Vet's names of them."""
    needs = {"colour": ["rec"], "reading": ["ocr"], "relation": ["rec", "spat"], "count": ["rec", "math"]}
    entries = {}
    for place, row in enumerate(world.asked(*needs)[:64]):
        world.show(row["number"], out / "images" / f"v1_{row['number']}.png")
        about = {"imagename": f"v1_{row['number']}.png", "question": row["question"], "answer": row["answer"]}
        entries[f"v1_{place}"] = about | {"capability": needs[row["ability"]]}
    put_json(out / "mm-vet.json", entries)


def llava_bench(world: World, out: Path) -> None:
    """A short question and a description of some pictures; a caption is what a judge is told of them."""
    asked, references, contexts = [], [], []
    for row in world.asked("background")[:24]:
        image, (first, second, *_) = f"{row['number']:03d}.jpg", world.captions(row["number"])
        world.show(row["number"], out / "images" / image)
        contexts.append({"id": image, "image": image, "caption": first})
        short, long = ("conv", row["question"], row["answer"]), ("detail", "describe the picture.", second)
        for kind, text, answer in (short, long):
            references.append({"question_id": len(asked), "prompt": text, "text": answer})
            asked.append({"question_id": len(asked), "image": image, "category": kind, "text": text})
    for name, rows in (("questions", asked), ("answers_gpt4", references), ("context", contexts)):
        put_lines(out / f"{name}.jsonl", rows)


def mmlu(world: World, out: Path) -> None:
    """Facts, a subject of each kind."""
    subjects = defaultdict(list)
    for row in world.facts():
        choices, right = options(row["id"], row["answer"], world.fact_words(row))
        subjects[kind(row)].append([row["question"], *choices, LETTERS[right]])
    for subject, rows in subjects.items():
        put_table(out / "data" / "dev" / f"{subject}_dev.csv", rows[:SHOTS], ",")
        put_table(out / "data" / "test" / f"{subject}_test.csv", rows[SHOTS:], ",")


def kind(fact: Row) -> str:
    """What a fact is about: `what does the badger eat?` is about `eat`."""
    return fact["question"].rstrip("?").split()[-1]


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="")


def put_json(path: Path, value: Any) -> None:
    put(path, json.dumps(value, indent=1))


def put_lines(path: Path, rows: Sequence[Row]) -> None:
    put(path, "".join(json.dumps(row) + "\n" for row in rows))


def put_table(path: Path, rows: Sequence[Sequence[str]], between: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=between).writerows(rows)


KINDS = (pope, mme, vqav2, gqa, docvqa, chartqa, scienceqa, mmbench, coco, mm_vet, llava_bench, mmlu)


def make(world: World, out: Path) -> None:
    """Write all of them, each into a folder of its name, or nothing.

    Raises:
        SightlineError: if `out` holds something already, or the world is not there or too small.
    """
    claim_empty(out, "benchmarks")
    if len(world.scenes) < FEWEST:
        raise SightlineError(
            f"{len(world.scenes)} pictures are too few for POPE's three kinds, half of each true, and MME's fourteen "
            f"parts. Take {FEWEST} or more: --most {FEWEST}, or a larger world."
        )
    with atomic_folder(out) as folder:
        for write in KINDS:
            write(world, folder / write.__name__.replace("_", "-"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", metavar="WORLD", type=Path, help="a folder that `sightline world make` wrote")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new or empty folder")
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--most", type=int, metavar="N", help="the first N pictures; multiples of 24 suit POPE")
    given = parser.parse_args()
    try:
        make(World(given.world, given.split, given.most), given.out)
    except SightlineError as error:
        parser.error(str(error))
    print(f"{len(KINDS)} benchmarks in {given.out}")


if __name__ == "__main__":
    main()
