"""Comparing recipes: a plan written down first, arms trained on the same seeds, paired intervals, the compute spent."""
