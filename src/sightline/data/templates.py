"""Conversation templates as data: what stands before and after each message, and nothing else.

One renderer turns a template and its turns into text with spans, from which labels are read; the same data also gives
the Jinja chat template that a saved processor carries, so that training and serving cannot drift apart (a test holds
the two equal). `vicuna_v1`, `plain` and `llama-2` follow LLaVA's conversation.py (SeparatorStyle.TWO, PLAIN and
LLAMA_2); the others follow the chat templates that their models are published with.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import SightlineError, did_you_mean
from ..types import Turn

IMAGE = "<image>"


@dataclass(frozen=True)
class Template:
    """Text around the messages of each role. `{eos}` in any field stands for the tokenizer's end of sequence."""

    name: str
    system: str = ""
    """The default system prompt; a row's own system turn replaces it. An empty one is left out whole."""
    system_around: tuple[str, str] | None = ("", "")
    """What stands before and after the system prompt; None for models that know no system turn."""
    system_in_user: bool = False
    """Whether the system prompt stands inside the first user's message, before its words (Llama 2)."""
    user: tuple[str, str] = ("", "")
    """What stands before and after a user's message."""
    assistant: tuple[str, str] = ("", "")
    """What stands before and after an answer. What follows is supervised: it teaches the model to stop."""
    after_answer: str = ""
    """What stands between an answer's end and the next turn. Not supervised: generation has stopped."""
    tokens: tuple[str, ...] = ()
    """Special tokens of the template that the tokenizer must know. The first one ends an answer."""
    answer_lead: str = ""
    """Text between the assistant's prefix and its answer (a space). Supervised: generation starts before it."""
    user_text: bool = True
    """Whether the user's words are kept. Plain captions keep only the images, as LLaVA's stage 1 does."""


@dataclass(frozen=True)
class Span:
    """A stretch of rendered text, by character, and what it is."""

    start: int
    end: int
    turn: int
    """The exchange it belongs to; -1 before the first."""
    role: str
    """"user" for the user's own words, "assistant" for what is supervised, "" for the template's own text."""
    kind: str = ""


