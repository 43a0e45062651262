"""The best words are those of the whole fp32 product, whatever bf16 proposed."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize
from torch.profiler import ProfilerActivity, profile

from sightline.annotate import nearest
from sightline.annotate.nearest import WordTable, certain
from sightline.annotate.products import full_precision
from sightline.errors import SightlineError

TOLERANCE = 1e-6
"""What fp32 rounds scores of unit vectors by, and more."""


@pytest.fixture(autouse=True)
def with_prefilter(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 proposes on every machine that runs these tests: slower where it is emulated, never wrong."""
    monkeypatch.setattr(nearest, "has_fast_bf16", lambda device: True)


def random_units(rows: int, width: int, *, cosine: float = 0.0, seed: int = 0) -> Tensor:
    """Unit vectors with about this cosine between any two: a common direction, and noise around it."""
    draw = torch.Generator().manual_seed(seed)
    noise = normalize(torch.randn(rows, width, generator=draw), dim=1)
    common = normalize(torch.randn(width, generator=draw), dim=0)
    return normalize(cosine**0.5 * common + (1 - cosine) ** 0.5 * noise, dim=1)


def near_ties(words: int = 3000, copies: int = 400, width: int = 64) -> tuple[Tensor, Tensor]:
    """Patches by a word of which there are copies that bf16 cannot tell apart: their scores differ by about 1e-5."""
    table = random_units(words, width)
    table[:copies] = normalize(table[0] + 1e-5 * torch.randn(copies, width, generator=torch.Generator().manual_seed(1)))
    return normalize(table[:1] + 0.3 * random_units(40, width, seed=2), dim=1), table


def assert_exact(patches: Tensor, words: Tensor, n: int) -> nearest.Found:
    """Against the product in fp64, up to the tolerance; and bit for bit against the formula on every word."""
    table = WordTable(words)
    found = table.top(patches, n)
    n = min(n, len(words))
    assert found.ids.shape == found.scores.shape == (len(patches), n)
    true = patches.double() @ words.double().t()
    expected = true.topk(n, dim=1).values
    assert (true.gather(1, found.ids) - expected).abs().max() < TOLERANCE
    assert (found.scores - expected).abs().max() < TOLERANCE
    every = torch.arange(len(words)).expand(len(patches), -1)
    scores = (patches * table.center).sum(1, keepdim=True) + table._scores(patches, every)
    scores, ids = scores.sort(dim=1, descending=True, stable=True)
    assert torch.equal(found.ids, ids[:, :n])
    assert torch.equal(found.scores, scores[:, :n])
    return found


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.9, 0.99, 0.9999])
def test_it_is_exact_in_cones_of_any_width(cosine: float) -> None:
    found = assert_exact(random_units(150, 96, cosine=cosine, seed=1), random_units(4000, 96, cosine=cosine), 10)
    assert found.fallbacks <= 2, "centring leaves little to fp32"


def test_without_centring_a_narrow_cone_would_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the mean patch and the mean word are for."""
    patches, words = random_units(50, 96, cosine=0.9999, seed=1), random_units(4000, 96, cosine=0.9999)
    monkeypatch.setattr(torch.Tensor, "mean", lambda self, *args, **kwargs: self.sum(*args, **kwargs) * 0)
    assert WordTable(words).top(patches, 10).fallbacks == 50


def test_near_ties_fall_back_and_are_right() -> None:
    patches, words = near_ties()
    assert assert_exact(patches, words, 10).fallbacks == len(patches)


def test_the_margin_is_what_makes_near_ties_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a margin of zero bf16 has the last word, and wrong words come out."""
    monkeypatch.setattr(nearest, "certain", lambda nth, kth, margin, base: nth >= base + kth.float() - 1)
    patches, words = near_ties()
    with pytest.raises(AssertionError):
        assert_exact(patches, words, 10)


def test_fewer_near_ties_need_only_more_candidates() -> None:
    patches, words = near_ties(copies=100)
    assert assert_exact(patches, words, 10).fallbacks == 0


@pytest.mark.parametrize("copies", [5, 100, 1500])
def test_equal_words_come_in_the_order_of_their_ids(copies: int) -> None:
    words = random_units(2000, 48)
    words[torch.randperm(2000, generator=torch.Generator().manual_seed(0))[:copies]] = words[7].clone()
    found = assert_exact(normalize(words[7:8] + 0.1 * random_units(30, 48, seed=3), dim=1), words, 20)
    equal = (words[found.ids] == words[7]).all(2)
    assert equal[:, :5].all()
    assert ((found.ids.diff(dim=1) > 0) | ~equal[:, 1:]).all()


def test_all_words_equal() -> None:
    words = random_units(1, 16).expand(500, 16)
    found = WordTable(words).top(random_units(70, 16, seed=1), 3)
    assert found.ids.tolist() == [[0, 1, 2]] * 70


@given(
    st.integers(0, 90), st.integers(1, 700), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.9, 0.999])
)
def test_it_is_exact_for_any_shape(rows: int, words: int, width: int, n: int, cosine: float) -> None:
    if rows == 0:
        found = WordTable(random_units(words, width)).top(torch.empty(0, width), n)
        assert found.ids.shape == (0, min(n, words)) and found.fallbacks == 0
    else:
        assert_exact(random_units(rows, width, cosine=cosine, seed=1), random_units(words, width, cosine=cosine), n)


@pytest.mark.parametrize("n", [700, 5000])
def test_all_words_may_be_asked_for(n: int) -> None:
    found = assert_exact(random_units(20, 32, seed=1), random_units(700, 32), n)
    assert found.ids.sort(dim=1).values.equal(torch.arange(700).expand(20, -1))


