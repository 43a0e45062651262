"""Ask a model about images. A stock `llava` checkpoint is asked through transformers alone, as any server would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, TextStreamer

from .checkpoints.model import check_loading, load_model, model_folder, read_config
from .data.collate import collate
from .data.images import to_rgb
from .data.prefix import prefix_text
from .data.templates import IMAGE, get_template, to_jinja
from .errors import SightlineError
from .models.hub import found, load_weights, quiet
from .types import Turn


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
        self.template: str | None = template or config.get("sightline", {}).get("template")
        """The name of the template, where it is one of ours."""
        self.device = torch.device(device)
        self.model: Any
        self.prompts: StockPrompts | OwnPrompts
        if config["model_type"] == "sightline":
            assembly = load_model(path, dtype)
            self.model = assembly.model
            self.prompts = OwnPrompts(assembly.processor(get_template(str(self.template)), max_length=10**9))
        else:
            self.model, info = found(lambda: load_weights(AutoModelForImageTextToText, path, dtype), path)
            check_loading(path, info)
            processor = found(lambda: AutoProcessor.from_pretrained(path, backend="pil"), path)
            if template is not None:
                turns, prefix = get_template(template), list(config.get("sightline", {}).get("prefix_tokens", ()))
                processor.chat_template = to_jinja(turns, prefix_text(processor.tokenizer, turns, prefix))
            if processor.chat_template is None:
                raise SightlineError(f"'{path}' has no chat template, so there is no way to ask it. Save it with one.")
            self.prompts = StockPrompts(processor)
        self.model.to(self.device).eval()
        self.tokenizer = self.prompts.tokenizer

    def answers(
        self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str], *, max_new_tokens: int = 64
    ) -> list[str]:
        """An answer for each question about its images; one left-padded batch.

        Raises:
            SightlineError: for a question that holds `<image>`; its images are given beside it.
        """
        return [text.strip() for text in self._generate(images, questions, max_new_tokens=max_new_tokens)]

    def stream(self, images: Sequence[Image.Image], question: str, *, max_new_tokens: int = 256) -> str:
        """One answer, written to standard output as it comes."""
        streamer = AnswerStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        return self._generate([images], [question], max_new_tokens=max_new_tokens, streamer=streamer)[0].strip()

    @torch.inference_mode()
    def _generate(
        self,
        images: Sequence[Sequence[Image.Image]],
        questions: Sequence[str],
        *,
        max_new_tokens: int,
        **options: Any,
    ) -> list[str]:
        marked = next((question for question in questions if IMAGE in question), None)
        if marked is not None:
            raise SightlineError(
                f"the question '{marked}' holds {IMAGE}; its images stand before it. Take {IMAGE} out."
            )
        inputs = {name: value.to(self.device) for name, value in self.prompts.batch(images, questions).items()}
        with quiet():
            out = self.model.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens, **options)
        new = out[:, inputs["input_ids"].shape[1] :]
        return self.tokenizer.batch_decode(new, skip_special_tokens=True)


class AnswerStreamer(TextStreamer):
    """Writes an answer as it comes, without the space that its first token carries."""

    begun = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = text if self.begun else text.lstrip()
        self.begun = self.begun or bool(text)
        super().on_finalized_text(text, stream_end=stream_end)


class StockPrompts:
    """Prompts through the checkpoint's own processor and chat template."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"

    def batch(self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Inputs of `generate`, left-padded."""
        conversations = [
            [
                {
                    "role": "user",
                    "content": [
                        *({"type": "image", "image": to_rgb(image)} for image in mine),
                        {"type": "text", "text": question},
                    ],
                }
            ]
            for mine, question in zip(images, questions, strict=True)
        ]
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


class OwnPrompts:
    """Prompts through Sightline's processor, for models that stock LLaVA cannot express."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer

    def batch(self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Inputs of `generate`, left-padded."""
        examples = [
            self.processor.prompt(mine, [Turn("user", f"{IMAGE}\n" * len(mine) + question)])
            for mine, question in zip(images, questions, strict=True)
        ]
        batch = collate(examples, pad_id=self.tokenizer.pad_token_id, side="left")
        given = ("input_ids", "attention_mask", "kinds", "turn_ids", "prompt_mask", "view_counts")
        inputs = {name: getattr(batch, name) for name in given}
        return inputs | ({"pixel_values": batch.pixel_values} if batch.num_images else {})
