"""The doctor: everything about a recipe that can be known before it trains, in one readable verdict."""

from .findings import Finding
from .report import Report
from .run import examine, examine_file

__all__ = ["Finding", "Report", "examine", "examine_file"]
