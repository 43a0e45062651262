"""Rectified flow: the identities of design/methods.md, section 4, and the scale of its noise levels."""

import pytest
import torch

from sightline.objectives.flow import clean_of, draw_noise_levels, flow_losses, noised


@pytest.fixture
def parts() -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    clean, noise, wrong = (torch.randn(3, 2, 4, 4, generator=draw) for _ in range(3))
    return clean, noise, wrong, torch.tensor([0.1, 0.5, 0.9])


def test_the_true_velocity_gives_the_clean_latents(parts):
    clean, noise, _, levels = parts
    velocity = noise - clean
    assert torch.allclose(clean_of(noised(clean, noise, levels), velocity, levels), clean, atol=1e-6)
    for target in ("clean", "velocity"):
        assert flow_losses(velocity, clean, noise, levels, target).abs().max() < 1e-12


def test_the_clean_loss_is_the_velocity_loss_times_the_level_squared(parts):
    clean, noise, wrong, levels = parts
    ours, theirs = (flow_losses(wrong, clean, noise, levels, target) for target in ("clean", "velocity"))
    assert torch.allclose(ours, levels**2 * theirs, atol=1e-6)
    assert torch.allclose(theirs, ((noise - clean - wrong) ** 2).mean((1, 2, 3)))


def test_ends_of_the_line(parts):
    clean, noise, _, _ = parts
    assert torch.equal(noised(clean, noise, torch.zeros(3)), clean)
    assert torch.equal(noised(clean, noise, torch.ones(3)), noise)


def test_noise_levels():
    """Median at a half; Stable Diffusion 3's shift of 3 takes it to 3/4."""
    normal = torch.tensor([-1.0, 0.0, 1.0])
    assert torch.allclose(draw_noise_levels(normal), torch.tensor([0.268941, 0.5, 0.731059]), atol=1e-6)
    assert draw_noise_levels(normal, shift=3.0)[1] == 0.75


def test_half_precision_is_measured_in_single(parts):
    clean, noise, wrong, levels = (x.bfloat16() for x in parts)
    assert flow_losses(wrong, clean, noise, levels).dtype == torch.float32
