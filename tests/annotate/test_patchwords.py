"""The words of patches, from an encoder to the store: against a slow reference, and all that they depend on."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, CLIPModel, SiglipModel

from sightline.annotate import patchwords
from sightline.annotate.drawing import NONE, FromLabels
from sightline.annotate.labels import Drawn, Labels
from sightline.annotate.patchwords import PatchWords
from sightline.config import check
from sightline.data.features import image_key
from sightline.data.images import load_image
from sightline.data.sources import read_llava_json
from sightline.data.store import Store
from sightline.errors import SightlineError
from sightline.methods.base import Setting
from sightline.methods.compose import build_methods
from sightline.methods.sea import LOSS, SEA
from sightline.models.assemble import assemble
from sightline.models.joint import JointEncoder
from sightline.models.scales import to_tiles
from sightline.types import Sample

WORDS = ("red", "blue", "green", "a", "box", "two", "cat", "yes", "table", "ball")


@dataclass
class Bench:
    """Makes `PatchWords` for a model of tiny parts and the pictures; what is said to the user is in `said`."""

    tiny_joint: dict[str, Path]
    language: Path
    pictures: Path
    folder: Path
    said: list[str] = field(default_factory=list)

    @property
    def samples(self) -> list[Sample]:
        return list(read_llava_json(self.pictures / "captions.json"))

    def setting(self, options: dict, **parts) -> Setting:
        """A model with `parts`, and SEA with `options`, before its first stage."""
        model = {"vision": str(self.tiny_joint["clip"]), "language": str(self.language)} | parts
        stage = {"name": "s", "data": {"path": "x"}, "trainable": ["connector"], "weights": {LOSS: 1.0}}
        methods = [{"name": "sea", "words": str(self.word_file(WORDS)), **options}]
        annotations = str(self.folder / "annotations")
        values = {"name": "r", "model": model, "methods": methods, "stages": [stage], "annotations": annotations}
        assembly = assemble(**model)
        return Setting(check(values), 0, assembly, torch.device("cpu"), [self.samples], self.said.append)

    def words(self, parts: dict | None = None, **options) -> PatchWords:
        setting = self.setting(options, **(parts or {}))
        method = build_methods(setting.recipe.methods, setting.assembly.model.model.sizes)["sea"]
        assert isinstance(method, SEA)
        return method.patch_words(setting)

    def word_file(self, words: tuple[str, ...]) -> Path:
        path = self.folder / f"{len(words)}-{hash(words)}.txt"
        path.write_text("\n".join(words))
        return path

    def encoder(self, name: str, family: str = "clip", *, changed: str | None = None, negated: tuple = ()) -> str:
        """A copy of a tiny encoder, one of its weights a little changed, or all of some negated."""
        folder = shutil.copytree(self.tiny_joint[family], self.folder / name)
        weights = load_file(folder / "model.safetensors")
        if changed is not None:
            weights[changed].view(-1)[0] += 0.01
        for key in negated:
            weights[key].neg_()
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return str(folder)

    def balanced(self) -> str:
        """A copy of the tiny CLIP whose words are spread to all sides, so that cosines have both signs."""
        folder = self.encoder("balanced")
        model, tokenizer = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        with torch.no_grad():
            pooled = [model.text_model(tokenizer(word, return_tensors="pt").input_ids).pooler_output for word in WORDS]
            common = F.normalize(torch.cat(pooled).mean(0), dim=0)
            model.text_projection.weight -= model.text_projection.weight @ torch.outer(common, common)
        model.save_pretrained(folder)
        return folder


@pytest.fixture
def bench(tiny_joint, tiny, pictures, tmp_path) -> Bench:
    return Bench(tiny_joint, tiny["llama"], pictures, tmp_path)


def slow_cosines(words: PatchWords, image, templates: tuple[str, ...]) -> torch.Tensor:
    """Cosines of patches and words by transformers' own CLIP: the last layer through post-norm and the projection."""
    model, tokenizer = CLIPModel.from_pretrained(words.encoder), AutoTokenizer.from_pretrained(words.encoder)
    pixels = words.setting.assembly.image_processor([load_image(image)], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        hidden = model.vision_model(pixels).last_hidden_state[:, 1:]
        patches = F.normalize(model.visual_projection(model.vision_model.post_layernorm(hidden))[0], dim=-1)
        texts = []
        for word in WORDS:
            ids = [tokenizer(template.replace("{}", word), return_tensors="pt").input_ids for template in templates]
            each = [F.normalize(model.get_text_features(each).pooler_output[0], dim=-1) for each in ids]
            texts.append(F.normalize(torch.stack(each).mean(0), dim=-1))
    return patches @ torch.stack(texts).T


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("templates", [("{}",), ("a {}", "the {} there", "{}")], ids=["bare", "several"])
def test_labels_are_those_of_a_slow_reference(bench: Bench, sign: int, templates: tuple[str, ...]):
    """For each patch the best eight by the cosine times the sign, and of these only what is above 0."""
    options = {} if templates == ("{}",) else {"templates": templates}
    words = bench.words({"vision": bench.balanced()}, sign=sign, top=8, **options)
    words.compute()
    labels, shares = words.open(), []
    assert isinstance(labels, Labels)
    for sample in bench.samples[:2]:
        _, ids, scores = labels(sample.images[0])
        expected, best = (sign * slow_cosines(words, sample.images[0], templates)).topk(8, dim=1)
        there = (expected > 0).numpy()
        assert (ids[there] == best.numpy()[there]).all() and (ids[~there] == NONE).all()
        np.testing.assert_allclose(scores, expected.clamp(min=0), atol=float(expected.max()) / 255 + 1e-3)
        shares.append(there.mean())
    assert 0.2 < np.mean(shares) < 0.8, "some of the best eight are above 0, and some are not"


def test_labels_of_several_scales_are_those_of_the_base_view(bench: Bench):
    """The tower's own size, as the first of its tiles is; kept apart from those of a model of one scale."""
    words = bench.words({"vision_scales": [1, 2, 3]}, sign=1, top=4)
    words.compute()
    labels, processor = words.open(), words.setting.assembly.image_processor
    labelling = patchwords.Labelling(words, WORDS)
    for sample in bench.samples[:2]:
        pixels = processor([load_image(sample.images[0])], return_tensors="pt")["pixel_values"]
        assert pixels.shape[-1] == 96
        best, expected = labelling.best(to_tiles(pixels, [1, 2, 3], 32)[:1])
        _, ids, scores = labels(sample.images[0])
        there = scores > 0
        assert there.any() and (ids[there] == best[0].numpy()[there]).all()
        np.testing.assert_allclose(scores[there], expected[0].numpy()[there], atol=float(expected.max()) / 255 + 1e-3)
    assert words.folder != bench.words(sign=1, top=4).folder
    live = {"name": "sea", "labels": "live", "words": words.words}
    method = build_methods([live], words.setting.assembly.model.model.sizes)["sea"]
    with pytest.raises(SightlineError, match=r"the tower has several scales\. Store them"):
        method.begin(words.setting)


def test_a_tower_of_several_scales_takes_labels_from_an_encoder(bench: Bench, tiny):
    words = bench.words({"vision": str(tiny["dinov2"]), "vision_scales": [1, 2]}, encoder=str(bench.tiny_joint["clip"]))
    assert not words.is_own
    assert Store(words.compute()).keys


def test_the_folder_names_all_that_labels_depend_on(bench: Bench):
    """Weights of the tower, of the projection and of the text side, preprocessing, extractor, sign, words and their
    order, and what is asked for. Not the place of the encoder on the disk."""
    given = {"sign": 1, "top": 4}
    same = bench.words({"vision": bench.encoder("copy")}, **given)
    base = bench.words(**given)
    assert same.folder == base.folder
    mean = bench.encoder("mean")
    preprocessor = Path(mean) / "preprocessor_config.json"
    values = json.loads(preprocessor.read_text())
    preprocessor.write_text(json.dumps(values | {"image_mean": [0.5, 0.5, 0.5]}))
    tower = "vision_model.encoder.layers.3.mlp.fc2.weight"
    others = {
        "tower": bench.words({"vision": bench.encoder("tower", changed=tower)}, **given),
        "projection": bench.words({"vision": bench.encoder("head", changed="visual_projection.weight")}, **given),
        "text": bench.words({"vision": bench.encoder("text", changed="text_projection.weight")}, **given),
        "mean": bench.words({"vision": mean}, **given),
        "fit": bench.words({"image_fit": "crop"}, **given),
        "encoder": bench.words(encoder=str(bench.tiny_joint["siglip"]), **given),
        "extractor": bench.words(extractor="surgery", **given),
        "sign": bench.words(**given | {"sign": -1}),
        "one word more": bench.words(words=str(bench.word_file((*WORDS, "new"))), **given),
        "order of words": bench.words(words=str(bench.word_file(WORDS[::-1])), **given),
        "templates": bench.words(templates=("a {}",), **given),
        "top": bench.words(**given | {"top": 5}),
        "tokens": bench.words({"connector": "pool"}, **given),
        "drawn": bench.words(drawn_epochs=1, **given),
    }
    folders = {name: words.folder for name, words in others.items()} | {"base": base.folder}
    assert len(set(folders.values())) == len(folders), folders
    provenance = json.loads((base.compute() / "provenance.json").read_text())
    assert provenance["depends_on"] == base.facts | {"sign": 1}


INVERTED = {
    "clip": (CLIPModel, ("text_projection.weight",)),
    "siglip": (SiglipModel, ("text_model.head.weight", "text_model.head.bias")),
}


@pytest.mark.parametrize("family", INVERTED)
def test_the_sign_is_measured_for_each_encoder_and_said_once(bench: Bench, family: str, monkeypatch):
    """An encoder whose words point the other way has the other sign, and its labels are the same."""
    found = []
    for vision in (str(bench.tiny_joint[family]), bench.encoder("inverted", family, negated=INVERTED[family][1])):
        words = bench.words({"vision": vision}, top=2)
        with pytest.raises(SightlineError, match="none were made with this encoder, list and transform"):
            words.open()
        folder = words.compute()
        (told,) = [line for line in bench.said if line.startswith("sign of the cosine: of the words in 12 captions")]
        bench.said.clear()
        record = json.loads(next(folder.parent.glob(f"sea-sign-{'*'}.json")).read_text())
        assert told.endswith(f"{record['sign']:+d} is taken") and record["pairs"] == 12
        facts = json.loads((folder / "provenance.json").read_text())["depends_on"]
        assert facts["sign"] == record["sign"]
        labels = words.open()
        found.append((record["sign"], record["recall"], [labels(sample.images[0]) for sample in bench.samples]))
        with monkeypatch.context() as patch:
            patch.setattr(patchwords, "measure_signs", lambda *_, **__: pytest.fail("measured again"))
            bench.words({"vision": vision}, top=2).compute()
        shutil.rmtree(folder.parent)
    (one, recall, labels), (other, swapped, others) = found
    assert one == -other and recall == {"+1": swapped["-1"], "-1": swapped["+1"]}
    assert recall["+1"] != recall["-1"]
    for (_, ids, scores), (_, same_ids, same_scores) in zip(labels, others, strict=True):
        assert np.array_equal(ids, same_ids) and np.allclose(scores, same_scores, atol=1e-3)


def test_a_sign_that_is_given_is_not_measured(bench: Bench, monkeypatch):
    """The paper's preset negates, whatever the captions say."""
    monkeypatch.setattr(patchwords, "measure_signs", lambda *_, **__: pytest.fail("measured"))
    folder = bench.words(preset="sea_paper").compute()
    assert json.loads((folder / "provenance.json").read_text())["depends_on"]["sign"] == -1
    assert folder == bench.words(sign=-1).folder


def test_a_list_of_more_than_65535_words(bench: Bench, monkeypatch):
    """Ids of four bytes, from the encoder to what is drawn in training, also what is drawn beforehand."""

    def quick_words(encoder: JointEncoder, words, **_):
        return F.normalize(torch.randn(len(words), encoder.d_joint, generator=torch.Generator().manual_seed(0)), dim=1)

    monkeypatch.setattr(JointEncoder, "words", quick_words)
    many = (*WORDS, *(f"w{number}" for number in range(70_000)))
    given = {"words": str(bench.word_file(many)), "sign": 1}
    whole, drawn = bench.words(**given), bench.words(drawn_epochs=2, **given)
    folder = whole.compute()
    drawn.compute()
    assert "4294967295 is none" in json.loads((folder / "provenance.json").read_text())["values"]
    labels, ready = whole.open(), drawn.open()
    assert isinstance(labels, Labels) and isinstance(ready, Drawn)
    highest = 0
    for sample in bench.samples[:6]:
        image = sample.images[0]
        key, ids, scores = labels(image)
        assert key == image_key(image) and ids.max() < len(many) and (ids[scores > 0] >= 0).all()
        highest = max(highest, int(ids.max()))
        for epoch in range(2):
            from_labels = FromLabels(whole.how, labels)(image, epoch)[1]
            assert np.array_equal(ready(image, epoch)[1], from_labels)
    assert highest > 65_535
    short = json.loads((bench.words(sign=1).compute() / "provenance.json").read_text())
    assert "65535 is none" in short["values"], "as before"