@pytest.mark.parametrize("cosine", [0.0, 0.7, 0.95, 0.999])
@pytest.mark.parametrize("width", [3, 64, 769])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 30.0])
def test_the_margin_bounds_the_error(cosine: float, width: int, scale: float) -> None:
    """For all words, not only those that decide: bf16 and fp32 against fp64."""
    patches = random_units(60, width, cosine=cosine, seed=1) * scale
    table = WordTable(random_units(2000, width, cosine=cosine))
    true = patches.double() @ table.offsets.double().t()
    mean = patches.mean(0)
    table._set_mean(mean)
    for rough, margin in (table._in_bf16(patches, mean), table._in_fp32(patches)):
        half_unit = torch.finfo(rough.dtype).eps / 2 * rough.double().abs()
        used = (rough.double() - true).abs() / (half_unit + margin[:, None])
        assert used.max() <= 1
        assert used.max() > 0.01 or rough.dtype == torch.float32, "a bound this loose certifies nothing"


def test_certain_is_strict() -> None:
    zero = torch.zeros(3)
    assert certain(torch.tensor([0.1, 0.1, 0.2]), torch.full((3,), 0.1), zero, zero).tolist() == [False, False, True]
    assert certain(torch.full((2,), 1.0), torch.zeros(2), torch.tensor([0.9, 1.1]), torch.zeros(2)).tolist() == [
        True,
        False,
    ]
    assert certain(torch.full((1,), torch.nan), zero[:1], zero[:1], zero[:1]).tolist() == [False]


def test_a_patch_has_the_same_words_in_any_batch() -> None:
    """The bits too: ranks that label the same image write the same bytes."""
    patches, words = near_ties()
    patches = torch.cat([patches, random_units(100, 64, seed=5)])
    whole = WordTable(words).top(patches, 10)
    table = WordTable(words)
    for part in (slice(0, 1), slice(30, 77), slice(39, 140)):
        found = table.top(patches[part], 10)
        assert torch.equal(found.ids, whole.ids[part]) and torch.equal(found.scores, whole.scores[part])
    again = table.top(patches, 10)
    assert torch.equal(again.ids, whole.ids) and again.fallbacks == whole.fallbacks == 40


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, words = near_ties(words=1500)
    whole = WordTable(words).top(patches, 10)
    for name, value in {"PRODUCT_BYTES": 1500 * 4 * 7, "GATHER_BYTES": 4 * 64 * 13, "FEWEST_ROWS": 3}.items():
        monkeypatch.setattr(nearest, name, value)
    small = WordTable(words).top(patches, 10)
    assert torch.equal(small.ids, whole.ids) and torch.equal(small.scores, whole.scores)
    assert small.fallbacks == whole.fallbacks


def test_without_fast_bf16_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, words = random_units(50, 32, seed=1), random_units(1000, 32)
    usual = WordTable(words).top(patches, 10)
    monkeypatch.setattr(nearest, "has_fast_bf16", lambda device: False)
    plain = assert_exact(patches, words, 10)
    assert torch.equal(plain.ids, usual.ids) and torch.equal(plain.scores, usual.scores)
    assert (usual.fallbacks, plain.fallbacks) == (0, 50)


@pytest.mark.parametrize("allowed", ["high", "medium"])
def test_what_torch_may_round_changes_nothing(allowed: str) -> None:
    """`set_float32_matmul_precision`, autocast and inference mode; torch's setting is as before afterwards."""
    patches, words = near_ties()
    expected = WordTable(words).top(patches, 10)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(allowed)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            table = WordTable(words)
            found = table.top(patches, 10)
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.ids, expected.ids) and torch.equal(found.scores, expected.scores)
    assert torch.equal(table.top(patches, 10).ids, expected.ids), "and after inference mode"
    with pytest.raises(KeyError), full_precision():
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes that torch holds at a time beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        call()
    held = peak = 0
    for event in sorted(run.profiler.kineto_results.events(), key=lambda event: event.start_ns()):  # pyright: ignore
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


@pytest.mark.parametrize("ties", [False, True])
def test_memory_does_not_grow_with_the_patches(monkeypatch: pytest.MonkeyPatch, *, ties: bool) -> None:
    """Beyond the result, 16 words of 12 bytes and an id for each patch: 3 times the patches in the same memory."""
    for name, value in {"PRODUCT_BYTES": 2**19, "GATHER_BYTES": 2**18}.items():
        monkeypatch.setattr(nearest, name, value)
    patches, words = near_ties() if ties else (random_units(40, 64, seed=1), random_units(3000, 64))
    few, many = patches.repeat(8, 1), patches.repeat(24, 1)  # 320 and 960: in chunks of 80, of 64 in fp32

    def peak(rows: Tensor) -> int:
        table = WordTable(words)
        return peak_bytes(lambda: table.top(rows, 16)) - len(rows) * (16 * 12 + 3 * 8)

    assert peak(many) < 1.1 * peak(few)
    assert peak(few) < 8 * 2**20


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_none_are_refused(bad: float) -> None:
    words, patches = random_units(300, 8), random_units(5, 8, seed=1)
    patches[3, 2] = bad
    with pytest.raises(SightlineError, match="Patch 3 is not finite"):
        WordTable(words).top(patches, 2)
    words[17, 0] = bad
    with pytest.raises(SightlineError, match="word 17 is not finite"):
        WordTable(words)


def test_what_cannot_be_ranked_is_refused() -> None:
    table = WordTable(random_units(300, 8))
    with pytest.raises(SightlineError, match="at least 1 is needed"):
        table.top(random_units(5, 8), 0)
    with pytest.raises(SightlineError, match=r"shape \(5, 9\) for words of width 8"):
        table.top(random_units(5, 9), 1)
    with pytest.raises(SightlineError, match="nothing to choose from"):
        WordTable(torch.empty(0, 8))
