"""The protocol, with a toy method that uses every member of it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.checkpoints import load_model, save_model, why_not_stock
from sightline.data.collate import collate
from sightline.data.dataset import Rows
from sightline.data.order import generator
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.generation import Assistant
from sightline.methods.base import MethodConfig, Sizes
from sightline.methods.compose import Methods, build_methods
from sightline.models.assemble import Assembly, assemble
from sightline.train.objective import Objective
from sightline.types import IGNORE, PROMPT, VISUAL, Sample, Turn
from toy import Doubler, Nudge, Reshaper, Toy, Watcher

SIZES = Sizes(d_vision=8, d_llm=16, patches=4, tokens=4)
VICUNA = get_template("vicuna_v1")


def assembly_with(tiny: dict[str, Path], *records: dict) -> Assembly:
    torch.manual_seed(1)
    return assemble(str(tiny["clip"]), str(tiny["llama"]), methods=records)


def rows_of(assembly: Assembly, pictures: Path) -> Rows:
    samples = read_llava_json(pictures / "chats.json")
    toys = [method for method in assembly.model.model.methods.all if isinstance(method, Toy)]
    columns = toys[0].annotate(samples, None) if toys else {}
    return Rows(samples, assembly.processor(VICUNA), seed=0, columns=columns)


def test_toy_lays_out_slot_views_and_turn(tiny: dict[str, Path], pictures: Path) -> None:
    assembly = assembly_with(tiny, {"name": "toy:Toy"})
    example = rows_of(assembly, pictures)[(0, 0)]
    kinds = assembly.model.model.methods.kinds
    assert kinds[4:] == ("toy/slot", "toy/answer")
    assert example.view_counts.tolist() == [2], "the image and its second view"
    assert example.visual_counts.tolist() == [16], "merged back into one view's worth of tokens"
    assert int((example.kinds == VISUAL).sum()) == 16
    slot = (example.kinds == kinds.index("toy/slot")).nonzero().flatten().tolist()
    assert slot == [1], "after BOS"
    assert example.labels[1] == IGNORE

    answers = example.input_ids[(example.kinds == kinds.index("toy/answer")) & (example.labels != IGNORE)]
    assert assembly.tokenizer.decode(answers).strip().removesuffix("</s>").isdigit()
    extra_question = (example.turn_ids == 1) & (example.kinds == PROMPT)
    assert extra_question.any()
    assert not example.prompt_mask[extra_question].any(), "an inserted question is not the user's own words"
    assert example.prompt_mask[example.turn_ids == 0].any()


def test_text_only_rows_take_no_slot_and_no_view(tiny: dict[str, Path]) -> None:
    assembly = assembly_with(tiny, {"name": "toy:Toy"})
    example = assembly.processor(VICUNA)(Sample("t", (), (Turn("user", "hi"), Turn("assistant", "yes"))))
    assert len(example.view_counts) == 0
    assert not (example.kinds >= 4).any()


def test_turns_are_deterministic_in_seed_epoch_and_row(tiny: dict[str, Path], pictures: Path) -> None:
    rows = rows_of(assembly_with(tiny, {"name": "toy:Toy"}), pictures)
    again = rows_of(assembly_with(tiny, {"name": "toy:Toy"}), pictures)
    assert all(torch.equal(rows[(0, i)].input_ids, again[(0, i)].input_ids) for i in range(12))
    assert any(not torch.equal(rows[(0, i)].input_ids, rows[(1, i)].input_ids) for i in range(12)), "epochs differ"


def test_turns_go_where_they_say() -> None:
    own = (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    turns, foreign = Methods([Toy(Toy.Config(), SIZES)]).insert_turns(
        Sample("x", (Image.new("RGB", (4, 4)),), own), generator(0), {}
    )
    assert [turn.text for turn in turns[:4]] == ["s", "a", "b", "how many dots?"]
    assert [turn.text for turn in turns[5:]] == ["c", "d"]
    assert foreign == frozenset({1})


def test_edits_fold_in_order(tiny: dict[str, Path], pictures: Path) -> None:
    """Nudge adds .1 to what Doubler gives, or Doubler doubles what Nudge gives: the recipe's order decides."""
    batch = collate([rows_of(assembly_with(tiny), pictures)[(0, 0)]], pad_id=0)
    zeros = torch.zeros(16, 16)
    nudge, doubler = Nudge(MethodConfig(), SIZES), Doubler(MethodConfig(), SIZES)
    torch.testing.assert_close(Methods([nudge, doubler]).edit("visual", zeros, batch, {}), zeros + 0.2)
    torch.testing.assert_close(Methods([doubler, nudge]).edit("visual", zeros, batch, {}), zeros + 0.1)
    assert Methods([nudge]).edit("hidden", zeros[None], batch, {}).eq(0).all(), "only the taps it declares"


