"""The direction of imports, read from the source: the flow goes one way, and the trunk knows no method."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sightline

ROOT = Path(sightline.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
PACKAGES = {path.name for path in ROOT.iterdir() if path.is_dir()} | {path.stem for path in ROOT.glob("*.py")}
LONGEST = 400

CORE = ("data", "models", "objectives", "methods")
DOWNSTREAM = ("train", "plan", "evaluation", "report", "world", "checkpoints", "generation", "cli", "demo", "compare")
WORLD_PARTS = ("models/backbones.py", "world", "backbone_path")
"""The one thread from the core to the small world: where the parts called `world:clip` and `world:lm` are."""


def imports(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """What a module imports of sightline, wherever in it: dotted places under `sightline`, and the names taken."""
    here = ("sightline", *path.relative_to(ROOT).with_suffix("").parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else ()
            place = (*base, *(node.module.split(".") if node.module else ()))
            names = tuple(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "sightline":
                    found.append((alias.name.removeprefix("sightline").lstrip("."), ()))
            continue
        else:
            continue
        if place[0] != "sightline":
            continue
        if len(place) == 1:  # from .. import data, __version__
            found += [(name, ()) for name in names if name in PACKAGES]
        else:
            found.append((".".join(place[1:]), names))
    return found


def part(path: Path) -> str:
    """The package, or the module at the top, that a file belongs to."""
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_reader_reads():
    """It sees relative and absolute imports, and those inside functions."""
    assert ("methods.compose", ("Methods",)) in imports(ROOT / "data/processor.py")
    assert ("models.hub", ("found", "load_weights", "quiet")) in imports(ROOT / "generation.py")
    assert ("generation", ("Assistant",)) in imports(ROOT / "eval_cli.py")
    assert part(ROOT / "cli.py") == "cli"


@pytest.mark.parametrize("path", [p for p in MODULES if part(p) != "methods"], ids=name)
def test_the_trunk_imports_no_method(path):
    """Outside methods/, only its protocol and its composition are known."""
    for place, names in imports(path):
        if place.split(".")[0] == "methods":
            assert place in ("methods.base", "methods.abilities", "methods.compose"), (
                f"{name(path)} imports {names} from {place}"
            )


@pytest.mark.parametrize("path", [p for p in MODULES if part(p) in CORE], ids=name)
def test_the_core_knows_nothing_of_what_uses_it(path):
    """data/, models/, objectives/ and methods/ import no trainer, evaluation, report or world."""
    for place, names in imports(path):
        allowed = (name(path), place, *names) == WORLD_PARTS
        assert place.split(".")[0] not in DOWNSTREAM or allowed, f"{name(path)} imports {names} from {place}"


@pytest.mark.parametrize(
    ("package", "may"),
    [
        ("types", set()),
        ("errors", set()),
        ("files", {"errors"}),
        ("overrides", set()),
        ("bases", {"errors", "overrides"}),
        ("config", {"errors", "overrides", "bases"}),
        ("registration", set()),
        ("objectives", {"types", "errors"}),
        ("data", {"types", "errors", "methods", "data", "files"}),
        ("annotate", {"types", "errors", "data", "models", "files", "progress", "methods", "annotate"}),
        ("methods", {"types", "errors", "methods", "objectives", "data", "models", "files", "annotate", "config"}),
        ("checkpoints", {"types", "errors", "files", "data", "models", "methods", "checkpoints", "__version__"}),
    ],
)
def test_what_each_part_may_import(package, may):
    for path in MODULES:
        if part(path) == package:
            seen = {place.split(".")[0] for place, _ in imports(path)}
            assert seen <= may, f"{name(path)} imports {seen - may}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_module_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


def test_only_the_command_line_the_doctor_and_comparisons_know_the_dry_run():
    """Training never imports what plans it; a comparison counts FLOPs with it."""
    for path in MODULES:
        if part(path) not in ("plan", "cli", "doctor", "compare"):
            assert not {place for place, _ in imports(path) if place.split(".")[0] == "plan"}, name(path)


@pytest.mark.parametrize("module", ["sightline.paint", "sightline.methods.compose"])
def test_a_module_can_be_imported_first(module):
    """transformers, once it is imported, brings our models: what asks for it early meets itself half made."""
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, timeout=120)


def test_nothing_heavy_at_the_top():
    """The modules that the command line imports for `--help` import torch and its like inside functions only."""
    heavy = {"torch", "transformers", "numpy", "scipy", "matplotlib", "PIL"}
    for path in (
        ROOT / "__init__.py",
        ROOT / "cli.py",
        ROOT / "errors.py",
        *(ROOT / package / "__init__.py" for package in ("world", "compare", "diagnostics")),
        *(ROOT / package / "cli.py" for package in ("world", "compare", "diagnostics")),
        ROOT / "diagnostics/lens_cli.py",
    ):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {top.split(".")[0] for top in names} & heavy, name(path)
