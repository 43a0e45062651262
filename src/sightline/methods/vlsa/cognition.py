"""VLSA's cognition alignment: the language model says what an image is made of, as part of a conversation about it.

Into conversations about images come exchanges that ask for a window of the image: the codes of a frozen VQ model, and
the colours of a thumbnail, in text. Their tokens are predicted as any answer's are; they are of kinds of their own, so
that they are counted, logged and weighed apart. Nothing of it is left at inference but what the model has learned.

Source: VLSA, section 3.2, equations 5 to 8; deviations in docs/papers.md.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Int
from pydantic import Field, field_validator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ...annotate.codes import CODES, PIXELS, Cells
from ...annotate.images import has_images
from ...annotate.pictures import Picture
from ...config import Stage
from ...data.templates import get_template
from ...data.view import Sight
from ...data.windows import COLOURS, LEVELS, Alphabet, Digits, Marks, Window, tokens_of
from ...errors import SightlineError
from ...models.diffusion import part_config, shrinks_by
from ...types import Sample, Turn
from ..abilities import Task, Tells
from ..base import Annotation, InsertedTurn, MethodConfig, Needs, Setting, Sizes
from .asking import TEMPLATES, asking, exchanges

COLUMNS: dict[Task, str] = {"vq": CODES, "pixels": PIXELS}
WEIGHT = 0.1
"""Of each task's mean beside that of answers, where nothing else is said."""
CHARACTERS, DIGITS = 4, 3
"""Of a token, about."""
ITHQ = "microsoft/vq-diffusion-ithq"
PRESETS: dict[str, dict[str, Any]] = {"vlsa_paper": {"joint": True}}


class CognitionConfig(MethodConfig):
    """Options of cognition alignment."""

    presets = PRESETS
    preset: Literal["vlsa_paper"] | None = None
    """`vlsa_paper` takes one cross-entropy over answers, codes and pixels; options that are given stay."""
    vq: str = ITHQ
    """What makes codes of pixels: a pipeline's hub id, a folder of diffusers, or `world:vq`."""
    resolution: Annotated[int, Field(ge=8, le=4096)] = 128
    """Pixels along the side of the picture that the VQ model sees; with it the number of cells."""
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)] = ("vq", "pixels")
    """What is asked for."""
    window: Annotated[int, Field(ge=1)] = 8
    """Cells along the side of a window: half of all is a quarter of the image, as in the paper."""
    probability: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Of a row with images to be asked, in an epoch."""
    codes: Literal["text", "tokens"] = "text"
    """Codes as digits, or as tokens `<vq_0>`, `<vq_1>`, ... that are added to the tokenizer."""
    digits: Annotated[int, Field(ge=1, le=12)] = 6
    """Digits of a code in text. Tokenizers that take three at a time make two tokens of six."""
    joint: bool = False
    """One cross-entropy over all tokens, as in the paper. Else each task is a mean of its own, at the weight that the
    stage gives `vq` and `pixels`, 0.1 by default."""
    templates: Literal[1] = 1
    """The version of the questions' words."""

    @field_validator("tasks")
    @classmethod
    def _each_task_once(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"{', '.join(tasks)}: a task is named twice, and would count twice")
        return tasks


