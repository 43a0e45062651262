"""A model that was not touched has forgotten nothing; one that was, has."""

import pytest
import torch
from transformers import LlamaForCausalLM

from sightline.checkpoints import save_model
from sightline.data.templates import get_template
from sightline.diagnostics.kept import Untouched, mean_interval, measure_kept
from sightline.diagnostics.subject import Subject
from sightline.errors import SightlineError
from sightline.models.assemble import assemble


@pytest.fixture(scope="module")
def told(material):
    return material.text_questions[:3] + material.text_questions[-5:]


def fresh(tiny, folder, methods=()) -> Subject:
    torch.manual_seed(0)
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=list(methods))
    save_model(assembly, folder / "model", get_template("vicuna_v1"))
    return Subject(folder)


@pytest.mark.parametrize("methods", [[], [{"name": "toy:Toy"}]], ids=["stock", "toy"])
def test_an_untouched_language_model_has_forgotten_nothing(tiny, tmp_path, told, methods):
    subject = fresh(tiny, tmp_path, methods)
    found = measure_kept(subject, told, untouched=str(tiny["llama"]), batch_size=3, max_new_tokens=4, progress=False)
    assert set(found) == {"overall", "fact", "described"}
    assert (found["overall"].model.loss.n, found["fact"].model.loss.n) == (8, 3)
    for kept in found.values():
        assert kept.untouched is not None and kept.difference is not None
        if not methods:  # a method's slot is in the prompt, and moves the states a little
            assert kept.difference.loss.value == pytest.approx(0, abs=1e-4)
            assert kept.model.loss.value == pytest.approx(kept.untouched.loss.value, abs=1e-4)


def test_both_say_the_same_where_they_are_the_same(tiny, tmp_path, told):
    subject = fresh(tiny, tmp_path)
    prompt = subject.prompted([[] for _ in told], [question.text for question in told])
    before = Untouched(str(tiny["llama"]), subject)
    assert before.answers(prompt, max_new_tokens=5) == subject.answers(prompt, max_new_tokens=5)
    answers = ["yes", "a blue box, I think"] * 4
    torch.testing.assert_close(before.loss(prompt, answers), subject.loss(prompt, answers), atol=1e-4, rtol=1e-4)


def test_a_model_that_was_changed_is_told_from_the_one_it_was(tiny, tmp_path, told):
    """Its head was turned round and made loud: it is sure of what is wrong."""
    subject = fresh(tiny, tmp_path)
    with torch.no_grad():
        subject.model.lm_head.weight *= -20
    kept = measure_kept(subject, told, untouched=str(tiny["llama"]), max_new_tokens=1, progress=False)["overall"]
    assert kept.difference is not None and kept.difference.loss.low > 0
    alone = measure_kept(subject, told, max_new_tokens=1, progress=False)["overall"]
    assert alone.untouched is None and alone.difference is None and alone.model == kept.model


def test_another_tokenizer_is_refused(tiny, tmp_path, tiny_subject):
    folder = tmp_path / "other"
    LlamaForCausalLM.from_pretrained(tiny["llama"]).save_pretrained(folder)
    tokenizer = type(tiny_subject.tokenizer).from_pretrained(tiny["llama"])
    tokenizer.add_tokens(["quux"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(SightlineError, match="'quux'"):
        Untouched(str(folder), tiny_subject)


def test_questions_with_images_are_refused(tiny_subject, material):
    for questions in ([], list(material.questions[:1])):
        with pytest.raises(SightlineError, match="questions without images"):
            measure_kept(tiny_subject, questions, progress=False)


def test_a_mean_by_hand():
    found = mean_interval([1.0, 2.0, 6.0])
    assert found.value == 3 and 1 <= found.low < 3 < found.high <= 6
