"""The doctor on healthy data, its verdicts and its JSON; its fast paths against what training does."""

import json
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from sightline import cli
from sightline.checkpoints import save_model
from sightline.config import Recipe, check
from sightline.data.sources import open_source
from sightline.data.templates import TEMPLATES, get_template
from sightline.doctor import images, models
from sightline.doctor.look import look_at
from sightline.doctor.report import Report
from sightline.doctor.rows import RowReader, VisualTokens
from sightline.doctor.run import examine
from sightline.models.assemble import assemble
from sightline.train.run import start
from sightline.train.setup import set_trainable
from sightline.types import IGNORE, VISUAL

QUIET = Console(quiet=True)


def values(tiny: dict[str, Path], pictures: Path, **stage) -> dict:
    chats = {"data": {"path": str(pictures / "chats.json")}, "trainable": ["connector", "language"], "lr": 3e-3}
    captions = {"data": {"path": str(pictures / "captions.json"), "template": "plain"}, "lr": 3e-3}
    return {
        "name": "mine",
        "out": str(pictures / "no-such-run"),
        "device": "cpu",
        "model": {"vision": str(tiny["clip"]), "language": str(tiny["llama"])},
        "stages": [
            {"name": "pretrain", **captions, "trainable": ["connector", "language"]},
            {"name": "instruct", **chats, **stage},
        ],
    }


def examined(recipe: dict, **options) -> Report:
    return examine(check(recipe), **{"workers": 0, "model": False, "console": QUIET, **options})


def checks(report: Report) -> dict[str, str]:
    """The severity of each kind that was found."""
    return {group.check: group.severity for group in report.ledger}


@pytest.fixture
def doctor(monkeypatch, capsys, tmp_path):
    """`doctor(recipe values, *arguments)` -> (exit code, standard output, standard error)."""

    def run(recipe: dict | str, *arguments: str) -> tuple[object, str, str]:
        file = tmp_path / "recipe.yaml"
        file.write_text(recipe if isinstance(recipe, str) else json.dumps(recipe))
        monkeypatch.setattr(sys, "argv", ["sightline", "doctor", str(file), *arguments])
        code: object = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_healthy_data_are_ready(doctor, tiny, pictures):
    code, out, _ = doctor(values(tiny, pictures))
    assert "ready: 26 rows and 12 images were read, and nothing is wrong." in out
    assert code == 0
    assert "one batch of stage pretrain: 4 rows, 30 steps: loss" in out
    assert not (pictures / "no-such-run").exists()


def test_json_is_all_that_is_on_standard_output(doctor, tiny, pictures):
    code, out, err = doctor(values(tiny, pictures), "--json", "--no-model", "stages.1.max_length=3", "max_length=60")
    report = json.loads(out)
    assert code == 1
    assert report["verdict"] == "training would fail"
    assert report["fix_first"][0]["check"] == "recipe"

    code, out, err = doctor(values(tiny, pictures), "--json", "--no-model")
    report = json.loads(out)
    assert (code, report["schema"], report["verdict"], report["ok"]) == (0, 1, "ready", True)
    assert report["counts"] == {"error": 0, "warning": 0, "note": 0}
    assert [data["rows"] for data in report["data"]] == [12, 14]
    assert report["images"] == {"files": 12, "decoded": 12, "broken": 0}
    assert {part["part"]: part["trainable"] for part in report["parts"][1]["parts"]}["vision"] is False
    assert [result["status"] for result in report["overfit"]] == ["skipped", "skipped"]
    assert "rows:" in err


@pytest.mark.parametrize(
    "recipe", ["", "name: [", "name: x\nstages: []\nmodle: {}", "- 1", "name: x\nmodel: 3\nstages: [{}]"]
)
def test_a_broken_recipe_is_a_verdict_too(doctor, recipe):
    code, out, _ = doctor(recipe)
    assert code == 1
    assert "training would fail" in out
    code, out, _ = doctor(recipe, "--json")
    assert code == 1
    assert json.loads(out)["findings"][0]["check"] == "recipe"


def test_a_learning_rate_of_zero_is_reported(tiny, pictures):
    report = examined(values(tiny, pictures, lr=0.0), model=True)
    assert checks(report)["overfit/stuck"] == "error"
    assert checks(report)["parts/rate"] == "error"
    assert [result.status for result in report.overfit] == ["learned", "stuck"]
    assert report.verdict == "training would fail"


