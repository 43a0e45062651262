from pathlib import Path

import pytest

from .stage import write_material


@pytest.fixture
def folder(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> Path:
    """A recipe `base.yaml`, and question files of `test` and `validation` on different pictures."""
    write_material(tmp_path, tiny, pictures)
    return tmp_path
