"""The whole diagnosis: every part that the data allows, the others named; and models whose alignment is known."""

import io
import json
from pathlib import Path

import pytest
import torch
import typer
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from sightline.checkpoints import save_model
from sightline.data.templates import get_template
from sightline.diagnostics import Part
from sightline.diagnostics.altered import (
    ShuffledPatches,
    TrueWords,
    reset_connector,
    with_connector,
    with_normalisation,
)
from sightline.diagnostics.cli import diagnose as diagnose_command
from sightline.diagnostics.diagnose import Diagnosis, diagnose, flat
from sightline.diagnostics.material import Material, read_captions, read_world, take
from sightline.diagnostics.subject import Subject
from sightline.diagnostics.tables import LINES, tables
from sightline.errors import ImageError, SightlineError
from sightline.evaluation.metrics import Estimate
from sightline.models.assemble import assemble


def test_a_world_allows_every_part(tiny_subject: Subject, material: Material, tmp_path: Path):
    found = diagnose(tiny_subject, material, name="tiny", questions=24, progress=False)
    assert found.missing == {}
    measured = [part for part in Part if part not in (Part.levels, Part.gate, Part.cognition, Part.information)]
    assert {name.split("/")[0] for name in found.scores} == set(measured), (
        "this model has no levels, and was asked for no codes"
    )
    lines = [name for part, lines in LINES.items() if part in measured for name, _ in lines]
    shown = {name for name in lines if "untouched" not in name and "difference" not in name}
    assert shown <= set(found.scores) | {name for name in shown if name.startswith("cause/corrections/1")}
    assert any(name.startswith("cause/corrections/1") for name in found.scores)
    found.write(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written["scores"]) == set(found.scores) and written["model"] == "tiny"
    titles = [table.title for table in tables(found, {"words/things/share": {"trained": {"low": 0.1, "high": 0.2}}})]
    assert titles == [*measured, "by layer, 0 is the input"]


def test_a_part_that_there_is_not(tiny_subject: Subject, material: Material):
    with pytest.raises(SightlineError, match="no part 'word' to measure; did you mean 'words'"):
        diagnose(tiny_subject, material, name="tiny", parts=("word",), progress=False)


def test_a_split_without_questions_on_text_lacks_them(tiny_subject: Subject, world: Path):
    material = read_world(world, split="novel")
    assert material.questions and not material.text_questions
    found = diagnose(tiny_subject, material, name="tiny", parts=("words", "kept"), progress=False)
    assert set(found.missing) == {"kept"} and found.scores


def test_layers_stand_under_their_numbers(tiny_subject: Subject, material: Material):
    """Attention has no layer 0, whatever else is measured."""
    parts = ("geometry", "attention")
    both = diagnose(tiny_subject, material, name="tiny", parts=parts, questions=8, progress=False)
    *_, together = tables(both, {})
    (alone,) = tables(
        Diagnosis("tiny", "", {k: v for k, v in both.scores.items() if k.startswith("attention/mass")}, {}), {}
    )
    assert [list(table.columns[0].cells) for table in (together, alone)] == [["0", "1", "2", "3"], ["1", "2", "3"]]
    attention = f"{both.scores['attention/mass/0'].value:.3f}"
    assert list(together.columns[-1].cells)[:2] == ["", attention] and next(iter(alone.columns[1].cells)) == attention


def test_a_terminal_shows_the_layers_of_a_large_language_model():
    scores = {
        f"geometry/{of}/{layer}": Estimate(0.125, 0.0, 1.0, 9)
        for of in ("alignment", "matching")
        for layer in range(41)
    }
    scores |= {f"attention/mass/{layer}": Estimate(0.375, 0.0, 1.0, 9) for layer in range(40)}
    console = Console(width=80, record=True, file=io.StringIO())
    for table in tables(Diagnosis("large", "", scores, {}), {}):
        console.print(table)
    shown = console.export_text()
    assert "…" not in shown and shown.count("0.125") == 82 and shown.count("0.375") == 40


def test_what_captions_alone_do_not_allow_is_said(tiny_subject: Subject, world: Path):
    material = read_captions(world / "validation.captions.json", world / "images", most=6)
    found = diagnose(tiny_subject, material, name="tiny", progress=False)
    assert set(found.missing) == {"sight", "attention", "cause", "probe", "kept", "captions"}
    assert all(material.name in why for why in found.missing.values())
    assert "words/recall/own" in found.scores and "geometry/gap" in found.scores


def test_every_number_of_a_result_has_a_path():
    estimate = Estimate(0.5, 0.4, 0.6, 10)
    found = dict(flat({"a": [estimate, None], "b": {"c": 2}}, "x"))
    assert found == {"x/a/0": estimate, "x/b/c": Estimate(2.0, 2.0, 2.0, 1)}


def test_a_bound_that_there_is_not_is_no_number_in_the_file(tmp_path: Path):
    """JSON has no infinity: other readers than Python's refuse one."""
    Diagnosis("tiny", "few", {"rank": Estimate(3.0, 0.0, float("inf"), 2)}, {}).write(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text(), parse_constant=pytest.fail)
    assert written["scores"]["rank"] == {"value": 3.0, "low": 0.0, "high": None, "n": 2}


def test_a_draw_takes_no_kind_of_question_for_another():
    """Four kinds in turn, of which every fourth question would show one."""
    drawn = take(list(range(400)), 100)
    assert drawn == sorted(set(drawn)) and len(drawn) == 100
    assert all(15 <= sum(number % 4 == kind for number in drawn) <= 35 for kind in range(4))
    assert take([3, 1], 2) == [3, 1]