def test_toy_trains_its_own_parts_and_its_losses_are_counted_apart(tiny: dict[str, Path], pictures: Path) -> None:
    assembly = assembly_with(tiny, {"name": "toy:Toy", "strength": 2.0}, {"name": "toy:Nudge"})
    rows = rows_of(assembly, pictures)
    batch = collate([rows[(0, i)] for i in range(14)], pad_id=rows.processor.pad_id)
    objective = Objective(assembly.model, {"toy/answer": 0.5, "toy/norm": 1.0, "toy/spread": 0.1})
    sums, counts = objective(batch), objective.counts(batch)
    kinds = assembly.model.model.methods.kinds
    for kind in ("answer", "toy/answer"):
        expected = ((batch.labels[:, 1:] != IGNORE) & (batch.kinds[:, 1:] == kinds.index(kind))).sum()
        assert counts[kind] == expected > 0
    assert counts["toy/norm"] == 16 * 14, "12 pictures and a row of two"
    total = objective.total(sums, counts)
    by_hand = (
        sums["answer"] / counts["answer"]
        + 0.5 * sums["toy/answer"] / counts["toy/answer"]
        + sums["toy/norm"] / counts["toy/norm"]
        + 0.1 * sums["toy/spread"]
    )
    torch.testing.assert_close(total, by_hand)
    total.backward()
    toy = assembly.model.model.methods["toy"]
    for name, parameter in toy.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_loss_of_weight_zero_is_not_computed(tiny: dict[str, Path], pictures: Path) -> None:
    """With every loss of the method at zero, loss and gradients are those of the model without it, bit for bit."""
    plain = assembly_with(tiny)
    watched = assembly_with(tiny, {"name": "toy:Watcher"})
    watched.model.load_state_dict(plain.model.state_dict(), strict=False)
    results = []
    for assembly, weights in ((plain, {}), (watched, {"watcher/answers": 0.0})):
        rows = Rows(read_llava_json(pictures / "chats.json"), assembly.processor(VICUNA), seed=0)
        batch = collate([rows[(0, i)] for i in range(4)], pad_id=rows.processor.pad_id)
        objective = Objective(assembly.model, weights)
        loss = objective.total(objective(batch), objective.counts(batch))
        loss.backward()
        results.append((loss.detach(), assembly.model.model.multi_modal_projector.linear_1.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("names", [[], ["Toy"], ["Nudge"], ["Watcher"], ["Toy", "Nudge"], ["Toy", "Nudge", "Watcher"]])
def test_every_subset_steps_saves_loads_and_generates(
    names: list[str], tiny: dict[str, Path], pictures: Path, tmp_path: Path
) -> None:
    assembly = assembly_with(tiny, *({"name": f"toy:{name}"} for name in names))
    rows = rows_of(assembly, pictures)
    batch = collate([rows[(0, i)] for i in range(14)], pad_id=rows.processor.pad_id)
    objective = Objective(assembly.model, {spec.name: 1.0 for spec in assembly.model.model.methods.loss_specs})
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    objective.total(objective(batch), objective.counts(batch)).backward()
    optimizer.step()

    assembly.model.eval()
    reasons = save_model(assembly, tmp_path / "model", VICUNA)
    assert bool(reasons) == bool(set(names) & {"Toy", "Nudge"}), "a method that leaves nothing behind stays stock"
    loaded = load_model(tmp_path / "model")
    prompt = assembly.processor(VICUNA).prompt([Image.new("RGB", (32, 32), "red")], [Turn("user", "<image>\nwhat?")])
    inputs = collate([prompt], pad_id=0)
    given = {"input_ids": inputs.input_ids, "pixel_values": inputs.pixel_values, "view_counts": inputs.view_counts}
    with torch.no_grad():
        assert torch.equal(assembly.model(**given).logits, loaded.model(**given).logits)
        full = assembly.model.generate(**given, max_new_tokens=4, do_sample=False)
        uncached = assembly.model.generate(**given, max_new_tokens=4, do_sample=False, use_cache=False)
    assert torch.equal(full, uncached), "the prefill's edits hold through cached decoding"

    assistant = Assistant(tmp_path / "model")
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (20, 40), "blue")
    together = assistant.answers([[red], [], [blue, red]], ["what is it?", "hi", "same or not?"], max_new_tokens=5)
    single = [
        assistant.answers([i], [q], max_new_tokens=5)[0]
        for i, q in (([red], "what is it?"), ([], "hi"), ([blue, red], "same or not?"))
    ]
    assert together == single


def test_what_serves_training_alone_is_not_exported(tiny: dict[str, Path], tmp_path: Path) -> None:
    from safetensors import safe_open

    assembly = assembly_with(tiny, {"name": "toy:Toy"})
    save_model(assembly, tmp_path / "model", VICUNA)
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    assert any("methods.toy.levels" in name for name in names)
    assert not any("train_only" in name for name in names)


def test_two_methods_cannot_reshape_one_tensor() -> None:
    with pytest.raises(SightlineError, match="'toy' and 'reshaper' both change the shape of 'patches'"):
        Methods([Toy(Toy.Config(), SIZES), Reshaper(MethodConfig(), SIZES)])


def test_a_method_cannot_be_listed_twice() -> None:
    with pytest.raises(SightlineError, match="'nudge' is listed twice"):
        Methods([Nudge(MethodConfig(), SIZES), Nudge(MethodConfig(), SIZES)])


def test_a_missing_column_names_the_command(tiny: dict[str, Path], pictures: Path) -> None:
    assembly = assembly_with(tiny, {"name": "toy:Toy"})
    samples = read_llava_json(pictures / "chats.json")
    with pytest.raises(
        SightlineError, match=r"needs column 'toy/level'.*Compute it, and give it to sightline.train.train"
    ):
        Rows(samples, assembly.processor(VICUNA), seed=0)
    with pytest.raises(SightlineError, match="no value for sample 'text'"):
        values = {s.id: torch.tensor(0) for s in samples if s.id != "text"}
        Rows(samples, assembly.processor(VICUNA), seed=0, columns={"toy/level": values})


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"name": "seaa"}, "unknown method 'seaa'"),
        ({"name": "toy:Nothing"}, "cannot be imported"),
        ({"name": "toy:ToyConfig"}, "is not an AlignmentMethod"),
        ({"name": "toy:Toy", "strenght": 1}, "strenght: Extra inputs are not permitted.*Options: strength, turns"),
        ({"strength": 1}, "a method needs a name"),
    ],
)
def test_wrong_records_are_named(record: dict, message: str) -> None:
    with pytest.raises(SightlineError, match=message):
        build_methods([record], SIZES)


