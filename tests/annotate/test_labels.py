"""Labels as they are kept: what is dropped, how many bytes they take, and the way back."""

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from sightline.annotate.drawing import NONE, How
from sightline.annotate.labels import id_type, packed, packed_draws, unpacked
from sightline.annotate.patchwords import on_grid


def num_bytes(values: dict[str, torch.Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values.values())


def test_scores_of_zero_or_less_are_no_labels():
    """And a score that counts stays one, however small beside the best of its image."""
    ids = torch.tensor([[[5, 3, 9], [7, 1, 2]]])
    scores = torch.tensor([[[0.3, 1e-6, -0.2], [0.0, -0.1, -0.3]]])
    kept, kept_scores = unpacked(packed(ids, scores))
    assert kept.tolist() == [[5, 3, NONE], [NONE, NONE, NONE]]
    np.testing.assert_allclose(kept_scores, [[0.3, 0.3 / 255, 0], [0, 0, 0]], rtol=1e-3)


def test_an_image_without_any_label():
    kept, scores = unpacked(packed(torch.tensor([[[1], [2]]]), torch.tensor([[[-0.1], [0.0]]])))
    assert kept.tolist() == [[NONE], [NONE]] and not scores.any()
    values = packed_draws(packed(torch.zeros(1, 16, 2).long(), torch.zeros(1, 16, 2)), [7], How(grid=4, seed=0), 2)
    assert (values["words"] == 2**16 - 1).all() and (values["places"] == 2**8 - 1).all()


@pytest.mark.parametrize("words", [2**16 - 1, 2**16])
def test_a_long_list_takes_four_bytes_for_a_word(words: int):
    """576 patches with ten labels: 17,282 bytes; of a list of more than 65,535 words 11,520 more. And 432 or 720 for an
    epoch of what is drawn of them."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(words, (1, 576, 10), generator=generator)
    ids[0, 0, 0] = words - 1
    scores = torch.rand(1, 576, 10, generator=generator)
    scores[0, 3:5] = -1
    wide = 2 if words == 2**16 else 0
    values = packed(ids, scores, id_type(words))
    assert num_bytes(values) == 576 * 10 * (3 + wide) + 2
    kept, kept_scores = unpacked(load(save(values)))
    there = scores[0].numpy() > 0
    assert (kept[there] == ids[0].numpy()[there]).all() and (kept[~there] == NONE).all()
    np.testing.assert_allclose(kept_scores, scores[0].clamp(min=0), atol=1 / 255)
    how = How(grid=24, seed=0)
    drawn = packed_draws(values, [7], how, 2)
    assert num_bytes(drawn) == 2 * 144 * (3 + wide)
    expected = np.stack([how.draw(7, epoch, kept, kept_scores)[:, 1] for epoch in range(2)])
    assert (drawn["words"][0].numpy() == expected).all()


def test_patches_on_the_grid_of_the_tokens():
    """As they are where it is their own; averaged over the area of a token where it is coarser; always unit vectors."""
    east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    patches = torch.stack([east, east, north, north] * 4)[None]
    assert on_grid(patches, 4) is patches
    for grid in (2, 8):
        laid = on_grid(patches, grid)
        assert laid.shape == (1, grid**2, 2)
        torch.testing.assert_close(laid.norm(dim=-1), torch.ones(1, grid**2))
        assert (laid[0, 0] - east).abs().max() < 0.35 and (laid[0, grid - 1] - north).abs().max() < 0.35
        assert torch.equal(laid[0, :grid], laid[0, grid : 2 * grid]), "rows are alike"
