"""A model that answers a benchmark's questions, and says which letter it finds the likeliest."""

from collections.abc import Sequence
from functools import cached_property

import torch
from PIL import Image

from ..diagnostics.subject import Subject
from ..errors import SightlineError
from ..models.digest import digest


class Speaking:
    """A checkpoint, ready to be asked."""

    def __init__(
        self, model: str, *, device: torch.device, dtype: torch.dtype = torch.float32, template: str | None = None
    ) -> None:
        """
        Raises:
            SightlineError: if there is no such model, or it is not of LLaVA's kind.
        """
        self.subject = Subject(model, device=device, dtype=dtype, template=template)

    @property
    def template(self) -> str | None:
        """How questions become text; None for a chat template that is none of ours."""
        return self.subject.assistant.template

    @cached_property
    def digest(self) -> str:
        """A hash of its weights: answers of other weights are not gone on with."""
        return digest(sorted(self.subject.model.state_dict().items()))

    def answers(
        self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], *, max_new_tokens: int
    ) -> list[str]:
        """Greedy answers."""
        return self.subject.assistant.answers(images, questions, max_new_tokens=max_new_tokens)

    def letters(self, prompts: Sequence[str], letters: str) -> list[str]:
        """The likeliest of some letters as each answer's first word."""
        ids = self.subject.answer_ids(list(letters))
        ends = {row[-1] for row in ids}
        if len({tuple(row[:-1]) for row in ids}) > 1 or len(ends) < len(letters):
            raise SightlineError(
                f"the tokenizer does not tell {', '.join(letters)} by one token each, so their likelihoods cannot be "
                "held against each other. Leave this benchmark out."
            )
        prompt = self.subject.prompted([[] for _ in prompts], prompts)
        logits, _, _ = self.subject.told(prompt, [ids[0]] * len(prompts))
        of_letters = logits[:, -1, torch.tensor([row[-1] for row in ids], device=logits.device)]
        return [letters[place] for place in of_letters.argmax(-1).tolist()]
