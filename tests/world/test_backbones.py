"""The shipped backbones: standard, small, loaded by the code that loads real ones, and as good as their cards say."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer, CLIPModel, CLIPVisionModel, LlamaForCausalLM

from sightline.errors import SightlineError
from sightline.world import Backbone, backbone_path, shipped
from sightline.world.build_clip import CONTRAST_ONLY, MAX_TEXT, ClipRecipe, build_clip, encode_pixels, encode_texts
from sightline.world.build_denoiser import DenoiserRecipe, build_denoiser
from sightline.world.build_lm import SMALL, LmRecipe, build_lm, lm_config
from sightline.world.build_vae import VaeRecipe, build_vae
from sightline.world.build_vq import VqRecipe, build_vq
from sightline.world.cards import weights_hash
from sightline.world.check import check
from sightline.world.clip_data import to_pixel_values
from sightline.world.draw import render
from sightline.world.lm_data import Writer
from sightline.world.measure_clip import measure_clip
from sightline.world.measure_lm import measure_lm
from sightline.world.scene import sample_scene
from sightline.world.thresholds import CHANCE, LEAST, Finding
from sightline.world.tokenizer import (
    BOS_ID,
    EOS_ID,
    IMAGE_ID,
    PAD_ID,
    build_tokenizer,
    lexicon_words,
    world_words,
)

SHIPPED = [backbone.value for backbone in shipped()]
CLIPS, LMS = ([name for name in SHIPPED if name.startswith(kind)] for kind in ("clip", "lm"))
LDMS = [name for name in SHIPPED if name in ("vae", "denoiser", "vq")]
RECIPES = {"clip": ClipRecipe(), "clip-contrast": CONTRAST_ONLY, "lm": LmRecipe(), "lm-small": SMALL}
RECIPES |= {"vae": VaeRecipe(), "denoiser": DenoiserRecipe(), "vq": VqRecipe()}
SLACK = 3.0
"""Standard errors that a sample's score may lie from its card's."""


def card(name: str) -> dict:
    return json.loads((backbone_path(name) / "card.json").read_text())


@pytest.fixture(scope="module", params=CLIPS)
def clip(request) -> tuple[str, CLIPModel]:
    path = backbone_path(request.param)
    model, info = CLIPModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return request.param, model.eval()


@pytest.fixture(scope="module", params=LMS)
def lm(request) -> tuple[str, LlamaForCausalLM]:
    path = backbone_path(request.param)
    model, info = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return request.param, model.eval()


def test_shipped_backbones_are_small():
    files = [path for name in SHIPPED for path in backbone_path(name).rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < 25_000_000
    of_diffusion = [path for path in files if path.parent.name in ("vae", "denoiser")]
    assert 0 < sum(path.stat().st_size for path in of_diffusion) < 8_000_000


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_is_of_the_shipped_weights_and_of_the_recipe_that_builds_them(name: str):
    about = card(name)
    assert about["weights_sha256"] == weights_hash(backbone_path(name))
    assert about["recipe"] == json.loads(json.dumps(RECIPES[name].__dict__))
    assert name in LDMS or about["seconds"] < 90 * 60


@pytest.mark.parametrize("name", [name for name in LEAST if name in SHIPPED])
def test_every_threshold_is_passed_by_the_card(name: str):
    scores = card(name)["scores"]["validation"]
    assert [key for key, least in LEAST[name].items() if scores[key].get("share", scores[key].get("dB")) <= least] == []
    for key, chance in CHANCE.get(name, {}).items():
        assert scores[key]["low"] <= chance <= scores[key]["high"]


def test_the_smaller_language_model_is_about_a_third():
    tokenizer = build_tokenizer()
    with torch.device("meta"):
        large, small = (LlamaForCausalLM(lm_config(tokenizer, recipe)) for recipe in (LmRecipe(), SMALL))
    assert 0.25 < small.num_parameters() / large.num_parameters() < 0.45


def test_a_backbone_that_does_not_ship_says_how_it_is_built():
    with pytest.raises(SightlineError, match="the small world has no 'clap'; did you mean 'clip'"):
        backbone_path("clap")
    for backbone in set(Backbone) - set(shipped()):
        with pytest.raises(SightlineError, match=f"sightline world build {backbone.value}"):
            backbone_path(backbone.value)


@pytest.mark.parametrize("name", CLIPS)
def test_the_vision_tower_loads_alone(name: str):
    _, info = CLIPVisionModel.from_pretrained(backbone_path(name), output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]


def test_the_processor_gives_the_pixels_and_texts_that_training_saw(clip: tuple[str, CLIPModel]):
    name, model = clip
    processor = AutoProcessor.from_pretrained(backbone_path(name), backend="pil")
    scene = sample_scene(0, "validation", 3)
    batch = processor(images=render(scene), text=["a red star", "star"], padding=True, return_tensors="pt")
    drawn = torch.from_numpy(np.asarray(render(scene)).copy()).permute(2, 0, 1)
    torch.testing.assert_close(batch["pixel_values"][0], to_pixel_values(drawn))
    high = processor(images=render(scene, "high"), return_tensors="pt")
    assert torch.equal(high["pixel_values"], batch["pixel_values"]), "the high view does not become the low view"

    tokenizer = build_tokenizer(append_eos=True, max_length=MAX_TEXT)
    texts = model.get_text_features(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).pooler_output
    ours = encode_texts(model, tokenizer, ("a red star", "star"))
    torch.testing.assert_close(torch.nn.functional.normalize(texts, dim=-1), ours)

    images = model.get_image_features(batch["pixel_values"]).pooler_output
    ours, _ = encode_pixels(model, batch["pixel_values"], torch.arange(37))
    torch.testing.assert_close(torch.nn.functional.normalize(images, dim=-1), ours)


@pytest.mark.parametrize("name", LMS)
def test_the_shipped_tokenizer_is_the_one_that_is_built(name: str):
    shipped, built = AutoTokenizer.from_pretrained(backbone_path(name)), build_tokenizer()
    assert shipped.get_vocab() == built.get_vocab()
    for text in ("a red star on a black background.\n", "Größe 2026: the quick brown fox 猫", "x <image> y</s>"):
        assert shipped(text).input_ids == built(text).input_ids


def test_every_word_of_the_world_is_a_token_and_any_text_survives():
    tokenizer = build_tokenizer()
    forms = [form for word in world_words() for form in (word, f" {word}")] + [f" {word}" for word in lexicon_words()]
    assert [form for form in forms if len(tokenizer.encode(form, add_special_tokens=False)) != 1] == []
    text = "Größe 2026: the quick brown fox — 猫\n"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert sum(token.isdigit() for token in tokenizer.convert_ids_to_tokens(ids)) == 4
    assert tokenizer.encode("red") == [BOS_ID, *tokenizer.encode("red", add_special_tokens=False)]
    special = (tokenizer.pad_token_id, tokenizer.image_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert special == (PAD_ID, IMAGE_ID, BOS_ID, EOS_ID)


def test_language_models_take_long_contexts_and_tie_their_embeddings(lm: tuple[str, LlamaForCausalLM]):
    _, model = lm
    assert model.config.max_position_embeddings == 2048
    assert model.lm_head.weight is model.model.embed_tokens.weight


def within(name: str, key: str, share: float, n: int) -> bool:
    """Whether a sample's share is within `SLACK` standard errors of the card's, with one case to spare."""
    known = card(name)["scores"]["validation"][key]["share"]
    return abs(share - known) <= SLACK * (max(known * (1 - known), 0.02) / n) ** 0.5 + 1 / n


def test_cards_numbers_of_clips_hold_on_a_small_sample(clip: tuple[str, CLIPModel]):
    """Shares of patches count as many cases as pictures: patches of one picture are alike."""
    name, model = clip
    tokenizer = build_tokenizer(append_eos=True, max_length=MAX_TEXT)
    scores = measure_clip(model, tokenizer, pictures=64, probe_pictures=256)
    fitted = {key for key in scores if key.startswith(("probe", "fine"))}  # a probe is worse on fewer pictures
    off = [k for k, s in scores.items() if k not in fitted and not within(name, k, s.value, min(s.n, 64))]
    assert off == []
    for key, least in LEAST.get(name, {}).items():
        n = min(scores[key].n, 64)
        assert scores[key].value > least - SLACK * (least * (1 - least) / n) ** 0.5, key
    assert scores["fine_low"].low <= 1 / 16 <= scores["fine_low"].high


def test_cards_numbers_of_language_models_hold_on_a_small_sample(lm: tuple[str, LlamaForCausalLM]):
    name, model = lm
    scores = measure_lm(model, build_tokenizer(), scenes=40)
    assert [key for key, score in scores.items() if not within(name, key, score.value, score.n)] == []
    for key, least in LEAST[name].items():
        assert scores[key].value > least - SLACK * (least * (1 - least) / scores[key].n) ** 0.5, key


@pytest.mark.parametrize("name", LDMS)
def test_cards_numbers_of_diffusion_hold_on_a_small_sample(name: str):
    """Decibels on eight pictures, within three standard errors of a mean of eight, and what must be passed."""
    measured = {finding.name: finding.score for finding in check([name], sample=8)}
    for key, known in card(name)["scores"]["validation"].items():
        if "dB" in known:
            deviation = (known["high"] - known["low"]) / 3.92 * known["n"] ** 0.5
            assert abs(measured[key].value - known["dB"]) < SLACK * deviation / 8**0.5
    for key, least in LEAST[name].items():
        assert measured[key].value > least


def build(name: str, out: Path, steps: int = 4) -> None:
    """A build of a few steps."""
    if name == "clip":
        build_clip(out, ClipRecipe(steps=steps, pictures=4, crops=4, warmup=2), measured=8)
    elif name == "vae":
        build_vae(out, VaeRecipe(steps=steps, batch=2, window=16, widths=(8, 8, 8), latent_channels=4), measured=2)
    elif name == "vq":
        build_vq(out, VqRecipe(steps=steps, batch=2, codes=8, width=4, widths=(8, 8, 8, 8), renewed=1), measured=2)
    elif name == "denoiser":
        recipe = DenoiserRecipe(steps=steps, pictures=4, batch=2, width=16, layers=1, heads=2)
        build_denoiser(out, recipe, vae=str(out.parent / "vae"), measured=2)
    else:
        build_lm(out, LmRecipe(steps=steps, batch=6, width=32, feed_forward=32, layers=1), measured=4)


LOSSES = {
    "clip": "build_clip.clip_loss",
    "lm": "build_lm.lm_loss",
    "vae": "build_vae.vae_loss",
    "denoiser": "build_denoiser.flow_losses",
    "vq": "build_vq.vq_loss",
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_build_that_was_stopped_gives_the_same_weights_and_none_is_written_over(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if name == "denoiser":
        build("vae", tmp_path / "vae", steps=1)
    build(name, tmp_path / "one")
    monkeypatch.setattr("sightline.world.training.SAVE_EVERY", 0.0)
    stopping = f"sightline.world.{LOSSES[name]}"
    measured = "ldm" if name in ("vae", "denoiser", "vq") else name
    with monkeypatch.context() as during:
        module, function = stopping.rsplit(".", 1)
        real = getattr(__import__(module, fromlist=[function]), function)
        calls = iter(range(99))

        def stop(*args, **options):
            if next(calls) == 2:
                raise KeyboardInterrupt
            return real(*args, **options)

        during.setattr(stopping, stop)
        with pytest.raises(KeyboardInterrupt):
            build(name, tmp_path / "two")
    assert not (tmp_path / "two").exists()

    def power_cut(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as during, pytest.raises(KeyboardInterrupt):
        during.setattr(f"sightline.world.measure_{measured}.measure_{name}", power_cut)
        build(name, tmp_path / "two")
    assert not (tmp_path / "two").exists(), "a backbone without its card would be refused and could not go on"
    build(name, tmp_path / "two")
    cards = [json.loads((tmp_path / folder / "card.json").read_text()) for folder in ("one", "two")]
    assert cards[0]["weights_sha256"] == cards[1]["weights_sha256"]
    assert set(cards[0]["scores"]) == {"validation", "novel"}
    assert {path.name for path in tmp_path.iterdir()} - {"vae"} == {"one", "two"}
    with pytest.raises(SightlineError, match="a backbone would overwrite it, so nothing was done"):
        build(name, tmp_path / "one")


def test_a_threshold_is_missed_at_its_value_and_chance_must_lie_inside():
    from sightline.evaluation.metrics import Estimate

    def finding(value: float, **wanted: float) -> Finding:
        return Finding("clip", "x", Estimate(value, value - 0.02, value + 0.02, 100), **wanted)

    assert finding(0.91, least=0.9).passes and not finding(0.9, least=0.9).passes and finding(0.1).passes
    assert finding(0.07, chance=0.0625).passes and not finding(0.09, chance=0.0625).passes
    assert "MISSES" in finding(0.5, least=0.9).line() and finding(0.5, least=0.9).as_row()["passes"] is False


def test_branches_of_a_row_see_their_description_and_nothing_of_each_other(lm: tuple[str, LlamaForCausalLM]):
    _, model = lm
    writer, rng, scene = Writer(build_tokenizer()), np.random.default_rng(0), sample_scene(0, "train", 3)
    rows = [writer.chat(scene, 3, rng), writer.plain(scene, rng), writer.facts(rng)]
    batch = writer.collate(rows)
    with torch.no_grad():
        together = model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=batch.mask).logits
        for row, written in enumerate(rows):
            end = len(written.prefix)
            for branch in written.branches:
                start, end = end, end + len(branch.ids)
                ids = torch.tensor([[*written.prefix, *branch.ids]])
                places = torch.arange(ids.shape[1])[None]
                places = places + written.gap * (places >= len(written.prefix))
                alone = model(input_ids=ids, position_ids=places).logits[0, len(written.prefix) :]
                torch.testing.assert_close(together[row, start:end], alone, atol=1e-3, rtol=1e-3)
