"""Templates: LLaVA's text to the letter, spans that cover it, and a chat template that says the same."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import parts
from sightline.data.templates import IMAGE, TEMPLATES, Span, Template, get_template, read_spans, render, to_jinja
from sightline.errors import SightlineError
from sightline.types import Turn

EOS = "</s>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
EVERYWHERE = Template(
    name="everywhere",
    system="be 'kind' {eos}",
    system_around=("{eos}[", "\n\\{eos}"),
    after_answer="{eos}\n~",
    user=('<u "q">{eos}', "</u>\n"),
    assistant=("<a>\t{eos}", "{eos}{eos}\n"),
    answer_lead="{eos} ",
)
"""A template that is awkward on purpose: quotes, a backslash, and the end of sequence in every field."""

words = st.text(max_size=12)
exchanges = st.lists(st.tuples(words, words), min_size=1, max_size=3)


def turns_of(pairs: list[tuple[str, str]], *, system: str | None = None, question: str | None = None) -> list[Turn]:
    turns = [Turn("system", system)] if system is not None else []
    for human, gpt in pairs:
        turns += [Turn("user", human), Turn("assistant", gpt)]
    return turns + ([Turn("user", question)] if question is not None else [])


def test_llama_2_is_llavas_text():
    """LLaVA's conversation.py, SeparatorStyle.LLAMA_2: the system prompt inside the first [INST]."""
    turns = turns_of([("a?", "b"), ("c?", "d")], system="be kind")
    text, _ = render(get_template("llama-2"), turns, EOS)
    assert text == "[INST] <<SYS>>\nbe kind\n<</SYS>>\n\na? [/INST] b </s><s>[INST] c? [/INST] d </s><s>"


def test_vicuna_is_llavas_text():
    """LLaVA's conversation.py, SeparatorStyle.TWO with sep " " and sep2 "</s>": the system prompt and " ", then
    "USER: " + message + " " and "ASSISTANT: " + message + "</s>" in turn."""
    text, _ = render(get_template("vicuna_v1"), turns_of([(f"{IMAGE}\nHi", "Hello."), ("Bye", "So long.")]), EOS)
    assert text == SYSTEM + " USER: <image>\nHi ASSISTANT: Hello.</s>USER: Bye ASSISTANT: So long.</s>"


def test_vicuna_prompt_ends_with_the_assistants_prefix():
    """LLaVA's get_prompt() with None for the last message: role + ":", without a space."""
    text, _ = render(get_template("vicuna_v1"), turns_of([("Hi", "Hello.")], question="Bye"), EOS, prompt_only=True)
    assert text == SYSTEM + " USER: Hi ASSISTANT: Hello.</s>USER: Bye ASSISTANT:"


