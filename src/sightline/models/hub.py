"""The border to transformers: loading without its bars and reports, where Sightline says what matters itself."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging


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


def load_weights(cls: Any, path: str | Path) -> tuple[Any, dict[str, Any]]:
    """A model of an (auto) class in fp32, and transformers' account of what was missing or unexpected."""
    with quiet():
        return cls.from_pretrained(path, dtype=torch.float32, output_loading_info=True)


def reason(error: BaseException) -> str:
    """The first line of an error, without its full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__
