"""The dry run: what a recipe would build and cost, from sizes alone, without weights."""

from .report import show
from .run import Plan, plan

__all__ = ["Plan", "plan", "show"]
