"""Cognition: what is asked for, where it stands in a conversation, what it weighs; and what a model learned of it."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image
from transformers import AutoTokenizer

from sightline.annotate.codes import CODES, PIXELS, thumbnails
from sightline.checkpoints import load_model
from sightline.config import Recipe
from sightline.data.collate import collate
from sightline.data.dataset import Policies, Rows
from sightline.data.features import image_key
from sightline.data.images import load_image
from sightline.data.order import generator
from sightline.data.sources import read_llava_json
from sightline.data.store import Store
from sightline.data.templates import get_template
from sightline.data.windows import UNREAD, Digits, Marks, Window
from sightline.diagnostics.captions import LONGEST, REQUEST
from sightline.diagnostics.cognition import ToldCodes, ToldPixels, _right, marginal, measure_cognition
from sightline.diagnostics.subject import Subject
from sightline.diagnostics.telling import Cells, asked, cells_of, telling
from sightline.errors import SightlineError
from sightline.methods.aligngpt import SLOT, text_mask
from sightline.methods.base import Setting
from sightline.methods.compose import build_methods
from sightline.methods.vlsa.asking import TEMPLATES, asking
from sightline.methods.vlsa.cognition import Cognition, CognitionConfig
from sightline.models.assemble import Assembly, assemble
from sightline.models.codes import Codes, nearest
from sightline.train import train
from sightline.train.annotate import annotate_method
from sightline.train.objective import Objective
from sightline.types import IGNORE, PROMPT, Example, Sample, Turn
from stores import contents, killed_at_shard
from telling import GRID, SIZES, WINDOW, annotated, method_of, options, recipe

CPU = torch.device("cpu")


def rows_of(made: Recipe, pictures: Path, **given) -> tuple[Assembly, Rows]:
    """The rows of the second stage."""
    torch.manual_seed(1)
    assert made.model is not None
    assembly = assemble(made.model.vision, made.model.language, methods=made.methods)
    data = read_llava_json(pictures / "chats.json")
    setting = Setting(made, 1, assembly, CPU, [data])
    method = assembly.model.model.methods["cognition"]
    assert isinstance(method, Cognition)
    reader = method.annotation(setting).reader()
    processor = assembly.processor(get_template("vicuna_v1"), max_length=given.pop("max_length", 2048))
    return assembly, Rows(data, processor, seed=0, readers=[reader], needed={}, **given)


def told(assembly: Assembly, example: Example, kind: str) -> str:
    """The supervised text of a kind in a row."""
    ids = example.labels[(example.labels != IGNORE) & (example.kinds == assembly.model.model.methods.kinds.index(kind))]
    return assembly.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_the_code_of_a_cell_is_the_nearest_in_distance_and_not_the_least_product(pipeline):
    """By hand, where equation 5 as printed would choose another; and as diffusers' own quantiser has it."""
    book = torch.tensor([[1.0, 0.0], [5.0, 5.0], [-3.0, 0.0]])
    latents = torch.tensor([[1.2, 0.1], [4.0, 4.0]]).T.reshape(1, 2, 1, 2)
    assert nearest(latents, book).tolist() == [[[0, 1]]]
    assert (book @ latents[0, :, 0]).argmin(0).tolist() == [2, 2]
    codes, stock = Codes(str(pipeline)), VQModel.from_pretrained(pipeline / "vqvae")
    pixels = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, _, (_, _, theirs) = stock.quantize(stock.encode(pixels.float() / 127.5 - 1).latents)
    found = codes.encode(pixels)
    assert found.shape == (3, GRID, GRID) and found.flatten().tolist() == theirs.tolist()
    assert len(found.unique()) > 3, "codes that tell nothing would make every test pass"
    with torch.no_grad():
        entries = stock.quantize.get_codebook_entry(found, (*found.shape, 4))
        again = stock.decode(entries, force_not_quantize=True).sample
    expected = ((again + 1) * 127.5).round().clamp(0, 255)
    assert (codes.decode(found) - expected).abs().max() <= 1


