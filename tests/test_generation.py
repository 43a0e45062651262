"""Asking: a batch answers as its rows do alone, a stream says what an answer says, whatever kind of model it is."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sightline.checkpoints import load_model, save_model
from sightline.checkpoints.model import own_processor, stock_processor
from sightline.data.collate import collate
from sightline.data.images import load_image
from sightline.data.templates import IMAGE, get_template
from sightline.errors import SightlineError
from sightline.generation import Assistant, Prompts
from sightline.models.assemble import assemble
from sightline.models.processing import PROMPT_FIELDS, SightlineProcessor
from sightline.types import Turn

RED, BLUE = Image.new("RGB", (40, 30), (220, 30, 30)), Image.new("RGB", (20, 50), (30, 30, 220))
GREEN = Image.new("RGB", (32, 32), (30, 180, 30))
ASKED = [
    ([RED], "What colour is it?"),
    ([], "Is snow white?"),
    ([RED, BLUE], "The same?"),
    ([GREEN], "Describe what there is to see here, at some length, and then say how many boxes there are."),
    ([BLUE, RED], "The same?"),
    ([], "Hm"),
]
MODELS = {
    "stock": ("clip", "llama", "vicuna_v1", []),
    "stock-no-bos": ("siglip", "qwen2", "vicuna_v1", []),
    "stock-plain": ("dinov2", "gemma", "plain", []),
    "toy": ("clip", "llama", "vicuna_v1", [{"name": "toy:Toy"}]),
    "nudge-no-bos": ("clip", "qwen2", "vicuna_v1", [{"name": "toy:Nudge"}]),
    "registers": ("registers", "phi3", "vicuna_v1", []),
    "levels": ("clip", "llama", "vicuna_v1", [{"name": "aligngpt", "levels": 3}]),
}
TOKENS = 12


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    """A run folder for each, its model in `model`."""
    root = tmp_path_factory.mktemp("runs")
    for name, (vision, language, template, methods) in MODELS.items():
        torch.manual_seed(3)
        assembly = assemble(str(tiny[vision]), str(tiny[language]), methods=methods)
        with torch.no_grad():  # louder than fresh weights, so that what is asked and shown decides the answer
            for parameter in assembly.model.parameters():
                if parameter.ndim > 1:
                    parameter *= 4
        save_model(assembly, root / name / "model", get_template(template))
    return root


@pytest.fixture(scope="module")
def assistant(folders):
    made: dict[str, Assistant] = {}

    def get(name: str) -> Assistant:
        return made.setdefault(name, Assistant(folders / name))

    return get


def asked_of(name: str) -> list:
    """A caption prompt has no words, so a plain model is asked about pictures only."""
    return [(images, question) for images, question in ASKED if images or "plain" not in name]


@torch.inference_mode()
def new_tokens(assistant: Assistant, rows) -> list[list[int]]:
    """What each row generates, up to its end of sequence."""
    images, questions = zip(*rows, strict=True)
    inputs = assistant.prompts.batch(images, questions)
    out = assistant.model.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    end = assistant.tokenizer.eos_token_id
    new = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [ids[: ids.index(end)] if end in ids else ids for ids in new]


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_answers_as_its_rows_do_alone(assistant, name):
    """Several lengths, with no, one and two images, in one left-padded batch: token for token."""
    model, rows = assistant(name), asked_of(name)
    together = new_tokens(model, rows)
    assert together == [new_tokens(model, [row])[0] for row in rows]
    assert len({tuple(ids) for ids in together}) > 1, "answers depend on what is asked"
    assert new_tokens(model, rows[::-1]) == together[::-1]


@pytest.mark.parametrize("name", ["stock", "toy", "registers"])
@torch.inference_mode()
def test_beams_see_their_own_rows_images(folders, assistant, name):
    """Beams repeat rows, and with them all images of a row: a batch searches as its rows do alone. The toy shows two
    views of each image. A stock model is loaded as ours here, and must search as transformers' own does."""
    beams = {"do_sample": False, "num_beams": 3, "max_new_tokens": 6, "min_new_tokens": 6}
    model = load_model(folders / name).model
    prompts = Prompts(own_processor(load_model(folders / name), get_template("vicuna_v1")))

    def search(rows) -> list[list[int]]:
        inputs = prompts.batch(*zip(*rows, strict=True))
        return model.generate(**inputs, **beams)[:, inputs["input_ids"].shape[1] :].tolist()

    rows = ASKED[:3]
    together = search(rows)
    assert together == [search([row])[0] for row in rows]
    assert together[2] != search([([BLUE, RED], "The same?")])[0]
    if name == "stock":
        inputs = assistant(name).prompts.batch(*zip(*rows, strict=True))
        theirs = assistant(name).model.generate(**inputs, **beams)[:, inputs["input_ids"].shape[1] :]
        assert theirs.tolist() == together


