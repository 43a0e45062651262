"""AlignGPT: how well images and texts are aligned, as one vector in front of the sequence.

AlignGPT (Zhao et al. 2024, `docs/papers.md`). Pairs of pre-training are ranked by the similarity that a CLIP sees in
them, and cut into N levels; each level has a vector, which stands in a slot before the image and is learned with the
connector (section 3.1). In instruction tuning a gate looks at where the question meets the image, and combines the
vectors of all levels but the last, which is added whole (equations 2, 3).

    stage 1   [BOS] E_level [image] caption
    stage 2   [BOS] H [system] [image] question     H = E_N + sum of alpha_i E_i, i < N
              alpha = softmax(gate(map))            map_p = cos(V_p, u) / temperature, u = mean of the question's words

The slot comes before everything, so H is made of the first question alone: neither an answer nor a later turn moves
it, and a conversation that goes on keeps its cache.
"""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from ..annotate.levels import LevelOf, PairLevels
from ..config import Stage
from ..errors import SightlineError
from ..types import ANSWER, IGNORE, PAD, VISUAL, Batch, Sample, Trace
from .abilities import Levelled
from .base import Annotation, MethodConfig, Needs, Reader, Setting, Sizes, Slot, Tap

LEVEL = "aligngpt/level"
SLOT = "aligngpt/slot"
TOKEN = "<aligngpt>"
GRID = 24
"""The map of dots is pooled to so many a side: CLIP-L/336's, as published, whatever the number of visual tokens."""
HIDDEN = 256
MAX_SCALE = 100.0
MODES = ("both", "local", "global", "average")
PRESETS: dict[str, dict[str, Any]] = {"aligngpt_paper": {"text": "all", "dots": "plain"}}
"""What the public code does and we do not by default. (Its gate also trains at the language model's rate.)"""


class AlignGPTConfig(MethodConfig):
    """Options of AlignGPT."""

    presets = PRESETS
    preset: Literal["aligngpt_paper"] | None = None
    """`aligngpt_paper` sets what was published where our defaults differ; options that are given stay."""
    levels: Annotated[int, Field(ge=2, le=255)] = 8
    """N, the number of levels."""
    mode: str = "both"
    """What fills the slot where rows bring no level: `both`, the gate's mixture and the last level; `local`, the
    mixture; `global`, the last level; `average`, as `both` with equal weights; `fixed:3`."""
    text: Literal["first_turn", "human_turns", "all"] = "first_turn"
    """The words that the gate reads: of the first human turn, of all human turns, or all there are, which in training
    are answers too."""
    dots: Literal["cosine", "plain"] = "cosine"
    """How words and visual tokens are compared; cosines have a learned temperature."""
    gate: Literal["mlp", "linear"] = "mlp"
    """What makes weights of the map: two layers, or one."""
    temperature: Annotated[float, Field(ge=1 / MAX_SCALE)] = 0.07
    """Where that of the cosines begins; it stays at 0.01 or above."""
    encoder: str | None = None
    """The CLIP or SigLIP that scores pairs; by default the model's own tower, as the recipe names it."""
    by: Literal["rank", "width"] = "rank"
    """Levels of equally many pairs, or of equally wide ranges of scores."""
    scope: Literal["all", "source"] = "all"
    """Whether all pairs are ranked together, or those of each file."""
    similarity: str | None = None
    """A file with scores that are there already, or `rows`, a field of the data, instead of `sightline annotate
    --method aligngpt`."""

    @field_validator("mode")
    @classmethod
    def _mode_is_known(cls, mode: str) -> str:
        name, colon, level = mode.partition(":")
        if mode in MODES or (name == "fixed" and colon and level.isascii() and level.isdecimal()):
            return mode
        raise ValueError(f"'{mode}' is no mode; there are {', '.join(MODES)}, and fixed:1, fixed:2, ...")

    @model_validator(mode="after")
    def _the_level_is_there(self) -> "AlignGPTConfig":
        if self.fixed is not None and not 1 <= self.fixed <= self.levels:
            raise ValueError(f"mode {self.mode}: levels are 1 to {self.levels}")
        return self

    @property
    def fixed(self) -> int | None:
        """The level of mode `fixed:k`."""
        return int(self.mode.partition(":")[2]) if self.mode.startswith("fixed:") else None

    @property
    def has_gate(self) -> bool:
        return self.mode in ("both", "local")