def test_cells_are_kept_for_each_image_and_a_killed_run_goes_on(tiny, pictures, pipeline, tmp_path, monkeypatch):
    made = recipe(tiny, pictures, pipeline, tmp_path)
    whole = annotated(recipe(tiny, pictures, pipeline, tmp_path / "whole"))
    monkeypatch.setattr("sightline.annotate.images.SHARD_ROWS", 2)
    killed_at_shard(2, lambda: annotated(made))
    annotated(made)
    (folder,) = Path(made.annotations).iterdir()
    store = Store(folder)
    assert len(store.shards) == 3 and len(store) == 6, "three colours of two sizes"
    (one,) = Path(whole.annotations).iterdir()
    assert one.name == folder.name
    picture = method_of(pipeline).picture(assemble(str(tiny["clip"]), str(tiny["llama"])).sight)
    for source in read_llava_json(pictures / "chats.json"):
        for image in source.images:
            kept, pixels = store.read(image_key(image) or ""), picture(load_image(image))
            assert kept["codes"].dtype == torch.uint16 and kept["pixels"].dtype == torch.uint8
            assert torch.equal(kept["codes"].long(), Codes(str(pipeline)).encode(pixels[None]))
            assert torch.equal(kept["pixels"], thumbnails(pixels[None].float(), GRID))
    before = contents(folder)
    annotated(made)
    assert contents(folder) == before


def test_a_cell_of_a_thumbnail_is_the_mean_of_its_pixels():
    pixels = torch.zeros(1, 3, 4, 4)
    pixels[0, 0, :2, 2:] = torch.tensor([[0.0, 255.0], [255.0, 255.0]])
    assert thumbnails(pixels, 2)[0, :, :, 0].tolist() == [[0, 191], [0, 0]]


def test_rows_with_images_are_told_a_window_and_others_are_left_as_they_are(tiny, pictures, pipeline, tmp_path):
    assembly, rows = rows_of(annotated(recipe(tiny, pictures, pipeline, tmp_path)), pictures)
    plain = Rows(rows.samples, rows.processor, seed=0, needed={}, training=False)
    for number, sample in enumerate(rows.samples):
        example = rows[(0, number)]
        if not sample.images:
            assert torch.equal(example.input_ids, plain[(0, number)].input_ids)
            continue
        codes, colours = (told(assembly, example, kind) for kind in ("vq", "pixels"))
        assert len(codes) == 2 * WINDOW**2 and len(colours) == 9 * WINDOW**2
        windows = [
            {
                (row, column, image)
                for image in range(len(sample.images))
                for row in range(GRID - WINDOW + 1)
                for column in range(GRID - WINDOW + 1)
                if texts
                == alphabet.write(cells[image, row : row + WINDOW, column : column + WINDOW].flatten().tolist())
            }
            for texts, cells, alphabet in (
                (codes, example.columns[CODES], method_of(pipeline).alphabets["vq"]),
                (colours, example.columns[PIXELS], method_of(pipeline).alphabets["pixels"]),
            )
        ]
        assert windows[0] & windows[1], "one window of one image serves both"
        assert told(assembly, example, "answer") == told(assembly, plain[(0, number)], "answer")


def test_turns_depend_on_the_seed_the_epoch_and_the_row(tiny, pictures, pipeline, tmp_path):
    made = annotated(recipe(tiny, pictures, pipeline, tmp_path))
    (_, rows), (_, again) = rows_of(made, pictures), rows_of(made, pictures)
    assert all(torch.equal(rows[(0, n)].input_ids, again[(0, n)].input_ids) for n in range(12))
    assert any(not torch.equal(rows[(0, n)].input_ids, rows[(1, n)].input_ids) for n in range(12)), "epochs differ"


