"""What a step minimises: the language loss by kinds of tokens, and the losses of the methods, with their weights.

Losses are sums with counts. The counts of a whole optimizer step are known before its first forward pass, so each
micro-batch adds its share of the true mean: accumulating 4 x 8 rows gives the gradient of 1 x 32. Losses that couple
rows are means over their scope, averaged over the micro-batches of the step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import SightlineError, did_you_mean
from ..models.modeling import SightlineForConditionalGeneration
from ..objectives.language import language_sums, rows_right, supervised_counts
from ..types import Batch

LANGUAGE = "language"
"""The name, in a recipe's weights, of the mean over all kinds of tokens that have no weight of their own."""
RIGHT, ASKED = "rows right", "rows asked"
"""Of a batch that is graded: rows all of whose supervised tokens are the likeliest, and rows that have some."""


@dataclass(frozen=True)
class Term:
    """One mean in the total: which sums it pools, and its weight."""

    name: str
    pools: tuple[str, ...]
    weight: float
    final: float
    """Its weight at the end of a stage."""

    def at(self, progress: float) -> float:
        """Its weight after that share of the stage."""
        return self.weight + progress * (self.final - self.weight)


class Objective(nn.Module):
    """The model with its losses: the one module that a step calls, so that an engine can wrap it."""

    def __init__(
        self,
        model: SightlineForConditionalGeneration,
        weights: Mapping[str, float],
        *,
        final_weights: Mapping[str, float] | None = None,
        packing: bool = False,
    ) -> None:
        """
        Args:
            weights: by name of a loss: `language` and kinds of tokens, which weigh 1 where neither they are named nor
                a method says otherwise, and losses of methods, which count where they are named.
            final_weights: what some of them are once `progress` is 1.
            packing: run the language model on rows packed side by side; the losses are the same.

        Raises:
            SightlineError: for a name that no loss has.
        """
        super().__init__()
        self.model = model
        self.packing = packing
        methods = model.model.methods
        kinds = ["answer", *(kind for method in methods.all for kind in method.needs.kinds)]
        self.kinds = {kind: methods.kinds.index(kind) for kind in kinds}
        specs = {spec.name: spec for spec in methods.loss_specs}
        known = [LANGUAGE, *kinds, *specs]
        for name in weights:
            if name not in known:
                raise SightlineError(
                    f"weights name a loss '{name}' that nothing gives{did_you_mean(name, known) or '.'} "
                    f"Known: {', '.join(known)}."
                )
        given = {LANGUAGE: 1.0} | dict.fromkeys(specs, 0.0) | methods.weights | dict(weights)
        pooled = tuple(kind for kind in kinds if kind not in given)
        final = given | dict(final_weights or {})
        pools = {LANGUAGE: pooled} | {name: (name,) for name in given if name != LANGUAGE}
        terms = [Term(name, parts, given[name], final[name]) for name, parts in pools.items() if parts]
        self.terms = tuple(term for term in terms if term.weight != 0)
        if not self.terms:
            raise SightlineError(
                "every loss has weight 0, so nothing would train. Give one of `weights` another value."
            )
        self.gathered = frozenset(name for name, spec in specs.items() if spec.scope == "gathered")
        self.of_rank = frozenset(name for name, spec in specs.items() if spec.scope == "rank")
        self.additive = {name: spec for name, spec in specs.items() if spec.scope == "additive"}
        self.method_losses = frozenset(term.name for term in self.terms) & frozenset(specs)
        self.progress = 0.0
        """The share of the stage that is done, for weights that change over it."""
        self.watched = False
        """Whether forward passes keep their visual tokens in `visual`."""
        self.visual: Tensor | None = None
        self.measuring = False
        """Whether forward passes keep in `measured` what methods log beside their losses."""
        self.measured: Mapping[str, Tensor] = {}

    def check_passes(self, passes: int, stage: str) -> None:
        """That losses over all rows that a process has in a step get them in one forward pass.

        Args:
            passes: forward passes of a process in a step.

        Raises:
            SightlineError: if there are more, naming the loss.
        """
        if passes > 1 and (coupled := self.of_rank & {term.name for term in self.terms}):
            raise SightlineError(
                f"stage '{stage}': loss '{min(coupled)}' is over all rows that a process has in a step, and "
                f"accumulate gives it {passes} forward passes to see them in. Use a larger batch_size and a smaller "
                "accumulate."
            )

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Over how many tokens or parts each additive loss of this batch is a sum; 1 for each coupled loss.

        A batch that does not count has none, but takes its part in losses that are gathered from all processes.
        """
        by_kind = supervised_counts(batch.labels, batch.kinds, list(self.kinds.values()))
        counts = {name: by_kind[kind] for name, kind in self.kinds.items()}
        for name in self.method_losses:
            spec = self.additive.get(name)
            counts[name] = torch.ones(()) if spec is None or spec.count is None else spec.count(batch)
        return counts if batch.counted else self._uncounted(counts)

    def forward(self, batch: Batch, *, grade: bool = False) -> dict[str, Tensor]:
        """The sums (means for coupled losses) of this batch, by name; with `grade` also `RIGHT` and `ASKED`."""
        trace, _ = self.model.model.trace(batch, packing=self.packing, use_cache=False)
        by_kind = language_sums(trace.hidden, self.model.lm_head, batch.labels, batch.kinds, list(self.kinds.values()))
        self.visual = trace.visual if self.watched else None
        sums = {name: by_kind[kind] for name, kind in self.kinds.items()}
        sums |= self.model.model.methods.losses(trace, batch, self.method_losses)
        if grade:
            right, asked = rows_right(trace.hidden, self.model.lm_head, batch.labels)
            sums |= {RIGHT: right, ASKED: asked}
        if self.measuring:  # last: under autocast, a weight that is first used without gradients would stay without
            measured = self.model.model.methods.measures(trace, batch)
            self.measured = measured if batch.counted else {name: values[:0] for name, values in measured.items()}
        return sums if batch.counted else self._uncounted(sums)

    def _uncounted(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: value if name in self.gathered else value * 0 for name, value in values.items()}

    def total(self, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> Tensor:
        """The loss to go backward from: the weighted means of all terms."""
        return torch.stack([self.weighted(term, sums, counts) for term in self.terms]).sum()

    def weighted(self, term: Term, sums: Mapping[str, Tensor], counts: Mapping[str, Tensor]) -> Tensor:
        """A term's sum over its count in the whole optimizer step, times its weight."""
        summed, count = (torch.stack([values[name] for name in term.pools]).sum() for values in (sums, counts))
        return term.at(self.progress) * summed / count.clamp(min=1)


def add_up(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sums or counts of several micro-batches, added by name."""
    return {name: torch.stack([part[name].detach() for part in parts]).sum(0) for name in parts[0]}
