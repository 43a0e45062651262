"""What two processes under torchrun do, against what one does with the same rows. Run by test_processes.py.

    torchrun --nproc-per-node 2 two_processes.py FOLDER

Every check writes a line `ok NAME` or `FAILED NAME: why`; a process that hangs is caught by the test's time limit.
"""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from sightline.config import Stage, check, load_recipe
from sightline.data.collate import collate
from sightline.data.dataset import Fetched, Mixture, Rows
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.methods.base import Setting
from sightline.models.assemble import Assembly, assemble
from sightline.train import train
from sightline.train.engine import Engine, outline, put_together, whole
from sightline.train.loop import in_step, validate
from sightline.train.objective import Objective
from sightline.train.processes import Processes, joined
from sightline.train.rows import annotations_of
from sightline.train.setup import build_optimizer, set_trainable
from sightline.train.step import take_step
from sightline.types import Batch

FOLDER = Path(sys.argv[1])
PICTURES = FOLDER / "pictures"
PARTS = {"vision": str(FOLDER / "parts" / "clip"), "language": str(FOLDER / "parts" / "tied")}
CONTRAST = {"name": "toy:Contrast"}
METHODS = ({"name": "toy:Toy"}, {"name": "toy:Nudge"}, {"name": "toy:Watcher"})
SEA = {"name": "sea", "labels": str(FOLDER / "patches.jsonl"), "words": str(FOLDER / "words.txt"), "scope": "gathered"}
"""Of the pictures 2 and 5 no patch has a label."""
GATHERED = {
    "rows": (CONTRAST, [[[0, 1, 2], [12, 13]]]),
    "patches, and a picture that both have": (SEA, [[[0, 1, 3], [12]]]),
    "patches in a round and a half": (SEA, [[[0, 1], [12, 3]], [[4, 9]]]),
    "no label on one": (SEA, [[[2, 5], [0, 1, 12]]]),
    "no image on one": (SEA, [[[0, 12], [13, 13]]]),
    "no label on either": (SEA, [[[2, 5, 2], [13]]]),
}
"""For each case a method, and in each round of forward passes the rows of each process."""


def build(*methods: dict) -> tuple[Assembly, Rows]:
    """A tiny model in fp64 without dropout, and its rows."""
    torch.manual_seed(3)
    assembly = assemble(**PARTS, methods=methods)
    assembly.model.double()
    samples = read_llava_json(PICTURES / "chats.json")
    columns = {"toy/level": {s.id: torch.tensor(len(s.id) % 4) for s in samples}}
    weights = {spec.name: 1.0 for spec in assembly.model.model.methods.loss_specs}
    stage = {"name": "s", "data": {"path": "x"}, "trainable": ["connector"], "weights": weights}
    recipe = check({"name": "two", "model": PARTS, "methods": list(methods), "stages": [stage]})
    setting = Setting(recipe, 0, assembly, torch.device("cpu"), [samples])
    for method in assembly.model.model.methods.all:
        method.begin(setting)
    processor = assembly.processor(get_template("vicuna_v1"))
    readers = [annotation.reader() for annotation in annotations_of(setting, columns).values()]
    return assembly, Rows(samples, processor, seed=0, columns=columns, readers=readers)


def batch_of(rows: Rows, numbers: list[int]) -> Batch:
    batch = collate([rows[(0, number)] for number in numbers], pad_id=rows.processor.pad_id)
    return replace(batch, pixel_values=batch.pixel_values.double())


