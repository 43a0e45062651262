from pathlib import Path

import pytest

from sightline.world.make import make_world


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 40 training pictures and 40 of each other split."""
    out = tmp_path_factory.mktemp("world") / "small"
    make_world(out, seed=3, train=40, validation=40, test=40, novel=40)
    return out