def test_a_rate_that_is_too_low_is_a_warning(tiny, pictures):
    report = examined(values(tiny, pictures, lr=4e-5), model=True)
    assert checks(report) == {"overfit/slow": "warning"}
    assert report.verdict == "training would run, but"


def test_overfitting_leaves_the_model_as_it_was(tiny, pictures, monkeypatch):
    from sightline.doctor import batches

    seen = []

    def started(*arguments):
        assembly = start(*arguments)
        seen.append((assembly, {name: value.clone() for name, value in assembly.model.state_dict().items()}))
        return assembly

    monkeypatch.setattr(batches, "start", started)
    report = examined(values(tiny, pictures), model=True)
    assert [result.status for result in report.overfit] == ["learned", "learned"]
    assembly, before = seen[0]
    for name, value in assembly.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_stage_with_adapters_is_tried_with_them(tiny, pictures):
    """Its language model is not trained itself; what adapters cannot be put on is a finding."""
    pytest.importorskip("peft")
    lora = {"rank": 4, "alpha": 8.0}
    report = examined(values(tiny, pictures, lora=lora, precision="bf16", frozen="bf16"), model=True)
    assert [result.status for result in report.overfit] == ["learned", "learned"]
    report = examined(values(tiny, pictures, lora=lora | {"targets": ["q_prj"]}), model=True)
    assert any("did you mean 'q_proj'" in finding.message for group in report.ledger for finding in group.first)


def test_a_large_model_is_reported_as_skipped(tiny, pictures, monkeypatch):
    from sightline.doctor import overfit

    monkeypatch.setattr(overfit, "LARGEST_ON_CPU", 1000)
    report = examined(values(tiny, pictures), model=True)
    assert {result.status for result in report.overfit} == {"skipped"}
    assert "too many to train on cpu" in report.overfit[0].reason
    assert report.verdict == "ready"


@pytest.mark.parametrize(
    ("stage", "kind", "words"),
    [
        ({"trainable": ["conector"]}, "parts/model", "did you mean 'connector'"),
        ({"weights": {"langage": 1.0}}, "parts/model", "langage"),
        ({"init_from": "/nowhere/model"}, "parts/model", "/nowhere/model"),
        ({"lr": 5.0}, "parts/rate", "far above"),
    ],
)
def test_what_the_recipe_asks_of_the_model(tiny, pictures, stage, kind, words):
    report = examined(values(tiny, pictures, **stage))
    found = next(group for group in report.ledger if group.check == kind).first[0]
    assert words in f"{found.message} {found.fix}"


def test_a_missing_column_names_the_command(tiny, pictures):
    recipe = values(tiny, pictures) | {"methods": [{"name": "toy:Toy"}]}
    for stage in recipe["stages"]:
        stage["trainable"] = ["connector", "toy"]
    report = examined(recipe, model=True)
    found = next(group for group in report.ledger if group.check == "parts/columns").first[0]
    assert "toy/level" in found.message
    assert "with the column in memory" in found.fix
    assert "needs column" in report.overfit[0].reason


@pytest.mark.parametrize(("methods", "severity"), [([], "warning"), ([{"name": "toy:Toy"}], "error")])
def test_an_id_twice_is_an_error_where_columns_are_kept_by_it(tiny, pictures, tmp_path, methods, severity):
    rows = json.loads((pictures / "chats.json").read_text())
    (tmp_path / "rows.json").write_text(json.dumps([row | {"id": "same"} for row in rows]))
    data = {"path": str(tmp_path / "rows.json"), "images": str(pictures / "images")}
    report = examined(values(tiny, pictures, data=data) | {"methods": methods})
    assert checks(report)["rows/duplicate-id"] == severity
    message = next(group for group in report.ledger if group.check == "rows/duplicate-id").first[0].message
    assert ("column 'toy/level'" in message) == (severity == "error")