@pytest.mark.parametrize("name", MODELS)
def test_the_model_class_decides_how_it_is_asked(assistant, name):
    stock = name.startswith("stock")
    assert isinstance(assistant(name).prompts.processor, SightlineProcessor) is not stock
    assert type(assistant(name).model).__module__.startswith("transformers." if stock else "sightline.")
    assert not assistant(name).model.training


@pytest.mark.parametrize("name", ["stock", "toy"])
def test_a_stream_says_what_an_answer_says(assistant, capsys, name):
    for images, question in ASKED[:3]:
        (answer,) = assistant(name).answers([images], [question], max_new_tokens=TOKENS)
        capsys.readouterr()
        assert assistant(name).stream(images, question, max_new_tokens=TOKENS) == answer
        assert capsys.readouterr().out.strip() == answer


def test_a_level_can_be_forced(assistant, capsys):
    """Each level answers as a model whose slot always holds it; none is left behind."""
    model, (images, question) = assistant("levels"), ASKED[0]
    own = model.answers([images], [question], max_new_tokens=TOKENS)
    assert list(model.levels) == [1, 2, 3]
    at = [model.answers([images], [question], max_new_tokens=TOKENS, level=level)[0] for level in model.levels]
    assert len(set(at)) > 1, "levels differ"
    assert model.stream(images, question, max_new_tokens=TOKENS, level=2) == at[1] == capsys.readouterr().out.strip()
    model.levelled.level = 3
    assert model.answers([images], [question], max_new_tokens=TOKENS) == at[2:]
    model.levelled.level = None
    assert model.answers([images], [question], max_new_tokens=TOKENS) == own
    with pytest.raises(SightlineError, match=r"has no level 4, .* its levels are 1 to 3\. Choose one of them"):
        model.answers([images], [question], level=4)
    for without in ("stock", "toy"):
        with pytest.raises(SightlineError, match=r"has no levels, so none of them can be asked\. Ask a model"):
            assistant(without).answers([images], [question], level=1)


def test_answers_are_as_many_as_questions(assistant):
    model = assistant("stock")
    answers = model.answers([row[0] for row in ASKED], [row[1] for row in ASKED], max_new_tokens=TOKENS)
    assert len(answers) == len(ASKED)
    assert [answer.strip() for answer in answers] == answers
    with pytest.raises(ValueError, match="zip"):
        model.answers([[]], ["a", "b"])


@pytest.mark.parametrize("name", MODELS)
def test_a_question_is_laid_out_as_in_training(folders, assistant, name):
    """What transformers' processor, or ours, makes of a question is what our layout of rows makes of it."""
    process = load_model(folders / name).processor(get_template(MODELS[name][2]))
    images, questions = zip(*asked_of(name), strict=True)
    given = assistant(name).prompts.batch(images, questions)
    turns = [[Turn("user", f"{IMAGE}\n" * len(i) + q)] for i, q in zip(images, questions, strict=True)]
    rows = [process.prompt(i, t) for i, t in zip(images, turns, strict=True)]
    expected = collate(rows, pad_id=process.pad_id, side="left")
    fields = ("input_ids", "attention_mask") if name.startswith("stock") else PROMPT_FIELDS
    for field in (*fields, "pixel_values"):
        assert torch.equal(given[field], getattr(expected, field)), field


