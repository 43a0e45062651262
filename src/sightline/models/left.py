"""Parts of methods that serve training alone: what a run left of them, and where else their first weights come from."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from torch import Tensor

from ..methods.base import AlignmentMethod
from ..methods.compose import Methods


@dataclass(frozen=True)
class Left:
    """What a run left of such parts."""

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """By name, as the state of the methods has them."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """Where parts, as `method.part`, had their first weights from; those that are not here began by chance."""


def sources_of(methods: Methods) -> dict[str, str]:
    """Where the parts of methods have their first weights from, as `Left` names them."""
    return {f"{method.name}.{part}": source for method in methods.all for part, source in method.pretrained.items()}


def go_on(methods: Methods, left: Left, fresh: Set[str]) -> list[str]:
    """Give each part what was left of it, whole or not at all; else, where its method is `fresh`, its first weights.

    Returns:
        What was left of a part that does not go on with it, each with the reason.
    """
    notes = []
    for method in methods.all:
        for part, module in method.train_only.items():
            if any(value.is_meta for value in module.state_dict().values()):
                continue
            mark = f"{method.name}.train_only.{part}."
            theirs = {key.removeprefix(mark): value for key, value in left.tensors.items() if key.startswith(mark)}
            reason = why_anew(method, part, theirs, left) if theirs else ""
            if theirs and not reason:
                module.load_state_dict(theirs)
            elif part in method.pretrained and method.name in fresh:
                method.load_pretrained(part)
            notes += [f"{method.name}.{part} begins anew: {reason}"] if reason else []
    return notes


def why_anew(method: AlignmentMethod, part: str, theirs: Mapping[str, Tensor], left: Left) -> str:
    """Why a part cannot go on with what was left of it; "" where it can."""
    was, is_now = left.sources.get(f"{method.name}.{part}"), method.pretrained.get(part)
    if was != is_now:
        return f"the run had it from {was or 'nowhere'}, and the recipe says {is_now or 'nowhere'}"
    sizes = [
        {key: value.shape for key, value in state.items()} for state in (theirs, method.train_only[part].state_dict())
    ]
    return "" if sizes[0] == sizes[1] else "what the run left has other sizes than the recipe's"