def test_a_run_folder_in_use_is_refused_as_training_refuses_it(tiny, pictures, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    report = examined(values(tiny, pictures) | {"out": str(tmp_path)})
    assert checks(report) == {"recipe/run-folder": "error"}


def test_a_mixture_overfits_rows_of_each_template(tiny, pictures):
    data = [{"path": str(pictures / name), "template": template} for name, template in
            (("captions.json", "plain"), ("chats.json", "vicuna_v1"))]  # fmt: skip
    report = examined(values(tiny, pictures, data=data), model=True)
    assert report.verdict == "ready"
    assert [record.rows for record in report.data] == [12, 12, 14]


def test_a_part_that_is_not_there_leaves_the_rows_checked(tiny, pictures):
    recipe = values(tiny, pictures)
    recipe["model"]["language"] = "/nowhere"
    report = examined(recipe, model=True)
    assert checks(report) == {"parts/model": "error"}
    assert report.images["decoded"] == 12


def copied(pictures: Path, folder: Path) -> Path:
    import shutil

    return Path(shutil.copytree(pictures, folder / "pictures", ignore=shutil.ignore_patterns("no-such-run")))


def test_policies_turn_errors_into_warnings(tiny, pictures, tmp_path):
    mine = copied(pictures, tmp_path)
    (mine / "images/3.png").unlink()
    recipe = values(tiny, mine) | {"max_length": 90}
    stops = examined(recipe)
    assert checks(stops)["images/missing"] == "error"
    for stage in recipe["stages"]:
        stage |= {"bad_images": "skip", "long_rows": "drop"}
    runs = examined(recipe)
    assert set(checks(runs).values()) == {"warning"}
    assert runs.verdict == "training would run, but"
    assert runs.ok


def test_the_wrong_image_folder_is_said_once(tiny, pictures, tmp_path):
    recipe = values(tiny, pictures)
    for stage in recipe["stages"]:
        stage["data"] = stage["data"] | {"images": str(tmp_path)}
    report = examined(recipe)
    assert report.fix_first[0].check == "images/folder-of-data"
    assert "data.images" in report.fix_first[0].first[0].fix
    assert next(group for group in report.ledger if group.check == "images/missing").count == 12


def test_no_row_with_an_image_for_a_connector(tiny, pictures, tmp_path):
    (tmp_path / "text.json").write_text(json.dumps(json.loads((pictures / "chats.json").read_text())[-1:]))
    report = examined(values(tiny, pictures, data={"path": str(tmp_path / "text.json")}, trainable=["connector"]))
    assert checks(report)["coverage/no-images"] == "error"


@pytest.mark.parametrize("at", ["text_of_row", "special_tokens"])
def test_ctrl_c_leaves_cleanly(doctor, tiny, pictures, monkeypatch, at):
    from sightline.doctor import checks as module

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, at, stop)
    code, out, _ = doctor(values(tiny, pictures), "--json")
    assert code == 130
    assert out == ""


def test_worker_processes_see_what_one_process_sees(pictures, tmp_path, monkeypatch):
    """Also: what is left early stops its processes."""
    monkeypatch.setattr(images, "FEW", 4)
    monkeypatch.setattr(images, "CHUNK", 3)
    (tmp_path / "bad.png").write_bytes(b"no")
    sources = [*sorted((pictures / "images").iterdir()), tmp_path / "bad.png", tmp_path / "none.png"]
    done = []
    alone = dict(images.decode_all(sources, workers=0, tick=done.append))
    assert sum(done) == len(sources)
    assert dict(images.decode_all(sources, workers=2, tick=done.append)) == alone
    assert sum(done) == 2 * len(sources)
    assert [alone[len(sources) - n].size for n in (1, 2)] == [None, None]
    stopped = images.decode_all(sources, workers=1, tick=done.append)
    next(stopped)
    stopped.close()


@dataclass(frozen=True)
class Crash:
    """An image whose decoder ends its process."""

    name: str = "crash"

    def read(self) -> bytes:
        os._exit(9)


