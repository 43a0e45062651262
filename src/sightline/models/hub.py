"""The border to transformers: loading without its bars and reports, where Sightline says what matters itself."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from ..errors import SightlineError

Loaded = TypeVar("Loaded")

UNREADABLE = (OSError, ValueError, KeyError, SafetensorError)
"""What transformers raises for a model that is not there, is no model, or was cut short."""


@contextmanager
def quiet() -> Iterator[None]:
    """Errors only, and no bars, from transformers inside the block."""
    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def load_weights(cls: Any, path: str | Path, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, Any]]:
    """A model of an (auto) class in `dtype`, and transformers' account of what was missing, unexpected or mismatched.

    Callers check the account; `ignore_mismatched_sizes` only has mismatches told there instead of raised.
    """
    with quiet():
        return cls.from_pretrained(path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True)


def found(load: Callable[[], Loaded], name: str) -> Loaded:
    """`load()`, with what cannot be found or read of `name` said in one line."""
    try:
        with quiet():
            return load()
    except SightlineError:
        raise
    except UNREADABLE as error:
        raise SightlineError(
            f"cannot load '{name}': {reason(error)}. Give an intact local folder or a hub id that can be reached."
        ) from None


def weight_name(key: Any) -> str:
    """The weight that an entry of that account is about; mismatches come with their two shapes."""
    return str(key[0] if isinstance(key, tuple) else key)


def reason(error: BaseException) -> str:
    """The first line of an error, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
