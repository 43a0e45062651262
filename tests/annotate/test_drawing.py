"""Which patches are supervised by which words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.annotate.drawing import NONE, How, draw, probabilities, windows
from sightline.errors import SightlineError


def test_a_label_is_as_likely_as_its_score():
    """(.3, .1, -.2) gives (.75, .25, 0): methods.md section 4."""
    np.testing.assert_allclose(probabilities(np.array([[0.3, 0.1, -0.2]])), [[0.75, 0.25, 0]], atol=1e-12)
    np.testing.assert_allclose(probabilities(np.array([[0.3, 0.1, -0.2]]), 2.0), [[0.9, 0.1, 0]], atol=1e-12)
    assert not probabilities(np.array([[-0.3, 0.0]])).any(), "no label at all"


def test_windows_in_reading_order():
    assert windows(4, 2, True).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert windows(24, 2, True).shape == (144, 4), "LLaVA's 576 patches"


def test_an_odd_grid_keeps_its_edge_or_drops_it():
    """SigLIP's 27 x 27: 14 x 14 windows, or 13 x 13."""
    assert len(windows(27, 2, True)) == 196 and len(windows(27, 2, False)) == 169
    assert windows(3, 2, True).tolist() == [[0, 1, 3, 4], [2, -1, 5, -1], [6, 7, -1, -1], [8, -1, -1, -1]]
    assert windows(3, 2, False).tolist() == [[0, 1, 3, 4]]
    with pytest.raises(SightlineError, match="no window of 4 fits into a grid of 3"):
        windows(3, 4, False)


@given(st.integers(1, 6), st.integers(1, 3), st.booleans(), st.integers(0, 999))
def test_what_is_drawn_stands_in_its_window_and_is_a_label(grid: int, window: int, partial: bool, seed: int):
    if not partial and window > grid:
        return
    rng = np.random.default_rng(seed)
    ids, scores = rng.integers(0, 50, (grid**2, 4)), rng.normal(size=(grid**2, 4)).astype(np.float32)
    squares = windows(grid, window, partial)
    drawn = draw(ids, scores, squares, rng)
    for square, (place, word) in zip(squares, drawn.tolist(), strict=True):
        labelled = [p for p in square.tolist() if p >= 0 and (scores[p] > 0).any()]
        if not labelled:
            assert (place, word) == (NONE, NONE), "nothing where no patch has a label"
        else:
            assert place in labelled, "another patch of the window takes over from one without"
            assert word in ids[place][scores[place] > 0]


def test_patches_and_labels_are_drawn_as_often_as_they_should_be():
    """4,000 draws: each of the two labelled patches of a window half the time, .75 and .25 of its labels."""
    ids = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]])
    scores = np.array([[0.3, 0.1, -0.2], [0, 0, 0], [0.3, 0.1, -0.2], [-1, -1, -1]])
    rng = np.random.default_rng(0)
    drawn = np.concatenate([draw(ids, scores, windows(2, 2, True), rng) for _ in range(4000)])
    assert {tuple(row) for row in drawn.tolist()} == {(0, 1), (0, 2), (2, 7), (2, 8)}
    assert (drawn[:, 0] == 0).mean() == pytest.approx(0.5, abs=0.03)
    assert np.isin(drawn[:, 1], (1, 7)).mean() == pytest.approx(0.75, abs=0.03)


def test_a_draw_follows_from_seed_epoch_and_image_alone():
    ids, scores = np.arange(160).reshape(16, 10), np.ones((16, 10), dtype=np.float32)
    one = How(grid=4, seed=0).draw(7, 0, ids, scores)
    assert np.array_equal(How(grid=4, seed=0).draw(7, 0, ids, scores), one)
    others = [How(4, 1).draw(7, 0, ids, scores), How(4, 0).draw(8, 0, ids, scores), How(4, 0).draw(7, 1, ids, scores)]
    assert all(not np.array_equal(other, one) for other in others)
    assert not np.array_equal(How(4, 0).priorities(7, 0), How(4, 0).priorities(7, 1))
