"""Models on disk: saved as the simplest standard model that can express them, loaded back strictly."""

from .model import load_model, save_model, why_not_stock

__all__ = ["load_model", "save_model", "why_not_stock"]
