"""A probe finds what was planted in the tokens, and nothing else."""

from typing import Any

import pytest
import torch
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sightline.data.images import load_image
from sightline.data.view import Sight
from sightline.diagnostics.material import COVERED, Case, Material, TokenTruth
from sightline.diagnostics.probe import linear_probe, measure_probe, token_labels
from sightline.diagnostics.subject import Subject
from sightline.errors import SightlineError
from sightline.methods.base import OneView


class Planted(Subject):
    """Tokens and patches of noise with the true words of some attributes added, each along a direction of its own.

    Args:
        in_tokens, in_patches: attributes to plant.
    """

    def __init__(
        self, material: Material, in_tokens: set[str], in_patches: set[str], *, whole: bool = True, before: int = 0
    ) -> None:
        self.material, self.whole, self.before = material, whole, before
        self.planted = {"tokens": in_tokens, "patches": in_patches}
        self.calls = {"tokens": 0, "patches": 0}

    sight: Any = Sight(CLIPImageProcessorPil(do_resize=False, do_center_crop=False), OneView())

    @property
    def beside_grid(self):
        return self.before

    def visual(self, images, *, batch_size=32):
        return self.make("tokens", len(images))

    def patches(self, images, *, batch_size=32):
        return self.make("patches", len(images)) if self.whole else None

    def make(self, where, count):
        start = self.calls[where]
        self.calls[where] += count
        cases = self.material.cases[start : start + count]
        return [self.tokens(where, case, start + i) for i, case in enumerate(cases)]

    def tokens(self, where, case, number):
        draw = torch.Generator().manual_seed(number)
        tokens, width = 0.3 * torch.randn(len(case.patches), 40, generator=draw), 0
        for name, words in self.material.groups.items():
            for place, token in enumerate(case.patches):
                for word in set(token.words) & set(words):
                    if name in self.planted[where]:
                        tokens[place, width + words.index(word)] += 1
            width += len(words)
        return torch.cat([torch.zeros(self.before, 40), tokens])


def test_the_probe_reads_what_is_in_the_tokens_and_only_that(wide):
    subject = Planted(wide, in_tokens={"colour"}, in_patches={"colour", "shape"})
    found = measure_probe(subject, wide, progress=False)
    assert set(found) == {"colour", "shape", "size", "letter", "background"}
    colour, shape = found["colour"], found["shape"]
    assert colour.visual.value > 0.9 and colour.shuffled.high < colour.visual.low
    assert shape.visual.value < 0.5 and shape.patches is not None and shape.patches.value > 0.9
    assert shape.lost is not None and shape.lost.low > 0.2  # the connector lost it
    assert colour.lost is not None and abs(colour.lost.value) < 0.1
    assert (colour.classes, shape.classes) == (8, 6)


def test_a_class_token_is_left_out_and_a_cut_image_refused(wide):
    plain, beside = (Planted(wide, {"colour"}, {"colour"}, before=before) for before in (0, 1))
    assert measure_probe(plain, wide, progress=False) == measure_probe(beside, wide, progress=False)
    cut = Planted(wide, {"colour"}, {"colour"})
    middle = CLIPImageProcessorPil(do_resize=False, crop_size={"width": 48, "height": 48})
    cut.sight = Sight(middle, OneView())
    with pytest.raises(SightlineError, match="a model that sees whole images"):
        measure_probe(cut, wide, progress=False)


def test_intervals_count_images(material):
    found = measure_probe(Planted(material, {"colour"}, set(), whole=False), material, progress=False)["colour"]
    asked = [token_labels("colour", material.groups["colour"], case.patches) for case in material.cases]
    assert found.visual.n + found.known == sum(int((labels >= 0).sum()) for labels in asked)
    assert min(found.visual.n, found.known) > 0
    assert found.patches is None and found.lost is None


def test_images_that_take_turns_stand_on_both_sides(material):
    """The small world has one thing, two, three, four, in turn: every second image would be another kind of image."""
    cases = [
        Case(str(i), case.image, "", (TokenTruth(("red",) if i % 2 else ("blue",), 0, 1.0),) * len(case.patches))
        for i, case in enumerate(material.cases)
    ]
    taking_turns = Material("turns", tuple(cases), groups={"colour": ("red", "blue")})
    found = measure_probe(Planted(taking_turns, {"colour"}, {"colour"}), taking_turns, progress=False)
    assert found["colour"].visual.value > 0.9


def test_what_is_asked_of_a_token():
    star = ("large", "red", "star")
    truth = [TokenTruth(star, 0, 0.9), TokenTruth(star, 0, COVERED / 2), TokenTruth(("white",), -1, 0.0)]
    assert token_labels("colour", ("blue", "red"), truth).tolist() == [1, -1, -1]
    assert token_labels("letter", ("a", "b"), truth).tolist() == [-1, -1, -1]
    assert token_labels("background", ("black", "white"), truth).tolist() == [-1, -1, 1]


def test_without_truth_nothing_can_be_read(tiny_subject, material):
    photographs = Material("photographs", tuple(Case(c.id, c.image, c.caption) for c in material.cases[:2]))
    with pytest.raises(SightlineError, match="the 36 visual tokens of an image of photographs"):
        measure_probe(tiny_subject, photographs, progress=False)


def test_a_models_patches_are_what_its_connector_is_given(tiny_subject, material):
    images = [load_image(case.image) for case in material.cases[:3]]
    patches = tiny_subject.patches(images, batch_size=2)
    assert patches is not None and len(patches) == 3
    connected = tiny_subject.model.model.multi_modal_projector(torch.stack(patches))
    torch.testing.assert_close(connected, torch.stack(tiny_subject.visual(images)), atol=1e-4, rtol=1e-4)


def test_a_model_is_probed(tiny_subject, material):
    found = measure_probe(tiny_subject, material, batch_size=8, progress=False)
    assert found["background"].patches is not None and found["background"].lost is not None
    assert found["background"].visual.value > found["background"].shuffled.value


def test_a_linear_probe_reads_what_is_linear_and_not_what_is_absent():
    features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    labels = features[:, :3].argmax(1)
    right = linear_probe(features[:300], labels[:300], features[300:], 3) == labels[300:]
    assert right.float().mean() > 0.85
    shuffled = labels[torch.randperm(400, generator=torch.Generator().manual_seed(1))]
    assert (linear_probe(features[:300], shuffled[:300], features[300:], 3) == shuffled[300:]).float().mean() < 0.5
