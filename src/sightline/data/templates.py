"""Conversation templates as data: what stands before and after each message, and nothing else.

One renderer turns a template and its turns into text with spans, from which labels are read; the same data also gives
the Jinja chat template that a saved processor carries, so that training and serving cannot drift apart (a test holds
the two equal). `vicuna_v1` and `plain` follow LLaVA's conversation.py (SeparatorStyle.TWO and PLAIN).
"""

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
    """The default system prompt; a row's own system turn replaces it."""
    system_end: str = ""
    user: tuple[str, str] = ("", "")
    """What stands before and after a user's message."""
    assistant: tuple[str, str] = ("", "")
    """What stands before and after an answer. What follows is supervised: it teaches the model to stop."""
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
            system_end=" ",
            user=("USER: ", " "),
            assistant=("ASSISTANT:", "{eos}"),
            answer_lead=" ",
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

    t = template
    system, system_end, before_user, after_user, before_answer, answer_lead, after_answer = (
        text.replace("{eos}", eos)
        for text in (t.system, t.system_end, *t.user, t.assistant[0], t.answer_lead, t.assistant[1])
    )
    if turns and turns[0].role == "system":
        system, turns = turns[0].text, turns[1:]
    if system:
        put(system + system_end, -1)

    exchange = -1
    for turn in turns:
        if turn.role == "user":
            exchange += 1
            put(before_user, exchange)
            put(
                turn.text if template.user_text else IMAGE * turn.text.count(IMAGE),
                exchange,
                "user",
                turn.kind,
            )
            put(after_user, exchange)
        else:
            put(before_answer, exchange)
            put(answer_lead + turn.text + after_answer, exchange, "assistant", turn.kind)
    if prompt_only:
        put(before_answer, exchange)
    return "".join(pieces), spans


def to_jinja(template: Template) -> str:
    """The template as a Jinja chat template, for `processor.apply_chat_template`.

    Text is taken as it is. An image item becomes `<image>` and a newline, as LLaVA puts it before a question; where the
    user's words are not kept, only the images are.
    """

    def literal(text: str) -> str:
        return " ~ eos_token ~ ".join(repr(part) for part in text.split("{eos}"))

    text = "{{ %s }}" if template.user_text else "{{ '<image>' * (%s).count('<image>') }}"
    image = "<image>\n" if template.user_text else "<image>"
    content = (
        "{%- if message['content'] is string -%}" + text % "message['content']" + "{%- else -%}"
        "{%- for item in message['content'] -%}"
        "{%- if item['type'] == 'image' -%}{{ " + repr(image) + " }}"
        "{%- elif item['type'] == 'text' -%}" + text % "item['text']" + "{%- endif -%}"
        "{%- endfor -%}{%- endif -%}"
    )
    answer = (
        "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
        "{%- for item in message['content'] -%}{{ item['text'] }}{%- endfor -%}{%- endif -%}"
    )
    system_end = literal(template.system_end)
    return (
        "{%- if messages and messages[0]['role'] == 'system' -%}"
        "{%- set message = messages[0] -%}{%- set system -%}" + answer + "{%- endset -%}"
        "{%- if system -%}{{ system ~ " + system_end + " }}{%- endif -%}"
        "{%- set messages = messages[1:] -%}"
        + ("{%- else -%}{{ " + literal(template.system) + " ~ " + system_end + " }}" if template.system else "")
        + "{%- endif -%}"
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}"
        "{{ " + literal(template.user[0]) + " }}" + content + "{{ " + literal(template.user[1]) + " }}"
        "{%- else -%}"
        "{{ "
        + literal(template.assistant[0])
        + " ~ "
        + literal(template.answer_lead)
        + " }}"
        + answer
        + "{{ "
        + literal(template.assistant[1])
        + " }}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ " + literal(template.assistant[0]) + " }}{%- endif -%}"
    )
