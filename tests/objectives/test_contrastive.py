"""InfoNCE against numbers worked out by hand (methods.md section 4; natural logs, 1e-6)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sightline.objectives.contrastive import symmetric_info_nce


def loss(x, t, scale=1.0) -> float:
    return float(symmetric_info_nce(torch.tensor(x), torch.tensor(t), scale))


EYE2 = [[1.0, 0.0], [0.0, 1.0]]


def test_two_orthonormal_pairs():
    """ln(1 + e^-1) where they match, ln(1 + e) where they are swapped."""
    assert loss(EYE2, EYE2) == pytest.approx(0.313262, abs=1e-6)
    assert loss(EYE2, EYE2[::-1]) == pytest.approx(1.313262, abs=1e-6)


def test_a_pair_that_leans():
    """x = (1, 0), (.6, .8) against the axes: rows ln(1+e^-1), ln(1+e^-.2); columns ln(1+e^-.4), ln(1+e^-.8); halved."""
    assert loss([[1.0, 0.0], [0.6, 0.8]], EYE2) == pytest.approx(0.448879, abs=1e-6)


def test_all_alike_is_chance_and_one_alone_is_nothing():
    assert loss([[1.0, 2.0]] * 5, [[3.0, 1.0]] * 5) == pytest.approx(math.log(5), abs=1e-6)
    assert loss([[1.0, 2.0]], [[3.0, 1.0]]) == 0.0
    assert loss(torch.eye(4).tolist(), torch.eye(4).tolist()) == pytest.approx(0.743668, abs=1e-6)


def test_no_pair_at_all_has_gradients_of_nothing():
    """So that no process is left out of what the others wait for."""
    x, scale = torch.zeros(0, 3, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    symmetric_info_nce(x, torch.zeros(0, 3), scale).backward()
    assert x.grad is not None and scale.grad is not None and float(scale.grad) == 0


def test_the_floor_of_a_temperature():
    """4,608 orthonormal pairs: ln(1 + 4607/e) = 7.44 with temperature 1, and 0.003 with .07."""
    x = torch.eye(4608)
    assert float(symmetric_info_nce(x, x, 1.0)) == pytest.approx(math.log(1 + 4607 / math.e), abs=1e-4)
    assert float(symmetric_info_nce(x, x, 1 / 0.07)) == pytest.approx(0.003, abs=5e-4)


@given(st.integers(2, 6), st.floats(0.1, 9), st.floats(0.1, 9), st.integers(0, 99))
def test_lengths_do_not_matter_and_gradients_are_across(pairs: int, along: float, beside: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    x, t = (torch.randn(pairs, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    x.requires_grad_(True)
    value = symmetric_info_nce(x, t, 3.0)
    torch.testing.assert_close(symmetric_info_nce(x * along, t * beside, 3.0), value)
    value.backward()
    assert x.grad is not None
    assert float((x.grad * x.detach()).sum(-1).abs().max()) < 1e-12


def test_it_is_fp32_under_autocast():
    x, t = torch.randn(8, 16), torch.randn(8, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = symmetric_info_nce(x, t, 10.0)
    assert torch.equal(within, symmetric_info_nce(x, t, 10.0))
