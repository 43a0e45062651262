"""Tiny real parts on CPU, built once; shapes and types of every public function checked while the tests run."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

from jaxtyping import install_import_hook

# All of the package but models.configuration: transformers' configs are dataclasses that take any keyword.
CHECKED = [
    "types",
    "annotate",
    "data",
    "methods",
    "objectives",
    "plan",
    "train",
    "checkpoints",
    "diagnostics",
    "evaluation",
    "report",
    "compare",
    "world",
    "generation",
    "diagnostics",
]
MODELS = ("towers", "connectors", "modeling", "packing", "backbones", "assemble", "parts", "precision", "origin")
MODELS += ("adapters", "digest", "joint", "scales")
CHECKED += [f"models.{module}" for module in MODELS]
install_import_hook([f"sightline.{module}" for module in CHECKED], "beartype.beartype")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

import parts  # noqa: E402
from sightline.models.assemble import Assembly, assemble  # noqa: E402

torch.set_num_threads(1)
settings.register_profile("sightline", deadline=None, database=None, derandomize=True, max_examples=60)
settings.load_profile("sightline")


LONGEST_FIRST = ("test_readme.py", "test_photographs.py", "test_processes.py")
"""Files that take longest: begun first, no process is left alone with them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random backbones by name; see parts.py."""
    return parts.build_all(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def tiny_joint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a tiny random CLIP and SigLIP with both sides; see parts.py."""
    return parts.build_joint(tmp_path_factory.mktemp("joint"))


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny VAE and denoiser of diffusers."""
    return parts.build_diffusion(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few small pictures, not all square, and LLaVA rows about them."""
    return parts.write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def assembled(tiny: dict[str, Path]):
    """`assembled("clip", "llama", connector="mlp", ...)`: a tiny model, shared: tests leave it as it is."""
    made: dict[str, Assembly] = {}

    def get(vision: str = "clip", language: str = "llama", **options) -> Assembly:
        key = repr((vision, language, sorted(options.items())))
        if key not in made:
            torch.manual_seed(0)
            made[key] = assemble(str(tiny[vision]), str(tiny[language]), **options)
        return made[key]

    return get