def test_images_inside_parquet_are_decoded_by_the_workers_too(tiny, pictures, tmp_path, monkeypatch):
    """A few at a time, so that their bytes are not all held; what is found is what one process finds."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = []
    for row in json.loads((pictures / "captions.json").read_text()):
        data = (pictures / "images" / row["image"]).read_bytes()
        rows.append(row | {"image": {"bytes": b"no image" if row["id"] == "7" else data, "path": row["image"]}})
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    recipe = values(
        tiny, pictures, data={"path": str(tmp_path / "rows.parquet"), "template": "plain"}, bad_images="skip"
    )
    monkeypatch.setattr(images, "FEW", 2)
    monkeypatch.setattr("sightline.doctor.run.EMBEDDED_BYTES", 700)
    pools = []
    pool = images._pool
    monkeypatch.setattr(images, "_pool", lambda workers: pools.append(workers) or pool(workers))
    one, two = (examined(recipe, workers=workers, model=False) for workers in (0, 2))
    assert len(pools) > 1 and set(pools) == {2}
    assert one.images == two.images and (one.images["files"], one.images["broken"]) == (24, 1), "12 more to validate on"
    assert checks(one) == checks(two) and checks(one)["images/not-an-image"] == "warning"


def test_a_decoder_that_dies_is_one_image_of_many(monkeypatch):
    monkeypatch.setattr(images, "FEW", 0)
    ((number, looked),) = images.decode_all([Crash()], workers=1, tick=lambda _: None)
    assert (number, looked.size) == (0, None)
    assert [trouble.check for trouble in looked.troubles] == ["images/crash"]


def test_pillow_says_nothing_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        looked = look_at(tmp_path / "large.png")
    assert looked.size == (40, 40)
    assert [trouble.check for trouble in looked.troubles] == ["images/large"]


@pytest.mark.parametrize("template", ["plain", "vicuna_v1"])
@pytest.mark.parametrize("language", ["llama", "qwen2"])
@pytest.mark.parametrize("methods", [[], [{"name": "toy:Toy"}]])
def test_rows_in_batches_are_what_the_processor_gives(assembled, pictures, template, language, methods):
    """Lengths, visual and supervised tokens of the fast path against the processor, turns of a method included."""
    assembly = assembled("clip", language, methods=methods)
    processor = assembly.processor(get_template(template), max_length=4096)
    source = open_source(pictures / "chats.json")
    rows = [(n, source.where(n), source[n]) for n in range(len(source))]
    visual = VisualTokens(processor, lambda _: None)
    reader = RowReader(processor, seed=5, training=True, long_rows="raise", visual=visual)
    assert reader.read(rows) == []
    from sightline.data.order import generator

    columns = {"toy/level": torch.tensor(1)} if methods else None
    for number, _, sample in rows:
        example = processor(sample, rng=generator(5, 1, 0, number), columns=columns)
        assert reader.budget.lengths[number] == len(example)
        assert reader.budget.visual[number] == int((example.kinds == VISUAL).sum())
        assert reader.budget.supervised[number] == int((example.labels[1:] != IGNORE).sum())


def test_an_end_that_is_not_learned_is_an_error(assembled, pictures, monkeypatch):
    """A tokenizer that merges the answer's end away, here by hand, and one that changes the text."""
    processor = assembled().processor(get_template("vicuna_v1"))
    source = open_source(pictures / "chats.json")
    rows = [(0, source.where(0), source[0])]
    reader = RowReader(
        processor, seed=0, training=True, long_rows="raise", visual=VisualTokens(processor, lambda _: None)
    )
    decode = reader._backend

    class Backend:
        ending = "red"

        def __getattr__(self, name):
            return getattr(decode, name)

        def decode_batch(self, batch, **_):
            return [self.ending for _ in batch]

    reader._backend = Backend()
    (found,) = reader.read(rows)
    assert (found.severity, found.check) == ("error", "template/end")
    Backend.ending = " reed</s>"
    (found,) = reader.read(rows)
    assert (found.severity, found.check) == ("warning", "template/round-trip")
    assert "became" in found.message


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_every_template_is_examined_or_refused_with_its_reason(tiny, pictures, name):
    recipe = values(tiny, pictures, data={"path": str(pictures / "chats.json"), "template": name})
    found = checks(examined(recipe))
    if set(TEMPLATES[name].tokens) - {"<s>", "</s>"}:  # the tiny tokenizer has these two
        assert found == {"template/tokenizer": "error"}
    elif name == "plain":
        assert found == {"text/caption-of-nothing": "warning", "rows/duplicate": "warning"} or "text" in str(found)
    else:
        assert found == {}


@pytest.mark.parametrize("vision", ["clip", "siglip", "dinov2", "registers"])
@pytest.mark.parametrize("language", ["llama", "tied", "gemma"])
def test_the_skeleton_is_the_model_without_its_weights(tiny, pictures, vision, language):
    recipe: Recipe = check(values(tiny, pictures))
    assert recipe.model is not None
    parts = recipe.model.model_copy(update={"vision": str(tiny[vision]), "language": str(tiny[language])})
    recipe = recipe.model_copy(update={"model": parts, "methods": [{"name": "toy:Toy"}]})
    stage = recipe.stages[0]
    bones, whole = models.skeleton(recipe, stage, None), start(recipe, stage, None)
    assert set_trainable(bones.model, stage) == set_trainable(whole.model, stage)
    assert bones.model.model.sizes == whole.model.model.sizes
    assert bones.tokenizer.get_vocab() == whole.tokenizer.get_vocab()


