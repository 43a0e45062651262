"""Any checkpoint that Sightline asks, as a model of lmms-eval. Imported by lmms-eval alone."""

from collections.abc import Sequence
from typing import Any

import torch
from lmms_eval.api.model import lmms  # pyright: ignore[reportMissingImports]
from PIL import Image

from ..data.templates import IMAGE
from ..diagnostics.subject import Subject
from ..errors import SightlineError


class SightlineModel(lmms):
    """A run folder, a model folder or a hub id: `--model sightline --model_args pretrained=runs/mine`."""

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int | str = 1,
        template: str | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.batch_size = int(batch_size)
        self.subject = Subject(pretrained, device=device, dtype=getattr(torch, dtype), template=template)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Greedy answers, cut where the task says."""
        said: list[str] = []
        for start in range(0, len(requests), self.batch_size):
            some = [request.args for request in requests[start : start + self.batch_size]]
            longest = max(int(settings.get("max_new_tokens", 64)) for _, settings, *_ in some)
            images = [self._images(each[2], *each[3:6]) for each in some]
            asked = [_question(each[0]) for each in some]
            given = self.subject.assistant.answers(images, asked, max_new_tokens=longest)
            said += [_cut(text, each[1].get("until", ())) for text, each in zip(given, some, strict=True)]
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The loss of each continuation, as lmms-eval's own LLaVA gives it, and whether it would be said."""
        found = []
        for request in requests:
            context, target, visual, number, task, split = request.args
            text = target if isinstance(target, str) else target(self.task_dict[task][split][number])
            prompt = self.subject.prompted([self._images(visual, number, task, split)], [_question(context)])
            (ids,) = self.subject.answer_ids([text.strip()])
            logits, told, _ = self.subject.told(prompt, [ids])
            loss = torch.nn.functional.cross_entropy(logits[0], told[0])
            found.append((float(loss), bool((logits[0].argmax(-1) == told[0]).all())))
        return found

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Conversations of several turns are not asked.

        Raises:
            SightlineError: always.
        """
        raise SightlineError("Sightline answers one question at a time. Leave out tasks of several rounds.")

    def _images(self, visual: Any, number: int, task: str, split: str) -> list[Image.Image]:
        found = visual(self.task_dict[task][split][number]) if visual is not None else []
        if not all(isinstance(image, Image.Image) for image in found or []):
            raise SightlineError(f"task '{task}' shows something else than images, and Sightline sees images alone.")
        return list(found or [])


def _question(context: str) -> str:
    """The question without markers: images come first."""
    return context.replace(IMAGE, "").strip()


def _cut(text: str, until: Any) -> str:
    for end in [until] if isinstance(until, str) else until or ():
        text = text.split(end)[0] if end else text
    return text