def test_unknown_weights_are_named(tiny: dict[str, Path]) -> None:
    assembly = assembly_with(tiny, {"name": "toy:Toy"})
    with pytest.raises(SightlineError, match=r"'toy/nrom' that nothing gives; did you mean 'toy/norm'"):
        Objective(assembly.model, {"toy/nrom": 1.0})


def test_why_not_stock_says_why(tiny: dict[str, Path]) -> None:
    assert why_not_stock(assembly_with(tiny, {"name": "toy:Watcher"}).model) == []
    assert "method 'toy' changes the forward pass" in why_not_stock(assembly_with(tiny, {"name": "toy:Toy"}).model)


def test_the_slot_is_edited_by_the_column(tiny: dict[str, Path], pictures: Path) -> None:
    """The row's level, not its neighbours', stands in its slot: another level changes its hidden states alone."""
    assembly = assembly_with(tiny, {"name": "toy:Toy", "turns": False})
    rows = rows_of(assembly, pictures)
    batch = collate([rows[(0, 0)], rows[(0, 2)]], pad_id=rows.processor.pad_id)
    level = batch.columns["toy/level"]
    other = replace(batch, columns={"toy/level": ((level[0] + 1) % 4, level[1])})
    assembly.model.eval()
    with torch.no_grad():
        a, b = (assembly.model.model.trace(x)[0].hidden for x in (batch, other))
    assert not torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])
    assert np.isfinite(a.numpy()).all()
    assert isinstance(assembly.model.model.methods["toy"], Toy)
    assert Watcher.name not in assembly.model.model.methods
