"""Rows on their way to the model: by (epoch, row) alone, from one process or from several."""

import warnings
from dataclasses import replace

import pytest
import torch

import parts
from sightline.data.dataset import Dropped, Fetched, Mixture, Policies, Rows, training_batches, validation_batches
from sightline.data.processor import Processor
from sightline.data.sources import read_llava_json
from sightline.data.templates import get_template
from sightline.errors import LongRowError, SightlineError
from sightline.methods.base import Sizes
from sightline.methods.compose import Methods
from sightline.models.backbones import add_tokens
from sightline.types import VISUAL, Batch, Example, Sample, Turn
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
    fields = vars(first).keys() - {"ids", "columns", "counted"}
    return first.ids == second.ids and all(torch.equal(getattr(first, f), getattr(second, f)) for f in fields)


def test_an_absent_column_says_how_to_get_it(toy, samples):
    with pytest.raises(
        SightlineError,
        match=r"method 'toy' needs column 'toy/level', absent from .*chats.json. "
        r"Compute it, and give it to sightline.train.train",
    ):
        Rows(samples, toy, seed=0)


def test_a_column_without_a_row_names_the_row(toy, samples):
    columns = levels(samples)
    del columns["toy/level"]["q3"]
    with pytest.raises(
        SightlineError,
        match=r"column 'toy/level' of method 'toy' has no value for sample 'q3'. Compute it, and give",
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
    batches = [item.batch for item in validation_batches(Mixture([Rows(samples, plain, seed=0)]), batch_size=5)]
    assert [len(batch) for batch in batches] == [5, 5, 4]
    assert [name for batch in batches for name in batch.ids] == [sample.id for sample in samples]


def test_training_starts_where_it_is_told(plain, samples):
    rows = Mixture([Rows(samples, plain, seed=3)])
    order = rows.order(batch_size=3, accumulate=2)
    full = list(training_batches(rows, order, num_steps=5))
    later = list(training_batches(rows, order, num_steps=5, start=3))
    micro = len(full) - len(later)
    assert micro == len(list(training_batches(rows, order, num_steps=3)))
    assert all(same(a.batch, b.batch) for a, b in zip(full[micro:], later, strict=True))


def test_a_batch_is_padded_on_the_right(plain, samples):
    (item,) = validation_batches(Mixture([Rows(samples, plain, seed=0)]), batch_size=len(samples))
    batch = item.batch
    assert (batch.attention_mask[:, 0] == 1).all()
    assert (batch.attention_mask.diff(dim=1) <= 0).all()


def test_an_error_stays_in_its_own_words(plain, samples):
    broken = replace(samples[2], images=(samples[2].images[0].with_name("gone.png"),))
    rows = Rows([samples[0], broken, samples[4]], plain, seed=0)
    (item,) = validation_batches(Mixture([rows]), batch_size=3)
    assert isinstance(item, SightlineError)
    assert "image not found" in str(item)
    assert "gone.png" in str(item)


def test_two_workers_give_what_none_gives(toy, samples):
    """The same batches in the same order, inserted turns included; and an error of a row arrives as itself, after the
    batches before it."""
    broken = replace(samples[-1], turns=(Turn("user", "no answer"),))
    rows = Mixture([Rows([*samples[:-1], broken], toy, seed=1, columns=levels(samples))])
    order = rows.order(batch_size=4, accumulate=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        here, there = (list(training_batches(rows, order, num_steps=8, workers=workers)) for workers in (0, 2))
    assert len(here) == len(there) == 8
    kinds = [type(item) for item in here]
    assert kinds == [type(item) for item in there]
    assert set(kinds) == {Fetched, SightlineError}
    for a, b in zip(here, there, strict=True):
        if isinstance(a, Fetched):
            assert same(a.batch, b.batch)
            assert all(map(torch.equal, a.batch.columns["toy/level"], b.batch.columns["toy/level"]))
        else:
            assert str(a) == str(b)
            assert "has no supervised token" in str(b)


def test_new_tokens_are_those_asked_for(tiny, assembled):
    """`add_tokens` on a tokenizer that has them already changes nothing."""
    assembly = assembled("clip", "llama")
    before = len(assembly.tokenizer)
    add_tokens(assembly.model, assembly.tokenizer, ["<image>"])
    assert len(assembly.tokenizer) == before


def test_a_bad_image_is_skipped_and_named_and_nothing_takes_its_place(plain, samples):
    broken = replace(samples[2], images=(samples[2].images[0].with_name("gone.png"),))
    rows = Mixture([Rows([samples[0], broken, samples[4]], plain, seed=0, policies=Policies(bad_images="skip"))])
    (item,) = validation_batches(rows, batch_size=3)
    assert item.batch.ids == (samples[0].id, samples[4].id)
    assert [(row.id, row.reason) for row in item.dropped] == [(broken.id, "bad image")]
    assert "gone.png" in item.dropped[0].message


def test_a_batch_of_bad_images_alone_is_no_batch(plain, samples):
    broken = replace(samples[2], images=(samples[2].images[0].with_name("gone.png"),))
    (item,) = validation_batches(Mixture([Rows([broken], plain, seed=0, policies=Policies("skip"))]), batch_size=3)
    assert item.batch is None and len(item.dropped) == 1


def long_talk(samples) -> Sample:
    """The picture's question, then four exchanges of about 30 tokens each."""
    exchange = (Turn("user", "why? " * 12), Turn("assistant", "so. " * 12))
    return replace(
        samples[0], id="long", turns=(*samples[0].turns, *exchange * 3, Turn("user", "end?"), Turn("assistant", "yes"))
    )


def test_long_rows_are_dropped_or_lose_their_oldest_turns_but_never_an_image(plain, samples):
    row = long_talk(samples)
    whole = len(plain(row))
    plain.max_length = whole - 20
    try:
        with pytest.raises(LongRowError, match=f"'long' has {whole} tokens, 16 of them visual"):
            Rows([row], plain, seed=0)[(0, 0)]
        assert isinstance(Rows([row], plain, seed=0).fetch((0, 0))[0], SightlineError), "raise is the default"
        (dropped,) = Rows([row], plain, seed=0, policies=Policies(long_rows="drop")).fetch((0, 0))
        assert isinstance(dropped, Dropped) and dropped.reason == "too long"

        example, note = Rows([row], plain, seed=0, policies=Policies(long_rows="shorten")).fetch((0, 0))
        assert isinstance(example, Example) and isinstance(note, Dropped) and note.reason == "shortened"
        assert len(example) <= plain.max_length
        assert int((example.kinds == VISUAL).sum()) == 16
        text = plain.tokenizer.decode(example.input_ids)
        assert text.count("why? why?") > 0 and "end?" in text and text.count("ASSISTANT:") == 4

        plain.max_length = 20
        (dropped,) = Rows([row], plain, seed=0, policies=Policies(long_rows="shorten")).fetch((0, 0))
        assert isinstance(dropped, Dropped) and dropped.reason == "too long", (
            "the image's own exchange is over the budget"
        )
    finally:
        plain.max_length = 2048


def test_a_mixture_numbers_rows_through_and_keeps_each_sources_template(plain, samples):
    other = Processor(plain.tokenizer, plain.image_processor, get_template("plain"), tokens_per_view=16)
    mixture = Mixture([Rows(samples[:3], plain, seed=0), Rows(samples[3:8], other, seed=0)], [1.0, 2.0])
    assert len(mixture) == 8
    assert [mixture[(0, row)][0].id for row in range(8)] == [sample.id for sample in samples[:8]]
    assert len(mixture[(0, 3)][0]) < len(mixture[(0, 2)][0]), "a caption has no system prompt"
    order = mixture.order(batch_size=4, accumulate=1)
    assert order.shares == (3, 10)


def test_like_lengths_stand_together(plain, samples):
    rows = Mixture([Rows([*samples, *[replace(long_talk(samples), id=str(i)) for i in range(6)]], plain, seed=0)])
    order = rows.order(batch_size=6, accumulate=1, group_by_length=True)
    batches = [item.batch for item in training_batches(rows, order, num_steps=order.steps_per_epoch)]
    assert sum(all(name.isdecimal() and int(name) < 6 for name in batch.ids) for batch in batches) == 1


def test_rows_that_share_an_id_cannot_share_a_column(toy, samples):
    twice = [*samples, replace(samples[1], id=samples[0].id)]
    with pytest.raises(SightlineError, match=r"two rows of .*chats.json have the id 'q0', and column 'toy/level'"):
        Rows(twice, toy, seed=0, columns=levels(samples))
