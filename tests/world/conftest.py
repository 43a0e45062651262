from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from sightline.world.make import make_world
from sightline.world.tokenizer import build_tokenizer


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world of 80 training pictures and 40 of each other split."""
    out = tmp_path_factory.mktemp("world") / "small"
    make_world(out, seed=3, train=80, validation=40, test=40, novel=40)
    return out


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the world's language models."""
    return build_tokenizer()