def test_so_many_rows_are_asked_and_each_after_its_image(pipeline):
    """At random boundaries, no earlier than the image that is asked about, and in all three ways of asking."""
    turns = []
    for number, text in enumerate(("hello", "<image>", "and <image>?", "so?")):
        turns += [Turn("user", text), Turn("assistant", str(number))]
    sample = Sample("x", (Image.new("RGB", (4, 4)),) * 2, (Turn("system", "s"), *turns))
    columns = {CODES: torch.zeros(2, 12, 12, dtype=torch.long), PIXELS: torch.zeros(2, 12, 12, 3, dtype=torch.uint8)}
    method = Cognition(CognitionConfig(vq=str(pipeline), resolution=24, window=4), SIZES)
    asked = [found for n in range(800) if (found := method.turns(sample, generator(n), columns))]
    assert 150 < len(asked) < 250, "a quarter"
    for one, other in asked:
        assert {one.answer.kind, other.answer.kind} == {"vq", "pixels"}
        assert ("image 2" in one.question.text) == ("image 2" in other.question.text)
    firsts = [one.answer.kind for one, _ in asked]
    assert 75 < firsts.count("vq") < 125, "at one boundary their order says nothing, so the question must"
    places = Counter((turn.question.text.split(" of 2")[0][-1], turn.after) for turn, _ in asked)
    assert set(places) == {("1", 2), ("1", 3), ("1", 4), ("2", 3), ("2", 4)} and min(places.values()) > 15
    assert len({turn.question.text.split()[0] for turn, _ in asked}) == 3
    assert method.turns(sample, generator(0), {}) == [], "a stage that asks for nothing"
    text = Sample("y", (), tuple(turns[:2]))
    assert not any(method.turns(text, generator(n), columns) for n in range(100))
    assert {len(method.turns(sample, generator(n), {CODES: columns[CODES]})) for n in range(50)} == {0, 1}
    nowhere = Sample("z", (Image.new("RGB", (4, 4)),), tuple(turns[:2]))
    assert not any(method.turns(nowhere, generator(n), columns) for n in range(100)), "the processor refuses it"


def test_a_row_without_room_keeps_its_own_and_is_counted(tiny, pictures, pipeline, tmp_path):
    made = annotated(recipe(tiny, pictures, pipeline, tmp_path))
    _, long = rows_of(made, pictures)
    plain = Rows(long.samples, long.processor, seed=0, needed={}, training=False)
    room = max(len(plain[(0, n)]) for n in range(len(plain)))
    _, rows = rows_of(made, pictures, max_length=room)
    example, note = rows.fetch((0, 0))
    assert torch.equal(example.input_ids, plain[(0, 0)].input_ids) and note.reason == "no room for turns"
    run = tmp_path / "run"
    train(made.model_copy(update={"max_length": room}), quiet=True)
    assert "no room for turns" in (run / "dropped.jsonl").read_text()


def test_how_long_a_row_is_said_to_be_does_not_count_what_was_asked(tiny, pictures, pipeline, tmp_path):
    made = annotated(recipe(tiny, pictures, pipeline, tmp_path))
    _, whole = rows_of(made, pictures)
    own = len(whole.processor(whole.samples[0]))
    for policies in (Policies(), Policies(long_rows="drop")):
        _, rows = rows_of(made, pictures, max_length=20, policies=policies)
        (found,) = rows.fetch((0, 0))
        text = str(found) if isinstance(found, SightlineError) else found.message
        assert f"has {own} tokens" in text


def test_a_window_that_no_row_could_take_is_refused(tiny, pictures, pipeline, tmp_path):
    made = annotated(recipe(tiny, pictures, pipeline, tmp_path, window=8))
    with pytest.raises(
        SightlineError, match=r"no row could take what is asked of it: a window of 8 x 8 .* max_length is 300"
    ):
        train(made.model_copy(update={"max_length": 300}), quiet=True)


