import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, CLIPVisionModel, LlamaForCausalLM

from sightline.errors import SightlineError
from sightline.world import backbone_path
from sightline.world.build_clip import MAX_TEXT, ClipRecipe, build_clip, encode_pixels, encode_texts
from sightline.world.build_lm import LmRecipe, build_lm
from sightline.world.clip_data import to_pixel_values
from sightline.world.draw import render
from sightline.world.lm_data import BOTH_ORDERS, Writer
from sightline.world.measure_clip import linear_probe, measure_clip
from sightline.world.measure_lm import measure_lm
from sightline.world.scene import sample_scene
from sightline.world.tokenizer import BOS_ID, EOS_ID, IMAGE_ID, PAD_ID, build_tokenizer, world_words

NAMES: tuple[Literal["clip", "lm"], ...] = ("clip", "lm")


def card(name: Literal["clip", "lm"], split: str = "validation") -> dict[str, float]:
    cards = json.loads((backbone_path(name) / "card.json").read_text())
    (scores,) = [scores for scores in cards["scores"] if scores["split"] == split]
    return scores


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    model, info = CLIPModel.from_pretrained(backbone_path("clip"), dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


@pytest.fixture(scope="module")
def lm() -> LlamaForCausalLM:
    model, info = LlamaForCausalLM.from_pretrained(backbone_path("lm"), dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def test_shipped_backbones_are_small():
    files = [path for name in NAMES for path in backbone_path(name).rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < 4_000_000


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_of_the_shipped_weights(name: Literal["clip", "lm"]):
    weights = (backbone_path(name) / "model.safetensors").read_bytes()
    about = json.loads((backbone_path(name) / "card.json").read_text())
    assert about["weights_sha256"] == hashlib.sha256(weights).hexdigest()


def test_the_vision_tower_loads_alone():
    _, info = CLIPVisionModel.from_pretrained(backbone_path("clip"), output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]


def test_the_processor_gives_the_pixels_and_texts_that_training_saw(clip: CLIPModel):
    processor = AutoProcessor.from_pretrained(backbone_path("clip"), backend="pil")
    picture = render(sample_scene(0, "validation", 3))
    batch = processor(images=picture, text=["a red star", "star"], padding=True, return_tensors="pt")
    drawn = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)
    torch.testing.assert_close(batch["pixel_values"][0], to_pixel_values(drawn))

    tokenizer = build_tokenizer(append_eos=True, max_length=MAX_TEXT)
    texts = clip.get_text_features(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
    ours = encode_texts(clip, tokenizer, ("a red star", "star"))
    torch.testing.assert_close(torch.nn.functional.normalize(texts, dim=-1), ours)

    images = clip.get_image_features(batch["pixel_values"]).pooler_output
    ours, _ = encode_pixels(clip, batch["pixel_values"], torch.arange(17))
    torch.testing.assert_close(torch.nn.functional.normalize(images, dim=-1), ours)


def test_the_shipped_tokenizer_is_the_one_that_is_built():
    shipped, built = AutoTokenizer.from_pretrained(backbone_path("lm")), build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab()
    for text in ("a red star on a black background.\n", "Größe 2026: the quick brown fox 猫", "x <image> y</s>"):
        assert shipped(text).input_ids == built(text).input_ids


def test_every_word_of_the_world_is_a_token_and_any_text_survives():
    tokenizer = build_tokenizer()
    for word in world_words():
        for text in (word, f" {word}"):
            assert len(tokenizer.encode(text, add_special_tokens=False)) == 1, text
    text = "Größe 2026: the quick brown fox — 猫\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert sum(token.isdigit() for token in tokenizer.convert_ids_to_tokens(ids)) == 4
    assert tokenizer.encode("red") == [BOS_ID, *tokenizer.encode("red", add_special_tokens=False)]
    special = (tokenizer.pad_token_id, tokenizer.image_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert special == (PAD_ID, IMAGE_ID, BOS_ID, EOS_ID)


def test_the_language_model_takes_long_contexts_and_ties_its_embeddings(lm: LlamaForCausalLM):
    assert lm.config.max_position_embeddings == 2048
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


def test_cards_numbers_of_clip_hold(clip: CLIPModel):
    """On 60 of the card's 300 pictures: within three standard errors of a share near .95."""
    tokenizer = build_tokenizer(append_eos=True, max_length=MAX_TEXT)
    scores = measure_clip(clip, tokenizer, pictures=60, probe_pictures=20)
    for name in ("word_colour", "word_shape", "word_background", "clean_over_wrong", "retrieval"):
        assert scores[name] == pytest.approx(card("clip")[name], abs=0.09), name


def test_cards_numbers_of_the_language_model_hold(lm: LlamaForCausalLM):
    """On 24 of the card's 300 scenes."""
    scores = measure_lm(lm, build_tokenizer(), scenes=24)
    for name in ("colour", "background", "count", "existence"):
        assert scores[name] == pytest.approx(card("lm")[name], abs=0.1), name


def test_branches_of_a_row_see_their_description_and_nothing_of_each_other(lm: LlamaForCausalLM):
    writer, rng, scene = Writer(build_tokenizer()), np.random.default_rng(0), sample_scene(0, "train", 3)
    rows = [
        writer.chat(scene, 3, rng, told=BOTH_ORDERS),
        writer.plain(scene, rng, told=BOTH_ORDERS, retold=BOTH_ORDERS),
    ]
    batch = writer.collate(rows)
    with torch.no_grad():
        together = lm(input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask).logits
        for row, (prefix, branches) in enumerate(rows):
            end = len(prefix)
            for branch in branches:
                start, end = end, end + len(branch.ids)
                alone = lm(input_ids=torch.tensor([[*prefix, *branch.ids]])).logits[0, len(prefix) :]
                torch.testing.assert_close(together[row, start:end], alone, atol=1e-3, rtol=1e-3)


def test_a_linear_probe_reads_what_is_linear_and_not_what_is_absent():
    features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    labels = features[:, :3].argmax(1)
    right = linear_probe(features[:300], labels[:300], features[300:], 3) == labels[300:]
    assert right.float().mean() > 0.85
    shuffled = labels[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    assert (linear_probe(features[:300], shuffled[:300], features[300:], 3) == shuffled[300:]).float().mean() < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_a_build_gives_the_same_weights_again_and_refuses_to_write_over_them(name: str, tmp_path: Path):
    def build(out: Path) -> None:
        if name == "clip":
            build_clip(out, ClipRecipe(steps=2, scenes=8, picture_batch=4, crop_batch=4), measured=8)
        else:
            build_lm(out, LmRecipe(steps=2, batch=2), measured=4)

    for folder in ("one", "two"):
        build(tmp_path / folder)
    cards = [json.loads((tmp_path / folder / "card.json").read_text()) for folder in ("one", "two")]
    assert cards[0]["weights_sha256"] == cards[1]["weights_sha256"]
    assert {scores["split"] for scores in cards[0]["scores"]} == {"validation", "novel"}
    with pytest.raises(SightlineError, match="a backbone would overwrite it, so nothing was done"):
        build(tmp_path / "one")