def test_plain_is_llavas_text():
    """LLaVA's preprocess_plain: the question becomes "<image>", then the caption and "\\n"."""
    turns = turns_of([(f"{IMAGE}\nDescribe this.", "a red box")])
    assert render(get_template("plain"), turns, EOS)[0] == "<image>a red box\n"
    assert render(get_template("plain"), turns[:1], EOS, prompt_only=True)[0] == "<image>"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "llama-3",
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "phi-3",
            "<|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nYo<|end|>\n"
            "<|user|>\nBye<|end|>\n<|assistant|>\n",
        ),
        (
            "chatml",
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nYo<|im_end|>\n"
            "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_the_published_chat_formats(name, expected):
    """Meta's Llama 3 card (BOS is the tokenizer's), Microsoft's Phi-3 card, OpenAI's ChatML as Qwen uses it."""
    turns = turns_of([("Hi", "Yo")], system="Be brief.", question="Bye")
    assert render(get_template(name), turns, EOS, prompt_only=True)[0] == expected


def test_gemma_has_no_system_turn():
    """Google's Gemma formatting page: user and model turns only."""
    turns = turns_of([("Hi", "Yo")], question="Bye")
    assert render(get_template("gemma"), turns, EOS, prompt_only=True)[0] == (
        "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nYo<end_of_turn>\n"
        "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    )
    with pytest.raises(SightlineError, match="'gemma' has no place for a system turn"):
        render(get_template("gemma"), [Turn("system", "Be brief."), *turns], EOS)


def test_what_follows_an_answers_end_is_not_supervised():
    text, spans = render(get_template("chatml"), turns_of([("Hi", "Yo")]), EOS)
    assert [text[s.start : s.end] for s in spans if s.role == "assistant"] == ["Yo<|im_end|>"]
    assert text.endswith("<|im_end|>\n")


def test_a_rows_system_turn_replaces_the_default():
    text, spans = render(get_template("vicuna_v1"), turns_of([("Hi", "Yo")], system="Be brief."), EOS)
    assert text == "Be brief. USER: Hi ASSISTANT: Yo</s>"
    assert spans[0] == Span(0, 10, -1, "", "")


def test_spans_say_whose_text_it_is():
    """Offsets counted by hand in "Be brief. USER: Hi ASSISTANT: Yo</s>"."""
    _, spans = render(get_template("vicuna_v1"), turns_of([("Hi", "Yo")], system="Be brief."), EOS)
    assert [(s.start, s.end, s.turn, s.role, s.kind) for s in spans] == [
        (0, 10, -1, "", ""),
        (10, 16, 0, "", ""),
        (16, 18, 0, "user", "answer"),
        (18, 19, 0, "", ""),
        (19, 29, 0, "", ""),
        (29, 36, 0, "assistant", "answer"),
    ]


@pytest.mark.parametrize("template", [*TEMPLATES.values(), EVERYWHERE], ids=lambda t: t.name)
@given(pairs=exchanges, system=st.none() | words, question=st.none() | words)
def test_spans_cover_the_text_without_gaps(template, pairs, system, question):
    system = system if template.system_around is not None else None
    turns = turns_of(pairs, system=system, question=question)
    text, spans = render(template, turns, EOS, prompt_only=question is not None)
    edges = [0, *(span.end for span in spans)]
    assert [span.start for span in spans] == edges[:-1]
    assert edges[-1] == len(text)
    supervised = [text[s.start : s.end] for s in spans if s.role == "assistant"]
    lead, end = (piece.replace("{eos}", EOS) for piece in (template.answer_lead, template.assistant[1]))
    assert supervised == [lead + gpt + end for _, gpt in pairs]


WORDS = parts.tokenizer()


def chat(template: Template, messages: list[dict], *, generate: bool) -> str:
    """The saved chat template, as transformers renders it."""
    return WORDS.apply_chat_template(
        messages, chat_template=to_jinja(template), tokenize=False, add_generation_prompt=generate
    )


@pytest.mark.parametrize("template", [*TEMPLATES.values(), EVERYWHERE], ids=lambda t: t.name)
@pytest.mark.parametrize("as_list", [False, True], ids=["string", "list"])
@given(pairs=exchanges, system=st.none() | words, question=st.none() | words)
@example(pairs=[("<image>\na", "b ")], system="", question=None)
@example(pairs=[(" {{ x }} {% if %}", "{# no #}\n")], system="s\n", question="\n<image>")
@example(pairs=[("'\"\\n", "\\")], system=None, question="")
def test_chat_template_renders_the_same_text(template, as_list, pairs, system, question):
    system = system if template.system_around is not None else None
    turns = turns_of(pairs, system=system, question=question)
    messages = [{"role": t.role, "content": [{"type": "text", "text": t.text}] if as_list else t.text} for t in turns]
    generate = question is not None
    assert chat(template, messages, generate=generate) == render(template, turns, EOS, prompt_only=generate)[0]


plain_words = st.text(alphabet="ab c\n?", max_size=8)


@pytest.mark.parametrize("template", [*TEMPLATES.values(), EVERYWHERE], ids=lambda t: t.name)
@given(
    pairs=st.lists(st.tuples(plain_words, plain_words), max_size=3),
    system=st.sampled_from([None, "", "be kind"]),
    question=st.none() | plain_words,
)
@example(pairs=[], system=None, question="")
@example(pairs=[("", "")], system=None, question=None)
def test_a_rendered_text_is_read_as_it_was_rendered(template, pairs, system, question):
    """The user's words, and which exchange each character is of."""
    turns = turns_of(pairs, system=system if template.system_around is not None else None, question=question)
    text, spans = render(template, turns, EOS, prompt_only=question is not None)
    read = read_spans(template, text, EOS)
    assert [span.start for span in read[1:]] == [span.end for span in read[:-1]]
    assert sum(span.end - span.start for span in read) == len(text)
    if template.user_text:
        users = [span for span in spans if span.role == "user"]
        assert [(s.start, s.end, s.turn) for s in read if s.role == "user"] == [(s.start, s.end, s.turn) for s in users]
        owners = [[span.turn for span in each for _ in range(span.start, span.end)] for each in (spans, read)]
        assert owners[0] == owners[1]


@pytest.mark.parametrize(("name", "expected"), [("plain", "<image><image>"), ("vicuna_v1", "<image>\n<image>\nSame?")])
def test_image_items_stand_as_llava_puts_them(name, expected):
    """ "<image>" and a newline before the question; a caption's prompt keeps only the images."""
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Same?"}]
    template = get_template(name)
    text = chat(template, [{"role": "user", "content": content}], generate=True)
    assert text == render(template, [Turn("user", expected)], EOS, prompt_only=True)[0]
    assert expected in text


def test_unknown_template_names_the_nearest():
    with pytest.raises(SightlineError, match=r"unknown template 'vicuna'; did you mean 'vicuna_v1'\?.*Known: .*plain"):
        get_template("vicuna")