class AlignGPT(Levelled):
    """Vectors of levels, and a gate that combines them."""

    name = "aligngpt"
    Config = AlignGPTConfig
    config: AlignGPTConfig

    def __init__(self, config: AlignGPTConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.levels = nn.Embedding(config.levels, sizes.d_llm)
        nn.init.xavier_uniform_(self.levels.weight)
        self.gate = Gate(config) if config.has_gate else None
        self._own = False
        """Whether each row brings its level."""

    @property
    def parts(self) -> tuple[str, ...]:
        return ("levels", "gate") if self.gate is not None else ("levels",)

    @property
    def needs(self) -> Needs:
        return Needs(slots=(Slot(TOKEN, kind=SLOT),), edits=("embeds",))

    def columns(self, stage: Stage) -> tuple[str, ...]:
        return (LEVEL,) if self.brings_levels(stage) else ()

    def brings_levels(self, stage: Stage) -> bool:
        """Whether the slot holds each row's own level: in a stage that trains the levels' vectors and not the gate."""
        both = {self.name, *(f"{self.name}.{part}" for part in ("levels", "gate"))} & set(stage.trainable)
        return both == {f"{self.name}.levels"}

    def begin(self, setting: Setting) -> None:
        self._own = self.brings_levels(setting.stage)
        what = "each row's own level" if self._own else f"mode `{self.config.mode}`"
        setting.say(f"stage {setting.stage.name}: AlignGPT's slot holds {what}")

    def annotation(self, setting: Setting) -> Annotation:
        config, parts = self.config, setting.recipe.model
        encoder = config.encoder or (parts.vision if parts is not None else None)
        if encoder is None and config.similarity is None:
            raise SightlineError(
                "AlignGPT does not know which encoder scores pairs: the model was loaded whole. Name it: "
                "methods.N.encoder=..., or scores that are there: methods.N.similarity=..."
            )
        return LevelAnnotation(
            PairLevels(
                encoder=encoder or "",
                levels=config.levels,
                by=config.by,
                scope=config.scope,
                given=config.similarity,
                setting=setting,
            )
        )

    def constants(self) -> Mapping[str, Tensor] | None:
        vector = self.constant()
        return None if vector is None else {TOKEN: vector.detach().clone()}

    @property
    def choices(self) -> str:
        return f"1 to {self.config.levels}" + (", or average" if self.config.mode != "local" else "")

    def hold(self, choice: str) -> None:
        modes = {str(k): f"fixed:{k}" for k in range(1, self.config.levels + 1)}
        if self.config.mode != "local":  # which never added the last level, as `average` does
            modes["average"] = "average"
        if choice not in modes:
            raise SightlineError(f"AlignGPT has no level '{choice}' to hold. It has {self.choices}.")
        self.config = self.config.model_copy(update={"mode": modes[choice]})

    def edit(self, tap: Tap, x: Tensor, batch: Batch, kept: dict[str, Tensor]) -> Tensor:
        slot = batch.kinds == self.kind_ids[SLOT]
        return torch.where(slot.unsqueeze(-1), self.vectors(x, batch).to(x.dtype).unsqueeze(1), x)

    @property
    def vectors_of_levels(self) -> Float[Tensor, "levels d"]:
        return self.levels.weight

    @property
    def has_gate(self) -> bool:
        return self.gate is not None and self.config.has_gate

    def measures(self, trace: Trace, batch: Batch) -> Mapping[str, Tensor]:
        """Of the gate's weights, where they fill the slot: the entropy in nats and the largest, for each row with
        images."""
        if self.gate is None or self._own or self.level is not None:
            return {}
        alpha = self.weights(trace.embeds, batch)[batch.image_counts > 0]
        return {f"{self.name}/entropy": torch.special.entr(alpha).sum(1), f"{self.name}/weight_max": alpha.amax(1)}

    def vectors(self, embeds: Float[Tensor, "batch seq d"], batch: Batch) -> Float[Tensor, "batch d"]:
        """What fills the slot of each row, also of one without: so every process has all parts in its graph."""
        table = self.levels.weight
        if self._own and self.level is None and LEVEL in batch.columns:  # a prompt brings none
            return self.levels(torch.stack(batch.columns[LEVEL]).to(table.device).clamp(min=1) - 1)
        constant = self.constant()
        if constant is not None:
            return constant.expand(len(batch), -1)
        mixture = self.weights(embeds, batch) @ table[:-1]
        return mixture if self.config.mode == "local" else mixture + table[-1]

    def constant(self) -> Float[Tensor, " d"] | None:
        """What fills all slots alike; None where the gate decides."""
        table, mode = self.levels.weight, self.config.mode
        if self.level is not None:
            return table[self.level - 1]
        if self.config.fixed is not None:
            return table[self.config.fixed - 1]
        if mode == "global":
            return table[-1]
        return table[:-1].mean(0) + table[-1] if mode == "average" else None

    def weights(self, embeds: Float[Tensor, "batch seq d"], batch: Batch) -> Float[Tensor, "batch levels_1"]:
        """alpha, the gate's weights of all levels but the last (equation 2)."""
        assert self.gate is not None, "modes without a gate have no weights"
        words = text_mask(batch, self.config.text, self.kind_ids[SLOT])
        return self.gate(dot_map(embeds, batch, words, self.sizes.tokens, cosine=self.config.dots == "cosine"))


class Gate(nn.Module):
    """Weights of levels from the map of dots."""

    def __init__(self, config: AlignGPTConfig) -> None:
        super().__init__()
        self.log_scale = (
            nn.Parameter(torch.tensor([-math.log(config.temperature)])) if config.dots == "cosine" else None
        )
        width = HIDDEN if config.gate == "mlp" else config.levels - 1
        self.first = nn.Linear(GRID**2, width)
        self.last = nn.Linear(width, config.levels - 1) if config.gate == "mlp" else None

    def forward(self, dots: Float[Tensor, "batch dots"]) -> Float[Tensor, "batch levels_1"]:
        if self.log_scale is not None:
            dots = dots * self.log_scale.exp().clamp(max=MAX_SCALE)
        scores = self.first(dots)
        scores = scores if self.last is None else self.last(F.gelu(scores))
        return scores.float().softmax(dim=-1)


def text_mask(batch: Batch, text: str, slot: int) -> Bool[Tensor, "batch seq"]:
    """The tokens that the gate reads. Of `all`, those before the slot (BOS), what a model has generated, and exchanges
    that a method inserted are not."""
    if text == "all":
        after = (batch.kinds == slot).cumsum(1) > 0
        inside = (batch.kinds != PAD) & (batch.kinds != VISUAL) & (batch.kinds != slot)
        generated = (batch.kinds == ANSWER) & (batch.labels == IGNORE)
        return after & inside & ~generated & ~inserted(batch)
    human = batch.prompt_mask & (batch.attention_mask == 1)
    if text == "human_turns":
        return human
    first = torch.where(human, batch.turn_ids, torch.iinfo(batch.turn_ids.dtype).max).amin(1, keepdim=True)
    return human & (batch.turn_ids == first)


def inserted(batch: Batch) -> Bool[Tensor, "batch seq"]:
    """The tokens of exchanges that a method inserted: their answers are of kinds of their own."""
    answers = (batch.kinds > ANSWER) & (batch.labels != IGNORE)
    return torch.stack([torch.isin(ids, ids[mine]) for ids, mine in zip(batch.turn_ids, answers, strict=True)])


def dot_map(
    embeds: Float[Tensor, "batch seq d"],
    batch: Batch,
    words: Bool[Tensor, "batch seq"],
    tokens: int,
    *,
    cosine: bool,
) -> Float[Tensor, "batch dots"]:
    """Where the mean of a row's words meets its image, on a grid of 24 x 24: the mean over its images, each by the
    tokens of its first view, which shows all of it.

    Args:
        tokens: visual tokens of a view; where they are no square, they are pooled as a line.
    """
    count = words.sum(1, keepdim=True).clamp(min=1)
    mean = (embeds * words.unsqueeze(-1)).sum(1) / count
    places = (batch.kinds == VISUAL).nonzero()
    if bool((batch.visual_counts != tokens).any()):
        places = torch.cat([mine[:tokens] for mine in places.split(batch.visual_counts.tolist())])
    owner = places[:, 0].view(-1, tokens)[:, 0]
    visual = embeds[places[:, 0], places[:, 1]].view(-1, tokens, embeds.shape[-1])
    if cosine:
        visual, mean = F.normalize(visual.float(), dim=-1), F.normalize(mean.float(), dim=-1)
    dots = torch.einsum("vtd,vd->vt", visual, mean[owner])
    views = torch.ones_like(owner).new_zeros(len(batch)).index_add(0, owner, torch.ones_like(owner))
    maps = pooled(dots)
    summed = maps.new_zeros(len(batch), GRID**2).index_add(0, owner, maps)
    return summed / views.clamp(min=1).unsqueeze(1)


def pooled(dots: Float[Tensor, "views tokens"]) -> Float[Tensor, "views dots"]:
    """A map of any size as one of 24 x 24; the same where it is that."""
    side = math.isqrt(dots.shape[1])
    if side**2 != dots.shape[1]:
        return F.adaptive_avg_pool1d(dots.unsqueeze(1), GRID**2).squeeze(1)
    return F.adaptive_avg_pool2d(dots.view(-1, 1, side, side), GRID).flatten(1)


class LevelAnnotation(Annotation):
    """The level of each row of a stage."""

    def __init__(self, pairs: PairLevels) -> None:
        self.pairs = pairs

    def compute(self) -> Path:
        return self.pairs.compute()

    @property
    def facts(self) -> Mapping[str, Any]:
        return self.pairs.facts

    def report(self) -> tuple[str, list[Path]]:
        return self.pairs.report()

    def reader(self) -> Reader:
        return partial(read, self.pairs.open())


def read(level_of: LevelOf, sample: Sample, epoch: int) -> Mapping[str, Int[Tensor, ""]]:
    """The column of a sample."""
    return {LEVEL: torch.tensor(level_of(sample))}
