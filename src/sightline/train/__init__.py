"""Training: a recipe's stages, one readable loop, a run folder that says what was done."""

from .run import train

__all__ = ["train"]
