"""How the losses pull at the visual tokens of a step: the norms of their gradients there, and whether they agree.

    g_m = d L_m / d x              of each loss of a method, from x to that loss alone
    g_l = d L / d x - sum of g_m   what is left of the step's own backward pass: the language loss's

x are the visual tokens, L_m are weighted. Squares and products add up over micro-batches and processes, whose tokens
are others. The language loss costs nothing beyond the backward pass that is done anyway, and what is trained is the
same bits, measured or not.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .engine import Engine
from .objective import LANGUAGE

EVERY = 10
"""Steps between looks."""


class VisualGradients:
    """The gradients of one optimizer step at its visual tokens, as squares and products."""

    def __init__(self, engine: Engine, counts: Mapping[str, Tensor]) -> None:
        """
        Args:
            counts: of the whole step, by loss.
        """
        self.engine, self.counts = engine, counts
        self.names = sorted(engine.objective.method_losses)
        pairs = [(name, name) for name in (*self.names, LANGUAGE)] + [(name, LANGUAGE) for name in self.names]
        self._products = {pair: torch.zeros((), dtype=torch.float64) for pair in pairs}
        self._parts: dict[str, Tensor] = {}
        self._whole: Tensor | None = None

    def before(self, sums: Mapping[str, Tensor]) -> None:
        """Look at a micro-batch whose backward pass is about to begin."""
        objective = self.engine.objective
        visual, self._parts, self._whole = objective.visual, {}, None
        if visual is None or not visual.requires_grad:
            return
        for term in objective.terms:
            if term.name in self.names and sums[term.name].requires_grad:
                loss = objective.weighted(term, sums, self.counts)
                (found,) = torch.autograd.grad(loss, visual, retain_graph=True, allow_unused=True)
                if found is not None:
                    self._parts[term.name] = found.float()
        visual.register_hook(self._arrived)

    def after(self) -> None:
        """Add up what the backward pass brought."""
        self.engine.objective.visual = None
        if self._whole is None:
            return
        parts = {name: self._parts.get(name, torch.zeros_like(self._whole)) for name in self.names}
        parts[LANGUAGE] = self._whole / self.engine.scale - torch.stack(list(parts.values())).sum(0)
        for a, b in self._products:
            self._products[a, b] += (parts[a] * parts[b]).sum().double().cpu()

    def told(self) -> dict[str, float]:
        """Norms as `visual_grad/<loss>`; as `visual_grad/cosine/<loss>`, where neither is 0, the cosine of a method's
        with the language loss's."""
        summed = self.engine.processes.add({" ".join(pair): value for pair, value in self._products.items()})
        product = {pair: float(summed[" ".join(pair)]) for pair in self._products}
        norms = {name: product[name, name] ** 0.5 for name in (LANGUAGE, *self.names)}
        told = {f"visual_grad/{name}": norm for name, norm in norms.items()}
        for name in self.names:
            if both := norms[name] * norms[LANGUAGE]:
                told[f"visual_grad/cosine/{name}"] = product[name, LANGUAGE] / both
        return told

    def _arrived(self, gradient: Tensor) -> None:
        self._whole = gradient.detach().float()
