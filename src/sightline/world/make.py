"""Writes a small world to a folder, in the formats that users' own data has.

    images/<split>/000123.png       the pictures
    pretrain.json                   LLaVA JSON: one caption for each training picture
    instruct.json                   LLaVA JSON: one question in each row with its `ability`, and some descriptions
    validation.captions.json        LLaVA JSON: clean captions to measure on
    <split>.questions.jsonl         rows {id, image, question, answer, ability} for validation, test and novel
    truth/<split>.jsonl             the scene of each picture, and what each of its patches shows
    world.json                      seed, sizes, geometry, words

`image` is relative to `images/`. A row holds one question: several in one context would answer each other.
The folder appears whole or not at all.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import SightlineError
from ..files import atomic_folder, claim_empty, write_json
from .draw import patch_truth, render
from .language import ABILITIES, CAPTION_REQUESTS, caption, questions
from .scene import (
    BACKGROUNDS,
    COLOURS,
    NOVEL_PAIRS,
    SHAPES,
    SPLITS,
    Geometry,
    Scene,
    Split,
    sample_scene,
    stream,
)

VERSION = 1
"""Of the world: another number means that the same seed gives other data."""
PATCH = 16
"""Width of the patches that `truth/` is written for, in pixels; `draw.patch_truth` computes it for any."""

DESCRIBED = 4
"""Every fourth training picture is also described in `instruct.json`, so that tuning does not unlearn it."""

Progress = Callable[[Split, int, int], None]
"""Called with the split, the pictures done and the pictures in all."""


def make_world(
    out: Path,
    *,
    seed: int = 0,
    train: int = 2000,
    validation: int = 300,
    test: int = 300,
    novel: int = 300,
    progress: Progress | None = None,
) -> None:
    """Draws a world into the folder `out`, which must not exist or be empty.

    Args:
        seed: a seed and sizes give the same files on every machine.
        train, validation, test, novel: pictures of each split; a larger split begins with the same pictures.

    Raises:
        SightlineError: if `out` holds files already, or a size or the seed is not usable.
    """
    sizes: dict[Split, int] = {"train": train, "validation": validation, "test": test, "novel": novel}
    out = out.resolve()
    claim_empty(out, "a world")
    _check(seed, sizes)
    with atomic_folder(out) as partial:
        _write(partial, seed, sizes, progress or (lambda split, done, total: None))


def _check(seed: int, sizes: dict[Split, int]) -> None:
    if seed < 0:
        raise SightlineError(f"the seed is {seed}. Scenes are drawn from whole numbers from 0 on. Try: --seed 0")
    for split, size in sizes.items():
        if not 1 <= size <= 999_999:
            raise SightlineError(
                f"{size} pictures asked for in split '{split}'. Files are numbered with six digits and "
                f"every split is needed, so a split has 1 to 999999. Try: --{split} 300"
            )


def _write(out: Path, seed: int, sizes: dict[Split, int], progress: Progress) -> None:
    geometry = Geometry()
    (out / "truth").mkdir()
    made: dict[Scene, str] = {}
    for split, size in sizes.items():
        (out / "images" / split).mkdir(parents=True)
        captions, asked, truth = [], [], []
        for index in range(size):
            scene = sample_scene(seed, split, index, geometry)
            name = f"{split}/{index:06d}"
            image = f"{name}.png"
            assert made.setdefault(scene, name) == name, f"{name} repeats {made[scene]}"
            render(scene, geometry).save(out / "images" / image)
            rng = stream(seed, split, index, "caption")
            request = CAPTION_REQUESTS[rng.integers(len(CAPTION_REQUESTS))]
            captions.append(_llava(f"{name}-caption", image, request, caption(scene, rng)))
            for question in questions(scene, split, index, stream(seed, split, index, "questions")):
                asked.append((f"{name}-{question.ability}", image, question))
            truth.append(_truth(name, image, scene, geometry))
            progress(split, index + 1, size)
        _write_lines(out / "truth" / f"{split}.jsonl", truth)
        if split == "train":
            _write_json(out / "pretrain.json", captions)
            rows = [_llava(id, image, q.text, q.answer) | {"ability": q.ability} for id, image, q in asked]
            described = [caption | {"ability": "description"} for caption in captions[::DESCRIBED]]
            _write_json(out / "instruct.json", rows + described)
        else:
            if split == "validation":
                _write_json(out / "validation.captions.json", captions)
            rows = [
                {"id": id, "image": image, "question": q.text, "answer": q.answer, "ability": q.ability}
                for id, image, q in asked
            ]
            _write_lines(out / f"{split}.questions.jsonl", rows)
    about = {
        "version": VERSION,
        "seed": seed,
        "sizes": {split: sizes[split] for split in SPLITS},
        "geometry": asdict(geometry) | {"patch": PATCH},
        "abilities": ABILITIES,
        "words": {"colour": COLOURS, "shape": SHAPES, "background": BACKGROUNDS},
        "novel_pairs": NOVEL_PAIRS,
    }
    write_json(out / "world.json", about)


def _llava(id: str, image: str, request: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": f"<image>\n{request}"}, {"from": "gpt", "value": answer}]
    return {"id": id, "image": image, "conversations": turns}


def _truth(name: str, image: str, scene: Scene, geometry: Geometry) -> dict[str, Any]:
    truth = patch_truth(scene, PATCH, geometry)
    patches = [
        {"thing": int(thing), "coverage": round(float(coverage), 4), "words": words}
        for thing, coverage, words in zip(truth.thing, truth.coverage, truth.words, strict=True)
    ]
    return {"id": name, "image": image, "scene": asdict(scene), "patch": PATCH, "patches": patches}


def _write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
