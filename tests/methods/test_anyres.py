"""Any-resolution is LLaVA-NeXT's: the same views, the same number of tokens, the logits of transformers' own."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaNextForConditionalGeneration

from sightline.checkpoints import load_model, save_model, why_not_stock
from sightline.config import Stage
from sightline.data.collate import collate
from sightline.data.templates import get_template
from sightline.diagnostics.lens import look
from sightline.diagnostics.subject import Subject
from sightline.errors import SightlineError
from sightline.generation import Assistant
from sightline.methods.aligngpt import dot_map, pooled
from sightline.methods.anyres import AnyRes
from sightline.methods.base import Sizes
from sightline.methods.compose import build_methods
from sightline.models.adapters import prepare_stage
from sightline.models.assemble import Assembly, assemble
from sightline.models.digest import views_facts
from sightline.types import VISUAL, Turn

VICUNA = get_template("vicuna_v1")
ANYRES = {"name": "anyres"}
ASPECTS = [(32, 32), (64, 64), (100, 60), (61, 117), (20, 90), (7, 5), (1, 4000), (4000, 1), (333, 40)]


def picture(size: tuple[int, int]) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([x, y, (x * y) % 255], axis=-1).astype(np.uint8))


@pytest.fixture
def anyres(tiny: dict[str, Path]) -> Assembly:
    torch.manual_seed(0)
    made = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=[ANYRES])
    made.model.eval()
    return made


def method(assembly: Assembly) -> AnyRes:
    found = assembly.model.model.methods["anyres"]
    assert isinstance(found, AnyRes)
    return found


@pytest.mark.parametrize("size", ASPECTS)
def test_views_are_those_of_transformers(anyres, size):
    theirs = method(anyres).image_processor(anyres.image_processor)
    pixels = theirs(picture(size), return_tensors="pt")["pixel_values"][0]
    processor = anyres.processor(VICUNA)
    ours = processor.pixels(processor.cut(picture(size)))
    torch.testing.assert_close(ours, pixels.float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("linear", [False, True])
def test_it_is_saved_as_llava_next_and_computes_the_same(tiny, tmp_path, linear):
    torch.manual_seed(0)
    made = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=[ANYRES], connector="linear" if linear else "mlp")
    made.model.eval()
    assert why_not_stock(made.model) == [] == save_model(made, tmp_path / "model", VICUNA)
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    assert type(stock) is LlavaNextForConditionalGeneration
    processor = AutoProcessor.from_pretrained(tmp_path / "model", backend="pil")
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    text = processor.apply_chat_template(turn, add_generation_prompt=True)
    for size in ASPECTS:
        theirs = processor(images=picture(size), text=text, return_tensors="pt")
        own = made.processor(VICUNA)
        batch = collate([own.prompt([picture(size)], [Turn("user", "<image>\nwhat?")])], pad_id=own.pad_id)
        assert torch.equal(batch.input_ids, theirs["input_ids"]), "as many placeholders, whatever the aspect"
        with torch.no_grad():
            logits = made.model.lm_head(made.model.model.trace(batch)[0].hidden)
            torch.testing.assert_close(logits, stock(**theirs).logits, atol=2e-5, rtol=1e-4)


def test_a_batch_of_aspects_is_its_rows(anyres):
    rows = [[picture((64, 64))], [], [picture((90, 20)), picture((1, 400))]]
    processor = anyres.processor(VICUNA)
    prompts = [processor.prompt(row, [Turn("user", "<image>\n" * len(row) + "what?")]) for row in rows]
    with torch.no_grad():
        batch = collate(prompts, pad_id=processor.pad_id, side="left")
        together = anyres.model.model.trace(batch)[0].hidden
        for row, prompt in enumerate(prompts):
            alone = anyres.model.model.trace(collate([prompt], pad_id=processor.pad_id))[0].hidden[0]
            torch.testing.assert_close(together[row, -len(alone) :], alone, atol=2e-5, rtol=1e-4)


def test_it_is_loaded_trained_on_and_asked_as_stock(anyres, tmp_path):
    save_model(anyres, tmp_path / "model", VICUNA)
    loaded = load_model(tmp_path / "model")
    assert torch.equal(method(loaded).newline, method(anyres).newline)
    assert loaded.model.config.methods == [{"name": "anyres", "pinpoints": [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]]}]
    processor = loaded.processor(VICUNA)
    assert len(processor.cut(picture((64, 64)))) == 5, "the image processor of LLaVA-NeXT would cut each of them again"
    save_model(loaded, tmp_path / "again", VICUNA)
    assistant = Assistant(tmp_path / "again")
    rows = [[picture((64, 64))], [], [picture((20, 90)), picture((100, 20))]]
    asked = ["what is it?", "hi", "same or not?"]
    together = assistant.answers(rows, asked, max_new_tokens=5)
    assert together == [assistant.answers([i], [q], max_new_tokens=5)[0] for i, q in zip(rows, asked, strict=True)]


def test_with_adapters_it_is_asked_too(tiny, tmp_path):
    """Over its base it is saved as our class, and lays out views by our processor."""
    torch.manual_seed(0)
    made = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=[ANYRES])
    stage = {"name": "s", "data": {"path": "x"}, "trainable": ["connector", "anyres", "language"], "lora": {"rank": 2}}
    prepare_stage(made, Stage.model_validate(stage), seed=0)
    save_model(made, tmp_path / "model", VICUNA)
    assistant = Assistant(tmp_path / "model")
    answers = assistant.answers([[picture((64, 64))], [picture((20, 90))]], ["a?", "b?"], max_new_tokens=3)
    assert answers[0] == assistant.answers([[picture((64, 64))]], ["a?"], max_new_tokens=3)[0]


def test_the_lens_shows_no_view_of_many(anyres, tmp_path):
    """Also where all tokens together are as many as a larger grid has: 31 x 33 has 36 here."""
    save_model(anyres, tmp_path / "model", VICUNA)
    image = picture((31, 33))
    subject = Subject(tmp_path / "model")
    assert len(subject.visual([image])[0]) == 36
    with pytest.raises(SightlineError, match="are no square grid"):
        look(subject, image, ["red", "box"])


def test_the_gate_of_aligngpt_reads_the_first_view(tiny):
    """Whatever number of tokens the crops leave behind it."""
    torch.manual_seed(0)
    made = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=[ANYRES, {"name": "aligngpt", "levels": 4}])
    processor = made.processor(VICUNA)
    row = processor.prompt([picture((45, 45))], [Turn("user", "<image>\nwhat?")])
    batch = collate([row], pad_id=processor.pad_id)
    embeds = torch.randn(*batch.input_ids.shape, 8)
    words = batch.prompt_mask & (batch.kinds != VISUAL)
    first = (batch.kinds == VISUAL).nonzero()[:16, 1]
    found = dot_map(embeds, batch, words, 16, cosine=False)
    expected = pooled((embeds[0, first] @ embeds[0][words[0]].mean(0)).unsqueeze(0))
    torch.testing.assert_close(found, expected)


def test_what_a_view_shows_names_what_was_computed_of_it(tiny):
    """Labels, scores and latents of one model are not those of another that is shown other pixels."""

    def facts(*methods):
        views = build_methods(methods, Sizes(d_vision=8, d_llm=16, patches=16, tokens=16)).views
        return json.dumps(views_facts(views), default=str)

    perceivers = [
        {"name": "perceiver"},
        {"name": "perceiver", "low": "original"},
        {"name": "perceiver", "max_crops": 2},
    ]
    named = [facts(), facts(ANYRES), facts(ANYRES | {"pinpoints": [[1, 2]]}), *(facts(each) for each in perceivers)]
    assert len(set(named)) == 6
    assert facts({"name": "perceiver", "heads": 2}) == named[3], "what does not touch the tower's view does not count"


def test_the_token_at_the_end_of_rows_is_trained(anyres):
    processor = anyres.processor(VICUNA)
    for images in ([picture((64, 64))], []):
        batch = collate([processor.prompt(images, [Turn("user", "<image>\n" * len(images) + "hi")])], pad_id=0)
        anyres.model.zero_grad()
        anyres.model.model.trace(batch)[0].hidden.sum().backward()
        gradient = method(anyres).newline.grad
        assert gradient is not None and bool(gradient.any()) == bool(images), "a process without images waits for none"


@pytest.mark.parametrize(
    ("record", "tokens", "message"),
    [
        ({"pinpoints": [[1, 1]]}, 16, "two crops or more"),
        ({"pinpoints": []}, 16, "two crops or more"),
        ({"pinpoints": [[-2, -1]]}, 16, "greater than 0"),
        ({}, 17, "square grid of tokens for each crop, and the connector gives 17"),
    ],
)
def test_what_does_not_fit_is_refused(record, tokens, message):
    with pytest.raises(SightlineError, match=message):
        build_methods([ANYRES | record], Sizes(d_vision=8, d_llm=16, patches=tokens, tokens=tokens))


def test_other_rasters_of_a_checkpoint_are_refused():
    with pytest.raises(SightlineError, match="48 x 64, which is no raster of views of 32 pixels"):
        AnyRes.record_of({"image_grid_pinpoints": [[64, 32], [48, 64]]}, 32)
