"""Every row as tokens, in batches and without pixels: its length, what is supervised, and the template round trip.

What training does to a row is `Processor.__call__`. This does the same to many rows at once, and a test holds the two
equal; only the pixels are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np

from ..data.dataset import without_oldest_exchange
from ..data.order import generator
from ..data.processor import Processor
from ..data.templates import IMAGE, Span, render
from ..errors import SightlineError
from ..types import Sample
from .findings import Finding, from_error, shown

BATCH = 256
"""Rows tokenised at once."""
WHOLE = 1000
"""Rows whose last answer's prompt is tokenised too; of the others it is the first answer's, which is shorter."""


@dataclass
class Budget:
    """Tokens of the rows of one file, image tokens included."""

    lengths: list[int] = field(default_factory=list)
    visual: list[int] = field(default_factory=list)
    supervised: list[int] = field(default_factory=list)

    def summary(self, max_length: int) -> dict[str, Any]:
        """What the report says of it."""
        lengths = np.asarray(self.lengths, dtype=np.int64)
        if not len(lengths):
            return {"rows": 0}
        total = int(lengths.sum())
        return {
            "rows": len(lengths),
            "min": int(lengths.min()),
            "median": int(np.median(lengths)),
            "p95": int(np.quantile(lengths, 0.95)),
            "max": int(lengths.max()),
            "tokens": total,
            "visual_share": round(sum(self.visual) / total, 4) if total else 0.0,
            "supervised_share": round(sum(self.supervised) / total, 4) if total else 0.0,
            "too_long": int((lengths > max_length).sum()),
        }


@dataclass(frozen=True)
class Laid:
    """A row as text: its number and where it stands, its sample as given and with the methods' turns, its spans."""

    number: int
    where: str
    given: Sample
    sample: Sample
    text: str
    spans: list[Span]
    prompt: str
    """The text that generation of an answer starts from; empty where it has no answer."""


