"""A run folder as one self-contained HTML page."""

from .page import write_page

__all__ = ["write_page"]
