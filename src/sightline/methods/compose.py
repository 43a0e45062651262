"""Methods are a list: edits fold in its order, losses add, and what cannot compose fails when the model is built."""

import importlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ..config import Stage
from ..errors import SightlineError, did_you_mean
from ..types import KINDS, PROMPT, Batch, Sample, Trace, Turn
from .abilities import Levelled
from .base import AlignmentMethod, LossSpec, OneView, Sizes, Slot, Tap, Views

METHODS: dict[str, str] = {
    "anyres": "sightline.methods.anyres:AnyRes",
    "aligngpt": "sightline.methods.aligngpt:AlignGPT",
    "sea": "sightline.methods.sea:SEA",
    "perceiver": "sightline.methods.vlsa.perception:Perception",
    "reconstruct": "sightline.methods.vlsa.reconstruct:Reconstruct",
    "cognition": "sightline.methods.vlsa.cognition:Cognition",
}
"""Short names of the methods that ship with Sightline, as `module:Class`. Any other method is named that way itself."""


class Methods(nn.ModuleDict):
    """The methods of a model, by name, in the order of the recipe; and tokens that export has made of others.

    Raises:
        SightlineError: if two methods share a name, change the shape of the same tensor, or fill what is baked in.
    """

    def __init__(self, methods: Sequence[AlignmentMethod] = (), prefix_tokens: Iterable[str] = ()) -> None:
        repeated = [name for name, n in Counter(m.name for m in methods).items() if n > 1]
        if repeated:
            raise SightlineError(f"method '{repeated[0]}' is listed twice. List each method once.")
        super().__init__({m.name: m for m in methods})
        self.prefix = tuple(Slot(token, kind=KINDS[PROMPT]) for token in prefix_tokens)
        for method in methods:
            if both := {slot.token for slot in method.needs.slots} & {slot.token for slot in self.prefix}:
                raise SightlineError(
                    f"the model has a vector of '{method.name}' baked in, as the embedding of {min(both)}, and the "
                    "method would fill that place again. Start from the model before its export, or leave the method "
                    "out."
                )
        reshaped: dict[Tap, str] = {}
        for method in methods:
            for tap in method.needs.reshapes:
                if tap in reshaped:
                    raise SightlineError(
                        f"'{reshaped[tap]}' and '{method.name}' both change the shape of '{tap}', and neither can read "
                        "what the other gives. Remove one of them from `methods`."
                    )
                reshaped[tap] = method.name
        if sum(m.needs.views is not None for m in methods) > 1:
            raise SightlineError("two methods ask for views of their own. Remove one of them from `methods`.")
        added = [slot.kind for m in methods for slot in m.needs.slots] + [k for m in methods for k in m.needs.kinds]
        self.kinds: tuple[str, ...] = (*KINDS, *dict.fromkeys(added))
        for method in methods:
            own = [slot.kind for slot in method.needs.slots] + list(method.needs.kinds)
            method.kind_ids = {kind: self.kinds.index(kind) for kind in own}

    @property
    def all(self) -> tuple[AlignmentMethod, ...]:
        """The methods, in order."""
        return tuple(m for m in self.values() if isinstance(m, AlignmentMethod))

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The positions that rows have for methods, and for what has been baked in."""
        return (*self.prefix, *(slot for method in self.all for slot in method.needs.slots))

    @property
    def tokens(self) -> tuple[str, ...]:
        """What their turns are written in beside the tokenizer's own tokens."""
        return tuple(token for method in self.all for token in method.needs.tokens)

    def columns(self, stage: Stage) -> dict[str, str]:
        """The columns that a stage needs, each with the method that asks for it."""
        return {column: method.name for method in self.all for column in method.columns(stage)}

    @property
    def loss_specs(self) -> tuple[LossSpec, ...]:
        return tuple(spec for method in self.all for spec in method.needs.losses)

    @property
    def weights(self) -> dict[str, float]:
        """What kinds of tokens weigh where a stage does not say it."""
        return {kind: weight for method in self.all for kind, weight in method.needs.weights.items()}

    @property
    def levelled(self) -> Levelled | None:
        """The first method with levels, if there is one."""
        return next((method for method in self.all if isinstance(method, Levelled)), None)

    @property
    def tower_states(self) -> tuple[int, ...]:
        """Hidden states of the tower that methods read."""
        return tuple(sorted({layer for method in self.all for layer in method.needs.tower_states}))

    @property
    def views(self) -> Views:
        """What the tower sees of an image."""
        return next((method.needs.views for method in self.all if method.needs.views is not None), OneView())

    def edit(self, tap: Tap, x: Tensor, batch: Batch, kept: dict[str, Tensor]) -> Tensor:
        """`x` after every method that edits this tap; `kept` takes what they put aside."""
        for method in self.all:
            if tap in method.needs.edits:
                x = method.edit(tap, x, batch, kept)
        return x

    def losses(self, trace: Trace, batch: Batch, wanted: Set[str]) -> dict[str, Tensor]:
        """The `wanted` losses by name. A method none of whose losses is wanted is not asked."""
        values: dict[str, Tensor] = {}
        for method in self.all:
            declared = {spec.name for spec in method.needs.losses}
            if declared & wanted:
                given = method.losses(trace, batch)
                assert set(given) == declared, f"{method.name} declares {declared} and gives {set(given)}"
                values.update({name: value for name, value in given.items() if name in wanted})
        return values

    @torch.no_grad()
    def measures(self, trace: Trace, batch: Batch) -> dict[str, Tensor]:
        """What the methods log beside their losses, by name."""
        values: dict[str, Tensor] = {}
        for method in self.all:
            given = method.measures(trace, batch)
            assert all(name.startswith(f"{method.name}/") for name in given), f"{method.name} measures {set(given)}"
            values.update(given)
        return values

    def insert_turns(
        self, sample: Sample, rng: np.random.Generator, columns: Mapping[str, Tensor]
    ) -> tuple[tuple[Turn, ...], frozenset[int]]:
        """The turns of a row with those that methods insert, and the numbers of the exchanges that are not its own."""
        inserted = [turn for method in self.all for turn in method.turns(sample, rng, columns)]
        if not inserted:
            return sample.turns, frozenset()
        lead = tuple(turn for turn in sample.turns if turn.role == "system")
        rest = sample.turns[len(lead) :]
        exchanges = [rest[i : i + 2] for i in range(0, len(rest), 2)]
        merged: list[tuple[tuple[Turn, ...], bool]] = []
        for place in range(len(exchanges) + 1):
            merged += [((turn.question, turn.answer), True) for turn in inserted if turn.after == place]
            merged += [(exchanges[place], False)] if place < len(exchanges) else []
        turns = lead + tuple(turn for exchange, _ in merged for turn in exchange)
        return turns, frozenset(number for number, (_, foreign) in enumerate(merged) if foreign)