def test_a_stage_without_images_trains_and_says_that_nothing_is_asked(tiny, pictures, pipeline, tmp_path, capsys):
    rows = [row for row in json.loads((pictures / "chats.json").read_text()) if "image" not in row]
    assert rows
    (tmp_path / "text.json").write_text(json.dumps(rows))
    made = recipe(tiny, pictures, pipeline, tmp_path)
    text = made.stages[1].model_copy(
        update={
            "name": "text",
            "data": [made.stages[1].data[0].model_copy(update={"path": str(tmp_path / "text.json")})],
        }
    )
    made = annotated(made.model_copy(update={"stages": [*made.stages, text]}))
    train(made)
    assert "stage 'text' has no images, so nothing is asked in it" in capsys.readouterr().err
    noted = json.loads((made.run_folder / "run.json").read_text())["annotations"]
    assert noted["two"]["cognition"] and noted["text"] == {}
    alone = made.model_copy(update={"stages": [made.stages[0], text], "annotations": str(tmp_path / "none")})
    assert annotate_method(alone, "cognition") == annotate_method(alone, "all") == []
    assert "stage 'text' has no images, so there is nothing to compute" in capsys.readouterr().err


def test_a_row_that_is_shortened_and_without_room_is_counted_as_both(tiny, pictures, pipeline, tmp_path):
    _, rows = rows_of(annotated(recipe(tiny, pictures, pipeline, tmp_path)), pictures, policies=Policies("raise"))
    talk = (Turn("user", "why? " * 8), Turn("assistant", "so. " * 8))
    row = replace(rows.samples[0], turns=(*rows.samples[0].turns, *talk))
    given = {"seed": 0, "readers": rows.readers, "needed": {}, "policies": Policies(long_rows="shorten")}
    rows.processor.max_length = len(rows.processor(rows.samples[0]))
    example, *notes = Rows([row], rows.processor, **given).fetch((0, 0))
    assert isinstance(example, Example) and len(example) == rows.processor.max_length
    assert [note.reason for note in notes] == ["no room for turns", "shortened"]


@pytest.mark.parametrize("text", ["first_turn", "human_turns", "all"])
def test_the_gate_does_not_read_what_is_asked(tiny, pictures, pipeline, tmp_path, text):
    """AlignGPT weighs levels by the row's own words, whichever of them it reads."""
    gate = {"name": "aligngpt", "text": text}
    assembly, rows = rows_of(annotated(recipe(tiny, pictures, pipeline, tmp_path, methods=[gate])), pictures)
    plain = Rows(rows.samples, rows.processor, seed=0, needed={}, training=False)
    slot = assembly.model.model.methods["aligngpt"].kind_ids[SLOT]
    for number in range(len(rows)):
        ours, theirs = rows[(0, number)], plain[(0, number)]
        read = [
            batch.input_ids[text_mask(batch, text, slot)].tolist()
            for batch in (collate([one], pad_id=rows.processor.pad_id) for one in (ours, theirs))
        ]
        assert read[0] == read[1] and (read[0] or not rows.samples[number].images)
        assert bool((ours.kinds[ours.prompt_mask] == PROMPT).all())


@pytest.mark.parametrize(
    ("config", "weights", "terms"),
    [
        ({}, {}, {"language": ("answer",), "vq": ("vq",), "pixels": ("pixels",)}),
        ({}, {"vq": 0.5, "pixels": 0.0}, {"language": ("answer",), "vq": ("vq",)}),
        ({"preset": "vlsa_paper"}, {}, {"language": ("answer", "vq", "pixels")}),
        ({"joint": True}, {"pixels": 0.2}, {"language": ("answer", "vq"), "pixels": ("pixels",)}),
    ],
)
def test_one_cross_entropy_or_a_mean_for_each(tiny, pipeline, config, weights, terms):
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=[options(pipeline, **config)])
    objective = Objective(assembly.model, weights)
    assert {term.name: term.pools for term in objective.terms} == terms
    expected = {"language": 1.0, "vq": 0.1, "pixels": 0.1} | weights
    assert all(term.weight == expected[term.name] for term in objective.terms)


