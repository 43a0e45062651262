"""SEA, AlignGPT and all of VLSA on one trunk: annotated, through three stages, killed and resumed; what each leaves."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_resume import metrics, same, stop_after

from sightline.checkpoints import load_model
from sightline.config import Recipe, check
from sightline.evaluation import Question, evaluate
from sightline.generation import Assistant
from sightline.reconstruct import reconstruct
from sightline.report.looking import look_where_missing
from sightline.report.looks import read_looks
from sightline.report.page import write_page
from sightline.report.series import series_of
from sightline.train import train
from sightline.train.annotate import annotate_method

METHODS = ("sea", "aligngpt")
ALL = (*METHODS, "perceiver", "reconstruct", "cognition")
LOSSES = {"sea": "sea/contrastive", "reconstruct": "reconstruct/flow"}


def recipe(
    joint: Path, language: Path, pipeline: Path, pictures: Path, out: Path, words: Path, methods=METHODS
) -> Recipe:
    """Stages of six steps, a checkpoint every second one: three with VLSA, whose second one trains the tower."""
    parts = {
        "sea": ["sea"],
        "aligngpt": ["aligngpt.levels"],
        "perceiver": ["perceiver"],
        "reconstruct": ["reconstruct"],
        "cognition": [],
    }
    ldm = {"vae": str(pipeline), "denoiser": str(pipeline), "resolution": 16, "latents": "stored"}
    told = {"vq": str(pipeline), "resolution": 16, "window": 2, "digits": 2, "probability": 0.5}
    options = {"cognition": told, "sea": {"words": str(words)}, "aligngpt": {"levels": 4}, "reconstruct": ldm}
    shared = {"batch_size": 4, "steps": 6, "save_every": 2, "lr": 5e-3}
    captions = {"path": str(pictures / "captions.json"), "template": "plain"}
    gate = ["aligngpt.gate"] if "aligngpt" in methods else []
    vlsa = [name for name in ("perceiver", "reconstruct") if name in methods]
    pretrain = {
        "name": "pretrain",
        "data": captions,
        "trainable": ["connector", *(part for name in methods for part in parts[name])],
        "weights": {LOSSES[name]: 1.0 for name in methods if name in LOSSES},
        "final_weights": {"reconstruct/flow": 0.25} if "reconstruct" in methods else {},
    }
    tune = {
        "name": "tune",
        "data": {"path": str(pictures / "chats.json")},
        "trainable": ["connector", "language", *gate, *vlsa],
        "weights": {LOSSES["reconstruct"]: 1.0} if vlsa else {},
        "lr_by_part": dict.fromkeys(gate, 1e-2),
    }
    text = {
        "name": "text",
        "data": {"path": str(pictures / "chats.json"), "limit": 12},
        "trainable": ["vision", "connector", *vlsa],
        "weights": tune["weights"],
    }
    return check(
        {
            "name": "composed",
            "out": str(out / "run"),
            "annotations": str(out / "annotations"),
            "device": "cpu",
            "model": {"vision": str(joint), "language": str(language)},
            "methods": [{"name": name} | options.get(name, {}) for name in methods],
            "stages": [stage | shared for stage in ([pretrain, text, tune] if vlsa else [pretrain, tune])],
        }
    )


@pytest.fixture(scope="module")
def made(tiny_joint, tiny, pipeline, pictures, tmp_path_factory):
    """Composes recipes whose labels and levels are there."""
    words = tmp_path_factory.mktemp("words") / "words.txt"
    words.write_text("\n".join(["red", "blue", "cat", "box", "ball", "table", "two"]))
    out = tmp_path_factory.mktemp("composed")

    def make(name: str, methods=METHODS) -> Recipe:
        composed = recipe(tiny_joint["clip"], tiny["llama"], pipeline, pictures, out / name, words, methods)
        composed = composed.model_copy(update={"annotations": str(out / "annotations")})
        annotate_method(composed, "all")
        return composed

    return make


def test_killed_in_two_stages_it_ends_the_same(made, monkeypatch):
    whole, broken = made("whole", ALL), made("broken", ALL)
    train(whole, quiet=True)
    stop_after(monkeypatch, broken, "00-pretrain-0000004")
    stop_after(monkeypatch, broken, "02-tune-0000002", resume=True)
    train(broken, resume=True, quiet=True)
    logged = {"aligngpt/entropy", "loss/vq", "loss/pixels"}
    logged |= {f"{what}/{LOSSES[name]}" for name in LOSSES for what in ("loss", "visual_grad/cosine")}
    assert logged <= {key for row in metrics(whole.run_folder) for key in row}
    same(whole.run_folder, broken.run_folder)
    assert {row["stage"] for row in metrics(whole.run_folder) if "loss/vq" in row} == {"tune"}
    steps = [row for row in metrics(broken.run_folder) if row["stage"] == "pretrain" and "lr/connector" in row]
    for done, row in enumerate(steps):
        flow = (1 - 0.75 * done / 6) * row["loss/reconstruct/flow"]
        assert row["loss"] == pytest.approx(row["loss/answer"] + row["loss/sea/contrastive"] + flow), "a line from 1"
    assert len(steps) == 6


def test_levels_move_in_stage_1_and_the_gate_in_stage_2(made):
    composed = made("moves")
    composed = composed.model_copy(
        update={"stages": [composed.stages[0].model_copy(update={"save": True}), composed.stages[1]]}
    )
    train(composed, quiet=True)
    first = load_model(composed.run_folder / "stages" / "pretrain" / "model").model.state_dict()
    last = load_model(composed.run_folder / "model").model.state_dict()
    moved = {name for name in last if not torch.equal(first[name], last[name])}
    assert {n.split("aligngpt.")[1].split(".")[0] for n in moved if "aligngpt" in n} == {"gate"}
    kept = load_file(composed.run_folder / "model" / "model.safetensors")
    assert not any(".sea." in name for name in [*kept, *last]), "SEA leaves nothing in the model"
    begun = pytest.approx(-math.log(0.07), abs=1e-6)
    assert load_file(composed.run_folder / "train_only.safetensors")["sea.train_only.temperature.log_scale"] != begun
    assert Assistant(composed.run_folder).levels == range(1, 5)


def test_all_of_them_answer_and_draw_from_disk(made, tmp_path):
    """What a run saves answers rows together as alone, at each level; with what served training, the run draws too."""
    composed = made("answers", ALL)
    train(composed, quiet=True)
    assistant = Assistant(composed.run_folder / "model")
    assert [record["name"] for record in assistant.model.config.methods] == ["aligngpt", "perceiver"]
    wide, small = Image.new("RGB", (90, 40), "blue"), Image.new("RGB", (20, 30), "red")
    rows = list(zip([[wide], [], [small, wide]], ["What colour is it?", "Is snow white?", "The same?"], strict=True))
    for level in (None, 2):
        answers = partial(assistant.answers, max_new_tokens=4, level=level)
        together = answers([images for images, _ in rows], [asked for _, asked in rows])
        assert together == [answers([images], [asked])[0] for images, asked in rows]
    drawn = reconstruct(composed.run_folder, [wide, small], steps=2).drawn
    assert not torch.equal(drawn[0], drawn[1]), "each from its own tokens"
    look_at_it(composed.run_folder, assistant, tmp_path)


def look_at_it(run: Path, assistant: Assistant, folder: Path) -> None:
    """All that a page shows of a model is there for a model that has all of it."""
    questions = []
    for name, ability in (("red", "colour"), ("blue", "count")):
        Image.new("RGB", (40, 30), name).save(folder / f"{name}.png")
        questions.append(Question(name, (folder / f"{name}.png",), f"Is it {name}?", ("yes",), ability))
    evaluate(assistant, questions, out=run / "eval" / "asked", max_new_tokens=2, progress=False)
    look_where_missing(series_of([run], None), 2)
    looks = read_looks(run)
    assert looks is not None and not looks.notes and len(looks.pictures) == 2
    for look in looks.pictures:
        assert look.map is not None and len(look.map.cells) == look.map.grid**2
        assert list(look.captions) == ["by itself", "1", "2", "3", "4"]
        assert look.drawn is not None and look.drawn.words.startswith("PSNR")
        assert look.painted is not None and "codes right" in look.painted.words
        for file in (look.map.seen, look.drawn.file, look.painted.file):
            assert (run / "looks" / file).is_file()
    assert list(looks.gate) == ["overall", "colour", "count"] and list(looks.gate["overall"]) == ["1", "2", "3"]
    assert sum(weight.value for weight in looks.gate["count"].values()) == pytest.approx(1)
    page = write_page(run).read_text(encoding="utf-8")
    for heading in (
        "The words of visual tokens",
        "Captions",
        "The gate, by type of question",
        "Drawn again",
        "Painted",
    ):
        assert heading in page


def test_each_is_the_same_beside_the_other_at_the_first_step(made):
    """Before anything has moved, SEA's loss is that of SEA alone, and the captions' loss is AlignGPT's alone: the slot
    stands before the image, and SEA edits nothing."""
    first = {}
    for name, methods in (("both", METHODS), ("sea", ("sea",)), ("aligngpt", ("aligngpt",))):
        composed = made(f"first-{name}", methods)
        one = composed.stages[0].model_copy(update={"steps": 1, "save_every": None})
        composed = composed.model_copy(update={"stages": [one]})
        train(composed, quiet=True)
        first[name] = metrics(composed.run_folder)[0]
    assert first["both"]["loss/sea/contrastive"] == first["sea"]["loss/sea/contrastive"]
    assert first["both"]["loss/answer"] == first["aligngpt"]["loss/answer"]
