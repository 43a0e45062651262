"""Sightline: build, train, measure and ship vision-language models whose images and words are aligned."""

__version__ = "0.1.0"
