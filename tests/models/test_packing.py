"""Packing: the same losses and gradients as the padded batch, for every family, and no row sees another."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig, MistralConfig

import parts
from sightline.data.collate import collate
from sightline.data.dataset import Rows
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.models import modeling
from sightline.models.assemble import Assembly, assemble
from sightline.models.packing import Packing, cheapest_bins, check_packing, first_fit_decreasing, plan
from sightline.train.objective import Objective
from sightline.types import Batch

EXACT = {"atol": 1e-10, "rtol": 1e-10}
BODY = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 60}
WINDOW = 6

lengths = st.lists(st.integers(1, 40), min_size=1, max_size=24)


def masked(lengths: list[int], *, left: bool = False) -> Tensor:
    mask = torch.arange(max(lengths)).expand(len(lengths), -1) < torch.tensor(lengths)[:, None]
    return (mask.flip(1) if left else mask).long()


@given(lengths, st.integers(0, 20))
def test_bins_hold_every_row_once_and_never_too_much(lengths: list[int], spare: int) -> None:
    capacity = max(lengths) + spare
    bins = first_fit_decreasing(lengths, capacity)
    assert sorted(row for rows in bins for row in rows) == list(range(len(lengths)))
    filled = [sum(lengths[row] for row in rows) for rows in bins]
    assert all(0 < used <= capacity for used in filled)
    assert sum(2 * used <= capacity for used in filled) <= 1, "at most one bin is half empty"
    assert len(bins) <= len(lengths)


@given(lengths, st.booleans(), st.booleans())
def test_what_is_packed_comes_back(lengths: list[int], left: bool, one_sequence: bool) -> None:
    """Every token to one place and back, positions restarting with each row; padding comes back as zeros."""
    mask = masked(lengths, left=left)
    packing = plan(mask, 8, one_sequence=one_sequence)
    x = torch.arange(1.0, mask.numel() + 1).view(*mask.shape, 1)
    packed = packing.pack(x)
    assert packed.shape[:2] == ((1, sum(lengths)) if one_sequence else packing.position_ids.shape)
    assert torch.equal(packing.unpack(packed, mask.shape), x * mask.unsqueeze(-1))
    positions = packing.position_ids.flatten()[packing.binned].split(lengths)
    assert all(torch.equal(mine, torch.arange(n)) for mine, n in zip(positions, lengths, strict=True))
    fresh = packing.position_ids.diff(dim=1) != 1
    assert (packing.position_ids[:, 1:][fresh] == 0).all(), "a row begins where the count does not go on"


@given(lengths, st.sampled_from([1, 64, 4096]))
def test_bins_never_cost_more_than_the_padded_batch(lengths: list[int], width: int) -> None:
    capacity, bins = cheapest_bins(lengths, width)
    assert capacity >= max(lengths)
    attended = capacity * (0.5 if len(bins) == len(lengths) else 1)
    padded = len(lengths) * max(lengths) * (6 * width + 0.5 * max(lengths))
    assert len(bins) * capacity * (6 * width + attended) <= padded


def test_a_wide_model_gets_longer_bins() -> None:
    """Three rows of 6 and one of 7 do not share bins of 7. Attention to 25 places is dear at width 1, cheap at 4096."""
    assert cheapest_bins([6, 7, 6, 6], 1) == (7, [[0], [1], [2], [3]])
    assert cheapest_bins([6, 7, 6, 6], 4096) == (25, [[1, 0, 2, 3]])


def test_rows_that_share_no_bin_need_no_mask() -> None:
    """Their positions run to the end of the bin, where transformers sees plain causal rows."""
    packing = plan(masked([6, 7, 6]), 1)
    assert torch.equal(packing.position_ids, torch.arange(7).expand(3, -1))


# --- the model: exact against the padded batch ---


@pytest.fixture(scope="module")
def rows_of(pictures) -> Callable[..., list]:
    samples = {sample.id: sample for sample in read_llava_json(pictures / "chats.json", pictures / "images")}
    long = replace(samples["text"], id="long", turns=samples["text"].turns * 9)
    chosen = [samples["q1"], samples["text"], long, samples["two"], samples["q0"]]
    columns = {"toy/level": {sample.id: torch.tensor(len(sample.id) % 4) for sample in chosen}}

    def get(assembly: Assembly) -> list:
        rows = Rows(chosen, assembly.processor(get_template("vicuna_v1")), seed=0, columns=columns)
        return [rows[(0, number)] for number in range(len(chosen))]

    return get


def doubled(examples: list, side: str = "right") -> Batch:
    batch = collate(examples, pad_id=0, side=side)  # pyright: ignore[reportArgumentType]
    return replace(batch, pixel_values=batch.pixel_values.double())


def losses_and_gradients(
    assembly: Assembly, batch: Batch, *, packing: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    objective = Objective(assembly.model, {}, packing=packing)
    assembly.model.zero_grad()
    sums = objective(batch)
    objective.total(sums, objective.counts(batch)).backward()
    return sums, {name: p.grad for name, p in assembly.model.named_parameters()}


def check(assembly: Assembly, examples: list, side: str = "right") -> None:
    """Packed, padded on either side, against padded on the right."""
    assembly.model.double().eval()
    num_bins = len(plan(masked([len(example) for example in examples]), 32).position_ids)
    assert num_bins < len(examples), "rows share a bin"
    sums, gradients = losses_and_gradients(assembly, doubled(examples, side), packing=True)
    expected, wanted = losses_and_gradients(assembly, doubled(examples), packing=False)
    assert sums.keys() == expected.keys()
    for name, value in sums.items():
        torch.testing.assert_close(value, expected[name], **EXACT, msg=name)
    in_fp32 = assembly.model.config.llm.model_type == "gemma"  # its norms add up their gradients in fp32
    for name, gradient in gradients.items():
        tolerance = {"atol": 1e-6, "rtol": 1e-6} if in_fp32 and "norm" in name else EXACT
        torch.testing.assert_close(gradient, wanted[name], **tolerance, msg=name)
    assert any(gradient is not None and gradient.any() for gradient in gradients.values())


METHODS = {"plain": [], "toy": [{"name": "toy:Toy"}], "several": [{"name": "toy:Nudge"}, {"name": "toy:Watcher"}]}


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("language", [*parts.LANGUAGE_MODELS, "tied"])
def test_same_losses_and_gradients(tiny, rows_of, language: str, methods: str) -> None:
    """Images, two images, no image; slots, edits, inserted turns, losses on the states: one batch of all of them."""
    torch.manual_seed(0)
    assembly = assemble(str(tiny["clip"]), str(tiny[language]), methods=METHODS[methods])
    check(assembly, rows_of(assembly))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_either_attention_and_either_side(tiny, rows_of, attention: str, side: str) -> None:
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
    assembly.model.model.language_model.set_attn_implementation(attention)
    check(assembly, rows_of(assembly), side)


def test_rows_of_text_alone(tiny, rows_of) -> None:
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
    short, long = (example for example in rows_of(assembly) if not len(example.view_counts))
    check(assembly, [short, short, long, short, short])


def language_model(kind: str, tiny) -> nn.Module:
    """Models that LLaVA's assembly does not take, or that see a window only, beside the tiny families."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 2, "intermediate_size": 64, "num_key_value_heads": 1}
    configs = {
        "mistral": MistralConfig(**BODY, **heads, sliding_window=WINDOW),
        "bloom": BloomConfig(hidden_size=32, n_layer=2, n_head=2, vocab_size=60),
        "mamba": MambaConfig(**BODY),
    }
    if kind in configs:
        return AutoModelForCausalLM.from_config(configs[kind]).base_model.eval()
    model = AutoModelForCausalLM.from_pretrained(tiny[kind]).base_model.eval()
    if kind == "gemma2":
        model.config.sliding_window = WINDOW
        assert "sliding_attention" in model.config.layer_types
        model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize("kind", [*parts.LANGUAGE_MODELS, "gemma2", "mistral"])