class Cognition(Tells):
    """Exchanges about what an image is made of."""

    name = "cognition"
    Config = CognitionConfig
    config: CognitionConfig

    def __init__(self, config: CognitionConfig, sizes: Sizes) -> None:
        """
        Raises:
            SightlineError: if the VQ model's sizes cannot be read, or do not fit the resolution, window or digits.
        """
        super().__init__(config, sizes)
        vq = part_config(config.vq, "vqvae")
        shrinks, self.codes = shrinks_by(vq), int(vq["num_vq_embeddings"])
        if config.resolution % shrinks:
            raise SightlineError(
                f"resolution={config.resolution} is no multiple of {shrinks}, the pixels along a code of "
                f"'{config.vq}'. Use {max(1, config.resolution // shrinks) * shrinks}."
            )
        self.grid = config.resolution // shrinks
        if config.window > self.grid:
            raise SightlineError(
                f"window={config.window} is more than the {self.grid} cells along an image at "
                f"resolution={config.resolution}. Use {self.grid} or less."
            )
        if self.codes > 2**16:
            raise SightlineError(
                f"'{config.vq}' has {self.codes:,} codes, and they are stored in 16 bits. Use another."
            )
        if "vq" in config.tasks and config.codes == "text" and self.codes > 10**config.digits:
            raise SightlineError(
                f"digits={config.digits} cannot tell the {self.codes:,} codes of '{config.vq}'. Use "
                f"{len(str(self.codes - 1))} or more."
            )

    @property
    def needs(self) -> Needs:
        tasks, codes = self.config.tasks, self.alphabets.get("vq")
        return Needs(
            kinds=tasks,
            tokens=codes.tokens if isinstance(codes, Marks) else (),
            weights={} if self.config.joint else dict.fromkeys(tasks, WEIGHT),
        )

    @property
    def tasks(self) -> tuple[Task, ...]:
        return self.config.tasks

    @property
    def vq(self) -> str:
        return self.config.vq

    @property
    def window(self) -> int:
        return self.config.window

    @cached_property
    def alphabets(self) -> Mapping[Task, Alphabet]:
        """How each task's values are told."""
        if "vq" not in self.tasks:
            return {"pixels": COLOURS}
        codes = Marks(self.codes) if self.config.codes == "tokens" else Digits(self.config.digits, self.codes)
        return {"vq": codes, "pixels": COLOURS}

    def asked(self, stage: Stage) -> list[Task]:
        """The tasks of a stage: those that it weighs, and where it says nothing of them, all if it trains the language
        model."""
        trains = any(part.partition(".")[0] == "language" for part in stage.trainable)
        return [task for task in self.config.tasks if self.config.probability and stage.weights.get(task, trains)]

    def columns(self, stage: Stage) -> tuple[str, ...]:
        return tuple(COLUMNS[task] for task in self.asked(stage))

    def begin(self, setting: Setting) -> None:
        asked, stage = self.asked(setting.stage), setting.stage
        stages, tasks = setting.recipe.stages, set(self.config.tasks)
        if self.config.probability and not any(self.asked(each) or tasks & set(each.weights) for each in stages):
            raise SightlineError(
                "method 'cognition' asks in no stage, so it would train nothing: all leave the language model as it "
                "is. Train it in one, or name a task in a stage: stages.0.weights={vq: 0.1}; 0 leaves it out."
            )
        if "vq" in asked and self.config.codes == "tokens" and (stage.lora or "language" not in stage.trainable):
            raise SightlineError(
                f"stage '{stage.name}' asks for codes as new tokens, and leaves the language model's embeddings as "
                "they are, so it could never say them. Train the whole language model, or say codes=text."
            )
        mute = [data for data in stage.data if not get_template(data.template).user_text]
        if asked and mute:
            raise SightlineError(
                f"stage '{stage.name}' asks what images are made of, and template '{mute[0].template}' of "
                f"{mute[0].path} leaves questions out, so nothing would say which window is meant. Use another "
                f"template, or leave the stage out: weights={{{', '.join(f'{task}: 0' for task in asked)}}}"
            )
        if asked and not has_images(setting.sources):
            setting.say(f"cognition: stage '{stage.name}' has no images, so nothing is asked in it")
        elif asked:
            costs = self.costs(setting.assembly.tokenizer, asked)
            setting.say(f"cognition: {self.told(costs)}")
            if (total := sum(costs.values())) >= setting.recipe.max_length:
                raise SightlineError(
                    f"no row could take what is asked of it: {self.told(costs)}, {total:,} in all, and max_length is "
                    f"{setting.recipe.max_length:,}. Ask for a smaller window, or for one task, or allow longer rows."
                )

    def annotation(self, setting: Setting) -> Annotation:
        picture = self.picture(setting.assembly.sight, blank=setting.recipe.blank_images)
        return Cells(setting, picture, self.config.vq, self.grid, self.columns(setting.stage))

    def picture(self, sight: Sight, *, blank: bool = False) -> Picture:
        """What of an image is laid out in cells."""
        return Picture(sight, self.config.resolution, blank=blank)

    def added_tokens(self, stage: Stage) -> float:
        """As tokenizers that take three digits at a time have it: others, a digit at a time, need three times more."""
        window, asked = Window(0, 0, self.config.window), self.asked(stage)
        questions = sum(len(self.question(task, window)) / CHARACTERS for task in asked)
        answers = {"vq": 1.0 if self.config.codes == "tokens" else self.config.digits / DIGITS, "pixels": 1.0}
        return self.config.probability * (questions + sum(answers[task] * self.values(task) for task in asked))

    def turns(self, sample: Sample, rng: np.random.Generator, columns: Mapping[str, Tensor]) -> list[InsertedTurn]:
        """An exchange for each task whose column is there, each at a boundary of its own after the image, about one
        window. Those at the same boundary stand in a random order: else which is meant could be told by its place, and
        the question need not be read. Rows without images have none."""
        tasks: list[Task] = [task for task in self.config.tasks if COLUMNS[task] in columns]
        if not sample.images or not tasks or rng.random() >= self.config.probability:
            return []
        number = int(rng.integers(len(sample.images)))
        window = Window.draw(self.grid, self.config.window, rng)
        first, last = exchanges(sample, number)
        if first > last:  # shown nowhere: the processor says so
            return []
        image = "the image" if len(sample.images) == 1 else f"image {number + 1} of {len(sample.images)}"
        return [
            InsertedTurn(
                int(rng.integers(first, last + 1)),
                Turn("user", asking(rng.choice(TEMPLATES[self.config.templates][task]), window, self.grid, image)),
                Turn("assistant", self.write(task, window.of(columns[COLUMNS[task]][number]).flatten().tolist()), task),
            )
            for task in (tasks[place] for place in rng.permutation(len(tasks)))
        ]

    def question(self, task: Task, window: Window) -> str:
        return asking(TEMPLATES[self.config.templates][task][0], window, self.grid)

    def write(self, task: Task, values: Sequence[int]) -> str:
        return self.alphabets[task].write(values)

    def read(self, task: Task, text: str) -> Int[Tensor, " values"]:
        return self.alphabets[task].read(text, self.values(task))

    def values(self, task: Task) -> int:
        """How many numbers tell a window."""
        return self.config.window**2 * (3 if task == "pixels" else 1)

    def costs(self, tokenizer: PreTrainedTokenizerBase, tasks: list[Task]) -> dict[Task, int]:
        """What a window costs in tokens, its question apart."""
        most: dict[Task, int] = {"vq": self.codes, "pixels": LEVELS}
        return {task: tokens_of(tokenizer, self.alphabets[task], most[task], self.values(task)) for task in tasks}

    def told(self, costs: Mapping[Task, int]) -> str:
        """That in words."""
        counts = {task: self.values(task) for task in costs}
        each = [
            f"{task} {n} tokens ({n / counts[task]:.3g} for each of {counts[task]} values)" for task, n in costs.items()
        ]
        return f"a window of {self.config.window} x {self.config.window} cells costs {', '.join(each)}"
