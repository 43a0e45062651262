"""Writes a small world to a folder, in the formats that users' own data has.

    images/<split>/000123.png       the pictures, in one view
    pretrain.json                   LLaVA JSON: one clean caption for each training picture
    pretrain.noisy.json             the same pictures with captions of known `grade`, from clean to unrelated
    instruct.json                   LLaVA JSON: one question in each row with its `ability`, and some descriptions
    <split>.captions.json           LLaVA JSON: clean captions of validation, test and novel
    <split>.questions.jsonl         rows {id, image, question, answer, ability} for validation, test and novel
    validation.instruct.json        the validation questions as LLaVA JSON, to measure a loss on
    <split>.text.jsonl              rows without images for validation and test: facts that only text tells, and
                                    questions about scenes described in words
    validation.text.json            those of validation as LLaVA JSON
    truth/<split>.jsonl             the scene of each picture, and what each of its patches shows
    words.txt                       a list of words for labels: the world's own, then as many distractors and more
    world.json                      seed, sizes, view, words

`image` is relative to `images/`. A row holds one question: several in one context would answer each other. The folder
appears whole or not at all.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import SightlineError
from ..files import atomic_folder, claim_empty, write_json
from .claims import GRADES, graded_caption
from .draw import SIDE, View, patch_truth, render
from .language import ABILITIES, CAPTION_REQUESTS, caption, questions
from .lexicon import DISTRACTORS, content_words, world_facts
from .scene import (
    BACKGROUNDS,
    COLOURS,
    LETTERS,
    NOVEL_PAIRS,
    SHAPES,
    SIZES,
    Scene,
    Split,
    choose,
    sample_scene,
    stream,
)

MOST_SEED = 2**63 - 1
"""Beyond it, numpy's generator would take many seeds for one."""
VERSION = 3
"""Of the world: another number means that the same seed gives other data."""
PATCH = 16
"""Width of the patches that `truth/` is written for, in pixels; `draw.patch_truth` computes it for any."""

DESCRIBED = 4
"""Every fourth training picture is also described in `instruct.json`, so that tuning does not unlearn it."""
TOLD: tuple[Split, ...] = ("validation", "test")
"""The splits that come with questions on text alone."""

Progress = Callable[[Split, int, int], None]
"""Called with the split, the pictures done and the pictures in all."""


def make_world(
    out: Path,
    *,
    seed: int = 0,
    view: View = "low",
    train: int = 2000,
    validation: int = 300,
    test: int = 300,
    novel: int = 300,
    progress: Progress | None = None,
) -> None:
    """Draws a world into the folder `out`, which must not exist or be empty.

    Args:
        seed: a seed, a view and sizes give the same files on every machine.
        view: `low` pictures, or `high` ones, whose captions and questions tell the letters of cards too. The image
            processor of `world:clip` makes the low view of a high picture exactly.
        train, validation, test, novel: pictures of each split; a larger split begins with the same pictures.

    Raises:
        SightlineError: if `out` holds files already, or a size or the seed is not usable.
    """
    sizes: dict[Split, int] = {"train": train, "validation": validation, "test": test, "novel": novel}
    out = out.resolve()
    claim_empty(out, "a world")
    _check(seed, sizes)
    with atomic_folder(out) as partial:
        for split, size in sizes.items():
            (partial / "images" / split).mkdir(parents=True)
            scenes = [sample_scene(seed, split, index) for index in range(size)]
            for index, scene in enumerate(scenes):
                render(scene, view).save(partial / "images" / _image(split, index))
                if progress:
                    progress(split, index + 1, size)
            _write_texts(partial, seed, split, scenes, view)
            _write_lines(
                partial / "truth" / f"{split}.jsonl", (_truth(split, i, s, view) for i, s in enumerate(scenes))
            )
        own = content_words()
        (partial / "words.txt").write_text("\n".join([*own, *DISTRACTORS]) + "\n", encoding="utf-8")
        about = {
            "version": VERSION,
            "seed": seed,
            "sizes": sizes,
            "view": view,
            "image": SIDE[view],
            "patch": PATCH,
            "abilities": ABILITIES,
            "grades": GRADES,
            "words": {"colour": COLOURS, "shape": SHAPES, "size": SIZES, "letter": LETTERS, "background": BACKGROUNDS},
            "content_words": len(own),
            "distractors": len(DISTRACTORS),
            "novel_pairs": NOVEL_PAIRS,
        }
        write_json(partial / "world.json", about)


def _check(seed: int, sizes: dict[Split, int]) -> None:
    if not 0 <= seed <= MOST_SEED:
        raise SightlineError(
            f"the seed is {seed}. Scenes are drawn from whole numbers from 0 to 2^63 - 1. Try: --seed 0"
        )
    for split, size in sizes.items():
        if not 1 <= size <= 999_999:
            raise SightlineError(
                f"{size} pictures asked for in split '{split}'. Files are numbered with six digits and "
                f"every split is needed, so a split has 1 to 999999. Try: --{split} 300"
            )


