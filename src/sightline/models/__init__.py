"""The model and its parts. Importing any of them registers the model with transformers' `Auto*` classes."""

from . import modeling as modeling
