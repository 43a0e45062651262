"""The model and its parts. Importing any of them registers model and processor with transformers' `Auto*` classes."""

from . import modeling as modeling
from . import processing as processing
