"""SEA: every visual token supervised by words, in the language model's own embedding space.

Supervised Embedding Alignment (Yin et al. 2024, `docs/papers.md`). Each patch has labels: the words that an image-text
encoder finds nearest to it, with their cosines (equations 4 to 6, `annotate/patchwords.py`). In a step one patch is
drawn from each window of patches and one label of it, in proportion to its score (equation 7); of the patches of a
batch that drew the same word one is kept. What the connector made of the patch is then to be found by the word's
embedding among those of all other words, and the other way round (equations 8, 9).

    labels -> draw (annotate/drawing.py) -> one_per_word -> symmetric_info_nce(visual, words)

It adds nothing to the model: what is exported, and every logit, is the same without it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from ..annotate.drawing import Drawing, FromLabels, How, windows
from ..annotate.given import GivenLabels, given_labels_facts
from ..annotate.labels import NO_PLACE, Drawn
from ..annotate.live import LiveLabels
from ..annotate.patchwords import PatchWords
from ..annotate.report import measure_labels, write_report
from ..data.words import inside_a_sentence, word_list
from ..errors import SightlineError
from ..models.joint import Extractor
from ..objectives.contrastive import symmetric_info_nce
from ..objectives.gather import gather_rows
from ..types import Batch, Sample, Trace
from .base import AlignmentMethod, Annotation, LossSpec, MethodConfig, Needs, Reader, Setting, Sizes

DRAWN = "sea/drawn"
LOSS = "sea/contrastive"
ENCODER, LIVE = "encoder", "live"
PRESETS: dict[str, dict[str, Any]] = {"sea_paper": {"sign": -1, "temperature": 1.0}}
"""What the paper has and we do not by default: the cosine negated whatever the encoder; the temperature begins at 1,
the only executable reading of its `tau = 0` beside `learnable`."""


class SEAConfig(MethodConfig):
    """Options of SEA."""

    presets = PRESETS
    preset: Literal["sea_paper"] | None = None
    """`sea_paper` sets what the paper says where our defaults differ; options that are given stay."""
    labels: str = ENCODER
    """`encoder`: what `sightline annotate --method sea` stores. `live`: made in each step, nothing stored. Or a .jsonl
    file with the words of every patch, or a folder of them (the small world's `truth`)."""
    encoder: str | None = None
    """The CLIP or SigLIP that labels patches; by default the model's own tower, as the recipe names it."""
    extractor: Extractor = "last"
    """Patch features: `last` layer, `value` path of the last layer (MaskCLIP), or `surgery` (v-v attention)."""
    sign: Literal["auto", 1, -1] = "auto"
    """Of the cosine; `auto` takes the one that finds more of the captions' words, and says so."""
    words: str = "english"
    """The words to choose from: `english` (40,000), or a file with a word on each line."""
    templates: tuple[str, ...] = ("{}",)
    """Sentences around a word for the encoder's text side; their features are averaged."""
    top: Annotated[int, Field(ge=1)] = 10
    """Labels of a patch, at most; those with scores of 0 or less are dropped."""
    window: Annotated[int, Field(ge=1, le=16)] = 2
    """One patch is drawn from each square of so many a side; 16 at most, whose places a byte can name."""
    partial_windows: bool = True
    """Whether windows that reach beyond the grid (27 is odd) count."""
    sharpen: Annotated[float, Field(gt=0)] = 1.0
    """A label is drawn in proportion to its score to this power; the paper has 1."""
    temperature: Annotated[float, Field(gt=0)] = 0.07
    """Where the temperature of the loss begins; it is learned where the stage trains `sea`."""
    max_scale: Annotated[float, Field(gt=0)] = 100.0
    """Largest 1/temperature."""
    scope: Literal["micro-batch", "gathered"] = "micro-batch"
    """Whether patches are contrasted within one forward pass of a process, or among those of all processes."""
    drawn_epochs: Annotated[int, Field(ge=1)] | None = None
    """Store only what is drawn in so many epochs: 0.5 kB for an image and epoch instead of 17 kB, but one seed."""
    control: Literal["none", "shuffled"] = "none"
    """`shuffled` takes the labels of another image, its patches in a random order: a floor to compare with."""

    @model_validator(mode="before")
    @classmethod
    def _preset_fits(cls, values: Any) -> Any:
        chosen = isinstance(values, dict) and (values.get("preset") or "") in PRESETS
        if chosen and values.get("extractor", "last") != "last" and "sign" not in values:
            raise ValueError(
                "preset: sea_paper negates what the last layer gives, and extractor is another. Say the sign, too: 1, "
                "-1 or auto"
            )
        return values

    @model_validator(mode="after")
    def _options_agree(self) -> "SEAConfig":
        if self.control == "shuffled" and (self.drawn_epochs is not None or self.labels == LIVE):
            raise ValueError("control: shuffled draws from all labels of other images; leave drawn_epochs and live out")
        if self.drawn_epochs is not None and self.labels != ENCODER:
            raise ValueError(f"drawn_epochs stores what is drawn of an encoder's labels, and labels: {self.labels}")
        if self.drawn_epochs is not None and self.window**2 > NO_PLACE:
            raise ValueError(f"drawn_epochs numbers {NO_PLACE} places of a window; take a window of 15 or less")
        return self


class SEA(AlignmentMethod):
    """Supervision of visual tokens by words, in training alone."""

    name = "sea"
    Config = SEAConfig
    config: SEAConfig

    def __init__(self, config: SEAConfig, sizes: Sizes) -> None:
        """
        Raises:
            SightlineError: if the connector's tokens are no square grid, or no window fits into it.
        """
        super().__init__(config, sizes)
        self.grid = math.isqrt(sizes.tokens)
        if self.grid**2 != sizes.tokens:
            raise SightlineError(
                f"SEA labels a square grid of visual tokens, and the connector gives {sizes.tokens} for a view. "
                "Say model.vision_select=patch."
            )
        windows(self.grid, config.window, config.partial_windows)
        self.train_only["temperature"] = Temperature(config.temperature, config.max_scale)
        self._word_tokens = torch.zeros(0, 0, dtype=torch.long)
        self._embed: Sequence[Callable[[Tensor], Tensor]] = ()
        """The language model's input embeddings, in a tuple so that they do not become a submodule."""
        self._live: LiveLabels | None = None

    @property
    def needs(self) -> Needs:
        live = self.config.labels == LIVE
        return Needs(
            losses=(LossSpec(LOSS, scope=self.config.scope, columns=() if live else (DRAWN,)),),
            pixels=live,
            tower_states=self._live.layers if self._live is not None else (),
        )

    def annotation(self, setting: Setting) -> Annotation:
        return SEAAnnotation(self.patch_words(setting), self.config)

    def patch_words(self, setting: Setting) -> PatchWords:
        """How patches get their words."""
        config, parts = self.config, setting.recipe.model
        encoder = config.encoder or (parts.vision if parts is not None else "")
        if not encoder and config.labels in (ENCODER, LIVE):
            raise SightlineError("SEA does not know which encoder labels patches: the model was loaded whole. Name it.")
        how = How(self.grid, setting.recipe.seed, config.window, config.partial_windows, config.sharpen)
        return PatchWords(
            encoder=encoder,
            extractor=config.extractor,
            sign=config.sign,
            words=config.words,
            templates=config.templates,
            top=config.top,
            setting=setting,
            how=how,
            drawn_epochs=config.drawn_epochs,
        )

    def begin(self, setting: Setting) -> None:
        """Take hold of the language model's embeddings, and what each word is in its tokens."""
        if not setting.stage.weights.get(LOSS):
            self._live = None
            return
        words = word_list(self.config.words)
        ids = inside_a_sentence(setting.assembly.tokenizer, words)
        longest = max(map(len, ids))
        self._word_tokens = torch.tensor([[*row, *[-1] * (longest - len(row))] for row in ids])
        self._embed = (setting.assembly.model.get_input_embeddings(),)
        if self.config.labels == LIVE:
            words = self._checked_live(setting)
            self._live = self._live or LiveLabels(words)

    def _checked_live(self, setting: Setting) -> PatchWords:
        words = self.patch_words(setting)
        if not words.is_own or setting.assembly.model.config.vision_scales is not None:
            raise SightlineError(
                "labels: live come from what the model's own tower computes at its own size, and the encoder is "
                "another, or the tower has several scales. Store them: labels=encoder, then sightline annotate"
            )
        stages = setting.recipe.lineage(setting.number)
        if (trains := next((stage.name for stage in stages if "vision" in stage.trainable), None)) is not None:
            raise SightlineError(
                f"stage '{trains}' trains the tower, and labels: live would change with it. Store them: "
                "labels=encoder, then sightline annotate"
            )
        return words

    def losses(self, trace: Trace, batch: Batch) -> Mapping[str, Tensor]:
        drawn = drawn_of(batch) if self._live is None else self.live(trace, batch)
        x, words, priority = trace.visual[drawn[:, 0]], drawn[:, 1], drawn[:, 2]
        if self.config.scope == "gathered":
            x, words, priority = (gather_rows(rows, batch) for rows in (x, words, priority))
        kept = one_per_word(words, priority)
        scale = self.train_only["temperature"]()
        return {LOSS: symmetric_info_nce(x[kept], self.text(words[kept]), scale)}

    def live(self, trace: Trace, batch: Batch) -> Int[Tensor, "drawn 3"]:
        """What is drawn of labels made now: otherwise in each step of training, by its seed; always alike without
        gradients."""
        assert self._live is not None, "begin() makes it"
        epoch = torch.initial_seed() % 2**31 if torch.is_grad_enabled() else 0
        return in_batch(self._live.drawn(trace.tower_states, batch, epoch=epoch), batch)

    @torch.no_grad()
    def text(self, words: Int[Tensor, " words"]) -> Float[Tensor, "words d_llm"]:
        """The text feature of each word: the mean of its tokens' input embeddings (equation 8). Nothing flows back to
        them."""
        tokens = self._word_tokens.to(words.device)[words]
        there = tokens >= 0
        (embed,) = self._embed
        embedded = embed(tokens.clamp(min=0))
        return (embedded * there.unsqueeze(-1)).sum(1) / there.sum(1, keepdim=True).clamp(min=1)


class Temperature(nn.Module):
    """1/temperature, learned as its logarithm; it serves the loss alone."""

    def __init__(self, temperature: float, max_scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([-math.log(temperature)]))  # FSDP takes no scalars
        self.max_scale = max_scale

    def forward(self) -> Float[Tensor, ""]:
        return self.log_scale.exp().clamp(max=self.max_scale).squeeze(0)


class SEAAnnotation(Annotation):
    """Labels of the patches of a stage's images, and what is drawn of them in each epoch."""

    def __init__(self, words: PatchWords, config: SEAConfig) -> None:
        self.words, self.config = words, config

    def compute(self) -> Path:
        if self.config.labels != ENCODER:
            raise SightlineError(
                f"the labels are given (labels: {self.config.labels}), so there is nothing to compute. Train."
            )
        return self.words.compute()

    @property
    def facts(self) -> Mapping[str, Any]:
        if self.config.labels != ENCODER:
            return given_labels_facts(Path(self.config.labels).expanduser())
        return self.words.facts | self.words.settled_sign()

    def report(self) -> tuple[str, list[Path]]:
        found = measure_labels(self.words.folder)
        return found.told(), write_report(found, self.words.folder)

    def reader(self) -> Reader:
        how, shuffled = self.words.how, self.config.control == "shuffled"
        if self.config.labels != ENCODER:
            path = Path(self.config.labels).expanduser()
            labels: Any = GivenLabels(path, self.words.vocabulary, tokens=how.grid**2)
        else:
            labels = self.words.open()
        drawn = labels if isinstance(labels, Drawn) else FromLabels(how, partial(labels, shuffled=shuffled))
        return partial(read, Drawing(how, drawn))


def read(drawing: Drawing, sample: Sample, epoch: int) -> dict[str, Tensor]:
    """The column of a sample in an epoch."""
    return {DRAWN: drawing(sample, epoch)}


def drawn_of(batch: Batch) -> Int[Tensor, "drawn 3"]:
    """What was drawn for a batch: rows of (place among all its visual tokens, word, priority)."""
    first_image = (batch.image_counts.cumsum(0) - batch.image_counts).tolist()
    rows = zip(first_image, batch.columns[DRAWN], strict=True)
    return in_batch(torch.cat([drawn + drawn.new_tensor([first, 0, 0, 0]) for first, drawn in rows]), batch)


def in_batch(drawn: Int[Tensor, "drawn 4"], batch: Batch) -> Int[Tensor, "drawn 3"]:
    """Rows of (image of the batch, place in its grid, ...) with the place among all visual tokens instead."""
    starts = batch.visual_counts.cumsum(0) - batch.visual_counts
    return torch.cat([(starts[drawn[:, 0]] + drawn[:, 1]).unsqueeze(1), drawn[:, 2:]], dim=1)


def one_per_word(words: Int[Tensor, " drawn"], priority: Int[Tensor, " drawn"]) -> Int[Tensor, " kept"]:
    """Which rows to keep so that each word occurs once: the one of highest priority, in the order given."""
    by_priority = torch.argsort(priority, descending=True, stable=True)
    by_word = by_priority[torch.argsort(words[by_priority], stable=True)]
    sorted_words = words[by_word]
    first = torch.ones_like(sorted_words, dtype=torch.bool)
    first[1:] = sorted_words[1:] != sorted_words[:-1]
    return by_word[first].sort().values
