"""Geometry on tokens whose geometry is known."""

import math

import numpy as np
import pytest
import torch

from sightline.data.images import load_image
from sightline.diagnostics import geometry
from sightline.diagnostics.geometry import (
    alignment_score,
    anisotropy,
    caption_prompt,
    effective_rank,
    matching_score,
    mean_norm,
    measure_geometry,
    modality_gap,
    norm_ratio,
    rank_interval,
    unit,
)
from sightline.diagnostics.material import Material
from sightline.errors import SightlineError


def gaussian(*shape: int, seed: int = 0, mean: float | torch.Tensor = 0.0, scale: float = 1.0) -> torch.Tensor:
    return mean + scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_gap_of_two_gaussians_is_the_distance_of_their_means():
    shift = torch.zeros(8)
    shift[0], shift[1] = 3.0, 4.0
    gap = modality_gap(list(gaussian(200, 10, 8, mean=shift)), gaussian(20_000, 8, seed=1))
    assert gap.low < 5 < gap.high and gap.high - gap.low < 0.2
    assert gap.n == 200


def test_identical_modalities_have_no_gap():
    tokens = gaussian(50, 10, 8)
    gap = modality_gap(list(tokens), tokens.flatten(0, 1))
    assert gap.value == pytest.approx(0, abs=1e-6)
    assert gap.high < 0.4  # the resampled norm: sqrt(8 / 500) and its spread


def test_images_with_more_tokens_count_by_their_tokens():
    visual = [torch.zeros(1, 2), torch.ones(3, 2)]
    assert modality_gap(visual, torch.zeros(1, 2)).value == pytest.approx(0.75 * math.sqrt(2))


def test_the_gap_of_unit_vectors_does_not_see_length():
    directions = gaussian(40, 6, 8)
    words = directions.flatten(0, 1)
    longer = [unit(100 * tokens) for tokens in directions]
    assert modality_gap(longer, unit(words)).value == pytest.approx(0, abs=1e-6)
    assert modality_gap([100 * tokens for tokens in directions], words).value > 1


def test_norms():
    visual = [torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0, 6.0]])]
    words = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    assert mean_norm(visual).value == pytest.approx(4)
    assert norm_ratio(visual, words).value == pytest.approx(2)


def test_anisotropy_of_even_and_of_narrow_directions():
    even = anisotropy(list(gaussian(100, 10, 16)))
    assert even.low < 0 < even.high
    narrow = anisotropy(list(torch.ones(5, 4, 3)))
    assert narrow.value == narrow.low == narrow.high == pytest.approx(1)


def test_anisotropy_pairs_tokens_of_different_images_only():
    """By hand: unit vectors x, x | y, z: the four pairs between the images have cosines 0, 0, 1, 1."""
    x, y = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert anisotropy([torch.stack([x, x]), torch.stack([y, x])]).value == pytest.approx(0.5)


def test_effective_rank_of_known_matrices():
    line = torch.arange(10.0)[:, None] * torch.tensor([[1.0, 2.0, 3.0]])
    assert effective_rank(line) == pytest.approx(1, abs=1e-4)
    corners = torch.cat([torch.eye(4), -torch.eye(4)])
    assert effective_rank(corners) == pytest.approx(4)
    assert effective_rank(corners + 100) == pytest.approx(4, abs=1e-3)  # about the mean
    assert effective_rank(torch.ones(5, 3)) == 0
    uneven = corners * torch.tensor([3.0, 1.0, 0.0, 0.0])  # singular values 3 : 1
    assert effective_rank(uneven) == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))), abs=1e-4)


def test_the_interval_of_a_rank_holds_its_value():
    rank = rank_interval(list(gaussian(60, 5, 12)))
    assert rank.low < rank.value < rank.high
    assert 11 < rank.value < 12
    few = rank_interval(list(gaussian(3, 2, 12)))
    assert (few.low, few.high) == (0.0, 5.0) and few.value < 5


def test_alignment_by_hand():
    images, captions = torch.eye(3)[:2], torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]])
    assert alignment_score(images, captions).value == pytest.approx((1 + 0.5 + 0 + 0.5) / 4)
    assert matching_score(images, captions).value == pytest.approx((1 + 0.5) / 2 - (0.5 + 0) / 2)


def test_matching_takes_a_shared_direction_away():
    """States that all share a direction are alike whosever they are; alignment alone would take that for meaning."""
    cone = unit(gaussian(2, 60, 16, seed=1, scale=0.2) + 1)
    assert alignment_score(cone[0], cone[1]).low > 0.8
    nothing = matching_score(cone[0], cone[1])
    assert nothing.low < 0 < nothing.high
    assert matching_score(cone[0], cone[0]).low > 0


def test_a_model_is_measured(tiny_subject, material):
    subject = tiny_subject
    found = measure_geometry(subject, material, batch_size=4, progress=False)
    for name in ("gap", "unit_gap", "visual_norm", "norm_ratio", "visual_anisotropy", "visual_rank"):
        estimate = getattr(found, name)
        assert estimate.n == len(material.cases) and estimate.low < estimate.value < estimate.high
    layers = subject.model.config.text_config.num_hidden_layers
    assert len(found.alignment) == len(found.matching) == layers + 1
    visual = torch.cat(subject.visual([load_image(case.image) for case in material.cases]))
    words = subject.words(material.words)
    assert found.gap.value == pytest.approx(float((visual.mean(0) - words.mean(0)).norm()), rel=1e-4)
    assert found.visual_norm.value == pytest.approx(float(visual.norm(dim=1).mean()), rel=1e-4)
    again = measure_geometry(subject, material, batch_size=3, progress=False)
    np.testing.assert_allclose([e.value for e in again.alignment], [e.value for e in found.alignment], atol=1e-4)


def test_one_image_has_no_others(tiny_subject, material):
    with pytest.raises(SightlineError, match="alone has 1 image, and images are compared with others"):
        measure_geometry(tiny_subject, Material("alone", material.cases[:1], words=("red",)), progress=False)


def test_captions_are_seen_without_their_image(tiny_subject, material):
    subject = tiny_subject
    cases = material.cases[:2]
    prompt = caption_prompt(subject, cases)
    assert not prompt.is_visual.any()
    for row, case in enumerate(cases):
        ids = prompt.input_ids[row][prompt.attention_mask[row] == 1].tolist()
        assert subject.tokenizer.decode(ids[1:]).strip() == case.caption
    means = geometry.unit_means(subject.see(prompt).hidden, prompt.is_text)
    torch.testing.assert_close(means[0][0], unit(subject.embedding[prompt.input_ids[0][prompt.is_text[0]]]).mean(0))
