"""What a model was taught to tell: painted beside what is there, and of the VQ model that it was taught of alone."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import VQModel
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sightline.cli import app
from sightline.config import Recipe, dump, load_recipe
from sightline.data.windows import UNREAD
from sightline.diagnostics import Part
from sightline.diagnostics.diagnose import diagnose, parts_of
from sightline.diagnostics.material import read_captions
from sightline.diagnostics.subject import Subject
from sightline.diagnostics.telling import asked
from sightline.diagnostics.telling import taught as method_of_the_run
from sightline.errors import SightlineError
from sightline.models.codes import Codes
from sightline.models.diffusion import load_part
from sightline.paint import paint
from sightline.runs import annotation_facts_of
from sightline.train import train
from sightline.train.folder import check_annotated, note_annotated
from telling import annotated, recipe


def another_codebook(pipeline: Path) -> None:
    """The codes of a VQ model in another order."""
    file = pipeline / "vqvae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state["quantize.embedding.weight"] = state["quantize.embedding.weight"].flip(0).contiguous()
    save_file(state, file, metadata={"format": "pt"})


def test_a_window_is_painted_beside_the_true_one(taught, pictures, tmp_path):
    image = pictures / "images" / "0.png"
    out = tmp_path / "x.png"
    said = CliRunner().invoke(app, ["paint", str(taught), str(image), "--at", "1,3", "--out", str(out)])
    assert said.exit_code == 0 and "codes right, " in said.stderr
    painted = paint(Subject(taught), Image.open(image).convert("RGB"), place=(1, 3))
    assert painted.pixels["true"].unique(dim=0).flatten(0, -2).unique(dim=0).tolist() == [[220, 30, 30]]
    with Image.open(out) as sheet:
        assert sheet.size == (3 * 200 - 8, 2 * 192 + 8) and sheet.getpixel((500, 50)) == (220, 30, 30)
    wrong = CliRunner().invoke(app, ["paint", str(taught), str(image), "--at", "8,0", "--out", str(out)])
    assert wrong.exit_code == 1 and "Rows and columns begin at 0 to 7" in str(wrong.exception)
    for place in ("x", "\u00b2,1"):
        wrong = CliRunner().invoke(app, ["paint", str(taught), str(image), "--at", place, "--out", str(out)])
        assert "Say --at 2,5" in str(wrong.exception)
    captions = ["paint", str(taught / "stages" / "one" / "model"), str(image), "--out", str(out)]
    wrong = CliRunner().invoke(app, captions)
    assert "never asked for a window" in str(wrong.exception)
    assert CliRunner().invoke(app, [*captions, "--template", "vicuna_v1"]).exit_code == 0


def test_a_run_whose_vq_model_is_gone_is_diagnosed_in_all_else(taught, pictures, tmp_path):
    """Its folder may be named from where the run was started."""
    (tmp_path / "model").symlink_to(taught / "model", target_is_directory=True)
    made = load_recipe(taught / "recipe.yaml")
    gone = made.model_copy(update={"methods": [made.methods[0] | {"vq": str(tmp_path / "vq")}]})
    (tmp_path / "recipe.yaml").write_text(dump(gone))
    subject = Subject(tmp_path)
    assert {Part.cognition, Part.geometry} <= set(parts_of(subject))
    material = read_captions(pictures / "captions.json", pictures / "images")
    found = diagnose(subject, material, name="m", parts=["geometry", "cognition"], progress=False)
    assert found.scores and "no folder" in found.missing["cognition"]


def test_a_model_without_a_run_is_painted_by_a_recipe(taught, pictures, tmp_path):
    image = Image.open(pictures / "images" / "0.png").convert("RGB")
    saved = Path(str(taught)) / "model"
    moved = tmp_path / "moved"
    moved.symlink_to(saved, target_is_directory=True)
    with pytest.raises(SightlineError, match="nothing says how the model was asked"):
        paint(Subject(moved), image)
    own = paint(Subject(taught), image, place=(0, 0))
    other = paint(Subject(moved), image, place=(0, 0), recipe=load_recipe(taught / "recipe.yaml"))
    assert torch.equal(own.codes["believed"], other.codes["believed"])


def test_what_is_painted_below_is_what_the_model_said(taught, pictures, monkeypatch):
    """Codes and colours of the answer, cells that cannot be read apart, and not those that are there."""
    said = {"vq": torch.tensor([7]), "pixels": torch.tensor([10, 20, 30])}
    monkeypatch.setattr("sightline.paint.believed", lambda subject, method, task, images, windows: [said[task]])
    subject, image = Subject(taught), Image.open(pictures / "images" / "0.png").convert("RGB")
    painted = paint(subject, image, place=(1, 3))
    assert painted.codes["believed"].tolist() == [[7]] and painted.pixels["believed"].tolist() == [[[10, 20, 30]]]
    assert painted.codes["true"].tolist() != [[7]]
    method = method_of_the_run(subject)
    assert method is not None
    codes = Codes(method.vq)
    for name in ("true", "believed"):
        assert torch.equal(painted.drawn[name], codes.decode(painted.codes[name][None])[0])
    assert painted.sheet().getpixel((500, 300)) == (10, 20, 30)
    said["pixels"] = torch.tensor([10, UNREAD, 30])
    assert paint(subject, image, place=(1, 3)).sheet().getpixel((500, 300)) == (255, 0, 255)


def test_a_caption_that_spells_a_placeholder_is_words(taught, pictures, monkeypatch):
    subject, image = Subject(taught), Image.open(pictures / "images" / "0.png").convert("RGB")
    monkeypatch.setattr(subject.assistant, "answers", lambda *given, **how: ["a <image> of red"])
    method = method_of_the_run(subject)
    assert method is not None
    prompt = asked(subject, method, "vq", [image], [paint(subject, image).window])
    assert int(prompt.is_visual.sum()) == len(prompt.visual_of(0)) > 0


@pytest.fixture
def own(tiny, pictures, pipeline, tmp_path) -> tuple[Recipe, Path]:
    """A recipe, annotated, whose VQ model nothing else reads."""
    mine = tmp_path / "vq"
    shutil.copytree(pipeline, mine)
    return annotated(recipe(tiny, pictures, mine, tmp_path, stage={"save_every": 1}, window=1)), mine


def test_a_run_does_not_go_on_with_the_codes_of_another_vq_model(own, monkeypatch):
    """Whether they are annotated by then or not: two codebooks would be in one training."""
    made, mine = own
    with pytest.raises(SightlineError, match="stop here"), monkeypatch.context() as patched:
        patched.setattr("sightline.train.run.save_train_only", raising)
        train(made, quiet=True)
    noted = json.loads((made.run_folder / "run.json").read_text())["annotations"]
    assert set(noted) == {"one"} and noted["one"] == {}
    train(made, quiet=True, resume=True)
    (made.run_folder / "model").rename(made.run_folder / "kept")
    began = json.loads((made.run_folder / "run.json").read_text())
    assert set(began["annotations"]["two"]["cognition"]["vq"]) == {"weights", "config"}
    del began["seconds"]
    (made.run_folder / "run.json").write_text(json.dumps(began))
    another_codebook(mine)
    for _ in range(2):
        with pytest.raises(
            SightlineError, match=r"another annotation of method 'cognition'.*\n  vq\.weights: \w+ then"
        ):
            train(made, quiet=True, resume=True)
        annotated(made)


def test_what_goes_on_is_held_against_the_runs_own_notes(tmp_path):
    """Also in a folder whose name is that of a model's; what is damaged, or of who saved it, says nothing."""
    began = {"cognition": {"vq": {"weights": "a", "config": {"size": 1, "_diffusers_version": "1"}}, "sign": 1}}
    for folder in (tmp_path / "model", tmp_path / "stages" / "x"):
        folder.mkdir(parents=True)
        note_annotated(folder, "one", began)
        (folder / "recipe.yaml").write_text("")
        assert annotation_facts_of(folder) == {"one": began}
        assert annotation_facts_of(folder / "model") == {"one": began}
        check_annotated(folder, "one", {"cognition": {"vq": {"weights": "a", "config": {"_diffusers_version": "2"}}}})
        check_annotated(folder, "two", {"cognition": {"vq": {"weights": "b"}}})
        with pytest.raises(SightlineError, match=r"\n  vq\.weights: a then, b now\n"):
            check_annotated(folder, "one", {"cognition": {"vq": {"weights": "b"}}})
        with pytest.raises(SightlineError, match=r"\n  sign: 1 then, -1 now\n"):
            check_annotated(folder, "one", began | {"cognition": {"sign": -1}})
        for damaged in (None, [], {"one": None}, {"one": {"cognition": {}}}):
            (folder / "run.json").write_text(json.dumps({"annotations": damaged}))
            check_annotated(folder, "one", began)


