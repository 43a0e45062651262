"""Models on disk: saved as the simplest standard model that can express them, loaded back strictly."""

from .export import export_model
from .model import load_model, save_model
from .published import import_aligngpt, import_model
from .stock import why_not_stock

__all__ = ["export_model", "import_aligngpt", "import_model", "load_model", "save_model", "why_not_stock"]
