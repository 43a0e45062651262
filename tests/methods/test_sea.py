"""SEA: what its loss sees, that it leaves the model alone, and whole runs through `annotate`."""

import json
import shutil
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from sightline.annotate import images
from sightline.annotate.drawing import NONE, Drawing, FromLabels, How
from sightline.annotate.given import GivenLabels
from sightline.annotate.labels import unpacked
from sightline.annotate.report import measure_labels
from sightline.checkpoints import why_not_stock
from sightline.config import Recipe, check
from sightline.data.collate import collate
from sightline.data.dataset import Rows
from sightline.data.features import image_key, image_name
from sightline.data.sources import read_llava_json
from sightline.data.store import Store
from sightline.data.templates import get_template
from sightline.data.words import ENGLISH_WORDS, english_words, inside_a_sentence
from sightline.errors import SightlineError
from sightline.methods.base import Setting, Sizes
from sightline.methods.compose import build_methods
from sightline.methods.sea import LOSS, SEA, SEAConfig, drawn_of, one_per_word
from sightline.models.assemble import Assembly, assemble
from sightline.models.parts import owner_of
from sightline.train import train
from sightline.train.annotate import annotate_method
from sightline.train.engine import outline
from sightline.train.objective import Objective
from sightline.train.setup import set_trainable
from sightline.types import Batch
from stores import contents, killed_at_shard

WORDS = ("red", "blue", "green", "a", "box", "two", "cat", "yes", "table", "ball")
SIZES = Sizes(d_vision=8, d_llm=16, patches=16, tokens=16)


@pytest.fixture
def words(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(WORDS) + "\n")
    return path


def recipe(
    tiny_joint: dict[str, Path], tiny: dict[str, Path], pictures: Path, folder: Path, words: Path, **sea
) -> Recipe:
    """Two stages of two steps, SEA in the first."""
    weight = sea.pop("weight", 1.0)
    captions = {"path": str(pictures / "captions.json"), "template": "plain"}
    shared = {"batch_size": 4, "steps": 2}
    first = {"name": "pretrain", "data": captions, "validation": captions, "trainable": ["connector", "sea"]}
    second = {"name": "tune", "data": {"path": str(pictures / "chats.json")}, "trainable": ["connector", "language"]}
    return check(
        {
            "name": "sea",
            "out": str(folder / "run"),
            "device": "cpu",
            "annotations": str(folder / "annotations"),
            "model": {"vision": str(sea.pop("vision", tiny_joint["clip"])), "language": str(tiny["llama"])},
            "methods": [{"name": "sea", "words": str(words), **sea}],
            "stages": [first | shared | {"weights": {LOSS: weight}}, second | shared],
        }
    )


def random_labels(image):
    """Three labels of each patch."""
    rng = np.random.default_rng(int(image_key(image)[:8], 16))
    return image_key(image), rng.integers(0, len(WORDS), (16, 3)), rng.random((16, 3))


def ready(
    tiny_joint, tiny, pictures: Path, words: Path, *, numbers=(0, 13, 12, 1), labels=random_labels, **sea
) -> tuple[Assembly, Batch]:
    """A model with SEA that has begun, and a batch of rows with labels: by default one image, none, two images, one."""
    torch.manual_seed(1)
    made = recipe(tiny_joint, tiny, pictures, words.parent, words, **sea)
    assembly = assemble(str(tiny_joint["clip"]), str(tiny["llama"]), methods=made.methods)
    method = assembly.model.model.methods["sea"]
    method.begin(Setting(made, 0, assembly, torch.device("cpu")))
    how = How(grid=4, seed=0)
    drawing = Drawing(how, FromLabels(how, labels))
    rows = Rows(
        read_llava_json(pictures / "chats.json"),
        assembly.processor(get_template("vicuna_v1")),
        seed=0,
        readers=[lambda sample, epoch: {"sea/drawn": drawing(sample, epoch)}],
        needed={},
    )
    return assembly, collate([rows[(0, row)] for row in numbers], pad_id=rows.processor.pad_id)


