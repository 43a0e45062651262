"""What a word is to a tokenizer."""

import pytest

import parts
from sightline.data.words import inside_a_sentence

TOKENIZERS = {
    "byte-level": (lambda: parts.tokenizer(), "Ġ"),
    "byte-level without BOS": (lambda: parts.tokenizer(bos=False), "Ġ"),
    "sentencepiece": (lambda: parts.sentencepiece_tokenizer(legacy=False), "▁"),
    "sentencepiece-legacy": (lambda: parts.sentencepiece_tokenizer(legacy=True), "▁"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_word_is_what_it_is_inside_a_sentence(name: str):
    """One space before it and no special token, for words of one token and of many."""
    make, space = TOKENIZERS[name]
    tokenizer = make()
    words = ["red", "ball", "allotment", "light blue", "Ünder"]
    found = inside_a_sentence(tokenizer, words)
    sentence = tokenizer("a " + " ".join(words), add_special_tokens=False)["input_ids"]
    assert tokenizer.encode("a", add_special_tokens=False) + [i for ids in found for i in ids] == sentence
    for word, ids in zip(words[:3], found, strict=False):
        assert "".join(tokenizer.convert_ids_to_tokens(ids)) == space + word
        assert not {*ids} & {tokenizer.bos_token_id, tokenizer.eos_token_id}
        assert ids != tokenizer.encode(word, add_special_tokens=False) or space == "▁", "not as a text of its own"
    assert len(found[0]) < len(found[2])
    assert inside_a_sentence(tokenizer, []) == []