class RowReader:
    """Lays out rows for one processor, in batches."""

    def __init__(
        self, processor: Processor, *, seed: int, training: bool, long_rows: str, visual: "VisualTokens"
    ) -> None:
        self.processor = processor
        self.seed = seed
        self.training = training
        self.long_rows = long_rows
        self.visual = visual
        self.budget = Budget()
        self.left = 0
        """Rows whose images decode and that fit, shortened if that is the policy."""
        tokenizer: Any = processor.tokenizer
        self._backend: Any = tokenizer.backend_tokenizer
        self._eos = str(processor.tokenizer.eos_token)
        self._unknown = processor.tokenizer.unk_token

    def read(self, rows: Sequence[tuple[int, str, Sample]]) -> list[Finding]:
        """Findings about rows (number, place, sample); their lengths go to the budget."""
        found: list[Finding] = []
        laid: list[Laid] = []
        for number, where, sample in rows:
            try:
                laid.append(self._render(number, where, sample))
            except SightlineError as error:
                found.append(from_error(error, severity="error", check="template/refused", where=where))
        encoded = self._encode([row.text for row in laid], offsets=True)
        prompts = self._encode([row.prompt for row in laid], offsets=False)
        answers: list[tuple[Laid, Span, list[int]]] = []
        for row, (ids, offsets), (prompt_ids, _) in zip(laid, encoded, prompts, strict=True):
            found += self._row(row, ids, offsets, prompt_ids, answers)
        decoded = self._backend.decode_batch([ids for _, _, ids in answers], skip_special_tokens=False)
        for (row, span, _), text in zip(answers, decoded, strict=True):
            if (expected := row.text[span.start : span.end]) != text:
                found += self._differs(row, expected, text)
        return found

    def _render(self, number: int, where: str, sample: Sample) -> Laid:
        turns = sample.turns
        if self.training and len(self.processor.methods):
            turns, _ = self.processor.methods.insert_turns(sample, generator(self.seed, 1, 0, number), {})
        text, spans = render(self.processor.template, turns, self._eos)
        answers = [span for span in spans if span.role == "assistant"]
        which = -1 if number < WHOLE else 0
        prompt = text[: answers[which].start] if answers else ""
        return Laid(number, where, sample, replace(sample, turns=turns), text, spans, prompt)

    def _encode(self, texts: list[str], *, offsets: bool) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and offsets of each text, as the processor tokenises it: transformers hands it to the same backend."""
        bos = str(self.processor.tokenizer.bos_token or "")
        out: list[Any] = [None] * len(texts)
        encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        for special in (True, False):
            chosen = [n for n, text in enumerate(texts) if (not (bos and text.startswith(bos))) == special]
            for n, given in zip(chosen, encode([texts[n] for n in chosen], add_special_tokens=special), strict=True):
                where = chain.from_iterable(given.offsets if offsets else ())
                out[n] = np.asarray(given.ids, dtype=np.int64), np.fromiter(where, dtype=np.int64).reshape(-1, 2)
        return out

    def _row(
        self,
        row: Laid,
        ids: np.ndarray,
        offsets: np.ndarray,
        prompt_ids: np.ndarray,
        answers: list[tuple[Laid, Span, list[int]]],
    ) -> list[Finding]:
        processor, found = self.processor, []
        place = f"{row.where} (id '{shown(row.sample.id, 40)}')"
        starts = np.asarray([span.start for span in row.spans])
        owners = np.searchsorted(starts, np.maximum(offsets[:, 1] - 1, offsets[:, 0]), side="right") - 1
        owners[(offsets[:, 0] == 0) & (offsets[:, 1] == 0)] = -1
        is_image = ids == processor.image_token_id
        supervised = np.zeros(len(ids), dtype=bool)
        for number, span in enumerate(row.spans):
            if span.role == "assistant":
                mine = (owners == number) & ~is_image
                supervised |= mine
                answers.append((row, span, ids[mine].tolist()))

        if (places := int(is_image.sum())) != len(row.sample.images):
            message = f"{places} {IMAGE} in its text for {len(row.sample.images)} images: it cannot be laid out."
            fix = f"Put one {IMAGE} where each image belongs, in the questions alone."
            found.append(Finding("error", "rows/places", place, message, fix))
        visual, length = self._visual(row.sample), self._length(ids, row.sample)
        slots = length - visual - (len(ids) - places)
        count = int(supervised[1:].sum()) if not slots else int(supervised.sum())
        self.budget.lengths.append(length)
        self.budget.visual.append(visual)
        self.budget.supervised.append(count)
        if not count:
            message = f"nothing in it is supervised under template '{processor.template.name}': it would train nothing."
            found.append(Finding("error", "coverage/none", place, message, "Give it an answer, or remove it."))
        fits = length <= processor.max_length or self._can_be_shortened(row)
        self.left += fits and all(self.visual.decodes(image) for image in row.sample.images)
        if length > processor.max_length:
            found.append(self._too_long(place, length, visual, shortened=fits))
        if len(prompt_ids) and not np.array_equal(ids[: len(prompt_ids)], prompt_ids):
            message = (
                "the tokens that generation starts from are not those that the answer was trained after: the "
                f"tokenizer joins the answer to the end of '{processor.template.name}' prompts."
            )
            fix = "Use the template that the language model was made for."
            found.append(Finding("warning", "template/prompt", place, message, fix))
        return found

    def _too_long(self, place: str, length: int, visual: int, *, shortened: bool) -> Finding:
        most = self.processor.max_length
        message = f"has {length} tokens, {visual} of them visual, and max_length is {most}"
        fix = f"Say max_length={length}, or shorten or remove the row."
        check, cause = "budget/too-long", ""
        if visual >= most:
            check, cause = "budget/images", "its images alone do not fit, and no image is ever cut; "
        if self.long_rows == "raise":
            return Finding("error", check, place, f"{message}: {cause}training would stop there.", fix)
        effect = "its oldest turns are left out" if shortened else "the row is left out"
        return Finding("warning", check, place, f"{message}: {cause}{effect}.", fix)

    def _can_be_shortened(self, row: Laid) -> bool:
        """Whether the row fits without its oldest exchanges, as training tries it."""
        sample: Sample | None = row.given
        while self.long_rows == "shorten" and (sample := without_oldest_exchange(sample)) is not None:
            shorter = self._render(row.number, row.where, sample)
            ((ids, _),) = self._encode([shorter.text], offsets=False)
            if self._length(ids, sample) <= self.processor.max_length:
                return True
        return False

    def _length(self, ids: np.ndarray, sample: Sample) -> int:
        """Tokens of a row with its images and the methods' slots."""
        processor = self.processor
        slots = sum(bool(sample.images) or not slot.only_with_images for slot in processor.methods.slots)
        places = int((ids == processor.image_token_id).sum())
        return len(ids) - places + self._visual(sample) + slots

    def _visual(self, sample: Sample) -> int:
        return sum(self.visual(image) for image in sample.images)

    def _differs(self, row: Laid, expected: str, text: str) -> list[Finding]:
        """What a round trip that does not give the same text means."""
        if expected.strip() == text.strip():  # some decoders take a leading space for their own
            return []
        place = f"{row.where} (id '{shown(row.sample.id, 40)}')"
        end = self.processor.template.assistant[1].replace("{eos}", self._eos)
        at = next((i for i, (a, b) in enumerate(zip(expected, text, strict=False)) if a != b), 0)
        here, there = shown(expected[max(0, at - 10) : at + 20], 30), shown(text[max(0, at - 10) : at + 20], 30)
        if end and not text.rstrip().endswith(end.strip()):
            message = f"the end of its answer is not among what is supervised ('{there}'): the model would not stop."
            fix = "Use the template that the language model was made for."
            return [Finding("error", "template/end", place, message, fix)]
        if self._unknown and str(self._unknown) in text and str(self._unknown) not in expected:
            message = f"the tokenizer does not know '{here}': the model would learn to write '{self._unknown}'."
            fix = "Take these characters out, or use a language model that knows them."
            return [Finding("warning", "template/unknown", place, message, fix)]
        message = f"what is supervised is not the answer, letter by letter: '{here}' became '{there}'."
        fix = "Write the text as the tokenizer does (Unicode NFC, single spaces), or use another language model."
        return [Finding("warning", "template/round-trip", place, message, fix)]


class VisualTokens:
    """How many visual tokens an image has for a model, from its size alone."""

    def __init__(self, processor: Processor, sizes: Callable[[Any], tuple[int, int] | None]) -> None:
        self._processor = processor
        self._sizes = sizes

    def decodes(self, source: Any) -> bool:
        """Whether an image could be decoded."""
        return self._sizes(source) is not None

    def __call__(self, source: Any) -> int:
        processor = self._processor
        size = self._sizes(source) or (processor.frame.side, processor.frame.side)
        return processor.methods.views.tokens(size, processor.frame.side, processor.tokens_per_view)