def test_drawn_places_are_those_of_their_images(tiny_joint, tiny, pictures, words):
    """A row with one image, one without, one with two, one more: 16 tokens each, in order."""
    _, batch = ready(tiny_joint, tiny, pictures, words)
    drawn = drawn_of(batch)
    images = [0, 1, 1 + 1, 3]
    assert sorted(set((drawn[:, 0] // 16).tolist())) == [0, 1, 2, 3], images
    assert len(drawn) == 16, "four windows of each image"
    own = batch.columns["sea/drawn"]
    assert (drawn[4:8, 0] - 16).tolist() == own[2][own[2][:, 0] == 0][:, 1].tolist()
    assert (drawn[8:12, 0] - 32).tolist() == own[2][own[2][:, 0] == 1][:, 1].tolist()


def test_one_patch_for_each_word_the_one_of_highest_priority():
    words, priority = torch.tensor([5, 3, 5, 3, 9]), torch.tensor([1, 8, 2, 7, 0])
    assert one_per_word(words, priority).tolist() == [1, 2, 4]
    assert one_per_word(words[:0], priority[:0]).tolist() == []
    assert one_per_word(torch.tensor([1, 1]), torch.tensor([4, 4])).tolist() == [0], "the first of equals"


def test_the_loss_is_that_of_a_slow_reference(tiny_joint, tiny, pictures, words):
    """Row by row and word by word, from the connector's tokens and the table of embeddings."""
    assembly, batch = ready(tiny_joint, tiny, pictures, words)
    model, inner = assembly.model, assembly.model.model
    with torch.no_grad():
        trace, _ = inner.trace(batch, use_cache=False)
        found = inner.methods["sea"].losses(trace, batch)[LOSS]
        visual = inner.connect(inner.encode(batch.pixel_values))
        best: dict[int, tuple[int, int]] = {}
        for place, word, priority in drawn_of(batch).tolist():
            if word not in best or priority > best[word][0]:
                best[word] = (priority, place)
        ids = inside_a_sentence(assembly.tokenizer, WORDS)
        table = model.get_input_embeddings().weight
        x = torch.stack([visual[place] for _, place in best.values()])
        t = torch.stack([torch.stack([table[i] for i in ids[word]]).mean(0) for word in best])
        cosines = (x / x.norm(dim=1, keepdim=True)) @ (t / t.norm(dim=1, keepdim=True)).T / 0.07
        rows = [cosines[i, i] - cosines[i].logsumexp(0) for i in range(len(x))]
        columns = [cosines[i, i] - cosines[:, i].logsumexp(0) for i in range(len(x))]
        expected = -(sum(rows) + sum(columns)) / (2 * len(x))
    assert len(best) > 4
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_the_connector_and_the_temperature_alone(tiny_joint, tiny, pictures, words):
    assembly, batch = ready(tiny_joint, tiny, pictures, words)
    trace, _ = assembly.model.model.trace(batch, use_cache=False)
    assembly.model.model.methods["sea"].losses(trace, batch)[LOSS].backward()
    moved = {name for name, p in assembly.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    connector = {f"model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    towers = {name for name in moved if "vision_tower" in name}
    assert moved - towers == connector | {"model.methods.sea.train_only.temperature.log_scale"}
    assert not any("embed_tokens" in name for name in moved), "the words' table is a target, not a pupil"


def test_in_stage_1_the_frozen_parts_have_no_gradient(tiny_joint, tiny, pictures, words):
    """Neither the words' table nor the tower; the temperature only where the stage trains `sea`. And lambda weighs."""
    for trainable in (["connector", "sea"], ["connector"]):
        assembly, batch = ready(tiny_joint, tiny, pictures, words)
        stage = recipe(tiny_joint, tiny, pictures, words.parent, words).stages[0]
        set_trainable(assembly.model, stage.model_copy(update={"trainable": trainable}))
        objective = Objective(assembly.model, {LOSS: 0.3})
        sums, counts = objective(batch), objective.counts(batch)
        total = objective.total(sums, counts)
        torch.testing.assert_close(total, sums["answer"] / counts["answer"] + 0.3 * sums[LOSS])
        total.backward()
        trained = {owner_of(name) for name, p in assembly.model.named_parameters() if p.grad is not None}
        assert trained == set(trainable)
        assert all(p.grad is None or p.grad.any() for p in assembly.model.parameters())


def no_labels(image):
    return image_key(image), np.zeros((16, 3), dtype=np.int64), np.zeros((16, 3))


def one_word(image):
    return image_key(image), np.full((16, 1), 3), np.ones((16, 1))


@pytest.mark.parametrize(
    ("numbers", "labels"), [((13, 13), random_labels), ((0, 12), no_labels), ((0, 13, 12, 1), one_word)]
)
@pytest.mark.parametrize("scope", ["micro-batch", "gathered"])
def test_fewer_than_two_pairs_teach_nothing(tiny_joint, tiny, pictures, words, numbers, labels, scope):
    """A batch of text, of images without labels, of one word alone: the loss is 0, and what trains has gradients of 0,
    as the other processes expect."""
    assembly, batch = ready(tiny_joint, tiny, pictures, words, numbers=numbers, labels=labels, scope=scope)
    set_trainable(assembly.model, recipe(tiny_joint, tiny, pictures, words.parent, words).stages[0])
    objective = Objective(assembly.model, {LOSS: 1.0, "language": 0.0})
    sums = objective(batch)
    total = objective.total(sums, objective.counts(batch))
    assert total.item() == sums[LOSS].item() == 0
    total.backward()
    trained = [p for p in assembly.model.parameters() if p.requires_grad]
    assert len(trained) == 5
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def test_an_image_without_labels_contributes_nothing_and_leaves_the_others(tiny_joint, tiny, pictures, words):
    def labels(image):
        return (no_labels if image_name(image).endswith("1.png") else random_labels)(image)

    _, everything = ready(tiny_joint, tiny, pictures, words, numbers=(0, 1, 2))
    _, batch = ready(tiny_joint, tiny, pictures, words, numbers=(0, 1, 2), labels=labels)
    drawn, before = drawn_of(batch), drawn_of(everything)
    assert len(before) == 12 and len(drawn) == 8
    assert torch.equal(drawn, before[before[:, 0] // 16 != 1])


@pytest.mark.parametrize(("partial", "count"), [(True, 196), (False, 169)])
def test_what_a_recipe_says_is_how_labels_are_drawn(tiny_joint, tiny, pictures, words, partial: bool, count: int):
    """And by default one patch of each 2 x 2; on SigLIP's grid of 27 x 27 windows at the edge count, or do not."""
    options = {"partial_windows": partial, "sharpen": 2.0, "window": 3}
    made = recipe(tiny_joint, tiny, pictures, words.parent, words, **options).model_copy(update={"seed": 5})
    setting = Setting(made, 0, ready(tiny_joint, tiny, pictures, words)[0], torch.device("cpu"))
    method = build_methods(made.methods, replace(SIZES, tokens=729))["sea"]
    assert method.patch_words(setting).how == How(grid=27, seed=5, window=3, partial=partial, power=2.0)
    default = SEA(SEAConfig(words=str(words), partial_windows=partial), replace(SIZES, tokens=729))
    how = default.patch_words(setting).how
    assert (how.window, how.power, len(how.squares)) == (2, 1.0, count)


def test_the_temperature_begins_where_it_should_and_is_bounded():
    scale = SEA(SEAConfig(), SIZES).train_only["temperature"]
    assert float(scale()) == pytest.approx(1 / 0.07)
    with torch.no_grad():
        scale.log_scale.fill_(9.0)
    assert float(scale()) == 100.0


def test_the_papers_preset_and_what_it_leaves():
    paper = SEAConfig(preset="sea_paper")
    assert (paper.sign, paper.temperature, paper.top, paper.window) == (-1, 1.0, 10, 2)
    assert SEAConfig(preset="sea_paper", sign=1).sign == 1, "what is given stays"
    assert (SEAConfig().sign, SEAConfig().temperature) == ("auto", 0.07)


def test_the_papers_negation_is_of_the_last_layer():
    """Whoever takes another extractor says the sign."""
    for extractor in ("value", "surgery"):
        with pytest.raises(SightlineError, match="sea_paper negates what the last layer gives, and extractor is anot"):
            build_methods([{"name": "sea", "preset": "sea_paper", "extractor": extractor}], SIZES)
        assert SEAConfig(preset="sea_paper", extractor=extractor, sign=1).temperature == 1


def test_a_window_whose_places_a_byte_cannot_name_is_refused():
    with pytest.raises(SightlineError, match="window: Input should be less than or equal to 16"):
        build_methods([{"name": "sea", "window": 17}], SIZES)


def test_a_grid_that_is_no_square_is_refused():
    with pytest.raises(SightlineError, match="the connector gives 17 for a view"):
        build_methods([{"name": "sea"}], replace(SIZES, tokens=17))


def test_no_weight_is_the_baseline_bit_for_bit(tiny_joint, tiny, pictures, words):
    """Loss and gradients of a step; and with the same weights the logits, method or not."""
    results = []
    assembly, batch = ready(tiny_joint, tiny, pictures, words)
    torch.manual_seed(1)
    plain = assemble(str(tiny_joint["clip"]), str(tiny["llama"]))
    plain.model.load_state_dict(assembly.model.state_dict(), strict=False)
    for made, weights in ((plain, {}), (assembly, {LOSS: 0.0})):
        objective = Objective(made.model, weights)
        objective.total(objective(batch), objective.counts(batch)).backward()
        results.append([p.grad for p in made.model.model.multi_modal_projector.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    for made in (plain, assembly):
        made.model.eval()
    given = {"input_ids": batch.input_ids, "pixel_values": batch.pixel_values, "view_counts": batch.view_counts}
    with torch.no_grad():
        assert torch.equal(plain.model(**given).logits, assembly.model(**given).logits)
    assert why_not_stock(assembly.model) == why_not_stock(plain.model) == []


def test_a_run_with_no_weight_is_the_baselines_bit_for_bit(tiny_joint, tiny, pictures, tmp_path, words):
    """Though the stage lists `sea` among what trains: its temperature has nothing to learn from, and stays."""
    runs = []
    for name in ("sea", "plain"):
        made = recipe(tiny_joint, tiny, pictures, tmp_path / name, words, weight=0.0)
        values = made.model_dump(mode="json")
        if name == "plain":
            values["methods"], values["stages"][0]["weights"] = [], {}
            values["stages"][0]["trainable"] = ["connector"]
        runs.append(load_file(train(check(values), quiet=True) / "model" / "model.safetensors"))
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(value, runs[1][key]) for key, value in runs[0].items())


def test_a_run_from_annotation_to_a_stock_model(tiny_joint, tiny, pictures, tmp_path, words):
    made = recipe(tiny_joint, tiny, pictures, tmp_path, words)
    with pytest.raises(SightlineError, match=r"SEA has no labels .* sightline annotate RECIPE --method sea"):
        train(made, quiet=True)
    (folder,) = annotate_method(made, "sea")
    assert (folder / "words.txt").read_text().split() == list(WORDS)
    run = train(made, quiet=True)
    lines = [yaml.safe_load(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first = [line for line in lines if line["stage"] == "pretrain" and "split" not in line]
    assert all(line["loss/sea/contrastive"] > 0 for line in first)
    assert all("loss/sea/contrastive" not in line for line in lines if line["stage"] == "tune")
    held_out = [line for line in lines if line.get("split") == "validation" and line["stage"] == "pretrain"]
    assert all("loss/sea/contrastive" in line for line in held_out), "measured on validation too"
    weights = load_file(run / "model" / "model.safetensors")
    assert not any("sea" in name for name in weights)
    assert yaml.safe_load((run / "model" / "config.json").read_text())["model_type"] == "llava"


def test_a_report_of_labels_counts_them(tiny_joint, tiny, pictures, tmp_path, words):
    made = recipe(tiny_joint, tiny, pictures, tmp_path, words)
    folder, picture, text, numbers = annotate_method(made, "sea", report=True)
    found = json.loads(numbers.read_text())
    store = Store(folder)
    labels = [unpacked(store.read(key)) for key in store.keys]
    ids = np.concatenate([ids.flatten() for ids, _ in labels])
    assert found["images"] == 6 and found["patches"] == 6 * 16, "of twelve pictures six are alike"
    assert found["uses"] == {word: n for i, word in enumerate(WORDS) if (n := int((ids == i).sum()))}
    assert sum(found["histogram of scores"]) == sum(found["uses"].values())
    empty = sum(int((scores <= 0).all(axis=1).sum()) for _, scores in labels)
    assert found["patches without a label"] == empty and f"patches without a label: {empty:,}" in text.read_text()
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "not there yet" not in text.read_text()
    next(folder.glob("*-00000.*")).unlink()
    assert measure_labels(folder).told().startswith("1 shards are not there yet"), "another process is at work on it"
    drawn = recipe(tiny_joint, tiny, pictures, tmp_path, words, drawn_epochs=1)
    with pytest.raises(SightlineError, match="keeps what was drawn of labels, not their scores"):
        annotate_method(drawn, "sea", report=True)


def test_padding_has_no_labels(tiny_joint, tiny, pictures, tmp_path, words):
    """Of a strip of 32 x 8, padded to a square, the first and the last row of patches are padding."""
    folder = tmp_path / "strip"
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (32, 8), "red").save(folder / "images" / "0.png")
    row = {"id": "0", "image": "0.png", "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
    row["conversations"].append({"from": "gpt", "value": "red"})
    (folder / "captions.json").write_text(json.dumps([row]))
    made = recipe(tiny_joint, tiny, folder, tmp_path, words, sign=1)
    (stored,) = annotate_method(made, "sea")
    ids, scores = unpacked(Store(stored).read(image_key(folder / "images" / "0.png")))
    empty = (ids == NONE).all(axis=1).reshape(4, 4).all(axis=1)
    assert empty[[0, 3]].all() and (scores.reshape(4, -1)[[0, 3]] == 0).all()
    assert not empty[1:3].all()


def test_killed_between_shards_the_store_ends_the_same(tiny_joint, tiny, pictures, tmp_path, words, monkeypatch):
    """SIGKILL as the second of three shards is written: the first stays, the end is the same bytes."""
    monkeypatch.setattr(images, "SHARD_ROWS", 2)
    (whole,) = annotate_method(recipe(tiny_joint, tiny, pictures, tmp_path / "whole", words), "sea")
    made = recipe(tiny_joint, tiny, pictures, tmp_path / "killed", words)
    killed_at_shard(2, lambda: annotate_method(made, "sea"))
    folder = Path(made.annotations) / whole.name
    first = {path: path.stat().st_ino for path in folder.glob("*-00000.*")}
    assert len(first) == 1 and len(list(folder.glob("*.safetensors"))) == 2, "an index and a shard"
    annotate_method(made, "sea")
    assert contents(folder) == contents(whole) and len(list(whole.glob("*.safetensors"))) == 4
    assert all(path.stat().st_ino == inode for path, inode in first.items())


def test_two_processes_share_the_work(tiny_joint, tiny, pictures, tmp_path, words, monkeypatch):
    """One after the other, as torchrun's ranks would side by side: the bytes of one process."""
    monkeypatch.setattr(images, "SHARD_ROWS", 2)
    (whole,) = annotate_method(recipe(tiny_joint, tiny, pictures, tmp_path / "whole", words), "sea")
    made = recipe(tiny_joint, tiny, pictures, tmp_path / "two", words)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        (folder,) = annotate_method(made, "sea")
        if rank == "0":
            assert len(list(folder.glob("*-0000*"))) == 2, "the first and the third shard"
    assert contents(folder) == contents(whole)


def test_what_is_drawn_beforehand_trains_the_same(tiny_joint, tiny, pictures, tmp_path, words):
    """The small store and the large one give the same model, bit for bit."""
    models = []
    for name, options in (("all", {}), ("drawn", {"drawn_epochs": 2})):
        made = recipe(tiny_joint, tiny, pictures, tmp_path / name, words, **options)
        (folder,) = annotate_method(made, "sea")
        models.append((load_file(train(made, quiet=True) / "model" / "model.safetensors"), folder))
    (one, large), (two, small) = models
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    held = [sum(p.stat().st_size for p in folder.glob("*-0*.safetensors")) for folder in (large, small)]
    assert held[1] < held[0]


def test_a_stage_longer_than_what_was_drawn_does_not_begin(tiny_joint, tiny, pictures, tmp_path, words):
    made = recipe(tiny_joint, tiny, pictures, tmp_path, words, drawn_epochs=1)
    annotate_method(made, "sea")
    for change in ({"steps": 5}, {"steps": None, "epochs": 2.0}):  # three steps are an epoch
        stage = made.stages[0].model_copy(update=change)
        longer = made.model_copy(update={"stages": [stage, *made.stages[1:]]})
        said = "sees its rows in 2 epochs, and drawn_epochs is 1"
        with pytest.raises(SightlineError, match=said):
            train(longer, quiet=True)
        with pytest.raises(SightlineError, match=said):
            annotate_method(longer, "sea")


@pytest.mark.parametrize(
    "change",
    [{"extractor": "value"}, {"top": 3}, {"sign": -1}, {"templates": ["a photo of a {}"]}, {"image_fit": "crop"}],
    ids=str,
)
def test_labels_made_otherwise_are_refused(tiny_joint, tiny, pictures, tmp_path, words, change: dict):
    """Another transform or extractor has another folder: the old labels are never read."""
    annotate_method(recipe(tiny_joint, tiny, pictures, tmp_path, words, sign=1), "sea")
    fit = change.pop("image_fit", None)
    other = recipe(tiny_joint, tiny, pictures, tmp_path, words, **({"sign": 1} | change))
    if fit is not None:
        assert other.model is not None
        other = other.model_copy(update={"model": other.model.model_copy(update={"image_fit": fit})})
    with pytest.raises(SightlineError, match="another transform has others"):
        train(other, quiet=True)


@pytest.mark.parametrize("tower", ["dinov2", "registers", "siglip"])
def test_a_tower_without_words_takes_labels_from_an_encoder(tiny_joint, tiny, pictures, tmp_path, words, tower: str):
    made = recipe(tiny_joint, tiny, pictures, tmp_path, words, vision=tiny[tower], encoder=str(tiny_joint["clip"]))
    annotate_method(made, "sea")
    assert (train(made, quiet=True) / "model").is_dir()


def test_a_tower_without_words_and_no_encoder_is_refused(tiny_joint, tiny, pictures, tmp_path, words):
    with pytest.raises(SightlineError, match="without a joint space of patches and words"):
        annotate_method(recipe(tiny_joint, tiny, pictures, tmp_path, words, vision=tiny["dinov2"]), "sea")


def test_labels_that_are_given(tiny_joint, tiny, pictures, tmp_path, words):
    """A file with the words of every patch, and its images' labels dealt out otherwise as a control."""
    given = tmp_path / "given.jsonl"
    rows = [
        {"image": f"images/{n}.png", "patches": [{"words": [WORDS[(n + place) % 7], "unknown"]} for place in range(16)]}
        for n in range(12)
    ]
    given.write_text("\n".join(map(json.dumps, rows)))
    losses = []
    for control in ("none", "shuffled"):
        made = recipe(tiny_joint, tiny, pictures, tmp_path / control, words, labels=str(given), control=control)
        run = train(made, quiet=True)
        losses.append(yaml.safe_load((run / "metrics.jsonl").read_text().splitlines()[0])["loss/sea/contrastive"])
    assert losses[0] != losses[1]
    with pytest.raises(SightlineError, match="so there is nothing to compute"):
        annotate_method(made, "sea")
    given.write_text('{"image": "0.png", "patches": [{"words": []}]}')
    with pytest.raises(SightlineError, match="1 patches, and the model has 16 visual tokens"):
        train(made.model_copy(update={"out": str(tmp_path / "again")}), quiet=True)


def test_live_labels_are_the_stored_ones(tiny_joint, tiny, pictures, tmp_path, words):
    """From the trunk's own forward pass, with its own pixels: the same words wherever scores differ by 1e-5."""
    made = recipe(tiny_joint, tiny, pictures, tmp_path, words, labels="live")
    torch.manual_seed(0)
    assembly = assemble(str(tiny_joint["clip"]), str(tiny["llama"]), methods=made.methods)
    method, samples = assembly.model.model.methods["sea"], read_llava_json(pictures / "captions.json")
    setting = Setting(made, 0, assembly, torch.device("cpu"), [samples])
    method.begin(setting)
    rows = Rows(samples, assembly.processor(get_template("plain")), seed=0, needed={})
    batch = collate([rows[(0, row)] for row in range(0, 12, 2)], pad_id=rows.processor.pad_id)  # the square ones
    with torch.no_grad():
        trace, _ = assembly.model.model.trace(batch, use_cache=False)
        ids, scores = method._live.labelling.best_of(trace.tower_states)
        again = method.losses(trace, batch)[LOSS], method.losses(trace, batch)[LOSS]
    assert torch.equal(*again), "without gradients the draw is always the same"
    stored = recipe(tiny_joint, tiny, pictures, tmp_path, words)
    other = build_methods(stored.methods, assembly.model.model.sizes)["sea"]
    words_of = other.patch_words(Setting(stored, 0, assembly, torch.device("cpu"), [samples]))
    words_of.compute()
    labels = words_of.open()
    for image, sample in enumerate(samples[row] for row in range(0, 12, 2)):
        _, kept, kept_scores = labels(sample.images[0])
        for place in range(16):
            mine, gaps = scores[image, place], scores[image, place].diff().abs()
            clear = (mine[1:-1] > 1e-3) & (gaps[:-1] > 1e-5) & (gaps[1:] > 1e-5)
            for rank in (clear.nonzero().flatten() + 1).tolist():
                assert kept[place, rank] == ids[image, place, rank]
                assert kept_scores[place, rank] == pytest.approx(
                    float(mine[rank]), abs=float(scores[image].max()) / 250
                )
    assert (scores > 1e-3).float().mean() > 0.2, "there is something to compare"


def test_a_run_with_live_labels(tiny_joint, tiny, pictures, tmp_path, words):
    runs = [train(recipe(tiny_joint, tiny, pictures, tmp_path / n, words, labels="live"), quiet=True) for n in "ab"]
    one, two = ([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs)
    losses = [[line.get("loss/sea/contrastive") for line in lines] for lines in (one, two)]
    assert losses[0] == losses[1] and losses[0][0] > 0
    assert not list((tmp_path / "a" / "annotations").glob("sea-*/*.safetensors"))


def test_live_labels_need_the_models_own_frozen_tower(tiny_joint, tiny, pictures, tmp_path, words):
    foreign = recipe(tiny_joint, tiny, pictures, tmp_path, words, labels="live", encoder=str(tiny_joint["siglip"]))
    with pytest.raises(SightlineError, match="the encoder is another"):
        train(foreign, quiet=True)
    made = recipe(tiny_joint, tiny, pictures, tmp_path, words, labels="live")
    stage = made.stages[0].model_copy(update={"trainable": ["vision", "connector"]})
    with pytest.raises(SightlineError, match="trains the tower, and labels: live would change with it"):
        train(made.model_copy(update={"stages": [stage]}), quiet=True)


def test_an_unknown_method_and_a_method_that_no_stage_weighs(tiny_joint, tiny, pictures, tmp_path, words):
    made = recipe(tiny_joint, tiny, pictures, tmp_path, words)
    with pytest.raises(SightlineError, match="has no method 'see'; did you mean 'sea'"):
        annotate_method(made, "see")
    stages = [stage.model_copy(update={"weights": {}}) for stage in made.stages]
    with pytest.raises(SightlineError, match="no stage of this recipe reads what 'sea' annotates"):
        annotate_method(made.model_copy(update={"stages": stages}), "sea")
    with pytest.raises(SightlineError, match="has a loss 'sea/contrastive' that no stage weighs"):
        train(made.model_copy(update={"stages": stages}), quiet=True)


def test_the_default_list_of_words():
    words = english_words()
    assert len(words) == len(set(words)) == ENGLISH_WORDS
    assert {"dog", "red", "running", "mountain"} <= set(words) and words[0] == "the"
    assert all(word.isalpha() and word == word.lower() for word in words)


def test_a_word_is_the_mean_of_its_tokens_inside_a_sentence(tiny_joint, tiny, pictures, words):
    assembly, _ = ready(tiny_joint, tiny, pictures, words)
    method = assembly.model.model.methods["sea"]
    ids = assembly.tokenizer(" red", add_special_tokens=False)["input_ids"]
    expected = assembly.model.get_input_embeddings().weight[torch.tensor(ids)].mean(0)
    torch.testing.assert_close(method.text(torch.tensor([0]))[0], expected)


def test_a_tower_of_several_scales_is_labelled_at_its_own_size(tiny_joint, tiny, pictures, tmp_path, words):
    """S2: the labels are those of the smallest scale, whose grid the tokens have (Table 2's S2-Wrapper row)."""
    made = recipe(tiny_joint, tiny, pictures, tmp_path / "scales", words, sign=1)
    made = made.model_copy(
        update={"model": made.model.model_copy(update={"vision_scales": [1, 2], "image_fit": "crop"})}
    )
    (folder,) = annotate_method(made, "sea")
    assert (train(made, quiet=True) / "model").is_dir()
    plain = recipe(tiny_joint, tiny, pictures, tmp_path / "plain", words, sign=1)
    (other,) = annotate_method(plain, "sea")
    red = image_key(pictures / "images" / "0.png")  # of one colour, 32 x 32: resized it is the same
    (ids, scores), (own_ids, own_scores) = (unpacked(Store(each).read(red)) for each in (folder, other))
    assert np.array_equal(ids, own_ids)
    np.testing.assert_allclose(scores, own_scores, atol=0.01)


def test_live_labels_need_a_tower_that_no_stage_before_trained(tiny_joint, tiny, pictures, tmp_path, words):
    """In the second stage that weighs the loss as in the first; and where an earlier stage trained the tower."""
    made = recipe(tiny_joint, tiny, pictures, tmp_path, words, labels="live")
    first, second = made.stages
    trains = {"trainable": ["vision", "connector"]}
    weighed = second.model_copy(update=trains | {"weights": {LOSS: 1.0}})
    for stages in ([first, weighed], [second.model_copy(update=trains), first]):
        with pytest.raises(SightlineError, match="'tune' trains the tower, and labels: live would change with it"):
            train(made.model_copy(update={"stages": stages}), quiet=True)


def test_a_model_with_live_labels_can_be_copied(tiny_joint, tiny, pictures, tmp_path, words):
    """FSDP copies the model's outline; what labels, and the console that it speaks to, is not a part of it."""
    made = recipe(tiny_joint, tiny, pictures, tmp_path, words, labels="live", sign=1)
    assembly = assemble(str(tiny_joint["clip"]), str(tiny["llama"]), methods=made.methods)
    method = assembly.model.model.methods["sea"]
    console = partial(print, file=threading.Lock())  # a lock cannot be copied
    method.begin(Setting(made, 0, assembly, torch.device("cpu"), [], console))
    assert outline(assembly.model).model.methods["sea"]._live is method._live


@pytest.mark.parametrize(
    "options",
    [
        {"control": "shuffled", "labels": "live"},
        {"control": "shuffled", "drawn_epochs": 1},
        {"labels": "live", "drawn_epochs": 1},
        {"labels": "given.jsonl", "drawn_epochs": 1},
        {"window": 16, "drawn_epochs": 1},
    ],
    ids=str,
)
def test_options_that_another_would_silently_undo_are_refused(options: dict):
    with pytest.raises(ValueError, match=r"shuffled draws from all labels|drawn_epochs"):
        SEAConfig(**options)


def test_a_window_that_does_not_fit_is_refused_when_the_model_is_built():
    with pytest.raises(SightlineError, match="no window of 5 fits into a grid of 4"):
        build_methods([{"name": "sea", "window": 5, "partial_windows": False}], SIZES)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"image": "\xe9.png", "patches": []}', "line 13: not words of patches"),
        (b'{"image": "x.png", "patches": [{"words": "red"}]}', "line 13: not words of patches"),
        (b'{"image": 5, "patches": [{"words": ["red"]}]}', "line 13: not words of patches"),
        (b"", "line 13: not words of patches"),
        (json.dumps({"image": "3.png", "patches": [{"words": []}] * 16}).encode(), "image '3.png' has words already"),
    ],
    ids=["no UTF-8", "no list", "no name", "empty", "twice"],
)
def test_given_labels_that_are_broken(tmp_path: Path, line: bytes, said: str):
    path = tmp_path / "given.jsonl"
    rows = [{"image": f"{n}.png", "patches": [{"words": ["red"]}] * 16} for n in range(12)]
    path.write_bytes(b"\n".join([*(json.dumps(row).encode() for row in rows), line, b""]))
    with pytest.raises(SightlineError, match=said):
        GivenLabels(path, WORDS, tokens=16)


def test_given_labels_without_a_word_of_the_list(tmp_path: Path):
    """All patches would be without a label, and the loss 0 throughout."""
    path = tmp_path / "given.jsonl"
    path.write_text(json.dumps({"image": "0.png", "patches": [{"words": ["Zebra"]}] * 16}))
    with pytest.raises(SightlineError, match=r"no word of .* is in the method's list"):
        GivenLabels(path, WORDS, tokens=16)


def test_given_labels_need_no_encoder(tiny_joint, tiny, pictures, tmp_path, words):
    """A model that is loaded whole has no recipe that names its tower."""
    given = tmp_path / "given.jsonl"
    rows = [{"image": f"{n}.png", "patches": [{"words": ["red", "box"]}] * 16} for n in range(12)]
    given.write_text("\n".join(map(json.dumps, rows)))
    plain = recipe(tiny_joint, tiny, pictures, tmp_path / "plain", words, labels=str(given))
    run = train(plain.model_copy(update={"stages": plain.stages[:1]}), quiet=True)
    made = recipe(tiny_joint, tiny, pictures, tmp_path / "loaded", words, labels=str(given))
    stage = made.stages[0].model_copy(update={"init_from": str(run)})
    made = made.model_copy(update={"model": None, "stages": [stage]})
    assert (train(made, quiet=True) / "model").is_dir()
    named = [{"name": "sea", "words": str(words)}]
    with pytest.raises(SightlineError, match="does not know which encoder labels patches"):
        train(made.model_copy(update={"methods": named, "out": str(tmp_path / "x")}), quiet=True)


def test_a_sign_is_not_measured_on_nothing(tiny_joint, tiny, pictures, tmp_path, words):
    """Rows without a word of the list; and rows whose images are all missing, where a stage skips those."""
    words.write_text("zebra\nlion\n")
    with pytest.raises(SightlineError, match="so the sign cannot be measured"):
        annotate_method(recipe(tiny_joint, tiny, pictures, tmp_path, words), "sea")
    words.write_text("\n".join(WORDS))
    (tmp_path / "captions.json").write_text((pictures / "captions.json").read_text())
    made = recipe(tiny_joint, tiny, pictures, tmp_path, words)
    data = [made.stages[0].data[0].model_copy(update={"path": str(tmp_path / "captions.json")})]
    stage = made.stages[0].model_copy(update={"data": data, "validation": [], "bad_images": "skip"})
    with pytest.raises(SightlineError, match="so the sign cannot be measured"):
        annotate_method(made.model_copy(update={"stages": [stage]}), "sea")


def test_a_damaged_record_of_the_sign_is_said(tiny_joint, tiny, pictures, tmp_path, words):
    made = recipe(tiny_joint, tiny, pictures, tmp_path, words)
    annotate_method(made, "sea")
    (record,) = Path(made.annotations).glob("sea-sign-*.json")
    record.write_text("{")
    with pytest.raises(SightlineError, match="is damaged"):
        train(made, quiet=True)


def test_a_shuffled_image_takes_no_labels_of_one_that_has_none(tiny_joint, tiny, pictures, tmp_path, words):
    """One of six images cannot be decoded: the rows of the other five all stay."""
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    for number in range(12):
        Image.new("RGB", (32, 32), (20 * number, 10, 30)).save(folder / "images" / f"{number}.png")
    (folder / "images" / "3.png").write_bytes(b"broken")
    made = recipe(tiny_joint, tiny, folder, tmp_path, words, sign=1, control="shuffled")
    stage = made.stages[0].model_copy(update={"bad_images": "skip", "steps": 3})
    made = made.model_copy(update={"stages": [stage]})
    annotate_method(made, "sea")
    lines = (train(made, quiet=True) / "dropped.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"] for line in lines} == {"3"}


def test_a_saved_model_knows_nothing_of_it(tiny_joint, tiny, pictures, tmp_path, words):
    """Also where the model is no stock LLaVA: it says no method, and a stage without SEA goes on from it."""
    made = recipe(tiny_joint, tiny, pictures, tmp_path / "first", words, sign=1)
    shuffled = made.model.model_copy(update={"connector": "pixel_shuffle"})
    first = made.model_copy(update={"model": shuffled, "stages": made.stages[:1]})
    annotate_method(first, "sea")
    run = train(first, quiet=True)
    assert not json.loads((run / "model" / "config.json").read_text()).get("methods")
    stage = made.stages[1].model_copy(update={"init_from": str(run)})
    second = made.model_copy(update={"model": None, "methods": [], "stages": [stage], "out": str(tmp_path / "second")})
    assert (train(second, quiet=True) / "model").is_dir()