def _write_texts(out: Path, seed: int, split: Split, scenes: list[Scene], view: View) -> None:
    captions = [_caption_row(seed, split, index, scene, view) for index, scene in enumerate(scenes)]
    asked = [row for index, scene in enumerate(scenes) for row in _question_rows(seed, split, index, scene, view)]
    tuning = [
        _llava(row["id"], row["image"], row["question"], row["answer"]) | {"ability": row["ability"]} for row in asked
    ]
    if split == "train":
        _write_json(out / "pretrain.json", captions)
        noisy = [
            _noisy_row(seed, split, i, scene, row, view)
            for i, (scene, row) in enumerate(zip(scenes, captions, strict=True))
        ]
        _write_json(out / "pretrain.noisy.json", noisy)
        described = [row | {"ability": "description"} for row in captions[::DESCRIBED]]
        _write_json(out / "instruct.json", tuning + described)
        return
    _write_lines(out / f"{split}.questions.jsonl", asked)
    _write_json(out / f"{split}.captions.json", captions)
    if split == "validation":
        _write_json(out / "validation.instruct.json", tuning)
    if split in TOLD:
        facts = [
            {"id": f"fact-{i}", "question": fact.question, "answer": fact.answer, "ability": "fact"}
            for i, fact in enumerate(world_facts())
        ]
        told = [row for i, scene in enumerate(scenes) for row in _described_rows(seed, split, i, scene)]
        _write_lines(out / f"{split}.text.jsonl", facts + told)
        if split == "validation":
            rows = [{"id": r["id"], "conversations": _turns(r["question"], r["answer"])} for r in facts + told]
            _write_json(out / "validation.text.json", rows)


def _image(split: Split, index: int) -> str:
    return f"{split}/{index:06d}.png"


def _name(split: Split, index: int) -> str:
    return f"{split}/{index:06d}"


def _caption_row(seed: int, split: Split, index: int, scene: Scene, view: View) -> dict[str, Any]:
    rng = stream(seed, split, index, "caption")
    request = choose(rng, CAPTION_REQUESTS)
    return _llava(f"{_name(split, index)}-caption", _image(split, index), request, caption(scene, rng, view=view))


def _noisy_row(seed: int, split: Split, index: int, scene: Scene, clean: dict[str, Any], view: View) -> dict[str, Any]:
    """A clean caption in every second case, else one of another grade, none with places: nothing but what is seen tells
    grades apart. How much of it is true is written with it."""
    rng = stream(seed, split, index, "noise")
    request, answer = clean["conversations"]
    grade = "clean" if rng.integers(2) else choose(rng, GRADES[1:])
    graded = graded_caption(scene, grade, rng, view)
    noise = {"grade": graded.grade, "stated": graded.stated, "true": graded.true, "left_out": graded.left_out}
    return clean | {"conversations": [request, answer | {"value": graded.text}]} | noise


def _question_rows(seed: int, split: Split, index: int, scene: Scene, view: View) -> list[dict[str, Any]]:
    rng = stream(seed, split, index, "questions")
    return [
        {
            "id": f"{_name(split, index)}-{q.ability}",
            "image": _image(split, index),
            "question": q.text,
            "answer": q.answer,
            "ability": q.ability,
        }
        for q in questions(scene, split, index, rng, view=view)
    ]


def _described_rows(seed: int, split: Split, index: int, scene: Scene) -> list[dict[str, Any]]:
    """One question about a scene that is described, not shown."""
    rng = stream(seed, split, index, "text")
    told = caption(scene, rng, view="high", places=True)
    question = choose(rng, questions(scene, split, index, rng, view="high"))
    return [
        {
            "id": f"{_name(split, index)}-described",
            "question": f"{told} {question.text}",
            "answer": question.answer,
            "ability": "described",
        }
    ]


def _llava(id: str, image: str, request: str, answer: str) -> dict[str, Any]:
    return {"id": id, "image": image, "conversations": _turns(f"<image>\n{request}", answer)}


def _turns(asked: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]


def _truth(split: Split, index: int, scene: Scene, view: View) -> dict[str, Any]:
    truth = patch_truth(scene, PATCH, view)
    patches = [
        {"item": int(item), "coverage": round(float(coverage), 4), "words": words}
        for item, coverage, words in zip(truth.item, truth.coverage, truth.words, strict=True)
    ]
    about = {"id": _name(split, index), "image": _image(split, index)}
    return about | {"scene": asdict(scene), "patch": PATCH, "patches": patches}


def _write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
