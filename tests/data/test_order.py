"""The order of data: pure in (seed, epoch, step), complete, and indifferent to how a step is cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.data.order import Order, generator, permutation

seeds, rows = st.integers(0, 2**64), st.integers(1, 60)
sizes = st.integers(1, 7)

GOLDEN = [[3, 6, 4, 0, 7, 5, 2, 1], [0, 7, 6, 3, 2, 5, 4, 1], [1, 0, 4, 2, 3, 5, 7, 6]]


@given(seed=seeds, epoch=st.integers(0, 1000), num_rows=rows)
def test_a_permutation_is_complete_and_pure(seed, epoch, num_rows):
    np.random.seed(0)  # noqa: NPY002  (whatever was drawn elsewhere)
    first = permutation(seed, epoch, num_rows)
    np.random.rand(5)  # noqa: NPY002
    assert sorted(first) == list(range(num_rows))
    assert permutation(seed, epoch, num_rows).tolist() == first.tolist()


def test_seeds_and_epochs_give_other_orders():
    orders = [permutation(seed, epoch, 50).tolist() for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 9
    assert list(range(50)) not in orders


def test_the_order_is_what_it_was():
    """A golden: changing it would change every run's data, and a resumed run's in the middle. Written down with numpy
    2.4.6 (Philox and SeedSequence are stable by numpy's policy; Generator.permutation by NEP 19 only in practice)."""
    assert permutation(0, 0, 8).tolist() == GOLDEN[0]
    assert permutation(0, 1, 8).tolist() == GOLDEN[1]
    assert permutation(7, 0, 8).tolist() == GOLDEN[2]


def test_streams_of_a_generator_do_not_meet():
    """The order of an epoch (stream 0) and what is random in a row (stream 1) are drawn apart. Keys of one stream have
    one length: numpy's SeedSequence takes (1, 3) and (1, 3, 0) for the same."""
    keys = [(0, epoch) for epoch in range(20)] + [(1, epoch, row) for epoch in range(20) for row in range(20)]
    draws = [generator(seed, *key).integers(2**62) for seed in (0, 1) for key in keys]
    assert len(set(draws)) == 2 * len(keys)


@pytest.mark.parametrize(("num_rows", "per_step", "steps"), [(1, 1, 1), (10, 5, 2), (11, 5, 3), (4, 5, 1), (5, 5, 1)])
def test_steps_of_an_epoch(num_rows, per_step, steps):
    assert Order(0, (num_rows,), per_step).steps_per_epoch == steps


@given(seed=seeds, num_rows=rows, batch=sizes, accumulate=sizes, epochs=st.integers(1, 3))
def test_every_row_once_an_epoch(seed, num_rows, batch, accumulate, epochs):
    order = Order(seed, (num_rows,), batch, accumulate)
    batches = list(order.micro_batches(order.steps_per_epoch * epochs))
    assert all(1 <= len(micro) <= batch for micro in batches)
    assert all(len({epoch for epoch, _ in micro}) == 1 for micro in batches)
    flat = [key for micro in batches for key in micro]
    assert sorted(flat) == [(epoch, row) for epoch in range(epochs) for row in range(num_rows)]


@given(seed=seeds, num_rows=rows, batch=sizes, accumulate=sizes, steps=st.integers(0, 9))
def test_cutting_a_step_does_not_change_its_rows(seed, num_rows, batch, accumulate, steps):
    """4 x 8 rows and 1 x 32 rows are the same rows in the same order, step by step."""
    cut = [key for micro in Order(seed, (num_rows,), batch, accumulate).micro_batches(steps) for key in micro]
    whole = list(Order(seed, (num_rows,), batch * accumulate).micro_batches(steps))
    assert len(whole) == steps
    assert cut == [key for step in whole for key in step]


@given(seed=seeds, num_rows=rows, batch=sizes, accumulate=sizes, steps=st.integers(0, 12), start=st.integers(0, 12))
def test_starting_later_continues_exactly(seed, num_rows, batch, accumulate, steps, start):
    start = min(start, steps)
    full = list(Order(seed, (num_rows,), batch, accumulate).micro_batches(steps))
    before = list(Order(seed, (num_rows,), batch, accumulate).micro_batches(start))
    after = list(Order(seed, (num_rows,), batch, accumulate).micro_batches(steps, start))
    assert before + after == full


@given(seed=seeds, sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3), data=st.data())
def test_weights_say_how_often_a_row_is_seen(seed, sizes, data):
    """Each row of a source of weight w is seen floor(w) or ceil(w) times, w * size rows in all."""
    weights = tuple(data.draw(st.sampled_from([0.5, 1.0, 1.25, 2.0, 3.5])) for _ in sizes)
    order = Order(seed, tuple(sizes), 4, weights=weights)
    rows = order.epoch(0).tolist()
    first = 0
    for size, weight in zip(sizes, weights, strict=True):
        counts = [rows.count(row) for row in range(first, first + size)]
        assert sum(counts) == max(1, round(weight * size))
        assert set(counts) <= {int(weight), int(weight) + 1}
        first += size
    assert len(rows) == sum(max(1, round(w * s)) for w, s in zip(weights, sizes, strict=True))


def test_another_epoch_sees_another_part_of_a_source():
    order = Order(0, (100,), 10, weights=(0.5,))
    halves = [set(order.epoch(epoch).tolist()) for epoch in range(3)]
    assert all(len(half) == 50 for half in halves)
    assert halves[0] != halves[1] != halves[2]
    assert order.epoch(1).tolist() == Order(0, (100,), 10, weights=(0.5,)).epoch(1).tolist()


@given(seed=seeds, num_rows=rows, batch=sizes, accumulate=sizes, epoch=st.integers(0, 3))
def test_grouping_by_length_keeps_every_row(seed, num_rows, batch, accumulate, epoch):
    lengths = np.random.default_rng(0).integers(1, 500, num_rows)
    order = Order(seed, (num_rows,), batch, accumulate, lengths=lengths)
    assert sorted(order.epoch(epoch).tolist()) == list(range(num_rows))


def test_grouping_by_length_saves_padding():
    """1,000 rows of lognormal length in batches of 8: padding falls to less than a tenth of what chance gives."""
    lengths = np.random.default_rng(0).lognormal(5, 0.6, 1000).astype(np.int64)

    def padding(order: Order) -> int:
        batches = [lengths[[row for _, row in micro]] for micro in order.micro_batches(order.steps_per_epoch)]
        return sum(int((batch.max() - batch).sum()) for batch in batches)

    grouped, chance = Order(0, (1000,), 8, 2, lengths=lengths), Order(0, (1000,), 8, 2)
    assert padding(grouped) < 0.1 * padding(chance)
    means = [lengths[[row for _, row in micro]].mean() for micro in grouped.micro_batches(62)]
    assert np.corrcoef(means, range(len(means)))[0, 1] ** 2 < 0.1, "long rows do not all come first"


def test_a_stream_keeps_its_order():
    assert Order(0, (7,), 3, sequential=True).epoch(2).tolist() == list(range(7))
