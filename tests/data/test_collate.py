"""Collate is the only padding: sequences on one side, pixels and counts never."""

import pytest
import torch

from sightline.data.collate import collate
from sightline.types import ANSWER, IGNORE, PAD, PROMPT, VISUAL, Batch, Example

PAD_ID = 9


def example(name: str, ids: list[int], *, views: tuple[int, ...] = (), **columns) -> Example:
    length = len(ids)
    return Example(
        id=name,
        input_ids=torch.tensor(ids),
        labels=torch.tensor([IGNORE] * (length - 1) + ids[-1:]),
        kinds=torch.tensor([PROMPT] * (length - 1) + [ANSWER]),
        turn_ids=torch.zeros(length, dtype=torch.long),
        prompt_mask=torch.ones(length, dtype=torch.bool),
        pixel_values=torch.full((sum(views), 3, 2, 2), float(ids[0])),
        view_counts=torch.tensor(views, dtype=torch.long),
        visual_counts=torch.tensor([5 * v for v in views], dtype=torch.long),
        image_sizes=torch.full((len(views), 2), 2),
        columns=columns,
    )


ROWS = [example("a", [1, 2, 3], views=(2, 1)), example("b", [4]), example("c", [6, 7], views=(1,))]


@pytest.mark.parametrize(
    ("side", "ids", "mask"),
    [
        ("right", [[1, 2, 3], [4, 9, 9], [6, 7, 9]], [[1, 1, 1], [1, 0, 0], [1, 1, 0]]),
        ("left", [[1, 2, 3], [9, 9, 4], [9, 6, 7]], [[1, 1, 1], [0, 0, 1], [0, 1, 1]]),
    ],
)
def test_padding_by_side(side, ids, mask):
    batch = collate(ROWS, pad_id=PAD_ID, side=side)
    assert batch.input_ids.tolist() == ids
    assert batch.attention_mask.tolist() == mask
    padding = batch.attention_mask == 0
    for field, value in (("labels", IGNORE), ("kinds", PAD), ("turn_ids", -1), ("prompt_mask", False)):
        values = getattr(batch, field)
        assert (values[padding] == value).all(), field
        given = torch.cat([getattr(row, field) for row in ROWS])
        assert torch.equal(values[~padding], given), field


def test_visual_things_are_packed():
    batch = collate(ROWS, pad_id=PAD_ID)
    assert batch.pixel_values[:, 0, 0, 0].tolist() == [1, 1, 1, 6]
    assert batch.view_counts.tolist() == [2, 1, 1]
    assert batch.visual_counts.tolist() == [10, 5, 5]
    assert batch.image_counts.tolist() == [2, 0, 1]
    assert (len(batch), batch.num_images, batch.ids) == (3, 3, ("a", "b", "c"))


def test_a_batch_without_images_has_the_same_fields():
    batch = collate([ROWS[1]], pad_id=PAD_ID)
    assert batch.pixel_values.shape == (0, 3, 2, 2)
    assert batch.view_counts.shape == batch.visual_counts.shape == (0,)
    assert batch.image_counts.tolist() == [0]
    assert batch.view_counts.dtype == torch.long


def test_columns_stay_one_tensor_a_row():
    """Of any length: a column may be ragged."""
    rows = [example("a", [1], words=torch.arange(2)), example("b", [2], words=torch.arange(5))]
    assert [value.tolist() for value in collate(rows, pad_id=PAD_ID).columns["words"]] == [[0, 1], [0, 1, 2, 3, 4]]


def test_moving_a_batch_moves_every_tensor():
    rows = [example("a", [1, VISUAL], views=(1,), words=torch.arange(2))]
    moved: Batch = collate(rows, pad_id=PAD_ID).to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 12
    assert all(tensor.is_meta for tensor in [*tensors, *moved.columns["words"]])
    assert moved.ids == ("a",)
