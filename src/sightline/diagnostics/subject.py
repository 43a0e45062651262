"""One look into a model, whether it is Sightline's or a stock LLaVA: what it makes of images, and what it does with it.

Everything is in the space of the language model's input embeddings: visual tokens as they are written into their
placeholders, words as the means of their tokens' embeddings. (Where a language model scales its input, as Gemma does,
both are before that scale.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from ..config import Recipe
from ..data.templates import get_template, render
from ..data.view import Sight
from ..data.words import inside_a_sentence
from ..errors import SightlineError
from ..generation import Assistant
from ..methods.abilities import Levelled
from ..methods.base import OneView
from ..models.modeling import SightlineForConditionalGeneration
from ..models.towers import tower_spec
from ..runs import recipe_of
from ..types import Batch, Trace, Turn
from .decoding import greedy, positions
from .material import Case, TokenTruth


@dataclass(frozen=True)
class Prompted:
    """Questions about images, embedded; padded on the left."""

    embeds: Float[Tensor, "batch seq d_llm"]
    attention_mask: Int[Tensor, "batch seq"]
    is_visual: Bool[Tensor, "batch seq"]
    """Where visual tokens stand."""
    input_ids: Int[Tensor, "batch seq"]

    @property
    def is_text(self) -> Bool[Tensor, "batch seq"]:
        """Where tokens of text stand, slots of methods included."""
        return ~self.is_visual & (self.attention_mask == 1)

    def visual_of(self, row: int) -> Float[Tensor, "tokens d_llm"]:
        """The visual tokens of a row."""
        return self.embeds[row][self.is_visual[row]]

    def with_visual(self, visual: Sequence[Float[Tensor, "tokens d_llm"]]) -> "Prompted":
        """The same questions with other visual tokens: one tensor for each row, as long as its own."""
        embeds = self.embeds.clone()
        for row, tokens in enumerate(visual):
            places = self.is_visual[row]
            if int(places.sum()) != len(tokens):
                raise SightlineError(f"row {row} has {int(places.sum())} visual tokens, and {len(tokens)} were given.")
            embeds[row, places] = tokens.to(embeds)
        return Prompted(embeds, self.attention_mask, self.is_visual, self.input_ids)


@dataclass(frozen=True)
class Seen:
    """What the language model makes of a prompt."""

    hidden: Float[Tensor, "layers_and_1 batch seq d_llm"]
    """The input, then the output of every layer; the last one after the final norm."""
    attention: Float[Tensor, "layers batch heads seq seq"] | None


class Subject:
    """A model to look into."""

    def __init__(
        self,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        template: str | None = None,
    ) -> None:
        """
        Args:
            path: a model folder, a run folder, or a hub id.
            template: how questions become text; by default as the checkpoint says.

        Raises:
            SightlineError: if there is no such model, or it is not of LLaVA's kind.
        """
        self.path = path
        self.assistant = Assistant(path, device=device, dtype=dtype, template=template)
        self.model: Any = self.assistant.model
        self.tokenizer: Any = self.assistant.tokenizer
        if not hasattr(self.model.model, "language_model") or not hasattr(self.model.config, "image_token_id"):
            raise SightlineError(
                f"'{path}' is a {type(self.model).__name__}, which puts no visual tokens into a language model's "
                "input, so there is nothing to diagnose. Give a model that Sightline trained, or a stock LLaVA."
            )

    @property
    def device(self) -> torch.device:
        return self.assistant.device

    @cached_property
    def recipe(self) -> Recipe | None:
        """That of the run that the model is of."""
        return recipe_of(self.path)

    @property
    def levelled(self) -> Levelled | None:
        """The method that has levels, where the model has one."""
        return self.assistant.levelled

    @property
    def image_processor(self) -> Any:
        """What makes pixels of images."""
        return self.assistant.prompts.processor.image_processor

    @property
    def sight(self) -> Sight:
        """What the model is first shown of an image."""
        ours = isinstance(self.model, SightlineForConditionalGeneration)
        return Sight(self.image_processor, self.model.model.methods.views if ours else OneView())

    @property
    def beside_grid(self) -> int:
        """Visual tokens of an image that stand before its grid: a class token, registers, if they are taken."""
        config = self.model.config
        own = isinstance(self.model, SightlineForConditionalGeneration)
        taken = config.vision_select if own else config.vision_feature_select_strategy
        return tower_spec(config.vision_config).prefix if taken == "full" else 0

    @property
    def tokens_of_a_view(self) -> int:
        """Visual tokens of an image that is seen as one view."""
        if isinstance(self.model, SightlineForConditionalGeneration):
            return self.model.model.sizes.tokens
        return tower_spec(self.model.config.vision_config).grid ** 2 + self.beside_grid

    def grid(self, visual: Float[Tensor, "tokens d"]) -> Float[Tensor, "grid d"]:
        """An image's tokens, or its patches, without those that stand before its grid."""
        return visual[self.beside_grid :]

    def truth(self, case: Case, image: Image.Image, visual: Float[Tensor, "tokens d"]) -> tuple[TokenTruth, ...]:
        """What each token of an image's grid shows; empty where that is not known, or the model sees but a part."""
        return truth_seen(self.sight, case, image.size, len(self.grid(visual)))

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        ends = self.model.generation_config.eos_token_id
        return [ends] if isinstance(ends, int) else list(ends or [])

    @property
    def never(self) -> list[int]:
        """The tokens that it is kept from saying."""
        return list(self.model.generation_config.suppress_tokens or [])

    @property
    def embedding(self) -> Float[Tensor, "vocabulary d_llm"]:
        """The language model's input embeddings."""
        return self.model.get_input_embeddings().weight.detach()

    @torch.no_grad()
    def prompted(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[str],
        before: Sequence[tuple[str, str]] | None = None,
    ) -> Prompted:
        """Questions about their images as the model embeds them, up to where its answer begins.

        Args:
            before: a question and its answer that come first, for each.
        """
        asked = self.assistant.prompts.batch(images, questions, before)
        inputs = {name: value.to(self.device) for name, value in asked.items()}
        ids, mask = inputs["input_ids"], inputs["attention_mask"]
        is_visual = ids == self.model.config.image_token_id
        if isinstance(self.model, SightlineForConditionalGeneration):
            embeds = self._traced(inputs)[0].embeds
        else:
            embeds = self.model.get_input_embeddings()(ids)
            if is_visual.any():
                states = self.model.model(**inputs, use_cache=False).image_hidden_states
                parts = [states] if isinstance(states, Tensor) else states
                visual = torch.cat([part.reshape(-1, embeds.shape[-1]) for part in parts])
                embeds = embeds.masked_scatter(is_visual.unsqueeze(-1), visual.to(embeds))
        return Prompted(embeds, mask, is_visual, ids)

    @torch.no_grad()
    def gate_weights(
        self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str]
    ) -> Float[Tensor, "batch weighed"]:
        """How the gate of a model with levels weighs them for each question about its images."""
        assert self.levelled is not None and self.levelled.has_gate, "asked of a model with a gate"
        inputs = self.assistant.prompts.batch(images, questions)
        trace, batch = self._traced({name: value.to(self.device) for name, value in inputs.items()})
        return self.levelled.weights(trace.embeds, batch)

    def _traced(self, inputs: Mapping[str, Tensor]) -> tuple[Trace, Batch]:
        """What a model of ours does with prompts, and the batch that they are."""
        batch = self.model.prefill_batch(
            inputs["input_ids"],
            inputs["attention_mask"],
            inputs.get("pixel_values"),
            inputs.get("view_counts"),
            inputs.get("image_sizes"),
            **{name: inputs.get(name) for name in ("kinds", "turn_ids", "prompt_mask")},
        )
        return self.model.model.trace(batch, use_cache=False)[0], batch

    def visual(self, images: Sequence[Image.Image], *, batch_size: int = 32) -> list[Float[Tensor, "tokens d_llm"]]:
        """The visual tokens of each image, in the order in which the language model reads them."""
        found = []
        for start in range(0, len(images), batch_size):
            some = images[start : start + batch_size]
            prompt = self.prompted([[image] for image in some], [" "] * len(some))
            found += [prompt.visual_of(row) for row in range(len(some))]
        return found

    @torch.no_grad()
    def patches(
        self, images: Sequence[Image.Image], *, batch_size: int = 32
    ) -> list[Float[Tensor, "patches d_vision"]] | None:
        """What the tower gives the connector for each image, as the model selects it.

        None where an image has several views, whose patches are no single grid.
        """
        found = []
        for start in range(0, len(images), batch_size):
            some = images[start : start + batch_size]
            inputs = self.assistant.prompts.batch([[image] for image in some], [" "] * len(some))
            pixels = inputs["pixel_values"].to(self.device)
            if pixels.ndim != 4 or len(pixels) != len(some):
                return None
            if isinstance(self.model, SightlineForConditionalGeneration):
                found += self.model.model.encode(pixels)
            else:
                config = self.model.config
                layers = config.vision_feature_layer
                states = self.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
                drop = 1 if config.vision_feature_select_strategy == "default" else 0
                chosen = [states[layer][:, drop:] for layer in ([layers] if isinstance(layers, int) else layers)]
                found += torch.cat(chosen, dim=-1)
        return found

    @torch.no_grad()
    def words(self, words: Sequence[str]) -> Float[Tensor, "words d_llm"]:
        """The embedding of each word: the mean over its tokens, in the form that it has inside a sentence."""
        ids = inside_a_sentence(self.tokenizer, words)
        if empty := [word for word, tokens in zip(words, ids, strict=True) if not tokens]:
            raise SightlineError(f"the tokenizer has no token for {empty[0]!r}. Take it out of the list of words.")
        return torch.stack([self.embedding[torch.tensor(tokens, device=self.device)].mean(0) for tokens in ids])

    @torch.no_grad()
    def see(self, prompt: Prompted, *, attention: bool = False) -> Seen:
        """Hidden states of every layer, and who attends to whom if asked."""
        language = self.model.model.language_model
        before = language.config._attn_implementation
        if attention:
            language.set_attn_implementation("eager")
        try:
            out = language(
                inputs_embeds=prompt.embeds,
                attention_mask=prompt.attention_mask,
                position_ids=positions(prompt.attention_mask),
                output_hidden_states=True,
                output_attentions=attention,
                use_cache=False,
            )
        finally:
            if attention:
                language.set_attn_implementation(before)
        return Seen(torch.stack(out.hidden_states), torch.stack(out.attentions) if attention else None)

    @torch.no_grad()
    def answers(self, prompt: Prompted, *, max_new_tokens: int = 16) -> list[str]:
        """Greedy answers."""
        out = greedy(
            self.model.model.language_model,
            self.model.lm_head,
            self.model.get_input_embeddings(),
            prompt.embeds,
            prompt.attention_mask,
            ends=self.ends,
            never=self.never,
            fill=self.tokenizer.pad_token_id,
            max_new_tokens=max_new_tokens,
        )
        return [text.strip() for text in self.tokenizer.batch_decode(out, skip_special_tokens=True)]

    @torch.no_grad()
    def loss(self, prompt: Prompted, answers: Sequence[str]) -> Float[Tensor, " batch"]:
        """Mean negative log-likelihood of each answer's tokens, in nats."""
        ids = inside_a_sentence(self.tokenizer, answers)
        logits, padded, real = self.told(prompt, ids)
        losses = F.cross_entropy(logits.flatten(0, 1), padded.flatten(), reduction="none").view_as(padded)
        return (losses * real).sum(1) / real.sum(1)

    def answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        """The tokens of answers as they follow a prompt of the model's template, without what ends them."""
        before, *together = self.tokenizer(self._answered(answers))["input_ids"]
        return [ids[len(before) :] for ids in together]

    def answer_places(self, answers: Sequence[str]) -> list[list[tuple[int, int]]]:
        """The characters of its answer that each of those tokens holds, from and to; those before it are below 0."""
        texts = self._answered(answers)
        before, *together = self.tokenizer(texts, return_offsets_mapping=True)["offset_mapping"]
        begins = [len(text) - len(answer) for text, answer in zip(texts[1:], answers, strict=True)]
        own = (places[len(before) :] for places in together)
        return [[(a - begin, b - begin) for a, b in places] for places, begin in zip(own, begins, strict=True)]

    def _answered(self, answers: Sequence[str]) -> list[str]:
        """A prompt of the model's template, and the same with each answer, up to where that ends."""
        if self.assistant.template is None:
            return ["a", *(f"a {answer}" for answer in answers)]
        template, asked = get_template(self.assistant.template), Turn("user", "a")
        prompt, _ = render(template, [asked], "", prompt_only=True)
        return [prompt, *(f"{prompt}{template.answer_lead}{answer}" for answer in answers)]

    @torch.no_grad()
    def told(
        self, prompt: Prompted, ids: Sequence[Sequence[int]]
    ) -> tuple[Float[Tensor, "batch tokens vocabulary"], Int[Tensor, "batch tokens"], Int[Tensor, "batch tokens"]]:
        """What the model expects at each token of an answer, given the tokens before it; those tokens, padded on the
        right; and which are real."""
        longest = max(map(len, ids))
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids], device=self.device)
        real = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=self.device)
        embeds = torch.cat([prompt.embeds, self.model.get_input_embeddings()(padded)], dim=1)
        mask = torch.cat([prompt.attention_mask, real], dim=1)
        hidden = self.model.model.language_model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions(mask), use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(hidden[:, -longest - 1 : -1]).float()
        logits[..., self.never] = float("-inf")
        return logits, padded, real


def truth_seen(sight: Sight, case: Case, size: tuple[int, int], tokens: int) -> tuple[TokenTruth, ...]:
    """What each token of an image's grid shows; empty where that is not known, or the model sees but a part of it.

    Args:
        size: width and height of the image.
        tokens: of the grid.
    """
    return case.truth_of(tokens) if sight.box(size).is_whole(size) else ()