def test_the_skeleton_of_a_saved_model(tiny, pictures, tmp_path):
    whole = assemble(str(tiny["clip"]), str(tiny["llama"]), connector="linear")
    save_model(whole, tmp_path / "model", get_template("vicuna_v1"))
    recipe = values(tiny, pictures)
    recipe["stages"] = [recipe["stages"][1] | {"init_from": str(tmp_path / "model")}]
    del recipe["model"]
    report = examined(recipe, model=True)
    assert report.verdict == "ready"
    sizes = {row.part: row.parameters for row in report.parts[0].rows}
    assert sizes["connector"] == sum(p.numel() for p in whole.model.model.multi_modal_projector.parameters())


def test_findings_of_one_kind_are_counted_and_the_first_kept(tiny, pictures, tmp_path):
    rows = [{"id": f"r{n}", "conversations": []} for n in range(500)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    report = examined(values(tiny, pictures, data={"path": str(tmp_path / "rows.json")}))
    (group,) = report.ledger
    assert (group.count, len(group.first)) == (500, 100)


@pytest.mark.parametrize(
    "stage",
    [
        {"bad_images": "skip", "validation": "lost"},
        {"long_rows": "drop", "validation": "long"},
        {"long_rows": "shorten", "validation": "long"},
        {"bad_images": "skip", "data": "lost"},
        {"long_rows": "drop", "data": "long"},
    ],
)
def test_policies_that_leave_no_row_are_an_error(tiny, pictures, tmp_path, stage):
    def row(image: str, answer: str) -> dict:
        turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": answer}]
        return {"image": image, "conversations": turns}

    (tmp_path / "lost.json").write_text(json.dumps([row("nowhere.png", "a cat")]))
    (tmp_path / "long.json").write_text(json.dumps([row("0.png", "red and blue " * 200)]))
    stage = {
        key: {"path": str(tmp_path / f"{value}.json"), "images": str(pictures / "images")}
        if key in ("data", "validation")
        else value
        for key, value in stage.items()
    }
    report = examined(values(tiny, pictures, **stage) | {"max_length": 150})
    assert checks(report)["coverage/none-left"] == "error"
    assert not report.ok


@pytest.mark.parametrize(("policy", "severity"), [("raise", "error"), ("drop", "warning"), ("shorten", "warning")])
def test_images_that_do_not_fit_stop_training_only_where_it_says_raise(tiny, pictures, tmp_path, policy, severity):
    rows = json.loads((pictures / "chats.json").read_text())
    turns = [{"from": "human", "value": "<image>" * 40 + "what?"}, {"from": "gpt", "value": "many"}]
    (tmp_path / "rows.json").write_text(json.dumps([*rows, {"image": ["0.png"] * 40, "conversations": turns}]))
    data = {"path": str(tmp_path / "rows.json"), "images": str(pictures / "images")}
    report = examined(values(tiny, pictures, data=data, long_rows=policy) | {"max_length": 150})
    assert checks(report)["budget/images"] == severity
    assert report.ok == (policy != "raise")
    if policy != "raise":
        group = next(group for group in report.ledger if group.check == "budget/images")
        assert "the row is left out" in group.first[0].message


@pytest.mark.parametrize("layer", [99, -99, []])
def test_a_layer_that_is_not_there_is_found_without_weights(tiny, pictures, layer):
    recipe = values(tiny, pictures)
    recipe["model"] |= {"vision_layer": layer}
    assert checks(examined(recipe))["parts/model"] == "error"


@pytest.mark.parametrize(
    ("out", "words"), [("file/run", "is a file"), ("a\0b", "null"), ("\ud800", "surrogates"), ("a" * 5000, "too long")]
)
def test_a_run_folder_that_cannot_be_made(tiny, pictures, tmp_path, out, words):
    (tmp_path / "file").write_text("")
    report = examined(values(tiny, pictures) | {"out": str(tmp_path / out)})
    (group,) = (group for group in report.ledger if group.check == "recipe/run-folder")
    assert words in group.first[0].message
    assert not report.ok


def test_an_image_that_is_damaged_behind_its_first_frame(tmp_path):
    """What counts the frames of a TIFF fails in ways of its own."""
    path = tmp_path / "a.tif"
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    data = bytearray(path.read_bytes())
    with Image.open(path) as image:
        image.seek(1)
        second = image._frame_pos[1]
    data[second + 2 : second + 4] = b"\0\0"  # the tag of its width
    path.write_bytes(data)
    looked = look_at(path)
    assert looked.size == (20, 20)
    assert [trouble.check for trouble in looked.troubles] == ["images/odd"]