def stepped(processes: Processes, parallel, groups: list[list[int]], *methods: dict, trainable=(), weights=None):
    """Losses and gradients of one step over micro-batches of rows `groups`, of which each process takes its share."""
    assembly, rows = build(*methods)
    if weights is None:
        weights = {spec.name: 1.0 for spec in assembly.model.model.methods.loss_specs}
    names = [method.name for method in assembly.model.model.methods.all if list(method.parameters())]
    stage = Stage.model_validate(
        {
            "name": "s",
            "data": {"path": "x"},
            "trainable": [*(trainable or ("connector", "language")), *names],
            "lr": 0.0,
        }
        | {"clip_norm": None}
    )
    table = set_trainable(assembly.model, stage)
    engine = Engine(Objective(assembly.model, weights), stage, processes, parallel)
    optimizer = build_optimizer(assembly.model, table, stage)
    rounds = -(-len(groups) // processes.world)
    places = [turn * processes.world + processes.rank for turn in range(rounds)]
    fetched = [Fetched(batch_of(rows, groups[place % len(groups)])) for place in places]
    counted = sum(place < len(groups) for place in places)
    batches, _, _ = in_step(fetched, counted, None, processes)
    result = take_step(engine, batches, optimizer, stage, step=1)
    gradients = {n: whole(p.grad) for n, p in assembly.model.named_parameters() if p.grad is not None}
    return result.losses, gradients, result.samples, result.visual, result.measures


def same(one, two) -> None:
    """Losses, unclipped gradients and measures, to 1e-10 in fp64; how losses pull at the visual tokens, in fp32."""
    losses, gradients, samples, visual, measures = one
    assert measures.keys() == two[4].keys() and all(abs(v - two[4][k]) < 1e-10 for k, v in measures.items()), two[4]
    if two[3]:
        assert visual.keys() == two[3].keys() and all(abs(v - two[3][k]) < 1e-5 for k, v in visual.items()), two[3]
    assert samples == two[2], (samples, two[2])
    assert losses.keys() == two[0].keys()
    for name, value in losses.items():
        assert abs(value - two[0][name]) < 1e-10, (name, value, two[0][name])
    assert gradients.keys() == two[1].keys(), gradients.keys() ^ two[1].keys()
    assert any(float(g.abs().max()) > 1e-6 for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(two[1][name], gradient, atol=1e-10, rtol=0, msg=name)


def additive(processes: Processes, parallel) -> None:
    """Rows with one image, with two, and text alone; unequal numbers of supervised tokens; three losses."""
    groups = [[0, 1, 12], [2, 3, 13], [4, 12, 6], [13, 8, 9]]
    weights = {"toy/norm": 1.0}
    everything = [number for group in groups for number in group]
    one = stepped(Processes(), parallel, [everything], *METHODS, weights=weights)
    same(one, stepped(processes, parallel, groups, *METHODS, weights=weights))


def text_on_one(processes: Processes, parallel) -> None:
    """One process has text alone, the other images; with a frozen tower and with one that trains. Neither hangs."""
    for trainable in (("connector", "language"), ("vision", "connector"), ("connector",)):
        groups = [[0, 1, 12], [13, 13, 13]]
        one = stepped(Processes(), parallel, [[0, 1, 12, 13, 13, 13]], trainable=trainable)
        same(one, stepped(processes, parallel, groups, trainable=trainable))


def short_step(processes: Processes, parallel) -> None:
    """Three micro-batches for two processes: one runs a fourth that does not count."""
    one = stepped(Processes(), parallel, [[0, 12, 13, 1, 2]], *METHODS[1:])
    same(one, stepped(processes, parallel, [[0, 12], [13, 1], [2]], *METHODS[1:]))


def contrasted() -> dict[str, tuple]:
    """The contrastive losses in one process, each round in one pass; before there is another process to gather from."""
    alone = {
        name: stepped(Processes(), "ddp", [[row for rows in group for row in rows] for group in rounds], method)
        for name, (method, rounds) in GATHERED.items()
    }
    for name, loss in (("rows", "contrast/rows"), ("patches, and a picture that both have", "sea/contrastive")):
        method, (groups,) = GATHERED[name]
        found, apart = alone[name][0], stepped(Processes(), "ddp", groups, method)[0]
        assert found[f"loss/{loss}"] > 0.1
        assert abs(apart[f"loss/{loss}"] - found[f"loss/{loss}"]) > 1e-3, "by micro-batch it is another loss"
    assert alone["no label on either"][0]["loss/sea/contrastive"] == 0
    assert alone["no label on one"][0]["loss/sea/contrastive"] > 0.1
    return alone


def gathered(processes: Processes, parallel, alone: dict[str, tuple]) -> None:
    """A contrastive loss over what both processes have is that of one process that has it all: its gradients too, of
    the connector and of SEA's temperature; with uneven shares, and where one has nothing to contrast."""
    for name, (method, rounds) in GATHERED.items():
        try:
            same(alone[name], stepped(processes, parallel, [rows for group in rounds for rows in group], method))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def held_out(processes: Processes, parallel) -> None:
    """Validation over five batches for two processes."""
    losses = []
    for each in (Processes(), processes):
        assembly, rows = build()
        assembly.model.float()
        stage = Stage.model_validate({"name": "s", "data": {"path": "x"}, "trainable": ["connector"], "batch_size": 3})
        set_trainable(assembly.model, stage)
        engine = Engine(Objective(assembly.model, {}), stage, each, parallel)
        losses.append(validate(engine, Mixture([rows]), stage))
    assert losses[0] is not None and losses[1] is not None
    assert abs(losses[0][0]["loss"] - losses[1][0]["loss"]) < 1e-6, losses


def put_together_again(processes: Processes, parallel) -> None:
    """What FSDP shared out comes back whole, with its tied output layer tied, and what a method kept meanwhile."""
    assembly, _ = build(*METHODS)
    assembly.model.model.methods["nudge"].register_buffer("seen", torch.zeros(1))
    before = {name: value.clone() for name, value in assembly.model.state_dict().items()}
    stage = Stage.model_validate({"name": "s", "data": {"path": "x"}, "trainable": ["language"]})
    set_trainable(assembly.model, stage)
    plain = outline(assembly.model)
    Engine(Objective(assembly.model, {}), stage, processes, parallel)
    assembly.model.get_buffer("model.methods.nudge.seen").fill_(1)
    model = put_together(assembly.model, plain)
    after = model.state_dict()
    before["model.methods.nudge.seen"].fill_(1)
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def report(processes: Processes, name: str, check: Callable[[], object]) -> None:
    """Say whether a check held, in every process."""
    try:
        check()
    except Exception:
        print(f"FAILED {name} on {processes.rank}: {traceback.format_exc()}", flush=True)
        os._exit(1)  # the other process waits in a collective
    if processes.main:
        print(f"ok {name}", flush=True)


def main() -> None:
    alone = contrasted()
    with joined("cpu") as processes:
        for parallel in ("ddp", "fsdp"):
            for check in (additive, text_on_one, short_step, held_out):
                report(processes, f"{check.__name__} {parallel}", partial(check, processes, parallel))
            report(processes, f"gathered {parallel}", partial(gathered, processes, parallel, alone))
        report(processes, "put_together_again", partial(put_together_again, processes, "fsdp"))
        for name in sys.argv[2:]:
            run = partial(train, load_recipe(FOLDER / f"{name}.yaml"), quiet=True, resume=True)
            report(processes, name, run)


if __name__ == "__main__":
    main()
