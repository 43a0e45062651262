"""Patches and words in the joint space, against what transformers gives; and the world's words, found in its scenes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel, CLIPVisionConfig, SiglipModel

from sightline.errors import SightlineError
from sightline.models.backbones import load_tower
from sightline.models.digest import config_facts, digest
from sightline.models.joint import JointEncoder, load_joint
from sightline.world.draw import patch_truth, render
from sightline.world.scene import sample_scene
from sightline.world.tokenizer import build_tokenizer, lexicon_words, world_words

EXTRACTORS = ("last", "value", "surgery")
FAMILIES = ("clip", "siglip")
WORDS = ["red", "star", "a large blue ring", "cat", "disestablishment"]
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(scope="module")
def joint(tiny_joint):
    """`joint("clip", "value")`, shared: tests leave it as it is."""
    made: dict[tuple, JointEncoder] = {}

    def get(family: str, extractor="last") -> JointEncoder:
        key = (family, extractor)
        made.setdefault(key, load_joint(str(tiny_joint[family]), extractor))
        return made[key]

    return get


def pixels(views: int = 2, side: int = 32) -> Tensor:
    return torch.randn(views, 3, side, side, generator=torch.Generator().manual_seed(1))


def hidden_states(encoder: JointEncoder) -> tuple[Tensor, ...]:
    """All of the tower's, as a trunk that runs it gets them."""
    with torch.no_grad():
        return encoder.model.vision_model(pixels(), output_hidden_states=True).hidden_states


