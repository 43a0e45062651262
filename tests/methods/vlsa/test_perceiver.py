"""The SA-Perceiver: golden checks of design/methods.md, section 4, and what padding and crops may and may not do."""

import math

import pytest
import torch
import torch.nn.functional as F

from sightline.methods.vlsa.perceiver import Attention, SAPerceiver, sincos

IMAGES, PATCHES, KEYS, WIDTH = 2, 5, 15, 8


def trained(*, separate_values: bool = False, **attention) -> SAPerceiver:
    torch.manual_seed(0)
    perceiver = SAPerceiver(WIDTH, Attention(**attention), separate_values=separate_values)
    for last in (perceiver.w_o1, perceiver.w_o2):
        torch.nn.init.normal_(last.weight, std=0.3)
    return perceiver


def inputs(keys: int = KEYS) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    shown = torch.ones(IMAGES, PATCHES, dtype=torch.bool), torch.ones(IMAGES, 1, keys, dtype=torch.bool)
    return torch.randn(IMAGES, PATCHES, WIDTH), torch.randn(IMAGES, keys, WIDTH), *shown


def test_it_begins_as_the_identity():
    """W_o1 = W_o2 = 0: the small view and q, bit for bit."""
    torch.manual_seed(0)
    perceiver = SAPerceiver(WIDTH)
    low, *rest = inputs()
    out = perceiver(low, *rest)
    assert torch.equal(out[:, :PATCHES], low)
    assert torch.equal(out[:, PATCHES], perceiver.query.expand(IMAGES, -1))


def test_w_o1_alone_at_zero_is_not_the_identity():
    perceiver = trained()
    torch.nn.init.zeros_(perceiver.w_o1.weight)
    low, *rest = inputs()
    assert not torch.allclose(perceiver(low, *rest)[:, :PATCHES], low, atol=1e-3)


def test_at_the_start_gradients_reach_the_output_matrices_alone():
    torch.manual_seed(0)
    perceiver = SAPerceiver(WIDTH)
    perceiver(*inputs()).square().sum().backward()
    moved = {name for name, p in perceiver.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {"w_o1.weight", "w_o2.weight", "query"}


def test_the_equations_by_hand():
    """Equations 1 and 2 as methods.md repairs them, for one image, written out."""
    perceiver, (low, high, low_shown, high_seen) = trained(), inputs()
    out = perceiver(low, high, low_shown, high_seen)[0]
    with_q = torch.cat([low[0], perceiver.query])
    keys = high[0] @ perceiver.w_kv.weight.T
    a1 = F.silu(with_q @ perceiver.w_q.weight.T @ keys.T / math.sqrt(WIDTH)) / KEYS
    v1 = a1 @ keys @ perceiver.w_o1.weight.T + with_q
    a2 = F.silu(v1 @ (v1 @ perceiver.w_k.weight.T).T / math.sqrt(WIDTH)) / (PATCHES + 1)
    assert torch.allclose(out, a2 @ v1 @ perceiver.w_o2.weight.T + v1, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"activation": "softmax"}, {"normalise": False}, {"heads": 2}])
def test_the_order_of_crops_does_not_matter(options):
    perceiver, (low, high, *shown) = trained(**options), inputs()
    other = high.unflatten(1, (3, PATCHES))[:, [2, 0, 1]].flatten(1, 2)
    assert torch.allclose(perceiver(low, high, *shown), perceiver(low, other, *shown), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "equal"), [({}, True), ({"activation": "softmax"}, True), ({"normalise": False}, False)]
)
def test_doubled_crops_change_sums_and_no_means(options, equal):
    perceiver, (low, high, low_shown, seen) = trained(**options), inputs()
    once = perceiver(low, high, low_shown, seen)
    twice = perceiver(low, torch.cat([high, high], 1), low_shown, torch.cat([seen, seen], 2))
    assert torch.allclose(once, twice, atol=1e-5) == equal


@pytest.mark.parametrize("options", [{}, {"activation": "softmax"}, {"normalise": False}, {"separate_values": True}])
def test_padding_is_taken_by_none(options):
    """Whatever stands in hidden keys, in either attention, and however many there are."""
    perceiver, (low, high, low_shown, seen) = trained(**options), inputs()
    low_shown[:, -1], seen[:, :, -4:] = False, False
    out = perceiver(low, high, low_shown, seen)
    changed = high.clone()
    changed[:, -4:] = 100.0
    assert torch.allclose(out, perceiver(low, changed, low_shown, seen), atol=1e-5)
    assert torch.allclose(out, perceiver(low, high[:, :-4], low_shown, seen[:, :, :-4]), atol=1e-5)
    other = low.clone()
    other[:, -1] = 3.0
    kept = [*range(PATCHES - 1), PATCHES]
    assert torch.allclose(out[:, kept], perceiver(other, high, low_shown, seen)[:, kept], atol=1e-5)


def test_two_heads_are_two_halves():
    attention = Attention(heads=2)
    q, k, v = (torch.randn(1, 3, WIDTH) for _ in range(3))
    seen = torch.ones(1, 1, 3, dtype=torch.bool)
    halves = [Attention()(q[..., s], k[..., s], v[..., s], seen) for s in (slice(0, 4), slice(4, 8))]
    assert torch.allclose(attention(q, k, v, seen), torch.cat(halves, -1), atol=1e-6)


def test_places_change_who_is_asked_not_what_is_taken():
    perceiver, (low, high, *shown) = trained(), inputs()
    places = sincos(torch.rand(IMAGES, KEYS, 2), WIDTH)
    moved = perceiver(low, high, *shown, sincos(torch.rand(IMAGES, PATCHES, 2), WIDTH), places)
    assert not torch.allclose(moved, perceiver(low, high, *shown), atol=1e-3)
    same = perceiver(low, high * 0, *shown, None, places)
    first = torch.cat([low, perceiver.query.expand(IMAGES, 1, -1)], 1)
    seen = torch.ones(IMAGES, 1, PATCHES + 1, dtype=torch.bool)
    assert torch.allclose(
        same, perceiver.w_o2(perceiver.attend(first, perceiver.w_k(first), first, seen)) + first, atol=1e-5
    )


def test_five_matrices_and_a_query():
    assert sum(p.numel() for p in SAPerceiver(WIDTH).parameters()) == 5 * WIDTH**2 + WIDTH
    shared, own = SAPerceiver(WIDTH), SAPerceiver(WIDTH, separate_values=True)
    assert sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in shared.parameters()) == WIDTH**2
