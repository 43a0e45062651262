"""Language kept: what a model still knows where there is no image, beside the language model that it began with.

SEA's Figure 3 (Yin et al. 2024) shows it on MMLU; here it is any file of questions on text alone. Both are given the
very same tokens, those of the model's template without an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ..data.words import inside_a_sentence
from ..errors import SightlineError
from ..evaluation.metrics import Estimate, bootstrap_interval, is_correct, paired_difference, proportion_interval
from ..evaluation.questions import Question
from ..models.backbones import add_tokens, load_language_model
from ..progress import watched
from .decoding import greedy, pad_left, positions
from .subject import Prompted, Subject

NO_BOUND = (-float("inf"), float("inf"))


@dataclass(frozen=True)
class Knowledge:
    """Answers to questions on text."""

    loss: Estimate
    """Negative log-likelihood of an answer's token, in nats: mean over its tokens, then over questions."""
    accuracy: Estimate


@dataclass(frozen=True)
class Kept:
    """What a model knows, and what the untouched language model does."""

    model: Knowledge
    untouched: Knowledge | None
    difference: Knowledge | None
    """Model less untouched, paired by question: a loss above 0, or an accuracy below, is what was forgotten."""


class Untouched:
    """A language model that has seen no image, asked with the tokens that another model is asked with.

    It gets the rows that the other was given when it was built (for the image, say): they take a share of every
    probability, which is no sign of forgetting.
    """

    def __init__(self, name: str, subject: Subject) -> None:
        """
        Args:
            name: a folder, a hub id, or `world:lm`.
            subject: the model whose prompts it is given.

        Raises:
            SightlineError: if there is no such language model, or its tokenizer is another than the subject's.
        """
        self.model, tokenizer = load_language_model(name)
        self.subject = subject
        known = subject.tokenizer.get_vocab()
        self.own = set(tokenizer.get_vocab().values())
        if other := next((token for token, i in tokenizer.get_vocab().items() if known.get(token) != i), None):
            raise SightlineError(
                f"'{name}' has the token {other!r} where the model has none or another, so the two would not be asked "
                "the same. Give the language model that this model was built from."
            )
        new = sorted(known.keys() - tokenizer.get_vocab().keys(), key=lambda token: known[token])
        add_tokens(self.model, tokenizer, new)
        self.model.to(subject.device).eval()

    def shorn(self, prompt: Prompted) -> list[list[int]]:
        """The tokens of each prompt without what alignment added to the vocabulary (slots of methods)."""
        rows = zip(prompt.input_ids.tolist(), prompt.attention_mask.tolist(), strict=True)
        return [[i for i, real in zip(ids, mask, strict=True) if real and i in self.own] for ids, mask in rows]

    @torch.no_grad()
    def loss(self, prompt: Prompted, answers: Sequence[str]) -> Float[Tensor, " batch"]:
        """As `Subject.loss`."""
        told = inside_a_sentence(self.subject.tokenizer, answers)
        rows = [[*ids, *answer] for ids, answer in zip(self.shorn(prompt), told, strict=True)]
        ids, mask = pad_left(rows, 0, self.subject.device)
        logits = self.model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=False).logits
        found = []
        for row, answer in enumerate(told):
            said = logits[row, -len(answer) - 1 : -1].float()
            found.append(F.cross_entropy(said, torch.tensor(answer, device=said.device)))
        return torch.stack(found)

    @torch.no_grad()
    def answers(self, prompt: Prompted, *, max_new_tokens: int = 16) -> list[str]:
        """As `Subject.answers`: greedy."""
        ids, mask = pad_left(self.shorn(prompt), 0, self.subject.device)
        tokenizer, embed = self.subject.tokenizer, self.model.get_input_embeddings()
        out = greedy(
            self.model.base_model,
            self.model.get_output_embeddings(),
            embed,
            embed(ids),
            mask,
            ends=self.subject.ends,
            fill=tokenizer.pad_token_id,
            max_new_tokens=max_new_tokens,
        )
        return [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]


def measure_kept(
    subject: Subject,
    questions: Sequence[Question],
    *,
    untouched: str | None = None,
    batch_size: int = 32,
    max_new_tokens: int = 16,
    progress: bool = True,
) -> dict[str, Kept]:
    """Loss and accuracy on questions without images, for all (`overall`) and for each ability.

    Args:
        questions: `material.text_questions`. The loss is that of the first answer that counts.
        untouched: the language model before any alignment: a folder, a hub id, or `world:lm`.

    Raises:
        SightlineError: for no questions, or questions with images.
    """
    if not questions or any(question.images for question in questions):
        raise SightlineError(
            "language is measured on questions without images, and there is none, or one has an image. Give a file of "
            "questions on text alone."
        )
    speakers: list[Subject | Untouched] = [subject] + ([Untouched(untouched, subject)] if untouched else [])
    losses: list[list[float]] = [[] for _ in speakers]
    right: list[list[bool]] = [[] for _ in speakers]
    for batch in watched(questions, "language", batch_size=batch_size, progress=progress):
        prompt = subject.prompted([[] for _ in batch], [question.text for question in batch])
        for number, speaker in enumerate(speakers):
            losses[number] += speaker.loss(prompt, [question.answers[0] for question in batch]).tolist()
            said = speaker.answers(prompt, max_new_tokens=max_new_tokens)
            right[number] += [is_correct(text, q.answers) for text, q in zip(said, batch, strict=True)]
    found = {}
    for ability in ("overall", *dict.fromkeys(question.ability for question in questions)):
        rows = [row for row, question in enumerate(questions) if ability in ("overall", question.ability)]
        parts = [
            ([loss[row] for row in rows], [fine[row] for row in rows]) for loss, fine in zip(losses, right, strict=True)
        ]
        own = parts[0]
        before = parts[1] if untouched else None
        found[ability] = Kept(
            model=_knowledge(*own),
            untouched=_knowledge(*before) if before else None,
            difference=_difference(own, before) if before else None,
        )
    return found


def mean_interval(values: Sequence[float]) -> Estimate:
    """A mean with its bootstrap interval; each question is drawn by itself."""
    columns = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)
    return bootstrap_interval(columns, lambda sums: sums[:, 0] / sums[:, 1], bounds=NO_BOUND)


def _knowledge(losses: Sequence[float], right: Sequence[bool]) -> Knowledge:
    return Knowledge(mean_interval(losses), proportion_interval(right))


def _difference(
    own: tuple[Sequence[float], Sequence[bool]], before: tuple[Sequence[float], Sequence[bool]]
) -> Knowledge:
    losses = [one - other for one, other in zip(own[0], before[0], strict=True)]
    return Knowledge(mean_interval(losses), paired_difference(own[1], before[1]))
