"""Rows on their way to the model: by (epoch, row) alone, from one process or from several."""

import warnings
from dataclasses import replace

import pytest
import torch

import parts
from sightline.data.dataset import Rows, training_batches, validation_batches
from sightline.data.processor import Processor
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.methods.base import Sizes
from sightline.methods.compose import Methods
from sightline.models.backbones import add_tokens
from sightline.types import Batch, Turn
from toy import Toy, ToyConfig

TEMPLATE = get_template("vicuna_v1")


@pytest.fixture(scope="module")
def samples(pictures):
    return read_llava_json(pictures / "chats.json", pictures / "images")


@pytest.fixture(scope="module")
def plain(assembled):
    return assembled("clip", "llama").processor(TEMPLATE)


@pytest.fixture(scope="module")
def toy(assembled):
    """A processor with the toy method, which needs a column and inserts random turns."""
    tokenizer = parts.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>", "additional_special_tokens": ["<image>", "<toy>"]})
    methods = Methods([Toy(ToyConfig(), Sizes(d_vision=32, d_llm=32, patches=parts.GRID, tokens=parts.GRID))])
    images = assembled("clip", "llama").image_processor
    return Processor(tokenizer, images, TEMPLATE, tokens_per_view=parts.GRID, methods=methods)


def levels(samples):
    return {"toy/level": {sample.id: torch.tensor(i % 4) for i, sample in enumerate(samples)}}


def same(first: Batch, second: Batch) -> bool:
    fields = vars(first).keys() - {"ids", "columns"}
    return first.ids == second.ids and all(torch.equal(getattr(first, f), getattr(second, f)) for f in fields)


def test_an_absent_column_says_how_to_get_it(toy, samples):
    with pytest.raises(
        SightlineError,
        match=r"method 'toy' needs column 'toy/level', absent from .*chats.json. "
        r"Run: sightline annotate RECIPE --method toy",
    ):
        Rows(samples, toy, seed=0)


def test_a_column_without_a_row_names_the_row(toy, samples):
    columns = levels(samples)
    del columns["toy/level"]["q3"]
    with pytest.raises(
        SightlineError,
        match=r"column 'toy/level' of method 'toy' has no value for sample 'q3'. Run: sightline annotate",
    ):
        Rows(samples, toy, seed=0, columns=columns)


def test_columns_go_with_their_row(toy, samples):
    rows = Rows(samples, toy, seed=0, columns=levels(samples) | {"other": {}})
    assert rows[(0, 5)].columns.keys() == {"toy/level"}
    assert rows[(0, 5)].columns["toy/level"].item() == 1


def test_a_row_is_pure_in_seed_epoch_and_number(toy, samples):
    """The toy inserts a digit drawn at random: the same one for the same key, others for other keys."""

    def drawn(seed: int, epoch: int, row: int) -> tuple[int, ...]:
        example = Rows(samples, toy, seed=seed, columns=levels(samples))[(epoch, row)]
        return tuple(example.input_ids.tolist())

    assert drawn(0, 0, 0) == drawn(0, 0, 0)
    assert len({drawn(0, epoch, 0) for epoch in range(20)}) > 3
    assert len({drawn(seed, 0, 0) for seed in range(20)}) > 3


def test_methods_insert_no_turns_in_validation(toy, samples):
    kind = toy.methods.kinds.index("toy/answer")
    training = Rows(samples, toy, seed=0, columns=levels(samples))
    held_out = Rows(samples, toy, seed=0, columns=levels(samples), training=False)
    assert (training[(0, 0)].kinds == kind).any()
    assert not (held_out[(0, 0)].kinds == kind).any()


def test_validation_is_every_row_in_the_files_order(plain, samples):
    batches = list(validation_batches(Rows(samples, plain, seed=0), batch_size=5))
    assert [len(batch) for batch in batches] == [5, 5, 4]
    assert [name for batch in batches for name in batch.ids] == [sample.id for sample in samples]


def test_training_starts_where_it_is_told(plain, samples):
    rows = Rows(samples, plain, seed=3)
    full = list(training_batches(rows, batch_size=3, accumulate=2, num_steps=5))
    later = list(training_batches(rows, batch_size=3, accumulate=2, num_steps=5, start=3))
    micro = len(full) - len(later)
    assert micro == len(list(training_batches(rows, batch_size=3, accumulate=2, num_steps=3)))
    assert all(same(a, b) for a, b in zip(full[micro:], later, strict=True))


def test_a_batch_is_padded_on_the_right(plain, samples):
    (batch,) = validation_batches(Rows(samples, plain, seed=0), batch_size=len(samples))
    assert (batch.attention_mask[:, 0] == 1).all()
    assert (batch.attention_mask.diff(dim=1) <= 0).all()


def test_an_error_stays_in_its_own_words(plain, samples):
    broken = replace(samples[2], images=(samples[2].images[0].with_name("gone.png"),))
    rows = Rows([samples[0], broken, samples[4]], plain, seed=0)
    (item,) = validation_batches(rows, batch_size=3)
    assert isinstance(item, SightlineError)
    assert "image not found" in str(item)
    assert "gone.png" in str(item)


def test_two_workers_give_what_none_gives(toy, samples):
    """The same batches in the same order, inserted turns included; and an error of a row arrives as itself, after the
    batches before it."""
    broken = replace(samples[-1], turns=(Turn("user", "no answer"),))
    rows = Rows([*samples[:-1], broken], toy, seed=1, columns=levels(samples))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        here, there = (
            list(training_batches(rows, batch_size=4, accumulate=1, num_steps=8, workers=workers)) for workers in (0, 2)
        )
    assert len(here) == len(there) == 8
    kinds = [type(item) for item in here]
    assert kinds == [type(item) for item in there]
    assert set(kinds) == {Batch, SightlineError}
    for a, b in zip(here, there, strict=True):
        if isinstance(a, Batch):
            assert same(a, b)
            assert all(map(torch.equal, a.columns["toy/level"], b.columns["toy/level"]))
        else:
            assert str(a) == str(b)
            assert "has no supervised token" in str(b)


def test_new_tokens_are_those_asked_for(tiny, assembled):
    """`add_tokens` on a tokenizer that has them already changes nothing."""
    assembly = assembled("clip", "llama")
    before = len(assembly.tokenizer)
    add_tokens(assembly.model, assembly.tokenizer, ["<image>"])
    assert len(assembly.tokenizer) == before