def test_a_stage_asks_where_it_trains_the_language_model_or_says_so(tiny, pictures, pipeline, tmp_path):
    made, method = recipe(tiny, pictures, pipeline, tmp_path), method_of(pipeline)
    first, second = made.stages
    assert (method.columns(first), method.columns(second)) == ((), (CODES, PIXELS))
    assert method.columns(first.model_copy(update={"weights": {"vq": 0.1}})) == (CODES,)
    assert method.columns(second.model_copy(update={"weights": {"pixels": 0.0}})) == (CODES,)
    assert method_of(pipeline, tasks=["pixels"]).columns(second) == (PIXELS,)
    assert method_of(pipeline, probability=0.0).columns(second) == ()


def test_a_recipe_that_never_asks_is_refused(tiny, pictures, pipeline, tmp_path):
    with pytest.raises(SightlineError, match="asks in no stage, so it would train nothing"):
        train(recipe(tiny, pictures, pipeline, tmp_path, stage={"trainable": ["connector"]}), quiet=True)
    left_out = {"trainable": ["connector"], "weights": {"vq": 0.0}}
    train(recipe(tiny, pictures, pipeline, tmp_path, stage=left_out), quiet=True)


def test_a_template_that_leaves_questions_out_is_refused(tiny, pictures, pipeline, tmp_path):
    """Nothing would say which window is meant."""
    data = {"path": str(pictures / "captions.json"), "template": "plain"}
    made = annotated(recipe(tiny, pictures, pipeline, tmp_path, stage={"data": data}))
    with pytest.raises(SightlineError, match=r"template 'plain' of .*json leaves questions out.* weights={vq: 0, "):
        train(made, quiet=True)


def test_a_run_logs_each_kind_apart_and_what_windows_cost(tiny, pictures, pipeline, tmp_path, capsys):
    made = annotated(recipe(tiny, pictures, pipeline, tmp_path))
    train(made)
    assert "a window of 3 x 3 cells costs vq " in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, second = ([row for row in rows if row.get("stage") == name and "loss" in row] for name in ("one", "two"))
    assert len(first) == len(second) == 2
    for row in second:
        assert row["loss"] == pytest.approx(row["loss/answer"] + 0.1 * row["loss/vq"] + 0.1 * row["loss/pixels"])
        each = row["tokens/pixels"] / row["tokens/vq"]
        assert row["tokens/answer"] < row["tokens/vq"] and each == pytest.approx(9 / 2, rel=0.2), "and ends, spaces"
    assert all("loss/vq" not in row and row["tokens/vq"] == 0 < row["tokens/answer"] for row in first)


def test_codes_as_tokens_of_their_own(tiny, pictures, pipeline, tmp_path):
    """Added to the tokenizer and the tables, learned, saved, said."""
    made = annotated(recipe(tiny, pictures, pipeline, tmp_path, codes="tokens"))
    assembly, rows = rows_of(made, pictures)
    example = rows[(0, 0)]
    is_code = (example.labels != IGNORE) & (example.kinds == assembly.model.model.methods.kinds.index("vq"))
    assert int(is_code.sum()) <= WINDOW**2 + 2, "a token for each, the space before them, the end"
    assert told(assembly, example, "vq").replace(" ", "").startswith("<vq_")
    train(made, quiet=True)
    saved = load_model(tmp_path / "run")
    assert set(Marks(20).tokens) <= saved.tokenizer.get_vocab().keys()
    assert [record["name"] for record in saved.model.config.methods or []] == [], "nothing of it is needed to answer"
    ids = saved.tokenizer.convert_tokens_to_ids(["<vq_0>", "<vq_7>"])
    of_codes = saved.tokenizer.convert_tokens_to_ids(list(Marks(20).tokens))
    assert len(saved.model.get_input_embeddings().weight[of_codes].unique(dim=0)) > 1, "they began alike"
    said = Subject(tmp_path / "run").tokenizer.decode(ids, skip_special_tokens=True)
    assert Marks(20).read(said, 2).tolist() == [0, 7]


