"""Do the diagnostics tell good models from broken ones? The reference bands of `sightline diagnose`, and a table of
separations.

Written down before the first run. Seven kinds of model in the small world, for each of three seeds: *true words*
(every visual token is a word that is true of it), *trained* (recipe `world`, both stages), *stage 1* (its first stage
alone), *untrained* (no stage at all), and the trained one with *shuffled patches*, with *wrong pixels* (no
normalisation), and with a *foreign connector* (trained on the tower's last layer, used on the one before). Primary:
which scores differ between *trained* and each broken kind, by intervals of 95% that do not overlap, for every seed.
Images and questions are those of `validation`.

    python benchmarks/diagnostics.py            # writes results/diagnostics.json and .md, and the bands of the package
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from sightline.diagnostics.altered import (
    ShuffledPatches,
    TrueWords,
    reset_connector,
    with_connector,
    with_normalisation,
)
from sightline.diagnostics.diagnose import REFERENCES, diagnose
from sightline.diagnostics.material import Material, read_world
from sightline.diagnostics.subject import Subject
from sightline.diagnostics.tables import LINES

RESULTS = Path(__file__).parent / "results"
BROKEN = ("untrained", "shuffled patches", "wrong pixels", "foreign connector")
SHOWN = [name for lines in LINES.values() for name, _ in lines]

Row = dict[str, dict[str, float]]
"""By score: value, low, high."""


def main() -> None:
    """Train, diagnose every kind and seed, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--most", type=int, default=200, help="images to look at")
    parser.add_argument("--work", type=Path, help="keep trainings here and go on with them", default=None)
    options = parser.parse_args()
    folder = options.work or Path(tempfile.mkdtemp())
    if not (folder / "world").exists():
        sightline("world", "make", str(folder / "world"))
    rows: dict[str, list[Row]] = {}
    for seed in options.seeds:
        train(folder, seed)
        material = read_world(folder / "world", most=options.most)
        for kind, subject in kinds(folder, seed, material):
            done = folder / f"{kind.replace(' ', '-')}{seed}.json"
            if not done.exists():
                diagnose(subject, material, name=kind, untouched="world:lm", progress=False).write(done)
            rows.setdefault(kind, []).append(json.loads(done.read_text())["scores"])
            print(f"seed {seed}: {kind}", flush=True)
    facts = {name: version(name) for name in ("sightline", "torch", "transformers")}
    about = {"machine": platform.platform(), "versions": facts, "seeds": options.seeds, "images": options.most}
    scores = {name: bands(rows, name) for name in SHOWN}
    text = json.dumps(about | {"scores": {name: kind for name, kind in scores.items() if kind}}, indent=1) + "\n"
    REFERENCES.write_text(text, encoding="utf-8")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "diagnostics.json").write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "diagnostics.md").write_text(table(rows, about), encoding="utf-8")
    print(table(rows, about))
    if options.work is None:
        shutil.rmtree(folder)


def train(folder: Path, seed: int) -> None:
    """The trained model, and one whose connector reads another layer."""
    world = folder / "world"
    data = [f"stages.0.data.path={world}/pretrain.json", f"stages.1.data.path={world}/instruct.json"]
    data += [f"stages.0.validation.path={world}/validation.captions.json"]
    data += [f"stages.1.validation.0.path={world}/validation.instruct.json", f"seed={seed}"]
    data += [f"stages.1.validation.1.path={world}/validation.text.json"]
    for name, more in (("trained", []), ("other", ["model.vision_layer=-1"])):
        sightline("train", "world", "--resume", f"name={name}", f"out={folder}/{name}{seed}", *data, *more)


def kinds(folder: Path, seed: int, material: Material) -> Iterator[tuple[str, Subject]]:
    """Every kind of model, one at a time."""
    trained, other = Subject(folder / f"trained{seed}"), Subject(folder / f"other{seed}")
    first = Subject(stage_model(folder / f"trained{seed}"), template=trained.assistant.template)
    untrained = reset_connector(first, seed)
    yield "true words", TrueWords(untrained, material)
    yield "trained", trained
    yield "stage 1", first
    yield "untrained", untrained
    yield "shuffled patches", ShuffledPatches(trained)
    yield "wrong pixels", with_normalisation(trained, [0.0] * 3, [1.0] * 3)
    yield "foreign connector", with_connector(trained, other.model.model.multi_modal_projector.state_dict())


def stage_model(run: Path) -> Path:
    """The model after the first stage, which the recipe saves."""
    (found,) = [path.parent for path in run.glob("*pretrain*/config.json")] or [
        path.parent for path in run.glob("**/*pretrain*/**/config.json")
    ]
    return found


def bands(rows: dict[str, list[Row]], name: str) -> dict[str, dict[str, float]]:
    """The lowest and highest value of a score over seeds, by kind."""
    found = {}
    for kind, seeds in rows.items():
        values = [seed[name]["value"] for seed in seeds if name in seed]
        if values:
            found[kind] = {"low": min(values), "high": max(values)}
    return found


def table(rows: dict[str, list[Row]], about: dict) -> str:
    """Values by kind, means over seeds, with a mark where a broken kind is apart from the trained one for every
    seed."""
    lines = [
        "# The diagnostics on models whose alignment is known",
        "",
        f"{about['machine']}, seeds {about['seeds']}",
        "",
    ]
    lines += [f"| score | {' | '.join(rows)} |", "|---|" + "--|" * len(rows)]
    for name in SHOWN:
        if all(name in seed for kind in rows.values() for seed in kind):
            cells = [_cell(rows, kind, name) for kind in rows]
            lines.append(f"| `{name}` | {' | '.join(cells)} |")
    lines += ["", "Means over seeds. * : its 95% interval and the trained model's do not overlap, for every seed.", ""]
    return "\n".join(lines)


def _cell(rows: dict[str, list[Row]], kind: str, name: str) -> str:
    mean = sum(seed[name]["value"] for seed in rows[kind]) / len(rows[kind])
    apart = [
        mine[name]["high"] < trained[name]["low"] or mine[name]["low"] > trained[name]["high"]
        for mine, trained in zip(rows[kind], rows["trained"], strict=True)
    ]
    return f"{mean:.3f}{' *' if kind != 'trained' and all(apart) else ''}"


def sightline(*arguments: str) -> None:
    """A `sightline` command on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if subprocess.run([sys.executable, "-m", "sightline", *arguments], env=environment, check=False).returncode:
        raise SystemExit(f"sightline {' '.join(arguments)} failed; see above")


if __name__ == "__main__":
    main()