def raising(*given: object) -> None:
    raise SightlineError("stop here")


def test_codes_of_another_vq_model_are_not_asked_for(own, pictures):
    made, mine = own
    train(made, quiet=True)
    image = Image.open(pictures / "images" / "0.png").convert("RGB")
    for place in (made.run_folder, made.run_folder / "stages" / "two" / "model"):
        assert paint(Subject(place, template="vicuna_v1"), image).codes
    another_codebook(mine)
    with pytest.raises(SightlineError, match=r"has other weights than when the model was taught .* --recipe"):
        paint(Subject(made.run_folder), image)
    material = read_captions(pictures / "captions.json", pictures / "images")
    found = diagnose(Subject(made.run_folder), material, name="m", parts=["cognition"], progress=False)
    assert not found.scores and "other weights" in found.missing["cognition"]
    assert paint(Subject(made.run_folder), image, recipe=made).codes, "who names one means it"


@pytest.mark.parametrize("changed", ["codebook", "resolution", "blank_images", "nothing"])
def test_other_codes_are_in_another_folder(own, changed):
    made, mine = own
    if changed == "codebook":
        another_codebook(mine)
    options: Mapping[str, object] = {"resolution": 8} if changed == "resolution" else {}
    again = made.model_copy(
        update={
            "methods": [made.methods[0] | options],
            "blank_images": changed == "blank_images",
        }
    )
    annotated(again)
    assert len(list(Path(made.annotations).iterdir())) == (1 if changed == "nothing" else 2)