class TestPatches:
    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize("extractor", EXTRACTORS)
    def test_they_are_unit_vectors_on_the_grid_without_gradients(self, joint, family, extractor):
        encoder = joint(family, extractor)
        assert (encoder.grid, encoder.image_size, encoder.d_joint) == (4, 32, 24 if family == "clip" else 32)
        patches = encoder.patches(encoder.states(pixels().requires_grad_()))
        assert patches.shape == (2, 16, encoder.d_joint) and not patches.requires_grad
        torch.testing.assert_close(patches.norm(dim=-1), torch.ones(2, 16))
        assert not any(weights.requires_grad for weights in encoder.parameters())
        assert not torch.nn.Sequential(encoder).train()[0].model.training

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(("extractor", "layers"), [("last", (4,)), ("value", (3,)), ("surgery", (2, 3))])
    def test_states_are_those_of_the_layers_alone_and_may_come_from_another_copy(
        self, joint, tiny_joint, family, extractor, layers
    ):
        encoder = joint(family, extractor)
        assert encoder.layers == layers
        states = encoder.states(pixels())
        assert set(states) == set(layers)
        tower, _ = load_tower(str(tiny_joint[family]), "crop")
        with torch.no_grad():
            others = tower(pixels(), output_hidden_states=True).hidden_states
        for layer, state in states.items():
            assert state.shape == (2, 16 + (family == "clip"), 32)
            assert torch.equal(state, others[layer])
        theirs = encoder.patches({layer: others[layer] for layer in layers})
        assert torch.equal(encoder.patches(states), theirs)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_last_is_the_way_of_the_pooled_vector(self, joint, family):
        """CLIP: its class token goes to `image_embeds`. SigLIP: the real head, run on each patch alone."""
        encoder = joint(family)
        model, hidden = encoder.model, hidden_states(encoder)[-1]
        with torch.no_grad():
            if family == "clip":
                ids = encoder.tokenizer(["red"], return_tensors="pt").input_ids
                expected = model(input_ids=ids, pixel_values=pixels()).image_embeds
                torch.testing.assert_close(F.normalize(encoder.head(hidden)[:, 0], dim=-1), expected, **CLOSE)
                hidden = hidden[:, 1:]
                alone = model.visual_projection(model.vision_model.post_layernorm(hidden))
            else:
                last = model.vision_model(pixels()).last_hidden_state
                assert torch.equal(model.vision_model.post_layernorm(hidden), last), "states are from before post-norm"
                alone = torch.stack([model.vision_model.head(last[:, [i]]) for i in range(16)], dim=1)
        patches = encoder.patches(encoder.states(pixels()))
        torch.testing.assert_close(patches, F.normalize(alone, dim=-1), **CLOSE)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_last_block_takes_the_state_before_it_to_the_last(self, joint, family):
        encoder = joint(family)
        states = hidden_states(encoder)
        assert len(states) == 5
        with torch.no_grad():
            torch.testing.assert_close(encoder.model.vision_model.encoder.layers[-1](states[-2], None), states[-1])

    @pytest.mark.parametrize("family", FAMILIES)
    def test_value_is_the_last_block_on_each_patch_alone(self, joint, family):
        """In a sequence of one, attention gives a token its own value."""
        encoder = joint(family, "value")
        state = hidden_states(encoder)[-2]
        with torch.no_grad():
            block = encoder.model.vision_model.encoder.layers[-1]
            alone = torch.cat([block(state[:, [i]], None) for i in range(state.shape[1])], dim=1)
            expected = F.normalize(encoder.head(alone), dim=-1)[:, -16:]
        torch.testing.assert_close(encoder.patches(encoder.states(pixels())), expected, **CLOSE)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_surgery_is_two_paths_in_step(self, joint, tiny_joint, family):
        """As in the authors' code: both paths through the blocks, with values for queries and keys on the new one.

        The v-v attention is the block's own, with the weights of its queries and keys replaced by those of its values.
        """
        encoder = joint(family, "surgery")
        changed = load_joint(str(tiny_joint[family])).model.vision_model.encoder.layers[2:]
        with torch.no_grad():
            new = old = hidden_states(encoder)[2]
            for block, vv in zip(encoder.model.vision_model.encoder.layers[2:], changed, strict=True):
                for name in ("q_proj", "k_proj"):
                    getattr(vv.self_attn, name).load_state_dict(vv.self_attn.v_proj.state_dict())
                new = new + vv.self_attn(block.layer_norm1(old), attention_mask=None)[0]
                old = block(old, None)
            expected = F.normalize(encoder.head(new), dim=-1)[:, -16:]
        torch.testing.assert_close(encoder.patches(encoder.states(pixels())), expected, **CLOSE)

    def test_the_extractors_differ_and_one_block_is_enough(self, joint, tiny_joint):
        found = [
            joint("clip", extractor).patches(joint("clip", extractor).states(pixels())) for extractor in EXTRACTORS
        ]
        for one, other in ((0, 1), (0, 2), (1, 2)):
            assert (found[one] - found[other]).abs().max() > 1e-2
        values = CLIPConfig.from_pretrained(tiny_joint["clip"])
        values.vision_config.num_hidden_layers = 1
        shallow = JointEncoder(CLIPModel(values), None, None, "surgery")
        assert shallow.layers == (0,)
        assert shallow.patches(shallow.states(pixels())).shape == (2, 16, 24)

    def test_no_view_gives_no_patch_and_a_missing_class_token_is_not_a_patch(self, joint):
        encoder = joint("clip", "surgery")
        assert encoder.patches(encoder.states(pixels(0))).shape == (0, 16, 24)
        with pytest.raises(AssertionError, match="16 tokens of a view; its tower gives 17"):
            encoder.patches({layer: state[:, 1:] for layer, state in encoder.states(pixels()).items()})

    @pytest.mark.parametrize("extractor", EXTRACTORS)
    def test_they_are_the_same_inside_autocast(self, joint, extractor):
        encoder = joint("siglip", extractor)
        plain = encoder.patches(encoder.states(pixels())), encoder.words(WORDS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = encoder.patches(encoder.states(pixels())), encoder.words(WORDS)
        assert all(torch.equal(one, other) for one, other in zip(plain, inside, strict=True))


class TestWords:
    @pytest.mark.parametrize(("family", "whole"), [("clip", CLIPModel), ("siglip", SiglipModel)])
    def test_they_are_the_models_own_text_features(self, joint, tiny_joint, family, whole):
        model, tokenizer = whole.from_pretrained(tiny_joint[family]), AutoTokenizer.from_pretrained(tiny_joint[family])
        padding = "max_length" if family == "siglip" else False
        with torch.no_grad():
            expected = [
                model.get_text_features(tokenizer([w], padding=padding, return_tensors="pt").input_ids).pooler_output
                for w in WORDS
            ]
        words = joint(family).words(WORDS)
        assert not words.requires_grad
        torch.testing.assert_close(words, F.normalize(torch.cat(expected), dim=-1), **CLOSE)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_neither_batch_nor_company_nor_the_tokenizers_habits_change_them(self, joint, tiny_joint, family):
        encoder = joint(family)
        words = encoder.words(WORDS)
        for batch_size in (1, 2, 3):
            torch.testing.assert_close(encoder.words(WORDS, batch_size=batch_size), words, **CLOSE)
        torch.testing.assert_close(encoder.words(WORDS[::-1]).flip(0), words, **CLOSE)
        assert (words @ words.T - torch.eye(5)).max() < 0.9999, "two words have one vector"
        left = load_joint(str(tiny_joint[family]))
        left.tokenizer.padding_side = "left"  # as Gemma's is, which SigLIP 2 has
        torch.testing.assert_close(left.words(WORDS), words, **CLOSE)
        assert encoder.words([]).shape == (0, encoder.d_joint)

    def test_siglip_reads_lower_case_as_it_was_trained(self, joint):
        encoder = joint("siglip")
        assert torch.equal(encoder.words(["Red", "STAR"]), encoder.words(["red", "star"]))

    def test_several_templates_are_averaged_on_the_sphere(self, joint):
        encoder, templates = joint("clip"), ("a {}", "{} {there}", "the {} and {}")
        mean = sum(encoder.words([t.replace("{}", w) for w in WORDS]) for t in templates)
        words = encoder.words(WORDS, templates=templates, batch_size=2)
        torch.testing.assert_close(words, F.normalize(mean, dim=-1), **CLOSE)
        for wrong in ((), ("a", "{}")):
            with pytest.raises(SightlineError, match=r"each needs a '\{\}', where the word goes"):
                encoder.words(WORDS, templates=wrong)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_long_texts_are_cut(self, joint, family):
        """To what the text side takes; a text still ends where CLIP is read."""
        red, blue = joint(family).words(["red " * 100, "blue " * 100])
        assert (red - blue).abs().max() > 1e-3
        torch.testing.assert_close(joint(family).words(["red " * 30])[0], red, **CLOSE)


class TestLoading:
    @pytest.mark.parametrize("name", ["dinov2", "llama"])
    def test_no_joint_space(self, tiny, name):
        with pytest.raises(SightlineError, match=r"without a joint space of patches .* Give a whole CLIP or SigLIP"):
            load_joint(str(tiny[name]))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_vision_only_checkpoint(self, tiny_joint, tmp_path, family):
        """Saved as a tower, or as a whole whose text side is lost."""
        tower, _ = load_tower(str(tiny_joint[family]), "crop")
        tower.save_pretrained(tmp_path / "tower")
        with pytest.raises(SightlineError, match=f"is of type '{family}_vision_model', without a joint space"):
            load_joint(str(tmp_path / "tower"))
        broken = shutil.copytree(tiny_joint[family], tmp_path / "whole")
        shutil.copy(tmp_path / "tower" / "model.safetensors", broken)
        with pytest.raises(SightlineError, match=r"not hold its whole image-text encoder: missing .* would be random"):
            load_joint(str(broken))

    def test_a_siglip_without_its_pooling_head(self, tiny_joint, tmp_path):
        broken = shutil.copytree(tiny_joint["siglip"], tmp_path / "siglip")
        config = json.loads((broken / "config.json").read_text())
        config["vision_config"]["vision_use_head"] = False
        (broken / "config.json").write_text(json.dumps(config))
        with pytest.raises(SightlineError, match="has no pooling head"):
            load_joint(str(broken))

    @pytest.mark.parametrize(
        ("trouble", "change"),
        [
            ("does not end a text with id 3", {"append_eos": False}),
            ("has no padding token", {"pad_token": None}),
            ("has 1138 tokens for the 1000 rows", {"vocab_size": 1000}),
            (r"does not end a text with id \d+, at which", {"eos_token_id": 2}),
            ("cannot load|has no padding|does not end", None),
        ],
    )
    def test_a_tokenizer_that_is_not_the_encoders(self, tiny_joint, tmp_path, trouble, change):
        broken = shutil.copytree(tiny_joint["clip"], tmp_path / "clip")
        if change is None:
            for file in broken.glob("tokenizer*"):
                file.unlink()
        elif {"vocab_size", "eos_token_id"} & set(change):
            config = CLIPConfig.from_pretrained(broken)
            config.text_config.update(change)
            CLIPModel(config).save_pretrained(broken)
        else:
            words = build_tokenizer(append_eos=change.get("append_eos", True), max_length=16)
            if "pad_token" in change:
                words.pad_token = None
            words.save_pretrained(broken)
        with pytest.raises(SightlineError, match=trouble):
            load_joint(str(broken))

    def test_a_tokenizer_whose_package_is_missing(self, tiny_joint, monkeypatch):
        def lacking(*_, **__):
            raise ImportError("SiglipTokenizer requires the SentencePiece library. Check out\nmore")

        monkeypatch.setattr(AutoTokenizer, "from_pretrained", lacking)
        with pytest.raises(SightlineError, match=r"requires the SentencePiece library, so its words .* pip install"):
            load_joint(str(tiny_joint["siglip"]))


class TestFacts:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_tower_is_known_by_its_digest(self, joint, tiny_joint, family):
        facts = joint(family).facts()
        tower, _ = load_tower(str(tiny_joint[family]), "crop")
        assert facts["tower"] == digest(sorted(tower.named_parameters()))
        assert facts["vision"]["num_attention_heads"] == 2
        assert json.loads(json.dumps(facts)) == facts
        assert facts == load_joint(str(tiny_joint[family])).facts()

    def test_whatever_changes_what_comes_out_changes_them(self, tiny_joint):
        encoder = load_joint(str(tiny_joint["clip"]))
        facts = encoder.facts()

        def changed() -> set[str]:
            return {key for key, value in encoder.facts().items() if value != facts[key]}

        for weights, key in (
            (encoder.model.vision_model.post_layernorm.weight, "tower"),
            (encoder.model.visual_projection.weight, "beside"),
            (encoder.model.text_model.final_layer_norm.bias, "beside"),
        ):
            before = weights.data.clone()
            weights.data.view(-1)[0] += 1e-6
            assert changed() == {key}
            weights.data.copy_(before)
        encoder.tokenizer.add_tokens(["zyx"])
        assert changed() == {"vocabulary"}
        assert {k for k, v in load_joint(str(tiny_joint["clip"]), "value").facts().items() if v != facts[k]} == {
            "extractor",
            "layers",
        }

    def test_a_digest_sees_names_types_shapes_and_bytes(self):
        """Golden: sha256 of the line `a torch.float32 (2,)`, a newline, and 1.0 and 2.0 in little-endian float32."""
        ones = torch.tensor([1.0, 2.0])
        golden = "c48867ed9cbd4f656ae604773b36ebd1d8afa40ecd9bd62dd9b0a4e1d9af3e2f"
        assert digest([("a", ones)]) == golden
        others = [("b", ones), ("a", ones.bfloat16()), ("a", ones[None]), ("a", ones.flip(0))]
        assert len({golden, *(digest([other]) for other in others), digest([("a", ones), ("b", ones)])}) == 6
        assert digest([("a", torch.tensor([[1.0, 0.0], [2.0, 0.0]])[:, 0])]) == golden, "strides are not bytes"

    def test_a_config_is_told_without_who_saved_it(self, tiny_joint, tmp_path):
        config = CLIPConfig.from_pretrained(tiny_joint["clip"]).vision_config
        config.save_pretrained(tmp_path)
        again = CLIPVisionConfig.from_pretrained(tmp_path)
        again.transformers_version = "0"
        assert config_facts(config) == config_facts(again)
        again.hidden_act = "gelu"
        assert config_facts(config) != config_facts(again)


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_worlds_clip_finds_the_words_of_its_scenes(extractor):
    """Of 322 words, those that patches are nearest to: 0.56 to 0.70 of the words in 50 scenes with sign +1, and with
    the paper's negation 0.01. As many random words would find 0.02."""
    encoder = load_joint("world:clip", extractor)
    words = sorted({*world_words(), *lexicon_words()})
    features = encoder.words(words)
    recall: dict[int, list[float]] = {1: [], -1: []}
    right, chance = [], []
    for index in range(12):
        scene = sample_scene(0, "validation", index)
        truth = patch_truth(scene, encoder.image_size // encoder.grid)
        view = encoder.image_processor(render(scene), return_tensors="pt")["pixel_values"]
        cosines = encoder.patches(encoder.states(view))[0] @ features.T
        shown = {word for patch in truth.words for word in patch}
        for sign, found in recall.items():
            nearest = [words[i] for i in (sign * cosines).argmax(-1).tolist()]
            found.append(len(shown & set(nearest)) / len(shown))
            if sign == 1:
                right += [word in true for word, true in zip(nearest, truth.words, strict=True)]
                chance.append(len(set(nearest)) / len(words))
    assert np.mean(recall[1]) > 0.4 > 10 * np.mean(chance)
    assert np.mean(recall[-1]) < 0.05
    assert np.mean(right) > 0.8, "the words are at the patches that show them: the grid is in reading order"


def test_the_worlds_clip_is_known_by_name(tmp_path: Path):
    with pytest.raises(SightlineError, match="the small world has no 'clap'"):
        load_joint("world:clap")
    with pytest.raises(SightlineError, match="no folder"):
        load_joint(str(tmp_path / "none"))