def captions(folder: Path, *rows: tuple[str, str | None]) -> Path:
    """A LLaVA JSON of images and what is said of them."""
    turns = [[{"from": "human", "value": "<image>"}, {"from": "gpt", "value": said}] for _, said in rows]
    listed = [{"image": image, "conversations": talk} for (image, _), talk in zip(rows, turns, strict=True)]
    (folder / "captions.json").write_text(json.dumps(listed))
    return folder / "captions.json"


def test_an_image_counts_once_and_a_caption_is_text(tmp_path: Path):
    file = captions(tmp_path, ("0.png", "a ball"), ("0.png", "a box"), ("1.png", None), ("2.png", "a cat"))
    found = read_captions(file, tmp_path)
    assert [case.caption for case in found.cases] == ["a ball", "a cat"]


def test_the_image_without_a_caption_is_named(tiny_subject: Subject, world: Path, tmp_path: Path):
    file = captions(tmp_path, ("validation/000000.png", "a ball"), ("validation/000001.png", " "))
    material = read_captions(file, world / "images")
    found = diagnose(tiny_subject, material, name="tiny", parts=("geometry",), progress=False)
    assert "image '1' of captions.json has no caption" in found.missing["geometry"]


app = typer.Typer()
app.command()(diagnose_command)


def asked(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])


def test_the_images_of_captions_are_found_where_training_finds_them(louder: Path, world: Path):
    done = asked(louder, "--data", world / "validation.captions.json", "--most", 2, "--only", "words")
    assert done.exit_code == 0 and "TACS" in done.output, done.output


def test_a_part_asked_for_by_name_and_not_measured_is_a_failure(louder: Path, world: Path):
    given = (louder, "--data", world / "validation.captions.json", "--most", 2)
    done = asked(*given, "--only", "words", "--only", "probe")
    assert done.exit_code == 1 and "probe was not measured" in done.output and "TACS" in done.output
    assert asked(louder, "--data", world, "--only", "kept", "--untouched", "none").exit_code == 1


def test_an_image_that_is_not_there_is_an_error_and_no_lack(louder: Path, tmp_path: Path):
    file = captions(tmp_path, ("0.png", "a ball"), ("1.png", "a box"))
    error = asked(louder, "--data", file).exception
    assert isinstance(error, ImageError) and "image not found" in str(error)
    error = asked(louder, "--data", tmp_path / "none").exception
    assert isinstance(error, SightlineError) and "Give a world folder, or captions" in str(error)


@pytest.mark.parametrize("rows", [[1, {"conversations": {"a": 1}}], [{"image": "a.png", "conversations": [1, 2]}], {}])
def test_rows_that_are_no_captions_are_said_to_be_none(tmp_path: Path, rows: object):
    (tmp_path / "odd.json").write_text(json.dumps(rows))
    with pytest.raises(SightlineError, match="no row with one image and a caption"):
        read_captions(tmp_path / "odd.json", tmp_path)


def test_true_words_say_true_words(tiny_subject: Subject, material: Material):
    good = TrueWords(tiny_subject, material)
    found = diagnose(good, material, name="good", parts=(Part.words,), progress=False).scores
    assert found["words/things/share"].value == found["words/background/share"].value == 1.0
    with pytest.raises(SightlineError, match="no truth by patch"):
        TrueWords(tiny_subject, Material("captions", material.cases[:0]))


def test_shuffling_keeps_the_tokens_and_not_their_places(tiny_subject: Subject, material: Material):
    from sightline.data.images import load_image

    images = [load_image(case.image) for case in material.cases[:3]]
    for own, shuffled in zip(tiny_subject.visual(images), ShuffledPatches(tiny_subject).visual(images), strict=True):
        assert not torch.equal(own, shuffled)
        torch.testing.assert_close(own.sort(dim=0).values, shuffled.sort(dim=0).values)


def test_pixels_and_connectors_are_changed_in_a_copy(tiny_subject: Subject, material: Material):
    from sightline.data.images import load_image

    image = [load_image(material.cases[0].image)]
    own = tiny_subject.visual(image)[0]
    pixels = with_normalisation(tiny_subject, [0.0] * 3, [1.0] * 3)
    assert not torch.allclose(pixels.visual(image)[0], own)
    fresh = reset_connector(tiny_subject)
    assert not torch.allclose(fresh.visual(image)[0], own)
    back = with_connector(fresh, tiny_subject.model.model.multi_modal_projector.state_dict())
    torch.testing.assert_close(back.visual(image)[0], own)
    torch.testing.assert_close(tiny_subject.visual(image)[0], own)
    with pytest.raises(SightlineError, match="the connectors differ"):
        with_connector(tiny_subject, {})


def test_a_model_that_saw_captions_alone_is_asked_nothing_unless_said_how(tiny, material, tmp_path):
    """Asked as `plain`, it would score nothing, and that would say nothing about its first stage."""
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
    save_model(assembly, tmp_path / "model", get_template("plain"))
    mute = diagnose(Subject(tmp_path / "model"), material, name="m", questions=4, progress=False)
    assert {"sight", "attention", "cause", "kept"} <= mute.missing.keys()
    windows = diagnose(Subject(tmp_path / "model"), material, name="m", parts=["cognition"], progress=False)
    assert "--template vicuna_v1" in windows.missing["cognition"]
    assert "--template vicuna_v1" in mute.missing["sight"]
    told = Subject(tmp_path / "model", template="vicuna_v1")
    assert "ASSISTANT:" in told.tokenizer.decode(told.prompted([[]], ["why?"]).input_ids[0])
    asked = diagnose(told, material, name="m", parts=["sight", "kept"], questions=4, progress=False)
    assert {"sight/accuracy", "kept/overall/model/accuracy"} <= asked.scores.keys()
