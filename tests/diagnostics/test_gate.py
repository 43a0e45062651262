"""Levels and the gate of AlignGPT, measured: distances by hand, weights by type of question, and who has them."""

import json
import math
from pathlib import Path

import pytest
import torch
import typer
from rich.console import Console
from typer.testing import CliRunner

from sightline.checkpoints import save_model
from sightline.data.templates import get_template
from sightline.diagnostics import Part
from sightline.diagnostics.cli import diagnose as diagnose_command
from sightline.diagnostics.diagnose import diagnose, parts_of
from sightline.diagnostics.levels import compare_levels, measure_gate, weighing
from sightline.diagnostics.material import Material
from sightline.diagnostics.subject import Subject
from sightline.diagnostics.tables import tables
from sightline.evaluation.questions import read_questions
from sightline.models.assemble import assemble


def saved(tiny: dict[str, Path], folder: Path, **options) -> Path:
    """A model with AlignGPT of four levels, its gate loud enough to tell questions apart."""
    torch.manual_seed(5)
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=[{"name": "aligngpt", "levels": 4, **options}])
    gate = assembly.model.model.methods["aligngpt"].gate
    if gate is not None:
        torch.nn.init.normal_(gate.last.weight, std=0.3)
    save_model(assembly, folder, get_template("vicuna_v1"))
    return folder


@pytest.fixture(scope="module")
def aligned(tiny, tmp_path_factory) -> Path:
    return saved(tiny, tmp_path_factory.mktemp("aligned") / "model")


@pytest.fixture(scope="module")
def questions(pictures: Path, tmp_path_factory) -> Path:
    """A question file with two abilities, and one question without an image."""
    rows = [
        {"image": f"{n}.png", "question": "What colour is it?", "answer": "red", "ability": "colour"} for n in range(4)
    ]
    rows += [{"image": f"{n}.png", "question": "cat?", "answer": "no", "ability": "cats [1/2]"} for n in range(2, 8)]
    rows.append({"question": "Is snow white?", "answer": "yes", "ability": "text"})
    path = tmp_path_factory.mktemp("asked") / "asked.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_distances_by_hand():
    found = compare_levels(torch.tensor([[3.0, 0.0], [0.0, 4.0], [-1.0, 0.0]]))
    assert found.norm == pytest.approx({"1": 3, "2": 4, "3": 1})
    assert found.cosine_distance == {"1": pytest.approx({"2": 1, "3": 2}), "2": pytest.approx({"3": 1})}
    assert found.distance == {"1": pytest.approx({"2": 5, "3": 4}), "2": pytest.approx({"3": math.sqrt(17)})}


def test_weights_that_are_all_alike_have_the_most_entropy():
    clusters = [f"image {n}" for n in range(6)]
    alike = weighing(torch.full((6, 3), 1 / 3), clusters)
    assert alike.entropy.value == pytest.approx(math.log(3))
    assert alike.entropy_share is not None and alike.entropy_share.value == pytest.approx(1)
    sure = weighing(torch.tensor([[1.0, 0.0, 0.0]] * 4 + [[0.0, 1.0, 0.0]] * 2), clusters)
    assert sure.entropy.value == 0
    assert {level: round(mean.value, 6) for level, mean in sure.weights.items()} == {
        "1": 0.666667,
        "2": 0.333333,
        "3": 0,
    }
    one = weighing(torch.ones(6, 1), clusters)
    assert one.entropy.value == 0 and one.entropy_share is None


def test_the_gate_is_weighed_by_ability(aligned: Path, questions: Path, pictures: Path):
    subject = Subject(aligned)
    asked = [q for q in read_questions(questions, pictures / "images") if q.images]
    found = measure_gate(subject, asked, batch_size=4, progress=False)
    assert {name: each.entropy.n for name, each in found.items()} == {"overall": 10, "colour": 4, "cats [1/2]": 6}
    for each in found.values():
        assert (
            sum(mean.value for mean in each.weights.values()) == pytest.approx(1, abs=1e-5) and len(each.weights) == 3
        )
        assert all(mean.low <= mean.value <= mean.high for mean in each.weights.values())
    assert abs(found["colour"].weights["1"].value - found["cats [1/2]"].weights["1"].value) > 1e-3
    each = [measure_gate(subject, [question], progress=False)["overall"].weights["1"].value for question in asked]
    assert found["overall"].weights["1"].value == pytest.approx(sum(each) / 10, abs=1e-5), "padding changes nothing"


def test_only_models_with_levels_have_these_parts(
    aligned: Path, tiny, tiny_subject: Subject, material: Material, tmp_path
):
    assert {Part.levels, Part.gate} <= set(parts_of(Subject(aligned)))
    assert not {Part.levels, Part.gate} & set(parts_of(tiny_subject))
    ungated = Subject(saved(tiny, tmp_path / "model", mode="global"))
    assert Part.levels in parts_of(ungated) and Part.gate not in parts_of(ungated)
    found = diagnose(tiny_subject, material, name="tiny", parts=("levels", "gate"), questions=4, progress=False)
    assert not found.scores and "has no AlignGPT" in found.missing["levels"] and "no gate" in found.missing["gate"]
    found = diagnose(ungated, material, name="global", parts=("levels", "gate"), questions=4, progress=False)
    assert "levels/norm/4" in found.scores and "no gate" in found.missing["gate"]


def test_tables_show_levels_and_abilities(aligned: Path, questions: Path, pictures: Path, tmp_path: Path):
    """Through the command, on a question file: no world is drawn, and what it does not allow is said."""
    app = typer.Typer()
    app.command()(diagnose_command)
    given = [
        "--questions",
        questions,
        "--images",
        pictures / "images",
        "--device",
        "cpu",
        "--out",
        tmp_path / "out.json",
    ]
    only = ["--only", "levels", "--only", "gate"]
    done = CliRunner().invoke(app, [*map(str, [aligned, *given, *only])])
    assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "out.json").read_text())["scores"]
    assert {
        "levels/cosine_distance/3/4",
        "levels/distance/1/2",
        "gate/overall/entropy",
        "gate/colour/weights/3",
    } <= set(scores)
    assert "gate/cats [1/2]/entropy_share" in scores
    lines = done.output.splitlines()
    row = next(line for line in lines if line.startswith("colour"))
    assert row.split()[1:3] == ["4", f"{100 * scores['gate/colour/weights/1']['value']:.0f}"]
    assert any(line.startswith("cats [1/2]") for line in lines) and "drawing a world" not in done.output
    last = next(line for line in lines if line.startswith("4 "))
    assert last.split()[1:] == [
        f"{scores['levels/norm/4']['value']:.2f}",
        *(f"{scores[f'levels/cosine_distance/{n}/4']['value']:.2f}" for n in (1, 2, 3)),
    ]


def test_ten_levels_fit_a_terminal(tiny, tmp_path, material: Material):
    subject = Subject(saved(tiny, tmp_path / "model", levels=10))
    found = diagnose(subject, material, name="ten", parts=("levels", "gate"), questions=8, progress=False)
    console = Console(width=80, record=True, file=(tmp_path / "shown").open("w"))
    for table in tables(found, {}):
        console.print(table)
    shown = console.export_text()
    assert "…" not in shown and "of most" in shown and len(shown.splitlines()) < 40
