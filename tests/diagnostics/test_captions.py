"""What captions say: things are read in every wording of the world, and counted against the picture."""

import json
from pathlib import Path

import pytest
import torch

from sightline.checkpoints import save_model
from sightline.data.templates import get_template
from sightline.diagnostics.captions import REQUEST, count, measure_captions, summed, things_named
from sightline.diagnostics.material import Case, Material, read_world
from sightline.diagnostics.subject import Subject
from sightline.models.assemble import assemble

GROUPS = {"colour": ("red", "blue", "green"), "shape": ("ring", "star", "cross")}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a large red ring and a small star in blue on a white background.", ["red ring", "blue star"]),
        ("A ring, in the picture.", ["ring"]),
        ("the letter k on a sign at the top, a card and a green background with a cross", ["sign", "card", "cross"]),
        ("one shape: a ring in red in red", ["red ring"]),
        ("a ring in", ["ring"]),
        ("", []),
    ],
)
def test_things_are_read(text: str, named: list[str]):
    assert things_named(text, GROUPS) == named


@pytest.mark.parametrize(
    ("text", "right", "wrong"),
    [
        ("a red ring, a red ring and a card", 3, 0),
        ("a red ring, a red ring and a red ring", 2, 1),
        ("a ring, a red ring and a ring in red", 2, 1),
        ("a blue ring and a star", 0, 2),
        ("a star and a sign", 0, 2),
    ],
)
def test_things_are_counted_once_each(text: str, right: int, wrong: int):
    case = Case("x", Path("x.png"), "", things=("red ring", "red ring", "card"))
    assert count(text, case, Material("m", (case,), groups=GROUPS)) == (right, wrong, 3)


def test_counts_are_means_and_shares():
    said = summed([(2, 1, 4), (0, 0, 2), (2, 0, 2)])
    assert said.right.value == pytest.approx(4 / 3) and said.wrong.value == pytest.approx(1 / 3)
    assert said.recall.value == pytest.approx(4 / 8) and said.precision.value == pytest.approx(4 / 5)
    for estimate in (said.right, said.wrong, said.recall, said.precision):
        assert estimate.low <= estimate.value <= estimate.high


def test_the_worlds_own_captions_are_all_right(world: Path):
    """Every wording that the world has, read back against its own truth."""
    material = read_world(world)
    captions = {row["image"]: row["conversations"][1]["value"] for row in captions_of(world)}
    for case in material.cases:
        right, wrong, there = count(captions[case.image.relative_to(world / "images").as_posix()], case, material)
        assert (right, wrong) == (there, 0), case.id


@pytest.mark.parametrize("template", ["vicuna_v1", "plain"])
def test_a_model_is_asked_as_it_is_and_at_each_level(tiny, material: Material, tmp_path, monkeypatch, template: str):
    """What it says is counted under its level; one that saw captions alone is shown pictures alone, whatever it is to
    be asked in, and is asked in that again afterwards."""
    torch.manual_seed(5)
    methods = [{"name": "aligngpt", "levels": 3}]
    save_model(assemble(str(tiny["clip"]), str(tiny["llama"]), methods=methods), tmp_path, get_template(template))
    subject = Subject(tmp_path, template="vicuna_v1")
    asked = []

    def answers(images, questions, *, max_new_tokens, level):
        asked.append((set(questions), subject.assistant.template, level))
        return [f"a {material.cases[0].things[0]}" if level == 2 else "a nothing" for _ in images]

    monkeypatch.setattr(subject.assistant, "answers", answers)
    found = measure_captions(subject, material, progress=False)
    expected = ({""}, "plain") if template == "plain" else ({REQUEST}, "vicuna_v1")
    assert asked == [(*expected, level) for level in (None, 1, 2, 3)]
    assert subject.assistant.template == "vicuna_v1"
    assert found.level[2].right.value + found.level[2].wrong.value == pytest.approx(1)
    assert found.level[2].right.value > 0 and found.own.right.value == found.level[1].wrong.value == 0


def captions_of(world: Path) -> list[dict]:
    return json.loads((world / "validation.captions.json").read_text("utf-8"))
