"""Training: the loop's arithmetic, what moves and what does not, and the run folder it leaves."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sightline.checkpoints import load_model
from sightline.config import Recipe, Stage, check, load_recipe
from sightline.data.collate import collate
from sightline.data.dataset import Mixture, Rows
from sightline.data.order import Order
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.methods.base import LossSpec, Needs
from sightline.models.assemble import Assembly, assemble
from sightline.models.parts import owner_of
from sightline.report.run_folder import read_run
from sightline.train import train
from sightline.train.engine import Engine
from sightline.train.loop import num_steps, validate
from sightline.train.objective import Objective
from sightline.train.setup import build_optimizer, schedule, set_modes, set_trainable
from sightline.train.step import take_step
from toy import Toy, Watcher


def recipe(tiny: dict[str, Path], pictures: Path, out: Path, **changes) -> Recipe:
    values = {
        "name": "test",
        "out": str(out),
        "device": "cpu",
        "model": {"vision": str(tiny["clip"]), "language": str(tiny["llama"])},
        "stages": [
            {
                "name": "pretrain",
                "data": {"path": str(pictures / "captions.json"), "template": "plain"},
                "validation": {"path": str(pictures / "captions.json"), "template": "plain"},
                "trainable": ["connector"],
                "batch_size": 4,
                "epochs": 2,
                "save": True,
            },
            {
                "name": "tune",
                "data": {"path": str(pictures / "chats.json")},
                "trainable": ["connector", "language"],
                "batch_size": 2,
                "accumulate": 2,
            },
        ],
    }
    return check(values | changes)


def one_stage(**changes) -> Stage:
    return Stage.model_validate(
        {
            "name": "s",
            "data": {"path": "x"},
            "trainable": ["connector", "language"],
            "schedule": "constant",
            "warmup": 0,
        }
        | changes
    )


def build(tiny: dict[str, Path], pictures: Path, *methods: dict, lm: str = "llama") -> tuple[Assembly, Rows]:
    torch.manual_seed(3)
    assembly = assemble(str(tiny["clip"]), str(tiny[lm]), methods=methods)
    samples = read_llava_json(pictures / "chats.json")
    columns = {"toy/level": {s.id: torch.tensor(len(s.id) % 4) for s in samples}} if methods else None
    return assembly, Rows(samples, assembly.processor(get_template("vicuna_v1")), seed=0, columns=columns)


def test_a_run_leaves_what_it_should(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    folder = train(recipe(tiny, pictures, tmp_path / "run"), quiet=True)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in metrics if "split" not in row]
    assert [(row["stage"], row["step"]) for row in steps] == [("pretrain", i) for i in range(1, 7)] + [
        ("tune", i) for i in range(1, 5)
    ], "12 rows by 4, twice; 14 rows by 2 x 2"
    assert [row["samples"] for row in steps[-4:]] == [4, 4, 4, 2], "the last step of an epoch has what is left"
    assert {"loss", "loss/answer", "lr/connector", "grad_norm", "samples_per_s", "tokens_per_s"} <= set(steps[0])
    assert [row["step"] for row in metrics if row.get("split") == "validation"] == [0, 1, 2, 3, 4, 5, 6]
    begins, ends = ([row["loss"] for row in metrics if row.get("split") == "validation"][place] for place in (0, -1))
    assert begins > ends
    assert steps[5]["loss"] < steps[0]["loss"]

    facts = json.loads((folder / "run.json").read_text())
    assert facts["seed"] == 0 and facts["versions"]["torch"] == torch.__version__ and facts["seconds"] > 0
    assert load_recipe(folder / "recipe.yaml") == recipe(tiny, pictures, tmp_path / "run"), "every default spelled out"
    load_model(folder / "model")
    first = load_model(folder / "stages" / "pretrain" / "model").model.state_dict()
    last = load_model(folder / "model").model.state_dict()
    for name, value in first.items():
        moved = not torch.equal(value, last[name])
        assert moved == (owner_of(name) != "vision"), name


def test_stage_one_moves_the_connector_alone(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    folder = train(recipe(tiny, pictures, tmp_path / "run"), quiet=True)
    torch.manual_seed(0)
    fresh = assemble(str(tiny["clip"]), str(tiny["llama"])).model.state_dict()
    trained = load_model(folder / "stages" / "pretrain" / "model").model.state_dict()
    for name, value in trained.items():
        assert torch.equal(value, fresh[name]) != (owner_of(name) == "connector"), name


def test_same_recipe_same_bits(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    """With dropout in the language model, and with worker processes: the order and the draws are pure in the seed."""
    runs = []
    for number, workers in ((0, 0), (1, 2)):
        made = recipe(tiny, pictures, tmp_path / f"run{number}")
        stages = [stage.model_copy(update={"workers": workers}) for stage in made.stages]
        folder = train(made.model_copy(update={"stages": stages}), quiet=True)
        losses = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        runs.append((load_model(folder / "model").model.state_dict(), losses))
    assert runs[0][1] == runs[1][1]
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())


def test_another_seed_is_another_run(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    folders = [
        train(recipe(tiny, pictures, tmp_path / f"run{seed}").model_copy(update={"seed": seed}), quiet=True)
        for seed in (0, 1)
    ]
    first, second = ((folder / "metrics.jsonl").read_text().splitlines()[0] for folder in folders)
    assert json.loads(first)["loss"] != json.loads(second)["loss"]


@pytest.mark.parametrize("methods", [(), ({"name": "toy:Toy"},)])
def test_accumulation_is_exact(methods: tuple, tiny: dict[str, Path], pictures: Path) -> None:
    """4 micro-batches of 8 rows give the loss and gradients of 1 of 32 (fp64, 1e-10), methods' additive losses too.

    Rows differ in their number of supervised tokens, so a mean of means would fail.
    """
    assembly, rows = build(tiny, pictures, *methods)
    assembly.model.double().eval()
    examples = [rows[(0, i % 14)] for i in range(32)]
    weights = {"toy/norm": 1.0} if methods else {}
    objective = Objective(assembly.model, weights)
    stage = one_stage(clip_norm=None, lr=0.0)
    results = []
    for size in (32, 8):
        batches = [collate(examples[i : i + size], pad_id=0) for i in range(0, 32, size)]
        batches = [replace(b, pixel_values=b.pixel_values.double()) for b in batches]
        counts = {len(set((batch.labels >= 0).sum(1).tolist())) for batch in batches}
        optimizer = build_optimizer(assembly.model, set_trainable(assembly.model, stage), stage)
        result = take_step(Engine(objective, stage), batches, optimizer, stage, step=1)
        gradients = {n: p.grad.clone() for n, p in assembly.model.named_parameters() if p.grad is not None}
        results.append((result.losses, gradients))
    assert max(counts) > 1
    whole, parts = results
    assert whole[0] == pytest.approx(parts[0], abs=1e-10)
    assert set(whole[1]) == set(parts[1])
    for name, gradient in whole[1].items():
        torch.testing.assert_close(gradient, parts[1][name], atol=1e-10, rtol=0)


def test_the_language_loss_is_the_stock_loss(tiny: dict[str, Path], pictures: Path) -> None:
    """Computed only where there are labels, in kinds, it equals transformers' own mean over supervised tokens."""
    assembly, rows = build(tiny, pictures)
    batch = collate([rows[(0, i)] for i in range(14)], pad_id=rows.processor.pad_id)
    assembly.model.eval()
    objective = Objective(assembly.model, {})
    ours = objective.total(objective(batch), objective.counts(batch))
    stock = assembly.model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        pixel_values=batch.pixel_values,
        labels=batch.labels,
    ).loss
    torch.testing.assert_close(ours, stock)