def test_a_vq_model_that_cannot_be_used_is_refused_with_what_to_do(tmp_path):
    sizes = {"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 4, "num_vq_embeddings": 20}
    types = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    model = VQModel(**sizes, **types, norm_num_groups=4, vq_embed_dim=4)
    model.save_pretrained(tmp_path / "pickled" / "vqvae", safe_serialization=False)
    with pytest.raises(SightlineError, match=r"pickle alone .* subfolder='vqvae', use_safetensors=False"):
        load_part(str(tmp_path / "pickled"), "vqvae")
    with torch.no_grad():
        model.quantize.embedding.weight[3] = float("nan")
    model.save_pretrained(tmp_path / "odd")
    whole = (tmp_path / "odd" / "diffusion_pytorch_model.safetensors").read_bytes()
    shutil.copytree(tmp_path / "odd", tmp_path / "short")
    (tmp_path / "short" / "diffusion_pytorch_model.safetensors").write_bytes(whole[:1000])
    with pytest.raises(SightlineError, match="cannot load") as error:
        load_part(str(tmp_path / "short"), "vqvae")
    assert "pickle" not in str(error.value)
    with pytest.raises(SightlineError, match=r"quantize\.embedding\.weight is not finite"):
        load_part(str(tmp_path / "odd"), "vqvae")
