"""The processor lays out the final sequence; after it, nothing moves.

A row is rendered by its template and tokenised once. Labels, kinds and the prompt mask come from the template's own
spans, through the tokenizer's character offsets; nothing is tokenised twice and compared. Then every `<image>` becomes
as many placeholders as the connector will give visual tokens, and the methods' slots are put in.

transformers' own processor tokenises the same text in the same way, so what the model is trained on is what a server
feeds it (tested).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedTokenizerBase

from ..errors import LongRowError, SightlineError
from ..methods.base import OneView, Size
from ..methods.compose import Methods
from ..types import ANSWER, IGNORE, PROMPT, VISUAL, Example, ImageSource, Sample, Turn, no_patches
from .features import Features
from .images import blank_like, load_image
from .templates import IMAGE, Span, Template, render
from .view import Frame


@dataclass(frozen=True)
class Seen:
    """The images of a row as the tower sees them, or what it gives for them."""

    pixels: Tensor
    patches: Tensor
    counts: list[int]
    """Views of each image."""
    sizes: list[Size]


class Processor:
    """Samples to examples, for one model, one template and one length."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        template: Template,
        *,
        tokens_per_view: int,
        methods: Methods | None = None,
        max_length: int = 2048,
        blank_images: bool = False,
        features: Features | None = None,
    ) -> None:
        """
        Args:
            tokens_per_view: visual tokens that the connector gives for a view.
            max_length: tokens a row may have, placeholders included.
            blank_images: show grey images of the same size instead (the blind twin).
            features: read what the tower gives from here, and decode no image.

        Raises:
            SightlineError: if the tokenizer cannot give offsets, lacks `<image>`, a pad or an end of sequence,
                or puts one after every text.
        """
        if not tokenizer.is_fast:
            raise SightlineError(
                "the tokenizer gives no character offsets, from which labels are read. Use a fast one."
            )
        if tokenizer.eos_token is None:
            raise SightlineError(
                "the tokenizer has no end-of-sequence token, so answers could not end. Set `eos_token`."
            )
        if tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id:
            raise SightlineError(
                "the tokenizer ends every text with its end of sequence, so a prompt would end before the answer. "
                "Load it with add_eos_token=False."
            )
        absent = [token for token in template.tokens if not has_token(tokenizer, token)]
        if absent:
            raise SightlineError(
                f"template '{template.name}' needs the token '{absent[0]}', which the tokenizer does not have. "
                "Use the template that the language model was made for."
            )
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.template = template
        self.tokens_per_view = tokens_per_view
        self.methods = methods if methods is not None else Methods()
        self.max_length = max_length
        self.blank_images = blank_images
        self.features = features
        if tokenizer.pad_token_id is None:
            raise SightlineError("the tokenizer has no pad token, so rows could not share a batch. Set `pad_token`.")
        self.pad_id = int(str(tokenizer.pad_token_id))
        self.image_token_id = _token_id(tokenizer, IMAGE)
        self.frame = Frame.of(image_processor)
        self.slot_token_ids = {slot.token: _token_id(tokenizer, slot.token) for slot in self.methods.slots}

    def __call__(
        self,
        sample: Sample,
        *,
        rng: np.random.Generator | None = None,
        columns: Mapping[str, Tensor] | None = None,
    ) -> Example:
        """A row to train on. With `rng`, methods may insert turns, of what its columns hold.

        Raises:
            SightlineError: naming the row, if nothing in it is supervised, it is too long, or an image is unreadable.
        """
        columns = columns or {}
        inserted = self.methods.insert_turns(sample, rng, columns) if rng is not None else None
        turns, foreign = inserted or (sample.turns, frozenset())
        text, spans = render(self.template, turns, str(self.tokenizer.eos_token))
        example = self.lay_out(sample.id, sample.images, text, spans, foreign=foreign, columns=columns)
        if not bool((example.labels[1:] != IGNORE).any()):
            raise SightlineError(
                f"sample '{sample.id}' ({sample.source}) has no supervised token under template "
                f"'{self.template.name}': it would train nothing. Give it an answer, or remove it."
            )
        return example

    def prompt(self, images: Sequence[ImageSource], turns: Sequence[Turn], *, name: str = "prompt") -> Example:
        """A prompt to generate from: the turns end with the user's, the text with the assistant's prefix."""
        text, spans = render(self.template, turns, str(self.tokenizer.eos_token), prompt_only=True)
        return self.lay_out(name, images, text, spans, prompt_only=True)

    def lay_out(
        self,
        name: str,
        images: Sequence[ImageSource],
        text: str,
        spans: Sequence[Span],
        *,
        foreign: frozenset[int] = frozenset(),
        columns: Mapping[str, Tensor] | None = None,
        prompt_only: bool = False,
    ) -> Example:
        """A rendered text with its images as tokens. In a prompt, earlier answers are part of the prompt."""
        input_ids, owners = self._tokenise(name, text, spans)
        seen = self._see(images)
        tokens = [self.methods.views.tokens(size, self.frame.side, self.tokens_per_view) for size in seen.sizes]
        visual_counts = np.asarray(tokens, dtype=np.int64)

        places = np.flatnonzero(input_ids == self.image_token_id)
        if len(places) != len(visual_counts):
            raise SightlineError(f"sample '{name}': {len(places)} {IMAGE} in its text for {len(visual_counts)} images.")
        repeats = np.ones(len(input_ids), dtype=np.int64)
        repeats[places] = visual_counts
        input_ids, owners = np.repeat(input_ids, repeats), np.repeat(owners, repeats)

        kinds = np.full(len(input_ids), PROMPT)
        turn_ids = np.full(len(input_ids), -1)
        prompt_mask = np.zeros(len(input_ids), dtype=bool)
        for number, span in enumerate(spans):
            inside = owners == number
            turn_ids[inside] = span.turn
            if span.role == "assistant" and not prompt_only:
                kinds[inside] = ANSWER if span.kind == "answer" else self.methods.kinds.index(span.kind)
            elif span.role == "user":
                prompt_mask[inside] = span.turn not in foreign
        visual = input_ids == self.image_token_id
        kinds[visual], prompt_mask[visual] = VISUAL, False
        supervised = np.isin(owners, [n for n, span in enumerate(spans) if span.role == "assistant"]) & ~visual
        labels = np.where(supervised, input_ids, IGNORE)

        for slot in self.methods.slots:
            if images or not slot.only_with_images:
                at = int(len(input_ids) > 0 and input_ids[0] == self.tokenizer.bos_token_id)
                kind = self.methods.kinds.index(slot.kind)
                input_ids = np.insert(input_ids, at, self.slot_token_ids[slot.token])
                labels, kinds = np.insert(labels, at, IGNORE), np.insert(kinds, at, kind)
                turn_ids, prompt_mask = np.insert(turn_ids, at, -1), np.insert(prompt_mask, at, False)

        if len(input_ids) > self.max_length:
            raise LongRowError(
                f"sample '{name}' has {len(input_ids)} tokens, {int(visual.sum())} of them visual, and max_length is "
                f"{self.max_length}.",
                "Raise max_length, remove the row, or say long_rows=drop or shorten.",
            )
        return Example(
            id=name,
            input_ids=torch.from_numpy(input_ids),
            labels=torch.from_numpy(labels),
            kinds=torch.from_numpy(kinds),
            turn_ids=torch.from_numpy(turn_ids),
            prompt_mask=torch.from_numpy(prompt_mask),
            pixel_values=seen.pixels,
            view_counts=torch.tensor(seen.counts, dtype=torch.long),
            visual_counts=torch.from_numpy(visual_counts),
            image_sizes=torch.tensor(seen.sizes, dtype=torch.long).view(-1, 2).flip(1),
            columns=columns or {},
            patches=seen.patches,
        )

    def _tokenise(self, name: str, text: str, spans: Sequence[Span]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the text, and for each the number of the span that owns it (-1 for special tokens around the text).

        A token belongs to the span of its last character: a leading space merged into a word follows the word.
        """
        bos = str(self.tokenizer.bos_token or "")
        encoded = self.tokenizer(
            text, add_special_tokens=not (bos and text.startswith(bos)), return_offsets_mapping=True
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        offsets = np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        starts = np.asarray([span.start for span in spans], dtype=np.int64)
        last = np.maximum(offsets[:, 1] - 1, offsets[:, 0])
        owners = np.searchsorted(starts, last, side="right") - 1
        owners[(offsets[:, 0] == 0) & (offsets[:, 1] == 0)] = -1
        owned = np.flatnonzero(owners >= 0)
        answers = np.asarray([span.role == "assistant" for span in spans], dtype=bool)
        crossing = owned[answers[owners[owned]] & (offsets[owned, 0] < starts[owners[owned]])]
        if len(crossing):
            token = self.tokenizer.decode(ids[crossing[:1]])
            raise SightlineError(
                f"sample '{name}': an answer begins inside the token {token!r}, which it shares with template "
                f"'{self.template.name}': generation could not start there. Remove the white space before the answer."
            )
        return ids, owners

    def _see(self, images: Sequence[ImageSource]) -> "Seen":
        """What the tower sees of the row's images, packed; or what it gives for that."""
        if self.features is not None:
            each = [self.features(source) for source in images]
            patches = torch.cat([self.features.none, *(patches for patches, _ in each)])
            return Seen(self.pixels([]), patches, [len(patches) for patches, _ in each], [size for _, size in each])
        loaded = [load_image(source) for source in images]
        cut = [self.cut(blank_like(image) if self.blank_images else image) for image in loaded]
        pixels = self.pixels([view for views in cut for view in views])
        return Seen(pixels, no_patches(), [len(views) for views in cut], [image.size for image in loaded])

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """The views of an image."""
        return self.methods.views.cut(image, self.frame)

    def pixels(self, views: Sequence[Image.Image]) -> Tensor:
        """Views as the tower takes them."""
        if views:
            cut = not isinstance(self.methods.views, OneView)
            fits = cut and all(view.size == (self.frame.side,) * 2 for view in views)  # nothing to resize, or cut off
            skip: dict[str, Any] = {"do_resize": False, "do_center_crop": False} if fits else {}
            return self.image_processor(list(views), return_tensors="pt", **skip)["pixel_values"].float()
        return torch.zeros(0, 3, self.frame.side, self.frame.side)


def has_token(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    """Whether `token` is one token."""
    token_id = tokenizer.convert_tokens_to_ids(token)
    return isinstance(token_id, int) and token_id != tokenizer.unk_token_id


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    token_id = tokenizer.convert_tokens_to_ids(token)
    if not isinstance(token_id, int) or not has_token(tokenizer, token):
        raise SightlineError(f"the tokenizer has no token '{token}'. Assemble the model with Sightline, which adds it.")
    return token_id