@pytest.mark.parametrize("stage", [{"lora": {"rank": 2}}, {"trainable": ["connector"], "weights": {"vq": 0.1}}])
def test_new_tokens_that_could_not_be_learned_are_refused(tiny, pictures, pipeline, tmp_path, stage):
    made = annotated(recipe(tiny, pictures, pipeline, tmp_path, codes="tokens", stage=stage))
    with pytest.raises(SightlineError, match=r"it could never say them\. Train the whole language model"):
        train(made, quiet=True)
    assert not (tmp_path / "run" / "stages").exists()


def images_of(pictures: Path) -> list[Image.Image]:
    return [Image.open(pictures / "images" / f"{number}.png").convert("RGB") for number in (0, 2, 4, 6, 8, 10)]


def test_one_that_sees_is_told_from_its_controls(taught, pictures, monkeypatch):
    """Colours by a model that knows them all, and says some as no number; by hand, of three pictures of one colour."""
    subject, images = Subject(taught), images_of(pictures)[:3]
    method = telling(subject.recipe)
    assert method is not None

    def truth(subject, method, task, images, windows):
        cells = [replace(c, window=w) for c, w in zip(cells_of(subject, method, images), windows, strict=True)]
        values = torch.stack([each.true(task) for each in cells])
        values[:, 2] = UNREAD
        return list(values)

    monkeypatch.setattr("sightline.diagnostics.cognition.believed", truth)
    found = measure_cognition(subject, images, method, progress=False)
    codes, colours = found["vq"], found["pixels"]
    assert isinstance(codes, ToldCodes) and isinstance(colours, ToldPixels)
    assert codes.own != codes.wrong and codes.own.perplexity.value > 1
    red, green, blue = (np.array(colour) for colour in ((220, 30, 30), (30, 180, 30), (30, 30, 220)))
    order = [red, blue if np.array_equal(np.asarray(images[1])[0, 0], blue) else green]
    order.append(green if order[1] is blue else blue)
    assert [np.asarray(image)[0, 0].tolist() for image in images] == [each.tolist() for each in order]
    said = [np.array([*each[:2], 128]) for each in order]
    assert colours.own.value == pytest.approx(np.mean([abs(a - b).mean() for a, b in zip(said, order, strict=True)]))
    others = [said[1], said[2], said[0]]
    assert colours.wrong.value == pytest.approx(
        np.mean([abs(a - b).mean() for a, b in zip(others, order, strict=True)])
    )
    mean = [(sum(order) - each) / 2 for each in order]
    assert colours.mean.value == pytest.approx(np.mean([abs(a - b).mean() for a, b in zip(mean, order, strict=True)]))
    assert colours.unread.value == pytest.approx(1 / 3)


def test_how_often_codes_occur_is_counted_in_the_other_images(pipeline):
    """Two windows of one cell each: the other's code is the likelier by the one that is added to each count."""
    cells = [Cells(torch.full((2, 2), code), torch.zeros(2, 2, 3).long(), Window(0, 0, 1)) for code in (3, 3, 5)]
    assert marginal(cells, 8) == [
        (1.0, pytest.approx(np.log(10 / 2)), 1.0),
        (1.0, pytest.approx(np.log(10 / 2)), 1.0),
        (0.0, pytest.approx(np.log(10)), 1.0),
    ]


