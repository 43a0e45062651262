"""VLSA: high resolution compressed into the tokens of a small view, and nothing of it lost."""
