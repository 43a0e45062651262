"""The model of a dry run has the parameters of the one that is built with weights; public sizes are the public ones."""

import pytest
import torch

from sightline.checkpoints import save_model
from sightline.config import Model, check
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.models.assemble import assemble
from sightline.models.parts import named_parts
from sightline.plan.build import ARCHITECTURES, architecture, fresh_config, meta_model, saved_config, stage_models
from sightline.plan.shapes import shapes
from toy import Toy

PUBLIC = {
    "openai/clip-vit-large-patch14-336": 303_507_456,
    "google/siglip-so400m-patch14-384": 428_225_600,
    "lmsys/vicuna-7b-v1.5": 6_738_415_616,
    "meta-llama/Llama-2-7b-chat-hf": 6_738_415_616,
    "lmsys/vicuna-13b-v1.5": 13_015_864_320,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "google/gemma-2b": 2_506_172_416,
}
"""Parameters as the checkpoints on the hub have them; of CLIP and SigLIP the vision tower's."""
TOWERS = tuple(name for name in PUBLIC if "clip" in name or "siglip" in name)


def numbers(model) -> dict[str, int]:
    counts: dict[str, int] = {}
    for part, _, parameter in named_parts(model):
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def test_every_architecture_is_a_config_alone():
    shipped = {folder.name.replace("--", "/") for folder in ARCHITECTURES.iterdir()}
    assert shipped == set(PUBLIC)
    for folder in ARCHITECTURES.iterdir():
        assert [file.name for file in folder.iterdir()] == ["config.json"]
        assert (folder / "config.json").stat().st_size < 1000


@pytest.mark.parametrize("vision", TOWERS)
@pytest.mark.parametrize("language", [name for name in PUBLIC if name not in TOWERS])
def test_public_backbones_have_their_public_sizes(vision, language):
    config = fresh_config(Model(vision=vision, language=language), architecture(vision), architecture(language))
    model = meta_model(config, [])
    assert all(p.is_meta for p in model.parameters())
    sizes = numbers(model)
    assert (sizes["vision"], sizes["language"]) == (PUBLIC[vision], PUBLIC[language])
    d_vision, d_llm = config.vision_config.hidden_size, config.text_config.hidden_size
    assert sizes["connector"] == d_vision * d_llm + d_llm + d_llm * d_llm + d_llm
    assert shapes(model).tokens == (config.vision_config.image_size // config.vision_config.patch_size) ** 2


@pytest.mark.parametrize(
    ("vision", "language"), [("clip", "llama"), ("siglip", "phi3"), ("dinov2", "gemma"), ("registers", "tied")]
)
def test_parameters_are_those_of_the_built_model(tiny, assembled, vision, language):
    """Apart from the rows of the word table that new tokens add."""
    parts = Model(vision=str(tiny[vision]), language=str(tiny[language]))
    model = meta_model(fresh_config(parts, architecture(parts.vision), architecture(parts.language)), [])
    real = assembled(vision, language).model
    expected, planned = numbers(real), numbers(model)
    new = real.config.text_config.vocab_size - model.config.text_config.vocab_size
    tables = 1 if real.config.tie_word_embeddings else 2
    planned["language"] += new * tables * model.config.text_config.hidden_size
    assert planned == expected


def test_a_saved_model_and_its_methods(tiny, tmp_path):
    """Stock or ours, a stage that starts from a saved model is planned from its config."""
    for name, methods in (("stock", []), ("ours", [{"name": "toy:Toy", "strength": 2.0}])):
        torch.manual_seed(0)
        assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=methods)
        save_model(assembly, tmp_path / name, get_template("vicuna_v1"))
        model = meta_model(saved_config(str(tmp_path / name)), methods)
        assert numbers(model) == numbers(assembly.model)
    assert shapes(model).views == 2
    assert (shapes(model).tokens, shapes(model).slots) == (16, 1)
    assert Toy.name in shapes(model).parameters
    with pytest.raises(SightlineError, match=r"was made with methods .* and the recipe lists \[\]"):
        meta_model(saved_config(str(tmp_path / "ours")), [])


def test_stages_share_the_model_unless_they_start_elsewhere(tiny, tmp_path):
    torch.manual_seed(0)
    save_model(assemble(str(tiny["siglip"]), str(tiny["phi3"])), tmp_path / "model", get_template("vicuna_v1"))
    stage = {"data": {"path": "x"}, "trainable": ["connector"]}
    recipe = check(
        {
            "name": "r",
            "model": {"vision": "world:clip", "language": "world:lm"},
            "stages": [
                stage | {"name": "a"},
                stage | {"name": "b"},
                stage | {"name": "c", "init_from": str(tmp_path)},
            ],
        }
    )
    (_, a), (_, b), (_, c) = stage_models(recipe)
    assert a is b
    assert c.config.vision_config.model_type == "siglip_vision_model"


def test_sizes_that_cannot_be_read_name_those_that_ship():
    with pytest.raises(SightlineError, match=r"cannot read the sizes of 'nobody/nothing': .*lmsys/vicuna-7b-v1\.5"):
        architecture("nobody/nothing")
    with pytest.raises(SightlineError, match=r"is a model of type 'clip'"):
        saved_config(str(ARCHITECTURES / "openai--clip-vit-large-patch14-336"))


def test_a_layer_that_the_tower_does_not_have(tiny):
    parts = Model(vision=str(tiny["clip"]), language=str(tiny["llama"]), vision_layer=9)
    with pytest.raises(SightlineError, match=r"vision_layer 9 is not among the tower's 4 states"):
        meta_model(fresh_config(parts, architecture(parts.vision), architecture(parts.language)), [])