def test_windows_are_asked_for_behind_an_exchange_as_in_training(taught, pictures):
    """Training puts no window first, so no measure does."""
    subject, images = Subject(taught), images_of(pictures)[:2]
    method = telling(subject.recipe)
    assert method is not None
    window = Window(1, 2, method.window)
    prompt = asked(subject, method, "pixels", images, [window, window])
    for row, image in enumerate(images):
        (caption,) = subject.assistant.answers([[image]], [REQUEST], max_new_tokens=LONGEST)
        words = subject.tokenizer.decode(prompt.input_ids[row][prompt.is_text[row]], skip_special_tokens=True)
        order = [words.index(said) for said in (REQUEST, caption, method.question("pixels", window))]
        assert order == sorted(order) and words.rstrip().endswith("ASSISTANT:")
        first = int(prompt.is_visual[row].nonzero()[0])
        assert REQUEST not in subject.tokenizer.decode(prompt.input_ids[row][:first]), "the image stands before it"


@pytest.mark.parametrize("template", ["vicuna_v1", "llama-3"])
def test_the_measures_are_those_of_a_slow_reference(taught, pictures, template):
    """Image by image, code by code, from the model's own likelihoods."""
    subject, images = Subject(taught, template=template), images_of(pictures)
    method = telling(subject.recipe)
    assert method is not None
    cells = cells_of(subject, method, images)
    losses, right = [], 0
    for image, each in zip(images, cells, strict=True):
        values = each.true("vq").tolist()
        prompt = asked(subject, method, "vq", [image], [each.window])
        ids = subject.answer_ids([method.write("vq", values)])[0]
        assert subject.tokenizer.decode(ids).strip() == method.write("vq", values), "and not what ends it"
        begin = len(ids) - 2 * len(values)
        for place in range(len(ids)):
            logits, _, _ = subject.told(prompt, [ids[: place + 1]])
            losses.append(-float(logits[0, place].log_softmax(-1)[ids[place]]))
        for number in range(len(values)):
            place = begin + 2 * number
            firsts = [subject.told(prompt, [ids[: at + 1]])[0][0, at].argmax() == ids[at] for at in (place, place + 1)]
            right += all(bool(hit) for hit in firsts)
    total = sum(len(each.true("vq")) for each in cells)
    found = measure_cognition(subject, images, method, progress=False)["vq"]
    assert isinstance(found, ToldCodes)
    assert found.own.accuracy.value == pytest.approx(right / total)
    assert found.own.perplexity.value == pytest.approx(np.exp(sum(losses) / total), rel=1e-3)


@pytest.mark.parametrize(("template", "group"), [("vicuna_v1", 1), ("llama-3", 1), ("llama-3", 3), ("chatml", 2)])
@pytest.mark.parametrize("codes", [[7], [7, 12, 1, 19]])
def test_a_code_is_right_where_every_token_of_it_is(tiny, template, group, codes):
    """Whatever ends an answer, and where tokens hold digits of two codes: by hand, of codes of four digits."""
    tokenizer = AutoTokenizer.from_pretrained(tiny["llama"])
    tokenizer.add_special_tokens({"additional_special_tokens": list(get_template(template).tokens)})
    tokenizer.add_tokens([f"{n:0{group}d}" for n in range(10**group)] if group > 1 else [])
    subject = object.__new__(Subject)
    subject.tokenizer, subject.assistant = tokenizer, SimpleNamespace(template=template)
    text = Digits(4, 20).write(codes)
    (ids,), (places,) = subject.answer_ids([text]), subject.answer_places([text])
    assert tokenizer.decode(ids).strip() == text, "without what ends it"
    ends = np.arange(4, 4 * len(codes) + 1, 4)
    assert _right([True] * len(ids), places, ends) == len(codes)
    for number, (start, end) in enumerate(places):
        touched = len({place // 4 for place in range(max(start, 0), end)})
        assert _right([at != number for at in range(len(ids))], places, ends) == len(codes) - touched


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"resolution": 17}, "resolution=17 is no multiple of 2, the pixels along a code of .* Use 16"),
        ({"window": 9}, "window=9 is more than the 8 cells along an image"),
        ({"digits": 1}, "digits=1 cannot tell the 20 codes .* Use 2 or more"),
        ({"resolution": 8192}, "resolution: Input should be less than or equal to 4096"),
        ({"vq": "/nowhere"}, "no folder '/nowhere'"),
        ({"vq": "PIPELINE/vae"}, "is no vqvae .* its config is of AutoencoderKL"),
        ({"tasks": []}, "tasks"),
        ({"tasks": ["vq", "vq"]}, "vq, vq: a task is named twice"),
        ({"probability": 1.5}, "probability"),
    ],
)
def test_what_does_not_fit_is_refused(pipeline, record, message):
    record = {
        key: value.replace("PIPELINE", str(pipeline)) if isinstance(value, str) else value
        for key, value in record.items()
    }
    with pytest.raises(SightlineError, match=message):
        build_methods([options(pipeline) | record], SIZES)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"num_vq_embeddings": 2**16 + 1}, "has 65,537 codes, and they are stored in 16 bits"),
        ({"num_vq_embeddings": "many"}, "says num_vq_embeddings='many', which is no size of a vqvae"),
        ({"block_out_channels": None}, "says block_out_channels=None"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused(pipeline, tmp_path, said, message):
    config = json.loads((pipeline / "vqvae" / "config.json").read_text()) | said
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SightlineError, match=message):
        build_methods([options(tmp_path)], SIZES)