def test_a_row_does_not_change_with_its_neighbours(tiny, kind: str) -> None:
    """Bit for bit, with windows shorter than the rows; and alone it is the same up to rounding."""
    model = language_model(kind, tiny).double()
    sizes = [11, 20, 9, 7]
    mask = masked(sizes)
    packing = plan(mask, 64)
    assert len(packing.position_ids) == 1, "in the order 20, 11, 9, 7"
    width = model.get_input_embeddings().weight.shape[1]  # pyright: ignore
    rows, others = torch.randn(2, 4, 20, width, dtype=torch.float64)
    others[2] = rows[2]

    def states(x: Tensor) -> Tensor:
        out = model(inputs_embeds=packing.pack(x), position_ids=packing.position_ids, use_cache=False)
        return packing.unpack(out.last_hidden_state, mask.shape)

    with torch.no_grad():
        packed = states(rows)
        assert torch.equal(packed[2], states(others)[2])
        for row, size in enumerate(sizes):
            alone = model(inputs_embeds=rows[row : row + 1, :size], use_cache=False).last_hidden_state[0]
            tolerance = {"atol": 1e-6, "rtol": 0} if kind == "gemma2" else EXACT  # eager attention's softmax is in fp32
            torch.testing.assert_close(packed[row, :size], alone, **tolerance)
        assert not packed[~mask.bool()].any()


def test_positions_alone_keep_rows_apart(tiny, rows_of, monkeypatch) -> None:
    """The tests above would see a leak: with positions that run on, losses are others."""
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))

    def run_on(mask: Tensor, width: int, **options: bool) -> Packing:
        made = plan(mask, width, **options)
        return replace(made, position_ids=torch.arange(made.position_ids.shape[1]).expand_as(made.position_ids))

    monkeypatch.setattr(modeling, "plan", run_on)
    with pytest.raises(AssertionError, match=r"^answer$"):
        check(assembly, rows_of(assembly))


# --- refusal ---


@pytest.mark.parametrize("kind", [*parts.LANGUAGE_MODELS, "tied", "gemma2", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_models_that_keep_rows_apart_pass(tiny, kind: str, dtype: torch.dtype) -> None:
    model = language_model(kind, tiny).to(dtype).train()
    check_packing(model)
    assert model.training


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
def test_models_that_do_not_are_refused_by_name(tiny, kind: str) -> None:
    """Bloom's positions come from the mask, Mamba's state runs on through the sequence."""
    with pytest.raises(SightlineError, match=rf"'{kind.title()}Model' \({kind}, attention '.*packing=false"):
        check_packing(language_model(kind, tiny))


# --- without packing ---


@pytest.mark.parametrize(("side", "with_mask"), [("right", False), ("left", True)])
def test_padding_on_the_right_needs_no_mask(tiny, rows_of, side: str, with_mask: bool) -> None:
    """Training goes without it, on the right side only, and gives what it gave with it."""
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]))
    inner = assembly.model.double().eval().model
    batch = doubled(rows_of(assembly), side)
    seen = []
    inner.language_model.register_forward_pre_hook(
        lambda _module, _args, given: seen.append(given["attention_mask"] is not None), with_kwargs=True
    )
    with torch.no_grad():
        trained, _ = inner.trace(batch, use_cache=False)
        served, cache = inner.trace(batch, use_cache=True)
    assert seen == [with_mask, True]
    assert cache is not None
    real = batch.attention_mask.bool()
    torch.testing.assert_close(trained.hidden[real], served.hidden[real], **EXACT)