@pytest.mark.parametrize("name", ["stock", "toy"])
def test_pictures_are_seen_as_in_training(assistant, name):
    """Transparency on white, sixteen bits scaled, whoever opened the picture."""
    model = assistant(name)
    for picture in (Image.new("RGBA", (32, 32), (10, 20, 30, 0)), Image.new("I;16", (32, 32), 40000)):
        seen, expected = (model.prompts.batch([[image]], ["What?"]) for image in (picture, load_image(picture)))
        assert torch.equal(seen["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("name", ["stock", "toy"])
@pytest.mark.parametrize("images", [[], [RED]])
def test_a_question_with_a_placeholder_too_many(assistant, name, images):
    with pytest.raises(SightlineError, match=r"<image>"):
        assistant(name).answers([images], ["<image> What?"])


def test_a_model_without_a_chat_template(folders, tmp_path):
    copy = shutil.copytree(folders / "stock" / "model", tmp_path / "model")
    (copy / "chat_template.jinja").unlink()
    with pytest.raises(SightlineError, match="has no chat template, so there is no way to ask it"):
        Assistant(copy)


def test_no_such_model(tmp_path):
    with pytest.raises(SightlineError, match="no model at"):
        Assistant(tmp_path)


def test_weights_that_do_not_fit(folders, tmp_path):
    copy = shutil.copytree(folders / "stock" / "model", tmp_path / "model")
    tensors = load_file(copy / "model.safetensors")
    del tensors[next(name for name in tensors if "multi_modal_projector" in name)]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SightlineError, match="1 weights are missing"):
        Assistant(copy)


@pytest.mark.parametrize(
    ("images", "text", "options", "said"),
    [
        (RED, "USER: <image>\nWhat? ASSISTANT:", {"padding": "max_length"}, "cannot obey padding='max_length'"),
        (RED, "USER: <image>\nWhat? ASSISTANT:", {"trunctaion": True}, "cannot obey trunctaion=True"),
        (RED, "<image>\nWhat is this?", {}, "is not in template 'vicuna_v1'"),
        ([RED, BLUE], "USER: <image>\nWhat? ASSISTANT:", {}, "hold [1] <image>, and [2] images came"),
        ([RED, [BLUE]], "USER: <image><image>\nWhat? ASSISTANT:", {}, "these are mixed"),
        (b"bytes", "USER: <image>\nWhat? ASSISTANT:", {}, "an image came as a bytes"),
        ("no/such.png", "USER: <image>\nWhat? ASSISTANT:", {}, "an image came as a str"),
        (None, [], {}, "there is no text"),
    ],
)
def test_what_our_processor_cannot_do_is_said(assistant, images, text, options, said):
    with pytest.raises(SightlineError, match=re.escape(said)):
        assistant("toy").prompts.processor(images=images, text=text, **options)


def test_our_processor_takes_images_in_every_form(assistant, tmp_path):
    """A picture by path, as an array of either order, and one for each text flat or nested."""
    processor, text = assistant("toy").prompts.processor, "USER: <image>\nWhat? ASSISTANT:"
    RED.save(tmp_path / "red.png")
    pixels = np.asarray(RED)
    expected = processor(images=RED, text=text)["pixel_values"]
    for image in (str(tmp_path / "red.png"), tmp_path / "red.png", pixels, pixels.transpose(2, 0, 1), [RED], [[RED]]):
        assert torch.equal(processor(images=image, text=text)["pixel_values"], expected)
    flat, nested = (processor(images=i, text=[text, text])["pixel_values"] for i in ([RED, BLUE], [[RED], [BLUE]]))
    assert torch.equal(flat, nested) and torch.equal(flat[: len(expected)], expected)


def test_a_row_with_an_image_and_without_its_slot_is_refused(folders):
    """A processor that knows nothing of slots would have the model answer without what it was trained with."""
    assembly = load_model(folders / "toy")
    processor = stock_processor(assembly, get_template("vicuna_v1"))
    inputs = processor(images=RED, text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    with pytest.raises(SightlineError, match=r"lacks the token <toy>"):
        assembly.model.generate(**inputs, max_new_tokens=2)