def test_colours_alone_need_no_digits_of_codes(pipeline):
    assert method_of(pipeline, tasks=["pixels"], digits=1).config.digits == 1


def test_an_answer_is_of_the_window_and_the_image_that_the_question_names(pipeline):
    """Every cell of two images has a number of its own; the question is read for where it is."""
    grid, window = 12, 4
    method = Cognition(CognitionConfig(vq=str(pipeline), resolution=24, window=window, probability=1.0), SIZES)
    talk = (Turn("user", "<image><image>what?"), Turn("assistant", "that"))
    sample = Sample("x", (Image.new("RGB", (4, 4)),) * 2, talk)
    cells = torch.arange(2 * grid * grid).view(2, grid, grid)
    columns = {CODES: cells, PIXELS: torch.stack([cells // 144, cells % 144, cells % 7], -1)}
    seen = set()
    for number in range(60):
        for turn in method.turns(sample, generator(number), columns):
            kind, text = turn.answer.kind, turn.question.text
            assert ("codes" in text) == (kind == "vq") and ("red, green and blue" in text.lower()) == (kind == "pixels")
            image = int(re.findall(r"image (\d) of 2", text)[0]) - 1
            words = re.sub(r"image \d of 2", "", text)
            numbers = [int(found) for found in re.findall(r"\d+", words)]
            if words.startswith("Divide"):
                assert numbers[:4] == [grid, grid, window, window]
                row, column = numbers[4:]
                last_row, last_column = row + window - 1, column + window - 1
            elif words.startswith("W") and "between" in words:
                row, column, last_row, last_column = numbers[:4]
                assert numbers[4:] == [grid, grid]
            else:
                row, last_row, column, last_column = numbers[:4]
                assert numbers[4:] == [grid, grid]
            named = columns[CODES if kind == "vq" else PIXELS][image, row : last_row + 1, column : last_column + 1]
            digits = 6 if kind == "vq" else 3
            told = [int(turn.answer.text[n : n + digits]) for n in range(0, len(turn.answer.text), digits)]
            assert told == named.flatten().tolist()
            seen.add((kind, image, words.split()[0]))
    assert len(seen) == 2 * 2 * 3, "all ways of asking, of both images"


@pytest.mark.parametrize("task", ["vq", "pixels"])
def test_every_template_says_which_window(task):
    """In at least three ways, that differ in more than numbers."""
    templates = TEMPLATES[1][task]
    assert len({template.partition("{")[0] for template in templates}) >= 3
    for template in templates:
        questions = {
            asking(template, Window(*place, WINDOW), GRID, "image 2 of 3") for place in ((0, 5), (5, 0), (5, 5))
        }
        assert len(questions) == 3 and all("image 2 of 3" in text and "8" in text for text in questions)
