"""`import sightline` makes transformers' `Auto*` classes know our models, without importing transformers itself.

transformers takes seconds to import, and `sightline --help` should not. So the registration waits until transformers is
first imported, by whomever, and is done right behind it.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

LIBRARY = "transformers"
MODELS = f"{__package__}.models"
"""Importing this package registers them."""


def register_models() -> None:
    """Register now if transformers is there already, else as soon as it is."""
    if LIBRARY in sys.modules:
        importlib.import_module(MODELS)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """Finds transformers where it is, once, and has our models imported behind it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != LIBRARY:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Another loader, and then our models; unless they are what asked for transformers, and register themselves."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.inner
        self.inner.exec_module(module)
        if MODELS not in sys.modules:
            importlib.import_module(MODELS)
