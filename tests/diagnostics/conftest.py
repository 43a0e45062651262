"""A small world and a tiny random model, made once."""

from typing import Any

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sightline.checkpoints import save_model
from sightline.data.templates import get_template
from sightline.diagnostics.material import Material, read_world
from sightline.diagnostics.subject import Subject
from sightline.models.assemble import assemble
from sightline.world.make import make_world


@pytest.fixture(scope="package")
def world(tmp_path_factory):
    """A folder that `sightline world make` would write."""
    folder = tmp_path_factory.mktemp("world") / "small"
    make_world(folder, train=4, validation=80, test=4, novel=4)
    return folder


@pytest.fixture(scope="package")
def material(world) -> Material:
    return read_world(world, most=24)


@pytest.fixture(scope="package")
def wide(world) -> Material:
    return read_world(world)


@pytest.fixture(scope="package")
def louder(tiny, tmp_path_factory):
    """A stock LLaVA of random weights, louder than fresh ones, so that what is shown decides the answer. Its tower sees
    the world in the patches that `truth/` is written for."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("louder")
    body: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    vision = CLIPVisionConfig(**body, image_size=96, patch_size=16)
    CLIPModel(CLIPConfig(vision_config=vision, text_config=CLIPTextConfig(**body, vocab_size=50))).save_pretrained(
        folder / "tower"
    )
    CLIPImageProcessorPil(size={"shortest_edge": 96}, crop_size={"height": 96, "width": 96}).save_pretrained(
        folder / "tower"
    )
    assembly = assemble(str(folder / "tower"), str(tiny["llama"]))
    with torch.no_grad():
        for parameter in assembly.model.parameters():
            if parameter.ndim > 1:
                parameter *= 4
    save_model(assembly, folder / "model", get_template("vicuna_v1"))
    return folder / "model"


@pytest.fixture(scope="package")
def tiny_subject(louder) -> Subject:
    return Subject(louder)
