"""The model that lmms-eval is given, held against the parts of lmms-eval 0.7.3 that it touches.

lmms-eval brings torchvision and lives in an environment of its own; `docs/benchmarks.md` has what was run there.
"""

import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from types import ModuleType

import pytest
import torch
from PIL import Image

from sightline.checkpoints import save_model
from sightline.data.templates import get_template
from sightline.errors import SightlineError
from sightline.generation import Assistant


@dataclass
class Manifest:
    model_id: str
    simple_class_path: str


class Lmms:
    def __init__(self) -> None:
        self.task_dict: dict = {}


@dataclass
class Request:
    args: tuple


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch):
    """The two names that are imported of lmms-eval."""
    for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    model, registry = ModuleType("lmms_eval.api.model"), ModuleType("lmms_eval.models.registry_v2")
    model.__dict__["lmms"], registry.__dict__["ModelManifest"] = Lmms, Manifest
    monkeypatch.setitem(sys.modules, "lmms_eval.api.model", model)
    monkeypatch.setitem(sys.modules, "lmms_eval.models.registry_v2", registry)
    monkeypatch.delitem(sys.modules, "sightline.benchmarks.harness_model", raising=False)
    import sightline.benchmarks.harness as named

    yield named
    sys.modules.pop("sightline.benchmarks.harness_model", None)


def test_the_entry_point_names_the_model(harness):
    (found,) = [point for point in entry_points(group="lmms_eval.models") if point.name == "sightline"]
    manifest = found.load()()
    module, _, name = manifest.simple_class_path.rpartition(".")
    assert manifest.model_id == "sightline"
    assert issubclass(getattr(__import__(module, fromlist=[name]), name), Lmms)


def test_answers_and_likelihoods_are_the_models_own(harness, assembled, tmp_path):
    from sightline.benchmarks.harness_model import SightlineModel

    save_model(assembled(), tmp_path / "model", get_template("vicuna_v1"))
    model = SightlineModel(pretrained=str(tmp_path / "model"), batch_size="2")
    red, blue = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (20, 30), "blue")
    model.task_dict = {"t": {"test": [{"image": [red]}, {"image": [blue]}, {"image": []}]}}

    def visual(doc):
        return doc["image"]

    settings = {"max_new_tokens": 5, "until": ["\n"]}
    asked = ["<image> What colour?", "What\ncolour?", "Why?"]
    requests = [Request((text, dict(settings), visual, n, "t", "test")) for n, text in enumerate(asked)]
    assistant = Assistant(tmp_path / "model")
    expected = assistant.answers([[red], [blue], []], ["What colour?", "What\ncolour?", "Why?"], max_new_tokens=5)
    assert model.generate_until(requests) == [text.split("\n")[0] for text in expected]

    targets = [Request(("What colour?", target, visual, 0, "t", "test")) for target in ("red", "blue")]
    losses = [loss for loss, _ in model.loglikelihood(targets)]
    prompt = model.subject.prompted([[red]] * 2, ["What colour?"] * 2)
    assert losses == pytest.approx(model.subject.loss(prompt, ["red", "blue"]).tolist(), rel=1e-4)
    assert all(isinstance(greedy, bool) for _, greedy in model.loglikelihood(targets))
    with pytest.raises(SightlineError, match="one question at a time"):
        model.generate_until_multi_round([])
    model.task_dict["t"]["test"][0] = {"image": ["clip.mp4"]}
    with pytest.raises(SightlineError, match="shows something else than images"):
        model.generate_until(requests[:1])
    assert torch.is_grad_enabled()
