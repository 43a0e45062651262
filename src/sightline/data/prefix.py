"""Tokens that stand before a conversation with images, as text that a chat template can write."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from ..errors import SightlineError
from ..types import Turn
from .templates import IMAGE, Template, render


def prefix_text(tokenizer: PreTrainedTokenizerBase, template: Template, tokens: Sequence[str]) -> str:
    """The text to write before a conversation, so that its ids are `tokens` after BOS, and then what they were.

    A tokenizer may put a space before the first word of a text alone (Llama's can). Behind a token that word is not the
    first, and the space has to be written.

    Raises:
        SightlineError: if neither way gives these ids.
    """
    if not tokens:
        return ""
    lead = "".join(reversed(tokens))  # each is put in right after BOS, before those that were put in earlier
    ids = [tokenizer.convert_tokens_to_ids(token) for token in reversed(tokens)]
    texts = list(probes(template, str(tokenizer.eos_token)))
    plain = [list(tokenizer(text)["input_ids"]) for text in texts]
    begins = [int(row[:1] == [tokenizer.bos_token_id]) for row in plain]
    wanted = [row[:at] + ids + row[at:] for row, at in zip(plain, begins, strict=True)]
    for prefix in (lead, f"{lead} "):
        if [list(tokenizer(prefix + text)["input_ids"]) for text in texts] == wanted:
            return prefix
    raise SightlineError(
        f"the tokenizer splits a text of template '{template.name}' otherwise behind {lead} than without it, so a chat "
        "template cannot put the token in. Keep the method live."
    )


def probes(template: Template, eos: str) -> Iterator[str]:
    """Conversations in the ways that they can begin."""
    asked = [Turn("user", f"{IMAGE}\nWhat is this?"), Turn("assistant", "A ball."), Turn("user", "And that?")]
    leads = [[]] if template.system_around is None else [[], [Turn("system", "Be brief.")], [Turn("system", "")]]
    for lead in leads:
        yield render(template, [*lead, *asked[:1]], eos, prompt_only=True)[0]
        yield render(template, [*lead, *asked], eos, prompt_only=True)[0]
