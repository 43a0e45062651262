"""The look into a model sees what the model does: the same answers, the same losses, whatever kind of model it is."""

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from sightline.checkpoints import save_model
from sightline.data.templates import TEMPLATES, get_template
from sightline.diagnostics.subject import Subject
from sightline.errors import SightlineError
from sightline.models.assemble import assemble
from sightline.models.backbones import add_tokens

RED, BLUE = Image.new("RGB", (40, 30), (220, 30, 30)), Image.new("RGB", (20, 50), (30, 30, 220))
ASKED = [([RED], "What colour is it?"), ([BLUE], "Describe what there is to see here."), ([], "Is snow white?")]
MODELS = {
    "stock": ("clip", "llama", []),
    "gemma": ("siglip", "gemma", []),
    "toy": ("clip", "llama", [{"name": "toy:Toy"}]),
}


@pytest.fixture(scope="module", params=list(MODELS))
def subject(request, tiny, tmp_path_factory) -> Subject:
    vision, language, methods = MODELS[request.param]
    torch.manual_seed(3)
    assembly = assemble(str(tiny[vision]), str(tiny[language]), methods=methods)
    with torch.no_grad():  # louder than fresh weights, so that what is shown decides the answer
        for parameter in assembly.model.parameters():
            if parameter.ndim > 1:
                parameter *= 4
    folder = tmp_path_factory.mktemp(request.param)
    save_model(assembly, folder / "model", get_template("vicuna_v1"))
    return Subject(folder)


def test_answers_are_those_of_the_model(subject: Subject):
    images, questions = [image for image, _ in ASKED], [question for _, question in ASKED]
    expected = subject.assistant.answers(images, questions, max_new_tokens=8)
    assert subject.answers(subject.prompted(images, questions), max_new_tokens=8) == expected


def test_hidden_states_are_those_of_the_model(subject: Subject):
    inputs = subject.assistant.prompts.batch([[RED]], ["What colour is it?"])
    with torch.no_grad():
        logits = subject.model(**inputs).logits[:, -1]
        seen = subject.see(subject.prompted([[RED]], ["What colour is it?"]), attention=True)
    torch.testing.assert_close(subject.model.lm_head(seen.hidden[-1][:, -1]), logits, atol=1e-3, rtol=1e-3)
    assert seen.attention is not None
    torch.testing.assert_close(seen.attention.sum(-1), torch.ones(seen.attention.shape[:-1]))


def test_padding_changes_no_loss(subject: Subject):
    images, questions = [image for image, _ in ASKED], [question for _, question in ASKED]
    answers = ["red", "a blue box, I think", "yes"]
    together = subject.loss(subject.prompted(images, questions), answers)
    alone = [
        subject.loss(subject.prompted([i], [q]), [a])[0] for i, q, a in zip(images, questions, answers, strict=True)
    ]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-3, rtol=1e-3)


def test_the_loss_is_of_the_answers_tokens(subject: Subject):
    prompt = subject.prompted([[RED]], ["What colour is it?"])
    ids = torch.tensor([subject.tokenizer.encode(" red box", add_special_tokens=False)])
    embeds = torch.cat([prompt.embeds, subject.model.get_input_embeddings()(ids)], dim=1)
    with torch.no_grad():
        hidden = subject.model.model.language_model(inputs_embeds=embeds).last_hidden_state
        logits = subject.model.lm_head(hidden)[0, prompt.embeds.shape[1] - 1 : -1]
    torch.testing.assert_close(
        subject.loss(prompt, ["red box"])[0], cross_entropy(logits, ids[0]), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_answers_tokens_are_without_what_ends_it(tiny, tmp_path, template: str):
    """And each with the characters that it holds."""
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
    add_tokens(assembly.model, assembly.tokenizer, get_template(template).tokens)
    save_model(assembly, tmp_path / "model", get_template(template))
    subject, answers = Subject(tmp_path), ["red box", "B"]
    for answer, ids, places in zip(answers, subject.answer_ids(answers), subject.answer_places(answers), strict=True):
        assert subject.tokenizer.decode(ids).strip() == answer == "".join(answer[max(a, 0) : b] for a, b in places)
        assert subject.tokenizer.decode(ids) == get_template(template).answer_lead + answer


def test_visual_tokens_can_be_put_in_the_place_of_others(subject: Subject):
    red, blue = subject.visual([RED, BLUE])
    assert red.shape == blue.shape and not torch.equal(red, blue)
    prompt = subject.prompted([[RED]], ["What is it?"])
    torch.testing.assert_close(prompt.visual_of(0), red)
    swapped = prompt.with_visual([blue])
    torch.testing.assert_close(swapped.embeds[prompt.is_text], prompt.embeds[prompt.is_text])
    torch.testing.assert_close(swapped.visual_of(0), blue)
    assert subject.loss(swapped, ["red"]) != subject.loss(prompt, ["red"])
    with pytest.raises(SightlineError, match="visual tokens, and 1 were given"):
        prompt.with_visual([blue[:1]])


def test_a_word_is_the_mean_of_its_tokens_inside_a_sentence(subject: Subject):
    word = "unbelievably"
    ids = subject.tokenizer.encode(f" {word}", add_special_tokens=False)
    assert len(ids) > 1
    torch.testing.assert_close(subject.words([word])[0], subject.embedding[ids].mean(0))
