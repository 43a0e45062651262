"""Windows of cells as text: exact there and back, and what cannot be read is said to be unread."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sightline.data.windows import COLOURS, UNREAD, Digits, Marks, Window, tokens_of
from sightline.world.tokenizer import build_tokenizer


@given(st.lists(st.integers(0, 255), max_size=200))
def test_colours_come_back(values: list[int]):
    assert COLOURS.read(COLOURS.write(values), len(values)).tolist() == values


@given(st.lists(st.integers(0, 4095), max_size=80), st.sampled_from([Digits(6, 4096), Digits(4, 4096), Marks(4096)]))
def test_codes_come_back(values: list[int], alphabet: Digits | Marks):
    text = alphabet.write(values)
    assert alphabet.read(text, len(values)).tolist() == values
    assert alphabet.read(f" {text}</s>", len(values)).tolist() == values, "as a model says it"


@given(st.text(), st.sampled_from([Digits(3, 256), Marks(20)]))
def test_any_text_is_read_as_something(text: str, alphabet: Digits | Marks):
    read = alphabet.read(text, 5)
    assert len(read) == 5 and bool(((read >= UNREAD) & (read < alphabet.most)).all())


def test_a_window_of_eight_by_eight_takes_the_characters_that_it_should():
    cells = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(0))
    text = COLOURS.write(cells.flatten().tolist())
    assert len(text) == 576 and text[:9] == "".join(f"{value:03d}" for value in cells[0, 0].tolist())
    assert len(Digits(6, 4096).write([7] * 64)) == 384


def test_what_is_too_large_or_broken_off_is_unread():
    assert COLOURS.read("25525600", 4).tolist() == [255, UNREAD, UNREAD, UNREAD]
    assert COLOURS.read("the sky", 2).tolist() == [UNREAD, UNREAD]
    assert COLOURS.read("001 002", 2).tolist() == [1, UNREAD], "a gap is not what was asked for"
    assert Marks(20).read("<vq_3><vq_20> <vq_4>x<vq_5>", 4).tolist() == [3, UNREAD, 4, UNREAD]


def test_a_window_is_a_square_of_cells_and_anywhere_on_the_grid():
    cells = torch.arange(36).view(6, 6)
    assert Window(1, 2, 2).of(cells).tolist() == [[8, 9], [14, 15]]
    drawn = {(w.row, w.column) for n in range(400) if (w := Window.draw(6, 4, np.random.default_rng(n)))}
    assert drawn == {(row, column) for row in range(3) for column in range(3)}
    whole = Window.draw(4, 4, np.random.default_rng(0))
    assert (whole.row, whole.column) == (0, 0)


def test_tokens_are_counted_by_the_tokenizer():
    """Digits stand alone in the world's; one that takes three at a time, as Llama 3's does, has a token for a value."""
    world = build_tokenizer()
    assert tokens_of(world, COLOURS, 256, 48) == 144
    triples = pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated")
    vocabulary = {f"{n:03d}": n for n in range(1000)} | {"<unk>": 1000}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer, inner.decoder = triples, decoders.Fuse()
    llama = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    assert tokens_of(llama, COLOURS, 256, 192) == 192
    assert tokens_of(llama, Digits(6, 4096), 4096, 64) == 128
