"""What the builds of the backbones share: one thread, one seed, and steps that can stop and go on."""

import ctypes
import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import SightlineError
from ..files import write_bytes
from ..train.signals import Stopped, listening

Progress = Callable[[int, int, float], None]
"""Called after each step with the steps done, the steps in all and the loss."""
PR_SET_PDEATHSIG = 1
"""Of Linux' prctl: the signal that a process gets when its parent ends."""
SAVE_EVERY = 30.0
"""Seconds between two states of a training that go to disk."""


@dataclass(frozen=True)
class Descent:
    """How a backbone is trained: AdamW down the loss of each step, its gradient clipped to a norm of 1."""

    steps: int
    lr: float
    """At its highest."""
    weight_decay: float
    rate: Callable[[int], float]
    """The learning rate of a step as a share of the highest."""

    @classmethod
    def cosine(cls, recipe: Any) -> "Descent":
        """As a backbone's recipe says, its rate warmed up and along a cosine."""
        return cls(recipe.steps, recipe.lr, recipe.weight_decay, warmed_cosine(recipe.warmup, recipe.steps))


def warmed_cosine(warmup: int, steps: int) -> Callable[[int], float]:
    """A rate that rises for `warmup` steps and falls as a cosine to a hundredth."""
    return lambda step: min((step + 1) / warmup, 0.5 + 0.5 * float(np.cos(np.pi * step / steps)) + 0.01)


def ends_with_its_parent(_: int) -> None:
    """A process that draws data leaves Ctrl-C to the one that trains, and goes when that was killed; elsewhere than on
    Linux it may stay then."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def one_thread(seed: int) -> Iterator[None]:
    """Seed torch and keep it to one thread, so that weights depend on the recipe and torch's version alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def descend(
    model: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    how: Descent,
    *,
    state: Path,
    recipe: Any,
    progress: Progress | None = None,
) -> float:
    """Train `model` in place; a training that was stopped, or killed, goes on from `state` to the same weights.

    Args:
        loss_of: the loss of a step, a pure function of the weights and the step's number.
        state: the file that holds the training while it is under way; written whole or not at all.
        recipe: the dataclass that settles the training; a state of another one is refused.

    Returns:
        Seconds that the steps took, those before an interruption included.

    Raises:
        SightlineError: if `state` belongs to another training, or cannot be read.
        Stopped: if SIGTERM or Ctrl-C asked for it; `state` was written.
    """
    assert is_dataclass(recipe) and not isinstance(recipe, type)
    name = hashlib.sha256(json.dumps([asdict(recipe), torch.__version__], sort_keys=True).encode()).hexdigest()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=how.lr, betas=(0.9, 0.98), weight_decay=how.weight_decay, fused=False, foreach=False
    )
    done, spent = _restore(state, name, model, optimizer) if state.exists() else (0, 0.0)
    began = saved = time.monotonic()
    model.train()
    with listening() as stop:
        for step in range(done, how.steps):
            for group in optimizer.param_groups:
                group["lr"] = how.lr * how.rate(step)
            loss = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            now, asked = time.monotonic(), bool(stop) and step + 1 < how.steps
            if asked or (now - saved > SAVE_EVERY and step + 1 < how.steps):
                _save(state, {"name": name, "done": step + 1, "seconds": spent + now - began}, model, optimizer)
                saved = now
            if progress:
                progress(step + 1, how.steps, loss.item())
            if asked:
                at = f"after step {step + 1} of {how.steps}"
                raise Stopped(f"stopped {at}; nothing is lost. Go on with the same command.", stop.signum)
    model.eval()
    return spent + time.monotonic() - began


def _save(state: Path, about: Mapping[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    tensors = {f"model.{key}": value for key, value in _parameters(model).items()}
    for key, parameter in _parameters(model).items():
        tensors |= {f"optimizer.{key}.{part}": value for part, value in optimizer.state[parameter].items()}
    tensors = {key: value.detach().contiguous() for key, value in tensors.items()}
    write_bytes(state, save(tensors, {"about": json.dumps(about)}))


def _restore(state: Path, name: str, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Steps done and seconds spent by the training that `state` holds."""
    remedy = f"Remove it to start anew: rm '{state}'"
    try:
        with safe_open(state, "pt") as file:
            about = json.loads(file.metadata()["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise SightlineError(f"'{state}' is no training under way that can be read: {error}. {remedy}") from None
    if about["name"] != name:
        raise SightlineError(
            f"'{state}' is a training with other settings, or another version of torch, so it cannot go on as this "
            f"one. Give its settings, or another --out. {remedy}"
        )
    with torch.no_grad():
        for key, parameter in _parameters(model).items():
            parameter.copy_(tensors[f"model.{key}"])
            parts = ("step", "exp_avg", "exp_avg_sq")
            optimizer.state[parameter] = {part: tensors[f"optimizer.{key}.{part}"] for part in parts}
    return about["done"], about["seconds"]


def _parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return dict(model.named_parameters())
