"""Sightline: build, train, measure and ship vision-language models whose images and words are aligned."""

import importlib
from typing import Any

from .registration import register_models

__version__ = "0.1.0"

_PUBLIC = {
    "AlignmentMethod": "methods.base",
    "Assistant": "generation",
    "SightlineError": "errors",
    "assemble": "models.assemble",
    "load_model": "checkpoints",
    "load_recipe": "config",
    "save_model": "checkpoints",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first used, so that `sightline --help` stays quick."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sightline' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)


register_models()