def test_the_blind_twin_sees_nothing(tiny: dict[str, Path], pictures: Path) -> None:
    assembly, _ = build(tiny, pictures)
    samples = read_llava_json(pictures / "chats.json")
    blind = assembly.processor(get_template("vicuna_v1"), blank_images=True)
    red, blue = blind(samples[0]), blind(samples[2])
    assert torch.equal(red.pixel_values, blue.pixel_values)
    assert not torch.equal(*(assembly.processor(get_template("vicuna_v1"))(samples[i]).pixel_values for i in (0, 2)))


def test_rates_follow_part_and_schedule(tiny: dict[str, Path], pictures: Path) -> None:
    """10 steps, a tenth of them warm-up: step 0 at the peak; the cosine halves at the middle of the other 9."""
    assembly, _ = build(tiny, pictures)
    stage = one_stage(lr=1e-3, lr_by_part={"language": 2e-5}, weight_decay=0.1)
    optimizer = build_optimizer(assembly.model, set_trainable(assembly.model, stage), stage)
    assert {group["part"]: group["peak"] for group in optimizer.param_groups} == {"connector": 1e-3, "language": 2e-5}
    decays = {p.ndim >= 2: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {True: 0.1, False: 0.0}

    cosine = schedule(one_stage(schedule="cosine", warmup=0.1), 10)
    assert [cosine(0), cosine(1)] == [1.0, 1.0]
    assert schedule(one_stage(schedule="cosine"), 8)(4) == pytest.approx(0.5)
    assert [schedule(one_stage(schedule="linear"), 4)(i) for i in range(4)] == [1, 0.75, 0.5, 0.25]
    assert [schedule(one_stage(warmup=0.5), 4)(i) for i in range(4)] == [0.5, 1, 1, 1]


class OfRank(Watcher):
    """A loss over all rows that a process has in a step."""

    name = "ofrank"

    @property
    def needs(self) -> Needs:
        return Needs(losses=(LossSpec("watcher/answers", scope="rank"),))


def test_a_loss_over_a_process_wants_its_rows_at_once(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    made = recipe(tiny, pictures, tmp_path / "run", methods=[{"name": "test_train:OfRank"}])
    stages = [stage.model_copy(update={"weights": {"watcher/answers": 1.0}}) for stage in made.stages]
    made = made.model_copy(update={"stages": stages})
    with pytest.raises(
        SightlineError, match=r"stage 'tune': loss 'watcher/answers' is over all rows.* 2 forward passes"
    ):
        train(made, quiet=True)
    stages = [made.stages[0], made.stages[1].model_copy(update={"accumulate": 1})]
    train(made.model_copy(update={"stages": stages}), quiet=True)


def test_steps_override_epochs() -> None:
    assert num_steps(one_stage(steps=7), Order(0, (100,), 16)) == 7
    assert num_steps(one_stage(epochs=0.5), Order(0, (100,), 10)) == 5
    assert num_steps(one_stage(), Order(0, (100,), 8, 4)) == 4, "the last step is smaller"


def test_frozen_parts_keep_their_dropout_off(tiny: dict[str, Path], pictures: Path) -> None:
    assembly, _ = build(tiny, pictures)
    set_modes(assembly.model, one_stage(trainable=["connector"]))
    assert assembly.model.model.multi_modal_projector.training
    assert not assembly.model.model.language_model.training


def test_a_loss_that_is_not_finite_stops_before_the_update(tiny: dict[str, Path], pictures: Path) -> None:
    assembly, rows = build(tiny, pictures)
    batch = collate([rows[(0, 0)]], pad_id=0)
    batch = replace(batch, pixel_values=batch.pixel_values * float("nan"))
    stage = one_stage(name="tune")
    optimizer = build_optimizer(assembly.model, set_trainable(assembly.model, stage), stage)
    before = {name: p.clone() for name, p in assembly.model.named_parameters()}
    with pytest.raises(SightlineError, match=r"stage 'tune' is nan at step 5, in rows q0.*not updated"):
        take_step(Engine(Objective(assembly.model, {}), stage), [batch], optimizer, stage, step=5)
    assert all(torch.equal(p, before[name]) for name, p in assembly.model.named_parameters())


def test_validation_sets_with_a_name_are_measured_by_themselves(tiny: dict[str, Path], pictures: Path, tmp_path: Path):
    """Their rows are those of no other set, so what the language model keeps has a curve of its own."""
    text = [
        {"id": i, "conversations": [{"from": "human", "value": "hm"}, {"from": "gpt", "value": "a"}]} for i in (1, 2)
    ]
    (tmp_path / "text.json").write_text(json.dumps(text))
    captions = {"path": str(pictures / "captions.json"), "template": "plain"}
    held_out = {
        "alone": [captions],
        "both": [captions, {"path": str(tmp_path / "text.json"), "name": "text"}],
    }
    found, first = {}, {}
    for name, validation in held_out.items():
        changed = recipe(tiny, pictures, tmp_path / name).model_dump()
        stage = changed["stages"][0] | {"validation": validation, "steps": 2, "validate_every": 2}
        train(check(changed | {"stages": [stage]}))
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        found[name] = {row.get("set"): row for row in rows if row.get("split") == "validation"}
        first[name] = {row.get("set"): row for row in reversed(rows) if row.get("split") == "validation"}
    assert set(found["alone"]) == {None} and set(found["both"]) == {None, "text"}
    assert found["both"][None]["loss"] == found["alone"][None]["loss"] != found["both"]["text"]["loss"]
    assert all(row["accuracy"] in (0.0, 0.5, 1.0) for row in (found["both"]["text"],))
    shown = {curve.quantity: curve for curve in read_run(tmp_path / "both").curves}
    assert shown["loss of text"].validation == tuple(
        (step, row["both"]["text"]["loss"]) for step, row in ((0, first), (2, found))
    )
    assert not shown["loss of text"].train


def test_validation_is_a_mean_over_all_rows_and_moves_nothing(tiny: dict[str, Path], pictures: Path) -> None:
    assembly, rows = build(tiny, pictures)
    objective = Objective(assembly.model, {})
    by_two, by_five = (
        validate(Engine(objective, stage), Mixture([rows]), stage)
        for stage in (one_stage(batch_size=2), one_stage(batch_size=5))
    )
    assert by_two is not None and by_five is not None
    assert by_two[0]["loss"] == pytest.approx(by_five[0]["loss"], abs=1e-6)
    assert all(p.grad is None for p in assembly.model.parameters())


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(tiny: dict[str, Path], pictures: Path) -> None:
    assembly, rows = build(tiny, pictures)
    batch = collate([rows[(0, 0)]], pad_id=0)
    losses = {}
    for precision in ("fp32", "bf16"):
        stage = one_stage(precision=precision, lr=0.0)
        optimizer = build_optimizer(assembly.model, set_trainable(assembly.model, stage), stage)
        losses[precision] = take_step(
            Engine(Objective(assembly.model, {}), stage), [batch], optimizer, stage, step=1
        ).losses["loss"]
    assert losses["fp32"] != losses["bf16"]
    assert losses["fp32"] == pytest.approx(losses["bf16"], rel=0.02)
    assert all(p.dtype == torch.float32 for p in assembly.model.parameters())


def test_a_stage_starts_from_a_saved_model(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    first = train(recipe(tiny, pictures, tmp_path / "first"), quiet=True)
    stage = {
        "name": "more",
        "init_from": str(first / "model"),
        "data": {"path": str(pictures / "chats.json")},
        "trainable": ["language"],
        "lr": 0.0,
        "steps": 1,
    }
    again = train(
        check({"name": "again", "out": str(tmp_path / "again"), "device": "cpu", "stages": [stage]}), quiet=True
    )
    before, after = (load_model(folder / "model").model.state_dict() for folder in (first, again))
    assert all(torch.equal(value, after[name]) for name, value in before.items()), "a rate of zero changes nothing"


def test_methods_train_through_a_recipe(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    made = recipe(tiny, pictures, tmp_path / "run", methods=[{"name": "toy:Toy"}])
    weights = {"toy/norm": 1.0, "toy/spread": 1.0}
    stages = [
        stage.model_copy(update={"trainable": [*stage.trainable, "toy"], "weights": weights}) for stage in made.stages
    ]
    samples = [s for name in ("captions", "chats") for s in read_llava_json(pictures / f"{name}.json")]
    columns = {"toy/level": {s.id: torch.tensor(len(s.id) % 4) for s in samples}}
    folder = train(made.model_copy(update={"stages": stages}), columns=columns, quiet=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    row = next(line for line in lines if "split" not in line)
    assert {"loss/answer", "loss/toy/answer", "loss/toy/norm", "loss/toy/spread", "lr/toy"} <= set(row)
    measured = [line["step"] for line in lines if "toy/length" in line]
    assert measured and set(measured) == {
        line["step"] for line in lines if "split" not in line and line["step"] % 10 == 1
    }
    assert isinstance(load_model(folder / "model").model.model.methods["toy"], Toy)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": [{"name": "toy:Toy"}]}, "needs column 'toy/level', absent from"),
        ({"device": "cuda:9"}, "device 'cuda:9' cannot be used"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"max_length": 40}, "has .* tokens, 16 of them visual, and max_length is 40"),
    ],
)
def test_what_would_fail_fails_before_training(
    changes: dict, message: str, tiny: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(SightlineError, match=message):
        train(recipe(tiny, pictures, tmp_path / "run", **changes), quiet=True)
    assert not (tmp_path / "run").exists(), "nothing was begun"


def test_later_stages_are_checked_before_the_first(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    made = recipe(tiny, pictures, tmp_path / "run")
    for update, message in (
        ({"trainable": ["conector"]}, "stage 'tune' trains 'conector', which the model does not have; did you mean"),
        ({"weights": {"anwser": 1.0}}, "weights name a loss 'anwser' that nothing gives; did you mean 'answer'"),
    ):
        stages = [made.stages[0], made.stages[1].model_copy(update=update)]
        with pytest.raises(SightlineError, match=message):
            train(made.model_copy(update={"stages": stages}), quiet=True)
        assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(tiny: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(SightlineError, match="is not empty, and run 'test' would overwrite it"):
        train(recipe(tiny, pictures, tmp_path / "run"), quiet=True)


def test_a_mixture_trains_with_its_policies_and_leaves_a_list(
    tiny: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    rows = json.loads((pictures / "captions.json").read_text())
    rows[3]["image"] = "gone.png"
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    mixed = [
        {"path": str(tmp_path / "captions.json"), "images": str(pictures / "images"), "template": "plain"},
        {"path": str(pictures / "chats.json"), "weight": 0.5},
    ]
    stage = {"name": "mix", "data": mixed, "trainable": ["connector"], "batch_size": 4, "group_by_length": True}
    made = recipe(tiny, pictures, tmp_path / "run", stages=[stage | {"bad_images": "skip"}])
    folder = train(made, quiet=True)
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["samples"] for row in metrics) == 12 + 7 - 1
    (dropped,) = [json.loads(line) for line in (folder / "dropped.jsonl").read_text().splitlines()]
    assert (dropped["stage"], dropped["id"], dropped["reason"]) == ("mix", "3", "bad image")
    with pytest.raises(SightlineError, match=r"sample '3': image not found.*gone.png"):
        train(recipe(tiny, pictures, tmp_path / "strict", stages=[stage]), quiet=True)