TEMPLATES: dict[str, Template] = {
    t.name: t
    for t in (
        Template(name="plain", assistant=("", "\n"), user_text=False),
        Template(
            name="vicuna_v1",
            system="A chat between a curious user and an artificial intelligence assistant. "
            "The assistant gives helpful, detailed, and polite answers to the user's questions.",
            system_around=("", " "),
            user=("USER: ", " "),
            assistant=("ASSISTANT:", "{eos}"),
            answer_lead=" ",
        ),
        Template(
            name="llama-2",
            system="You are a helpful language and vision assistant. You are able to understand the visual content "
            "that the user provides, and assist the user with a variety of tasks using natural language.",
            system_around=("<<SYS>>\n", "\n<</SYS>>\n\n"),
            system_in_user=True,
            user=("[INST] ", " [/INST]"),
            assistant=("", " {eos}"),
            answer_lead=" ",
            after_answer="<s>",
            tokens=("</s>", "<s>"),
        ),
        Template(
            name="llama-3",
            system_around=("<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"),
            user=("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
            assistant=("<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
            tokens=("<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
        ),
        Template(
            name="phi-3",
            system_around=("<|system|>\n", "<|end|>\n"),
            user=("<|user|>\n", "<|end|>\n"),
            assistant=("<|assistant|>\n", "<|end|>"),
            after_answer="\n",
            tokens=("<|end|>", "<|user|>", "<|assistant|>"),
        ),
        Template(
            name="gemma",
            system_around=None,
            user=("<start_of_turn>user\n", "<end_of_turn>\n"),
            assistant=("<start_of_turn>model\n", "<end_of_turn>"),
            after_answer="\n",
            tokens=("<end_of_turn>", "<start_of_turn>"),
        ),
        Template(
            name="chatml",
            system_around=("<|im_start|>system\n", "<|im_end|>\n"),
            user=("<|im_start|>user\n", "<|im_end|>\n"),
            assistant=("<|im_start|>assistant\n", "<|im_end|>"),
            after_answer="\n",
            tokens=("<|im_end|>", "<|im_start|>"),
        ),
    )
}


def get_template(name: str) -> Template:
    """The template called `name`.

    Raises:
        SightlineError: if there is none, naming the nearest one.
    """
    if name not in TEMPLATES:
        raise SightlineError(
            f"unknown template '{name}'{did_you_mean(name, TEMPLATES) or '.'} Known: {', '.join(sorted(TEMPLATES))}."
        )
    return TEMPLATES[name]


def render(template: Template, turns: Sequence[Turn], eos: str, *, prompt_only: bool = False) -> tuple[str, list[Span]]:
    """The text of a conversation, and the spans that cover it without gaps.

    Args:
        turns: an optional system turn, then user and assistant turns in alternation.
        eos: the tokenizer's end-of-sequence text, put where the template says `{eos}`.
        prompt_only: end with the assistant's prefix, ready for generation (the turns then end with a user's).

    Raises:
        SightlineError: for a system turn where the template has no place for one.
    """
    pieces: list[str] = []
    spans: list[Span] = []
    position = 0

    def put(text: str, turn: int, role: str = "", kind: str = "") -> None:
        nonlocal position
        if text:
            pieces.append(text)
            spans.append(Span(position, position + len(text), turn, role, kind))
            position += len(text)

    def fill(text: str) -> str:
        return text.replace("{eos}", eos)

    system = fill(template.system)
    if turns and turns[0].role == "system":
        system, turns = turns[0].text, turns[1:]
    if system:
        if template.system_around is None:
            raise SightlineError(
                f"template '{template.name}' has no place for a system turn, and a row has one ('{system[:40]}'). "
                "Put its text into the first question, or use another template."
            )
        system = fill(template.system_around[0]) + system + fill(template.system_around[1])
        if not template.system_in_user:
            put(system, -1)

    exchange = -1
    for turn in turns:
        if turn.role == "user":
            exchange += 1
            words = turn.text if template.user_text else IMAGE * turn.text.count(IMAGE)
            inside = system if template.system_in_user and exchange == 0 else ""
            put(fill(template.user[0]) + inside, exchange)
            put(words, exchange, "user", turn.kind)
            put(fill(template.user[1]), exchange)
        else:
            put(fill(template.assistant[0]), exchange)
            answer = fill(template.answer_lead) + turn.text + fill(template.assistant[1])
            put(answer, exchange, "assistant", turn.kind)
            put(fill(template.after_answer), exchange)
    if prompt_only:
        put(fill(template.assistant[0]), exchange)
    return "".join(pieces), spans


def read_spans(template: Template, text: str, eos: str) -> list[Span]:
    """The spans of a rendered text, as `render` gives them; answers of earlier exchanges count as the template's text.

    Messages that hold the template's own markers are misread.
    """

    def fill(text: str) -> str:
        return text.replace("{eos}", eos)

    if not template.user_text:
        return [Span(0, len(text), 0, "")]
    before, after, prefix = fill(template.user[0]), fill(template.user[1]), fill(template.assistant[0])
    words = rf"(.*?)(?:{re.escape(after + prefix)}|{re.escape(after)}\Z|\Z)"
    between = re.escape(fill(template.assistant[1] + template.after_answer))
    system = "(?:{}.*?{})?".format(*(re.escape(fill(part)) for part in template.system_around or ("", "")))
    first = rf"({re.escape(before)}{system if template.system_in_user else ''}){words}"
    later = rf"{between}({re.escape(before)}){words}"
    spans: list[Span] = []
    position, exchange = 0, -1
    while found := re.compile(later if spans else first, re.DOTALL).search(text, position):
        starts = (position, found.start(1), found.start(2), found.end(2))
        spans += [Span(starts[0], starts[1], exchange, ""), Span(starts[1], starts[2], exchange + 1, "")]
        spans.append(Span(starts[2], starts[3], exchange + 1, "user"))
        position, exchange = found.end(2), exchange + 1
    spans.append(Span(position, len(text), exchange, ""))
    return [span for span in spans if span.end > span.start]


def to_jinja(template: Template, prefix: str = "") -> str:
    """The template as a Jinja chat template, for `processor.apply_chat_template`.

    Text is taken as it is. An image item becomes `<image>` and a newline, as LLaVA puts it before a question; where the
    user's words are not kept, only the images are.

    Args:
        prefix: what stands before a conversation that has an image, as `prefix_text` gives it.
    """

    def literal(text: str) -> str:
        return " ~ eos_token ~ ".join(repr(part) for part in text.split("{eos}"))

    def say(*texts: str) -> str:
        return "{{ " + " ~ ".join(literal(text) for text in texts) + " }}"

    def content(text: str, image: str) -> str:
        """A message's content, whether a string or a list of items."""
        return (
            "{%- if message['content'] is string -%}" + text % "message['content']" + "{%- else -%}"
            "{%- for item in message['content'] -%}"
            "{%- if item['type'] == 'image' -%}" + say(image) + "{%- elif item['type'] == 'text' -%}"
            "" + text % "item['text']" + "{%- endif -%}{%- endfor -%}{%- endif -%}"
        )

    as_it_is = "{{ %s }}"
    only_images = "{{ '<image>' * (%s).count('<image>') }}"
    user = content(as_it_is, "<image>\n") if template.user_text else content(only_images, "<image>")
    if template.system_around is None:
        refusal = f"template {template.name} has no place for a system turn"
        put_system, default = "{{ raise_exception(" + repr(refusal) + ") }}", ""
    else:
        before, after = template.system_around
        put_system = "{{ " + literal(before) + " ~ system ~ " + literal(after) + " }}"
        default = say(before, template.system, after) if template.system else ""
    put_prefix = (
        "{%- set seen = namespace(image=false) -%}{%- for message in messages -%}"
        "{%- if message['content'] is string -%}"
        "{%- if '<image>' in message['content'] -%}{%- set seen.image = true -%}{%- endif -%}{%- else -%}"
        "{%- for item in message['content'] -%}"
        "{%- if item['type'] == 'image' or (item['type'] == 'text' and '<image>' in item['text']) -%}"
        "{%- set seen.image = true -%}{%- endif -%}{%- endfor -%}{%- endif -%}{%- endfor -%}"
        "{%- if seen.image -%}" + say(prefix) + "{%- endif -%}"
    )
    lead = (
        "{%- if messages and messages[0]['role'] == 'system' -%}"
        "{%- set message = messages[0] -%}{%- set system -%}" + content(as_it_is, "") + "{%- endset -%}"
        "{%- if system -%}" + put_system + "{%- endif -%}{%- else -%}" + default + "{%- endif -%}"
    )
    inside = ""
    if template.system_in_user:
        lead = "{%- set lead -%}" + lead + "{%- endset -%}"
        inside = "{%- if loop.first -%}{{ lead }}{%- endif -%}"
    rest = "(messages[1:] if messages and messages[0]['role'] == 'system' else messages)"
    return (
        (put_prefix if prefix else "") + lead + "{%- for message in " + rest + " -%}"
        "{%- if message['role'] == 'user' -%}"
        + say(template.user[0])
        + inside
        + user
        + say(template.user[1])
        + "{%- else -%}"
        ""
        + say(template.assistant[0], template.answer_lead)
        + content(as_it_is, "")
        + say(template.assistant[1], template.after_answer)
        + "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}" + say(template.assistant[0]) + "{%- endif -%}"
    )