def load_method_class(name: str) -> type[AlignmentMethod]:
    """The class of a shipped method by its short name, or any class by `module:Class`.

    Raises:
        SightlineError: if there is none.
    """
    path = METHODS.get(name, name)
    if ":" not in path:
        raise SightlineError(
            f"unknown method '{name}'{did_you_mean(name, METHODS) or '.'} "
            f"Known: {', '.join(METHODS) or 'none yet'}; an own one is named 'module:Class'."
        )
    module, _, attribute = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, SyntaxError, ValueError) as error:
        raise SightlineError(f"method '{name}' cannot be imported: {error}. Check the path 'module:Class'.") from None
    if not (isinstance(found, type) and issubclass(found, AlignmentMethod)):
        raise SightlineError(f"method '{name}' is not an AlignmentMethod. Subclass sightline.AlignmentMethod.")
    return found


def record_of(records: Iterable[Mapping[str, Any]], kind: type[AlignmentMethod]) -> Mapping[str, Any] | None:
    """The record of the first method of a kind, among a recipe's; None where there is none."""
    return next((record for record in records if issubclass(load_method_class(record["name"]), kind)), None)


def build_methods(
    configs: Sequence[Mapping[str, Any]], sizes: Sizes, prefix_tokens: Iterable[str] | None = None
) -> Methods:
    """The methods of a recipe or a saved model, from their records `{"name": ..., options}`.

    Args:
        prefix_tokens: those of the model's config.

    Raises:
        SightlineError: for an unknown method or option, or methods that cannot compose.
    """
    methods = []
    for record in configs:
        options = dict(record)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise SightlineError(f"a method needs a name, and {dict(record)} has none. Write `- name: ...`.")
        cls = load_method_class(name)
        try:
            config = cls.Config(**options)
        except ValidationError as error:
            details = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise SightlineError(
                f"method '{name}': {details}. Options: {', '.join(cls.Config.model_fields)}."
            ) from None
        methods.append(cls(config, sizes))
    return Methods(methods, prefix_tokens or ())
