"""Features of the tower from disk: the same bits as live, whatever was killed, changed or damaged on the way."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from sightline.annotate import images as annotation
from sightline.checkpoints import load_model
from sightline.config import Recipe, check, dump
from sightline.data import store as store_module
from sightline.data.features import Features, image_key
from sightline.data.images import load_image
from sightline.data.sources import read_llava_json
from sightline.data.store import Store
from sightline.data.templates import get_template
from sightline.errors import ImageError, SightlineError
from sightline.models.modeling import SightlineModel
from sightline.train import train
from sightline.train.annotate import annotate_features
from sightline.train.features import depends_on, differences
from sightline.train.run import start
from stores import contents, exit_code

CPU = torch.device("cpu")


@pytest.fixture
def data(pictures: Path, tmp_path: Path) -> Path:
    """Pictures of its own for a test that changes them; no two alike."""
    folder = tmp_path / "data"
    shutil.copytree(pictures, folder)
    for number, path in enumerate(sorted(folder.glob("images/*.png"))):
        image = load_image(path)
        image.putpixel((number, 3), (255, number, 0))
        image.save(path)
    return folder


def recipe(tiny: dict[str, Path], data: Path, out: str = "run", stage: dict | None = None, **changes) -> Recipe:
    """Twelve pictures, three batches of four: every batch of training has the shape of those that were stored."""
    first = {
        "name": "a",
        "data": {"path": str(data / "captions.json"), "template": "plain"},
        "validation": {"path": str(data / "captions.json"), "template": "plain"},
        "trainable": ["connector"],
        "batch_size": 4,
        "lr": 1e-2,
    }
    values = {
        "name": "features",
        "out": str(data.parent / out),
        "device": "cpu",
        "annotations": str(data.parent / "annotations"),
        "model": {"vision": str(tiny["clip"]), "language": str(tiny["llama"])},
        "stages": [first | (stage or {})],
    }
    return check(values | changes)


def annotate(made: Recipe) -> tuple[list[Path], str]:
    said = io.StringIO()
    return annotate_features(made, console=Console(file=said, width=1000)), said.getvalue()


def run(made: Recipe, capsys: pytest.CaptureFixture, **options) -> tuple[dict[str, torch.Tensor], list, str]:
    """Final weights, losses, and what was said."""
    capsys.readouterr()
    folder = train(made, **options)
    said = " ".join(capsys.readouterr().err.split())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return load_model(folder / "model").model.state_dict(), [row["loss"] for row in rows], said


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("vision", ["clip", "siglip", "dinov2", "registers"])
@pytest.mark.parametrize("options", [{}, {"vision_layer": [-2, 1], "vision_select": "full", "image_fit": "crop"}])
def test_cached_is_live(tiny: dict[str, Path], data: Path, vision: str, options: dict) -> None:
    """Bit for bit in a batch of the same shape, whoever else is in it; within 1e-5 in another."""
    made = recipe(tiny, data, model={"vision": str(tiny[vision]), "language": str(tiny["llama"]), **options})
    (folder,), said = annotate(made)
    assert "features of 12 images" in said
    about = json.loads((folder / "provenance.json").read_text())
    features = Features(Store(folder), shape=(about["patches"], about["width"]), dtype=getattr(torch, about["dtype"]))
    assembly = start(made, made.stages[0], None)
    processor = assembly.processor(get_template("plain"))
    images = [sample.images[0] for sample in read_llava_json(data / "captions.json")]
    for chosen in ([5, 0, 11, 7], [11, 10, 9, 8], [3], list(range(12))):
        pixels = processor.pixels([load_image(images[number]) for number in chosen])
        live = assembly.model.model.encode(pixels)
        cached = torch.cat([features(images[number])[0] for number in chosen])
        assert cached.shape == live.shape and cached.dtype == live.dtype
        if len(chosen) == 4:
            assert torch.equal(cached, live)
        torch.testing.assert_close(cached, live, atol=1e-5, rtol=0)


def test_features_of_several_scales(tiny: dict[str, Path], data: Path, capsys: pytest.CaptureFixture) -> None:
    """Training with them is training without; other scales of the same pixels, or none, are another folder."""
    parts = {"vision": str(tiny["clip"]), "language": str(tiny["llama"])}
    live = run(recipe(tiny, data, "live", model={**parts, "vision_scales": [1, 2, 3]}), capsys)
    (folder,), _ = annotate(recipe(tiny, data, model={**parts, "vision_scales": [1, 2, 3]}))
    about = json.loads((folder / "provenance.json").read_text())
    assert (about["patches"], about["width"], about["depends_on"]["scales"]) == (16, 96, [1, 2, 3])
    cached = run(recipe(tiny, data, "cached", model={**parts, "vision_scales": [1, 2, 3]}), capsys)
    assert "tower features read from" in cached[2]
    assert live[1] == cached[1] and equal(live[0], cached[0])
    other = run(recipe(tiny, data, "other", model={**parts, "vision_scales": [1, 3]}), capsys)
    assert "but with another scales; the tower is run" in other[2]
    (alone,), _ = annotate(recipe(tiny, data))
    assert alone != folder
    assert "scales" not in json.loads((alone / "provenance.json").read_text())["depends_on"], "as it was named before"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_with_features_is_training_without(
    tiny: dict[str, Path], data: Path, capsys: pytest.CaptureFixture, precision: str
) -> None:
    """The same weights and losses, bit for bit; no image is decoded and the tower is not run."""
    stage = {"precision": precision, "epochs": 2}
    live = run(recipe(tiny, data, "live", stage), capsys)
    assert "the tower" not in live[2], "nothing is said where there is no store"
    annotate(recipe(tiny, data, stage=stage))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sightline.train.run.rehearse", lambda *_, **__: None)
        patch.setattr(SightlineModel, "encode", lambda *_: pytest.fail("the tower was run"))
        patch.setattr("sightline.data.processor.load_image", lambda *_: pytest.fail("an image was decoded"))
        cached = run(recipe(tiny, data, "cached", {**stage, "workers": 0}), capsys)
    assert "stage a: tower features read from" in cached[2] and "the tower is not run" in cached[2]
    assert live[1] == cached[1] and equal(live[0], cached[0])
    workers = run(recipe(tiny, data, "workers", {**stage, "workers": 2}), capsys)
    assert live[1] == workers[1] and equal(live[0], workers[0])


def test_two_stages_share_what_is_equal(tiny: dict[str, Path], data: Path, capsys: pytest.CaptureFixture) -> None:
    """Rows with two images, one, and none; the second stage starts from a saved model and finds the same folder."""
    chats = {
        "name": "b",
        "data": [{"path": str(data / "chats.json")}, {"path": str(data / "captions.json"), "limit": 3, "weight": 0.5}],
        "trainable": ["connector", "language"],
        "batch_size": 2,
    }
    stages = [recipe(tiny, data).stages[0].model_dump(), chats]
    live = run(recipe(tiny, data, "live", stages=stages), capsys)
    folders, said = annotate(recipe(tiny, data, stages=stages))
    assert len(folders) == 1 and "stages a, b: features of 12 images, 2.1 kB each, take 25.2 kB" in said
    cached = run(recipe(tiny, data, "cached", stages=stages), capsys)
    assert cached[2].count("tower features read from") == 2
    torch.testing.assert_close(cached[0], live[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(cached[1], live[1], atol=1e-5, rtol=1e-4)
    saved = [{**chats, "init_from": str(data.parent / "live" / "model")}]
    assert "nothing to do" in annotate(recipe(tiny, data, "again", model=None, stages=saved))[1]


def test_images_that_change_are_never_stale(
    tiny: dict[str, Path], data: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where size and time of change are what they were."""
    made = recipe(tiny, data)
    (folder,), _ = annotate(made)
    path = data / "images" / "3.png"
    before, state = path.read_bytes(), path.stat()
    other = load_image(path)
    other.putpixel((0, 0), (1, 2, 3))
    other.save(path)
    path.write_bytes(path.read_bytes()[: len(before)].ljust(len(before), b"\0"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    live = run(made, capsys)
    assert "lacks 1 of 12 images; the tower is run" in live[2] and "sightline annotate RECIPE --features" in live[2]
    old = contents(folder)
    assert "features of 1 images" in annotate(made)[1]
    assert old.items() <= contents(folder).items(), "what was there stays"
    cached = run(recipe(tiny, data, "cached"), capsys)
    assert "tower features read" in cached[2]
    torch.testing.assert_close(cached[1], live[1], atol=1e-5, rtol=0)

    store = Store(folder)
    about = json.loads((folder / "provenance.json").read_text())
    features = Features(store, shape=(about["patches"], about["width"]), dtype=torch.float32)
    path.write_bytes(before[:-1] + b"\1")
    with pytest.raises(SightlineError, match=r"3\.png is not in .* changed after this stage began"):
        features(path)
    path.unlink()
    with pytest.raises(ImageError, match="image not found"):
        features(path)


def test_what_features_depend_on_is_their_folder(
    tiny: dict[str, Path], data: Path, capsys: pytest.CaptureFixture
) -> None:
    model = {"vision": str(tiny["clip"]), "language": str(tiny["llama"])}
    first, _ = annotate(recipe(tiny, data))
    folders = set(first)
    for name, changes in {
        "preprocess": {"model": {**model, "image_fit": "crop"}},
        "layers": {"model": {**model, "vision_layer": -1}},
        "select": {"model": {**model, "vision_select": "full"}},
        "tower.config": {"model": {**model, "vision": str(tiny["dinov2"])}},
        "precision": {"stage": {"precision": "bf16"}},
        "tower.frozen": {"stage": {"frozen": "bf16", "precision": "bf16"}},
        "views": {"methods": [{"name": "toy:Toy"}], "stage": {"trainable": ["connector", "toy"]}},
    }.items():
        (folder,), _ = annotate(recipe(tiny, data, **changes))
        assert folder not in folders, name
        folders.add(folder)
        ours, theirs = (json.loads((f / "provenance.json").read_text())["depends_on"] for f in (folder, first[0]))
        assert name in differences(ours, theirs), name
    same = recipe(tiny, data, model={**model, "connector": "linear"}, seed=5, stage={"lr": 1.0, "frozen": "fp32"})
    assert "nothing to do" in annotate(same)[1]
    for folder in folders - set(first):
        shutil.rmtree(folder)
    said = run(recipe(tiny, data, model={**model, "image_fit": "crop"}), capsys)[2]
    assert "has features, but with another preprocess" in said and "the tower is run" in said


def test_weights_are_those_that_the_stage_holds(tiny: dict[str, Path], data: Path) -> None:
    """A stage that holds the tower in bfloat16 leaves it rounded for those after it, also back in fp32; a model that is
    loaded is not. Whether the rounding was done already changes nothing."""
    first = recipe(tiny, data).stages[0].model_dump()
    stages = [first, {**first, "name": "b", "frozen": "bf16", "precision": "bf16"}, {**first, "name": "c"}]
    stages.append({**first, "name": "d", "init_from": "x"})
    made = recipe(tiny, data, stages=stages)
    assembly = start(made, made.stages[0], None)
    weights = [depends_on(assembly, made, number, CPU)["tower"]["weights"] for number in range(4)]
    assert weights[0] == weights[3] and len(set(weights)) == 3
    assembly.model.model.vision_tower.bfloat16()
    assert [depends_on(assembly, made, number, CPU)["tower"]["weights"] for number in (1, 2)] == weights[1:3]
    folders, _ = annotate(recipe(tiny, data, stages=[{**stage, "precision": "bf16"} for stage in stages[:3]]))
    assert len(folders) == 3


@pytest.mark.parametrize("harm", ["flip", "tear"])
def test_a_damaged_shard_is_refused_and_computed_again(tiny: dict[str, Path], data: Path, harm: str) -> None:
    (folder,), _ = annotate(recipe(tiny, data))
    whole = contents(folder)
    path = next(folder.glob("*-00000.*"))
    bytes_ = path.read_bytes()
    path.write_bytes(bytes_[:-5] if harm == "tear" else bytes_[:900] + bytes([bytes_[900] ^ 4]) + bytes_[901:])
    with pytest.raises(SightlineError, match=rf"{path.name}.*not those that were written.*sightline annotate RECIPE"):
        train(recipe(tiny, data), quiet=True)
    assert f"{path} is damaged and is computed again" in annotate(recipe(tiny, data))[1]
    assert contents(folder) == whole


def dying(made: Recipe, at: int, when: str) -> None:
    """In a child: be killed, for real, at the `at`-th file: with half of it written, before or after it is named."""
    seen = 0

    def fsync(handle: int) -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            if when == "half":
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    def replace(self: Path, target: Path) -> None:
        os.replace(self, target)  # noqa: PTH105
        if target.suffix == ".safetensors":
            fsync(0)

    if when == "named":
        Path.replace = replace
    else:
        os.fsync = fsync
    annotate(made)


@pytest.mark.parametrize("when", ["half", "unnamed", "named"])
def test_killed_at_any_file_it_goes_on(
    tiny: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """SIGKILL at the index and at every shard: finished shards stay as they are, and the end is the same bytes."""
    monkeypatch.setattr(annotation, "SHARD_ROWS", 4)
    (whole,), said = annotate(recipe(tiny, data, annotations=str(data.parent / "whole")))
    assert "wrote 3 of 3 shards" in said and len(contents(whole)) == 5
    for at in (1, 2, 3, 4):
        made = recipe(tiny, data, annotations=str(data.parent / f"killed{at}"))
        assert exit_code(partial(dying, made, at, when)) == -signal.SIGKILL
        folder = Path(made.annotations) / whole.name
        finished = {path: path.stat().st_ino for path in folder.glob("*.safetensors")}
        assert len(finished) == at - (when != "named")
        if len(finished) < 4:
            annotate(made)
        assert contents(folder) == contents(whole)
        assert all(path.stat().st_ino == inode for path, inode in finished.items()), "not written again"


def test_killed_at_any_moment_it_goes_on(tiny: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent's SIGKILL, at moments that nothing in the child chose, again and again over one folder."""
    monkeypatch.setattr(annotation, "SHARD_ROWS", 4)
    (whole,), _ = annotate(recipe(tiny, data, annotations=str(data.parent / "whole")))
    made = recipe(tiny, data, annotations=str(data.parent / "killed"))
    for delay in (0.05, 0.1, 0.12, 0.15, 0.2):
        pid = os.fork()
        if pid == 0:
            annotate(made)
            os._exit(0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    annotate(made)
    assert contents(Path(made.annotations) / whole.name) == contents(whole)


def test_ctrl_c_says_how_to_go_on(
    tiny: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    write = Store.write

    def interrupted(self, shard, values) -> None:
        write(self, shard, values)
        raise KeyboardInterrupt

    monkeypatch.setattr(annotation, "SHARD_ROWS", 4)
    monkeypatch.setattr(Store, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        annotate_features(recipe(tiny, data))
    assert "stay; the same command goes on" in " ".join(capsys.readouterr().err.split())
    monkeypatch.setattr(Store, "write", write)
    assert "features of 8 images" in annotate(recipe(tiny, data))[1]


def test_two_processes_write_what_one_does(tiny: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Side by side, as torchrun starts them; and nothing is left for one that comes after."""
    script = (
        "import sys; from sightline.annotate import images; from sightline.config import load_recipe\n"
        "from sightline.train import annotate\n"
        "images.SHARD_ROWS = 4; import torch; torch.set_num_threads(1)\n"
        "annotate.annotate_features(load_recipe(sys.argv[1]))"
    )
    monkeypatch.setattr(annotation, "SHARD_ROWS", 4)
    (whole,), _ = annotate(recipe(tiny, data, annotations=str(data.parent / "one")))
    made = recipe(tiny, data, annotations=str(data.parent / "two"))
    (file := data.parent / "two.yaml").write_text(dump(made))
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(file)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[1] for process in runs]
    assert [process.returncode for process in runs] == [0, 0], said
    assert contents(Path(made.annotations) / whole.name) == contents(whole) and len(contents(whole)) == 5
    assert "wrote 2 of 3" in said[0] and "wrote 1 of 3" in said[1]


def test_each_rank_writes_its_own_shards(tiny: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation, "SHARD_ROWS", 4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    (folder,), _ = annotate(recipe(tiny, data))
    assert [path.name[13:18] for path in sorted(folder.glob("*.safetensors"))] == ["00001", "index"]


def test_embedded_images_are_the_same_images(tiny: dict[str, Path], data: Path, capsys: pytest.CaptureFixture) -> None:
    """In a tar and in Parquet: the keys are of the images' bytes, so what was computed from files is used."""
    import datasets

    annotate(recipe(tiny, data))
    samples = read_llava_json(data / "captions.json")
    with tarfile.open(data / "rows.tar", "w") as tar:
        for sample in samples:
            for ending, content in (
                ("png", sample.images[0].read_bytes()),
                ("txt", sample.turns[1].text.encode()),
            ):
                info = tarfile.TarInfo(f"{int(sample.id):02d}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    rows = [
        {"id": s.id, "image": {"bytes": s.images[0].read_bytes(), "path": "x.png"}, "caption": s.turns[1].text}
        for s in samples
    ]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(data / "rows.parquet")
    live = run(recipe(tiny, data, "files"), capsys)
    for name in ("rows.tar", "rows.parquet"):
        source = {"path": str(data / name), "template": "plain"}
        made = recipe(tiny, data, name, {"data": source, "validation": source})
        assert "nothing to do, the features of all 12 images" in annotate(made)[1]
        cached = run(made, capsys)
        assert "tower features read" in cached[2]
        assert cached[1] == live[1]


def test_duplicates_are_stored_once(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    """Twelve files of six pictures."""
    made = recipe(tiny, pictures, annotations=str(tmp_path))
    assert len({image_key(path) for path in (pictures / "images").iterdir()}) == 6
    (folder,), said = annotate(made)
    assert "features of 6 images" in said and len(Store(folder)) == 6


def test_images_that_cannot_be_read(tiny: dict[str, Path], data: Path, capsys: pytest.CaptureFixture) -> None:
    """`raise` stops with the row; `skip` leaves them out, and training leaves out the same rows as live."""
    (data / "images" / "4.png").write_bytes(b"no picture")
    (data / "images" / "7.png").unlink()
    for row, problem in (("7", "cannot read image .*7.png"), ("4", "cannot decode image .*4.png")):
        with pytest.raises(SightlineError, match=f"sample '{row}'.*{problem}.*bad_images=skip"):
            annotate(recipe(tiny, data))
        (data / "images" / "7.png").write_bytes((data / "images" / "8.png").read_bytes() + b"\0")
    (data / "images" / "7.png").unlink()
    skip = {"bad_images": "skip"}
    live = run(recipe(tiny, data, "live", skip), capsys)
    (folder,), said = annotate(recipe(tiny, data, stage=skip))
    assert "1 image files cannot be read" in said and len(Store(folder)) == 11
    cached = run(recipe(tiny, data, "cached", skip), capsys)
    assert "tower features read" in cached[2]
    torch.testing.assert_close(cached[1], live[1], atol=1e-5, rtol=0)
    dropped = [(data.parent / name / "dropped.jsonl").read_text() for name in ("live", "cached")]
    assert dropped[0] == dropped[1] and all(f'"id": "{row}"' in dropped[0] for row in (4, 7))
    (data / "images" / "7.png").write_bytes((data / "images" / "8.png").read_bytes())
    with pytest.raises(SightlineError, match="sample '4': cannot decode image"):
        train(recipe(tiny, data, "raise"), quiet=True)


def test_a_methods_views_and_edits(tiny: dict[str, Path], data: Path, capsys: pytest.CaptureFixture) -> None:
    """Two views of each image, merged by the method's edit of the features."""
    columns = {"toy/level": {str(number): torch.tensor(number % 4) for number in range(12)}}
    weights = {"toy/norm": 1.0, "toy/spread": 1.0}
    stage = {"trainable": ["connector", "toy"], "batch_size": 6, "weights": weights}
    changes = {"methods": [{"name": "toy:Toy"}], "stage": stage}
    live = run(recipe(tiny, data, "live", **changes), capsys, columns=columns)
    (folder,), said = annotate(recipe(tiny, data, **changes))
    assert "4.16 kB each" in said, "two views of 16 patches, 32 wide, in fp32, and where they are"
    key = image_key(data / "images" / "3.png")
    assert key is not None and Store(folder).read(key)["patches"].shape == (2, 16, 32)
    cached = run(recipe(tiny, data, "cached", **changes), capsys, columns=columns)
    assert "tower features read" in cached[2]
    torch.testing.assert_close(cached[1], live[1], atol=1e-5, rtol=1e-5)


def test_stages_without_features_say_why(tiny: dict[str, Path], data: Path, capsys: pytest.CaptureFixture) -> None:
    frozen = recipe(tiny, data).stages[0].model_dump()
    stages = [{**frozen, "name": "warm"}, {**frozen, "trainable": ["vision"]}, {**frozen, "name": "b"}]
    folders, said = annotate(recipe(tiny, data, stages=stages))
    assert len(folders) == 1 and "stage a: no features, stage 'a' trains the tower" in said
    assert "stage b: no features, its tower is the one that stage 'a' will have trained" in said
    said = run(recipe(tiny, data, stages=stages), capsys)[2]
    assert said.count("tower features read") == 1 and "stage warm: tower features read" in said
    with pytest.raises(SightlineError, match="no stage of this recipe can read features"):
        annotate(recipe(tiny, data, stages=stages[1:2]))
    with pytest.raises(SightlineError, match="no stage of this recipe can read features"):
        annotate(recipe(tiny, data, blank_images=True))
    assert "the tower" not in run(recipe(tiny, data, "blank", blank_images=True), capsys)[2], "the blind twin is live"


def test_a_method_that_reads_pixels_gets_them(
    tiny: dict[str, Path], data: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toy
    from sightline.methods.base import Needs

    annotate(recipe(tiny, data))
    monkeypatch.setattr(toy.Nudge, "needs", property(lambda _: Needs(edits=("visual",), pixels=True)))
    changes = {"methods": [{"name": "toy:Nudge"}]}
    assert "tower features" not in run(recipe(tiny, data, **changes), capsys)[2]
    with pytest.raises(SightlineError, match="no stage"):
        annotate(recipe(tiny, data, **changes))


def test_room_on_the_disk(tiny: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 20_000))
    with pytest.raises(SightlineError, match=r"needs 25\.2 kB and its disk has 20 kB\. Nothing was computed"):
        annotate(recipe(tiny, data))
    assert not list(Path(recipe(tiny, data).annotations).rglob("*.safetensors"))


def test_a_full_disk_says_so(tiny: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(SightlineError, match=r"the disk is full.*goes on"):
        annotate(recipe(tiny, data))


def test_more_rows_are_added(tiny: dict[str, Path], data: Path) -> None:
    few = {"path": str(data / "captions.json"), "template": "plain", "limit": 5}
    (folder,), said = annotate(recipe(tiny, data, stage={"data": few, "validation": []}))
    first = contents(folder)
    assert "features of 5 images" in said
    assert "features of 7 images" in annotate(recipe(tiny, data))[1]
    assert first.items() <= contents(folder).items() and len(Store(folder)) == 12


def test_an_image_that_changes_while_it_is_annotated(
    tiny: dict[str, Path], data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Store.plan

    def and_change(self, keys, rows) -> None:
        plan(self, keys, rows)
        (data / "images" / "5.png").write_bytes(b"other")

    monkeypatch.setattr(Store, "plan", and_change)
    with pytest.raises(SightlineError, match=r"5\.png changed while features were computed"):
        annotate(recipe(tiny, data))


def test_the_command(tiny: dict[str, Path], data: Path) -> None:
    from typer.testing import CliRunner

    from sightline.cli import app

    (file := data.parent / "recipe.yaml").write_text(dump(recipe(tiny, data)))
    shown = CliRunner().invoke(app, ["annotate", "--help"])
    assert shown.exit_code == 0 and "goes on where it was" in " ".join(shown.output.split())
    assert isinstance(CliRunner().invoke(app, ["annotate", str(file)]).exception, SightlineError)
    result = CliRunner().invoke(app, ["annotate", str(file), "--features", f"annotations={data.parent / 'x'}"])
    assert result.exit_code == 0 and Path(result.output.splitlines()[-1]).parent == data.parent / "x"
