"""What the field's harness, lmms-eval, knows of Sightline: its entry point `lmms_eval.models` names this.

lmms-eval lives in an environment of its own (it brings torchvision); Sightline is installed there beside it.
"""

from typing import Any


def manifest() -> Any:
    """The model `sightline`, for lmms-eval's registry."""
    from lmms_eval.models.registry_v2 import ModelManifest  # pyright: ignore[reportMissingImports]

    return ModelManifest(model_id="sightline", simple_class_path="sightline.benchmarks.harness_model.SightlineModel")
