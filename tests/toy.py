"""A toy method that uses most members of the protocol: columns, a slot, a second view, a turn, edits, losses."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sightline.methods.base import AlignmentMethod, InsertedTurn, LossSpec, MethodConfig, Needs, Sizes, Slot, Views
from sightline.objectives.gather import gather_rows
from sightline.types import IGNORE, Turn


class ToyConfig(MethodConfig):
    strength: float = 1.0
    turns: bool = True


class Turned(Views):
    """An image and the same upside down, as one."""

    def count(self, size, side):
        return 2

    def cut(self, image, frame):
        return [image, image.rotate(180)]

    def tokens(self, size, side, per_view):
        return per_view


class Toy(AlignmentMethod):
    """Merges two views by their mean, fills one slot from a table by a column, asks one more question."""

    name = "toy"
    Config = ToyConfig
    config: ToyConfig

    def __init__(self, config: ToyConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.levels = nn.Embedding(4, sizes.d_llm)
        self.train_only["probe"] = nn.Linear(sizes.d_llm, 1)

    @property
    def needs(self) -> Needs:
        return Needs(
            columns=("toy/level",),
            slots=(Slot("<toy>", kind="toy/slot"),),
            kinds=("toy/answer",),
            views=Turned(),
            edits=("patches", "embeds"),
            reshapes=("patches",),
            losses=(
                LossSpec("toy/norm", count=lambda batch: batch.visual_counts.sum()),
                LossSpec("toy/spread", scope="micro-batch"),
            ),
        )

    def annotate(self, samples, tools: Any):
        return {"toy/level": {sample.id: torch.tensor(len(sample.id) % 4) for sample in samples}}

    def edit(self, tap, x, batch, kept):
        if tap == "patches":
            return x.unflatten(0, (-1, 2)).mean(1)
        slot = batch.kinds == self.kind_ids["toy/slot"]
        if not batch.columns:
            return torch.where(slot.unsqueeze(-1), self.levels.weight.mean(0), x)
        levels = torch.stack(batch.columns["toy/level"]).to(x.device)
        return torch.where(slot.unsqueeze(-1), self.levels(levels).unsqueeze(1), x)

    def losses(self, trace, batch):
        probed = self.train_only["probe"](trace.visual)
        spread = trace.hidden[batch.attention_mask.bool()].std()
        return {"toy/norm": self.config.strength * probed.square().sum(), "toy/spread": spread}

    def measures(self, trace, batch):
        return {"toy/length": trace.visual.norm(dim=1)}

    def turns(self, sample, rng: np.random.Generator, columns):
        if not self.config.turns or not sample.images:
            return []
        question, answer = Turn("user", "how many dots?"), Turn("assistant", str(rng.integers(10)), kind="toy/answer")
        return [InsertedTurn(after=1, question=question, answer=answer)]


class Reshaper(AlignmentMethod):
    """Changes the shape of the patches too, so it cannot stand beside Toy."""

    name = "reshaper"

    @property
    def needs(self) -> Needs:
        return Needs(edits=("patches",), reshapes=("patches",))


class Nudge(AlignmentMethod):
    """Adds a learned vector to every visual token; composes with anything."""

    name = "nudge"

    def __init__(self, config: MethodConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.vector = nn.Parameter(torch.full((sizes.d_llm,), 0.1))

    @property
    def needs(self) -> Needs:
        return Needs(edits=("visual",))

    def edit(self, tap, x, batch, kept):
        return x + self.vector


class Doubler(AlignmentMethod):
    """Doubles every visual token: what it gives depends on whether it comes before or after Nudge."""

    name = "doubler"

    @property
    def needs(self) -> Needs:
        return Needs(edits=("visual",))

    def edit(self, tap, x, batch, kept):
        return 2 * x


class Watcher(AlignmentMethod):
    """Training only: a loss and nothing else, so that its model stays a stock checkpoint."""

    name = "watcher"

    def __init__(self, config: MethodConfig, sizes: Sizes) -> None:
        super().__init__(config, sizes)
        self.train_only["head"] = nn.Linear(sizes.d_llm, 1)

    @property
    def needs(self) -> Needs:
        return Needs(losses=(LossSpec("watcher/answers", count=lambda batch: (batch.labels != IGNORE).sum()),))

    def losses(self, trace, batch):
        supervised = (batch.labels != IGNORE).unsqueeze(-1)
        return {"watcher/answers": (self.train_only["head"](trace.hidden).square() * supervised).sum()}


class Contrast(AlignmentMethod):
    """A loss that couples rows: each row's answer against the prompts of all rows, InfoNCE over all processes."""

    name = "contrast"

    @property
    def needs(self) -> Needs:
        return Needs(losses=(LossSpec("contrast/rows", scope="gathered"),))

    def losses(self, trace, batch):
        answers = _mean(trace.hidden, batch.labels != IGNORE)
        prompts = _mean(trace.embeds, batch.attention_mask.bool() & (batch.labels == IGNORE))
        answers, prompts = gather_rows(answers, batch), gather_rows(prompts, batch)
        scores = F.normalize(answers, dim=-1) @ F.normalize(prompts, dim=-1).T / 0.1
        return {"contrast/rows": F.cross_entropy(scores, torch.arange(len(scores)))}


def _mean(values, mask):
    mask = mask.unsqueeze(-1).to(values.dtype)
    return (values * mask).sum(1) / mask.sum(1)
