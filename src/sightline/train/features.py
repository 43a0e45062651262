"""Features of the tower in training: which store fits a stage, and whether it has all of the stage's images.

What a feature depends on makes the name of its folder: the tower's weights as the stage holds them, the preprocess,
the layers, the precision, the methods' views, the device and the libraries that compute. What is stored is what the
live pass would give under the same of these, in the type that it has: under precision=bf16 what the tower gives inside
autocast. A store made under anything else is another folder.
"""

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..annotate.images import sought
from ..config import Recipe
from ..data.features import Features
from ..data.store import Store
from ..errors import SightlineError
from ..models.assemble import Assembly
from ..models.digest import config_facts, digest, facts_name, pixel_facts, plain, views_facts
from ..progress import reading_bar
from ..types import Sample

FORMAT = 2
"""Raised when Sightline reads, turns or scales images in another way, or keeps features in another shape."""
LIBRARIES = ("torch", "transformers", "pillow", "numpy")
"""Whose versions change what comes out, in the last bits at least."""


def why_no_features(recipe: Recipe, number: int, assembly: Assembly) -> str | None:
    """Why a stage cannot read features of its tower, if it cannot."""
    stage = recipe.stages[number]
    if "vision" in stage.trainable:
        return f"stage '{stage.name}' trains the tower, so what it gives changes with every step"
    earlier = next((s.name for s in recipe.lineage(number) if "vision" in s.trainable), None)
    if earlier is not None:
        return f"its tower is the one that stage '{earlier}' will have trained; start it from that stage's saved model"
    if recipe.blank_images:
        return "blank_images shows grey images, whose features nobody needs to keep"
    reader = next((method.name for method in assembly.model.model.methods.all if method.needs.pixels), None)
    return f"method '{reader}' reads the pixels" if reader is not None else None


def as_held(recipe: Recipe, number: int, weights: Tensor) -> Tensor:
    """A tower's weights as a stage holds them. What an earlier stage held in bfloat16 stays rounded."""
    if all(stage.frozen == "fp32" for stage in recipe.lineage(number)):
        return weights.detach().float()
    rounded = weights.detach().to(torch.bfloat16)
    return rounded.float() if recipe.stages[number].frozen == "fp32" else rounded


def depends_on(assembly: Assembly, recipe: Recipe, number: int, device: torch.device) -> dict[str, Any]:
    """All that the features of an image depend on beside its bytes."""
    model, stage = assembly.model, recipe.stages[number]
    tower = model.model.vision_tower
    held = ((name, as_held(recipe, number, weights)) for name, weights in sorted(tower.named_parameters()))
    values = {
        "format": FORMAT,
        "tower": {"weights": digest(held), "frozen": stage.frozen != "fp32", "config": config_facts(tower.config)},
        "attention": tower.config._attn_implementation,
        "layers": model.config.vision_feature_layer,
        "select": model.config.vision_select,
        **({} if model.config.vision_scales is None else {"scales": model.config.vision_scales}),
        "preprocess": pixel_facts(assembly.image_processor),
        "precision": stage.precision,
        "views": views_facts(model.model.methods.views),
        "device": device.type,
        "versions": {name: version(name) for name in LIBRARIES},
    }
    return plain(values)


def store_folder(recipe: Recipe, facts: dict[str, Any]) -> Path:
    """Where features that depend on `facts` are."""
    return Path(recipe.annotations) / f"features-{facts_name(facts)}"


def find_features(
    recipe: Recipe,
    number: int,
    assembly: Assembly,
    sources: Sequence[Sequence[Sample]],
    device: torch.device,
    say: Callable[[str], None],
) -> Features | None:
    """The features of a stage's images, if all of them are there; a line says what is used where there is a choice.

    Args:
        sources: the rows of the stage's data and validation.

    Raises:
        SightlineError: if a file of the store was altered or torn.
    """
    stores = sorted(Path(recipe.annotations).glob("features-*/provenance.json"))
    if not stores or why_no_features(recipe, number, assembly) is not None:
        return None
    stage = recipe.stages[number]
    facts = depends_on(assembly, recipe, number, device)
    folder = store_folder(recipe, facts)
    fill = "to compute what is missing: sightline annotate RECIPE --features"
    if folder / "provenance.json" not in stores:
        other = differences(facts, json.loads(stores[-1].read_text(encoding="utf-8")).get("depends_on", {}))
        say(f"stage {stage.name}: {stores[-1].parent} has features, but with another {other}; the tower is run. {fill}")
        return None
    store = Store(folder)
    with reading_bar(f"stage {stage.name}: looking for its images in {folder}") as progress:
        wanted, missing = sought(store, sources, progress)
    if missing:
        say(f"stage {stage.name}: {folder} lacks {len(missing):,} of {len(wanted):,} images; the tower is run. {fill}")
        return None
    if not wanted:
        return None
    with reading_bar(f"stage {stage.name}: verifying {folder}") as progress:
        if damaged := store.damaged(wanted, progress):
            raise SightlineError(
                f"{len(damaged)} files of the feature store are damaged, the first {damaged[0]}: their bytes are not "
                "those that were written. Nothing was trained on them. Compute them again: sightline annotate RECIPE "
                f"--features. Or do without: rm -r '{folder}'"
            )
    say(f"stage {stage.name}: tower features read from {folder}, the tower is not run")
    about = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    return Features(store, shape=(about["patches"], about["width"]), dtype=getattr(torch, about["dtype"]))


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> str:
    """The keys in which two records differ, for people."""
    found = []
    for key in sorted({*ours, *theirs}):
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, dict) and isinstance(other, dict):
            found += [inner] if (inner := differences(mine, other, f"{prefix}{key}.")) else []
        elif mine != other:
            found.append(f"{prefix}{key}")
    return ", ".join(found[:3])
