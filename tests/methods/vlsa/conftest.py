"""A model that was taught to tell what is in pictures."""

from pathlib import Path

import pytest

from sightline.train import train
from telling import annotated, recipe


@pytest.fixture(scope="session")
def taught(tiny, pictures, pipeline, tmp_path_factory) -> Path:
    """A run that was asked about pictures of three colours."""
    folder = tmp_path_factory.mktemp("taught")
    stage = {"steps": 10, "lr": 1e-2, "batch_size": 6, "weights": {"vq": 1.0, "pixels": 1.0}}
    stage["trainable"] = ["vision", "connector", "language"]
    made = recipe(tiny, pictures, pipeline, folder, stage=stage, window=1)
    train(annotated(made), quiet=True)
    return folder / "run"
