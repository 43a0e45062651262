"""What features of the tower from disk save: time for each sample, live against cached, on stage 1 of the world recipe,
with its own tower (0.9 M parameters, its language model has 0.7 M) and with a ViT-S/16 of random weights.

Both are trained in this process by the loop of `sightline train`, in turns of a few steps each, so that what else the
machine does falls on both; each pair gives a ratio, and their median has a bootstrap interval. The two runs are trained
on the same rows, and their losses are compared: they are the same bits. Beside it: what an image costs on disk and to
compute once, what hashing its bytes costs against decoding it, and how fast shards are verified.

    python benchmarks/feature_store.py         # writes benchmarks/results/feature_store.json and prints it
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sightline.config import Recipe, load_recipe
from sightline.data.dataset import Mixture, training_batches
from sightline.data.images import load_image
from sightline.data.store import Store
from sightline.train.annotate import annotate_features
from sightline.train.features import find_features
from sightline.train.objective import Objective, add_up
from sightline.train.rows import lay_out, read_data
from sightline.train.run import start
from sightline.train.setup import build_optimizer, set_modes, set_trainable
from sightline.world.make import make_world

RESULT = Path(__file__).parent / "results" / "feature_store.json"
CPU = torch.device("cpu")


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--steps", type=int, default=2, help="Steps of a turn.")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_world(Path("data/world"))
        result = {
            "machine": platform.platform(),
            "cores": os.cpu_count(),
            "threads": 1,
            "versions": {"python": platform.python_version()}
            | {name: version(name) for name in ("sightline", "torch", "transformers", "pillow")},
            "steps_of_a_turn": options.steps,
            "settings": [measure(name, recipe, options) for name, recipe in settings()],
            "image": hashing(),
        }
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def settings() -> Iterator[tuple[str, Recipe]]:
    """Stage 1 of the world recipe, with its own tower and with one of a usual size."""
    world = load_recipe("world", ["device=cpu"])
    yield "the world's own tower", world.model_copy(update={"stages": world.stages[:1]})
    vit = CLIPVisionConfig(
        hidden_size=384,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=192,
        patch_size=16,
    )
    CLIPVisionModel(vit).save_pretrained("vit")
    side = {"height": 192, "width": 192}
    CLIPImageProcessorPil(size={"shortest_edge": 192}, crop_size=side).save_pretrained("vit")
    changes = ["device=cpu", "model.vision=vit", "stages.0.data.limit=256", "stages.0.validation=[]"]
    small = load_recipe("world", [*changes, "stages.0.batch_size=16"])
    yield "a ViT-S/16 at 192 pixels, 144 tokens", small.model_copy(update={"stages": small.stages[:1]})


def measure(name: str, recipe: Recipe, options: argparse.Namespace) -> dict:
    """One setting: annotated, then trained live and cached."""
    began = time.perf_counter()
    (folder,) = annotate_features(recipe, console=Console(quiet=True))
    seconds = time.perf_counter() - began
    pairs = options.pairs if recipe.model is not None and recipe.model.vision == "world:clip" else options.pairs // 4
    return {"tower": name, **compare(recipe, pairs, options.steps), "store": about(folder, seconds)}


class Run:
    """A stage that trains a few steps at a time."""

    def __init__(self, recipe: Recipe, *, cached: bool) -> None:
        stage = recipe.stages[0]
        self.stage = stage
        assembly = start(recipe, stage, None)
        sources = read_data(stage.data)
        features = find_features(recipe, 0, assembly, sources, CPU, lambda text: None) if cached else None
        assert (features is not None) == cached
        self.rows: Mixture = lay_out(recipe, stage, stage.data, sources, assembly, None, features=features)
        self.objective = Objective(assembly.model, stage.weights)
        self.optimizer = build_optimizer(assembly.model, set_trainable(assembly.model, stage), stage)
        set_modes(assembly.model, stage)
        order = self.rows.order(batch_size=stage.batch_size, accumulate=1)
        self.batches = iter(training_batches(self.rows, order, num_steps=10**6))
        self.losses: list[float] = []

    def turn(self, steps: int) -> float:
        """Seconds for each sample over `steps` steps, data and all."""
        began, samples = time.perf_counter(), 0
        for _ in range(steps):
            batch = next(self.batches).batch
            sums = self.objective(batch)
            loss = self.objective.total(sums, add_up([self.objective.counts(batch)]))
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.losses.append(float(loss.detach()))
            samples += len(batch)
        return (time.perf_counter() - began) / samples


def compare(recipe: Recipe, pairs: int, steps: int) -> dict:
    """Live and cached in turns; the order within a pair alternates."""
    live, cached = Run(recipe, cached=False), Run(recipe, cached=True)
    for run in (live, cached):
        run.turn(3)
    times = []
    for pair in range(pairs):
        first, second = (live, cached) if pair % 2 else (cached, live)
        seconds = {id(run): run.turn(steps) for run in (first, second)}
        times.append((seconds[id(live)], seconds[id(cached)]))
    ratios = np.array([one / other for one, other in times])
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return {
        "pairs": pairs,
        "live_ms_per_sample": round(1000 * statistics.median(time for time, _ in times), 3),
        "cached_ms_per_sample": round(1000 * statistics.median(time for _, time in times), 3),
        "speedup": round(float(np.median(ratios)), 2),
        "speedup_interval_95": [round(float(low), 2), round(float(high), 2)],
        "losses_are_the_same_bits": live.losses == cached.losses,
    }


def about(folder: Path, seconds: float) -> dict:
    """What the store takes, and how fast its bytes are verified."""
    files = list(folder.glob("*.safetensors"))
    total, images = sum(path.stat().st_size for path in files), len(Store(folder))
    began = time.perf_counter()
    for path in files:
        hashlib.sha256(path.read_bytes()).hexdigest()
    return {
        "images": images,
        "bytes_per_image": round(total / images),
        "ms_to_compute_an_image": round(1000 * seconds / images, 3),
        "verified_MB_per_s": round(total / 1e6 / (time.perf_counter() - began)),
    }


def hashing() -> dict:
    """Microseconds of reading and hashing an image against decoding it: the world's PNGs, and a JPEG of 640 x 480."""
    from PIL import Image

    Image.effect_noise((640, 480), 60).convert("RGB").save("photo.jpg", quality=90)
    worlds = sorted(Path("data/world/images").rglob("*.png"))[:300]
    result = {}
    for name, paths in (("world", worlds), ("jpeg_640x480", [Path("photo.jpg")] * 60)):
        began = time.perf_counter()
        for path in paths:
            hashlib.sha256(path.read_bytes()).hexdigest()
        middle = time.perf_counter()
        for path in paths:
            load_image(path)
        ended = time.perf_counter()
        result[name] = {
            "bytes": paths[0].stat().st_size,
            "hash_us": round(1e6 * (middle - began) / len(paths), 1),
            "decode_us": round(1e6 * (ended - middle) / len(paths), 1),
        }
    return result


if __name__ == "__main__":
    main()
