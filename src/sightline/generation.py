"""Ask a model about images. A stock `llava` checkpoint is asked through transformers alone, as any server would."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer

from .checkpoints.model import check_loading, load_model, model_folder, read_config, template_of
from .data.images import to_rgb
from .data.prefix import prefix_text
from .data.templates import IMAGE, get_template, to_jinja
from .errors import SightlineError
from .methods.abilities import Levelled
from .models.hub import found, load_weights, quiet
from .models.processing import SightlineProcessor


class Assistant:
    """A model ready to answer, greedily: the same question gives the same answer, alone or in a batch."""

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
            path: a model folder or a hub id.
            dtype: of its weights; fp32 is exact, bfloat16 takes half the memory.
            template: how questions become text; by default as the checkpoint says.

        Raises:
            SightlineError: if there is no such model or template, its weights do not fit, or it has no chat template.
        """
        path = model_folder(path)
        config = read_config(path)
        self.name = path
        self.prefix = list((config.get("sightline") or {}).get("prefix_tokens") or ())
        """Tokens that an export made of what methods computed, before conversations about images."""
        self.saved_template = template_of(config)
        """The name of the template that the model was trained with last, where it is one of ours."""
        self.template = template or self.saved_template
        """The name of the one that it is asked in."""
        self.levelled: Levelled | None = None
        """The method whose levels can be forced, where the model has one."""
        self.device = torch.device(device)
        self.model: Any
        if config["model_type"] == "sightline":
            self.model = load_model(path, dtype).model
            self.levelled = self.model.model.methods.levelled
        else:
            self.model, info = found(lambda: load_weights(AutoModelForImageTextToText, path, dtype), path)
            check_loading(path, info)
        processor = found(lambda: AutoProcessor.from_pretrained(path, backend="pil"), path)
        self.prompts = Prompts(processor)
        if template is not None:
            self.speak(template)
        if processor.chat_template is None:
            raise SightlineError(f"'{path}' has no chat template, so there is no way to ask it. Save it with one.")
        self.model.to(self.device).eval()
        self.tokenizer = self.prompts.tokenizer

    def speak(self, template: str) -> None:
        """Ask in another template from now on.

        Raises:
            SightlineError: if there is none of that name.
        """
        processor, turns = self.prompts.processor, get_template(template)
        lays_out = isinstance(processor, SightlineProcessor)  # and puts the prefix in itself
        processor.chat_template = to_jinja(
            turns, "" if lays_out else prefix_text(processor.tokenizer, turns, self.prefix)
        )
        processor.template = self.template = template

    @property
    def levels(self) -> range:
        """The levels that can be forced.

        Raises:
            SightlineError: if the model has none.
        """
        if self.levelled is None:
            raise SightlineError(
                f"'{self.name}' has no levels, so none of them can be asked. Ask a model that was trained with "
                "AlignGPT, or leave the level out."
            )
        return range(1, len(self.levelled.vectors_of_levels) + 1)

    def answers(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[str],
        *,
        max_new_tokens: int = 64,
        level: int | None = None,
    ) -> list[str]:
        """An answer for each question about its images; one left-padded batch.

        Args:
            level: one of `levels`, whose vector then stands before the images of every question.

        Raises:
            SightlineError: for a question that holds `<image>`; its images are given beside it. For a level that there
                is not.
        """
        if not questions and not images:
            return []
        found = self._generate(images, questions, max_new_tokens=max_new_tokens, level=level)
        return [text.strip() for text in found]

    def stream(
        self, images: Sequence[Image.Image], question: str, *, max_new_tokens: int = 256, level: int | None = None
    ) -> str:
        """One answer, written to standard output as it comes."""
        streamer = AnswerStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        found = self._generate([images], [question], max_new_tokens=max_new_tokens, level=level, streamer=streamer)
        return found[0].strip()

    @torch.inference_mode()
    def _generate(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[str],
        *,
        max_new_tokens: int,
        level: int | None,
        **options: Any,
    ) -> list[str]:
        marked = next((question for question in questions if IMAGE in question), None)
        if marked is not None:
            raise SightlineError(
                f"the question '{marked}' holds {IMAGE}; its images stand before it. Take {IMAGE} out."
            )
        inputs = {name: value.to(self.device) for name, value in self.prompts.batch(images, questions).items()}
        with quiet(), self._at(level):
            out = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, **options)
        new = out[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)

    def _at(self, level: int | None) -> AbstractContextManager[None]:
        if level is None:
            return nullcontext()
        if level not in self.levels:
            raise SightlineError(
                f"'{self.name}' has no level {level}, so it cannot be asked at it: its levels are 1 to "
                f"{self.levels[-1]}. Choose one of them."
            )
        assert self.levelled is not None, "levels are those of a method"
        return self.levelled.forced(level)


class AnswerStreamer(TextStreamer):
    """Writes an answer as it comes, without the space that its first token carries."""

    begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        super().on_finalized_text(text, stream_end=stream_end)


class Prompts:
    """Prompts through the checkpoint's own processor and chat template."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"

    def batch(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[str],
        before: Sequence[tuple[str, str]] | None = None,
    ) -> dict[str, torch.Tensor]:
        """Inputs of `generate`, left-padded.

        Args:
            before: a question about the images and its answer that come first, for each.
        """
        conversations = []
        for row, (mine, question) in enumerate(zip(images, questions, strict=True)):
            first, *rest = [*(before[row] if before else ()), question]
            shown = [{"type": "image", "image": to_rgb(image)} for image in mine]
            turns = [{"role": "user", "content": [*shown, {"type": "text", "text": first}]}]
            for role, text in zip(("assistant", "user"), rest, strict=False):
                turns.append({"role": role, "content": [{"type": "text", "text": text}]})
            conversations.append(turns)
        return dict(
            self.processor.apply_chat_template(
                conversations,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        )
