"""Does each diagnostic tell models apart whose alignment is known? On the world's own backbones.

The good model is one whose connector was fitted to the words that are true of each patch, which takes seconds: no stage
of training can beat that on what it measures. The broken ones are broken in one way each. What trained models score
stands in `benchmarks/results/diagnostics.md`.
"""

from collections.abc import Callable

import pytest
import torch

from sightline.checkpoints import save_model
from sightline.data.images import load_image
from sightline.data.templates import get_template
from sightline.diagnostics.altered import (
    Altered,
    ShuffledPatches,
    TrueWords,
    reset_connector,
    with_connector,
    with_normalisation,
)
from sightline.diagnostics.diagnose import Part, diagnose
from sightline.diagnostics.material import Material, read_world
from sightline.diagnostics.subject import Subject
from sightline.evaluation.metrics import Estimate
from sightline.models.assemble import assemble
from sightline.world.make import make_world

BROKEN = ("untrained", "shuffled patches", "wrong pixels", "foreign connector")
Measure = Callable[[str, Part], dict[str, Estimate]]


class Collapsed(Altered):
    """Every token of an image is the mean of them."""

    def change(self, visual, image):
        return visual.mean(0, keepdim=True).expand_as(visual)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Measure:
    """The scores of a kind of model on one part, measured once."""
    folder = tmp_path_factory.mktemp("calibration")
    make_world(folder / "world", train=1, validation=60, test=160, novel=1)
    torch.manual_seed(0)
    for layer in (-2, -1):
        save_model(
            assemble("world:clip", "world:lm", vision_layer=layer), folder / str(layer), get_template("vicuna_v1")
        )
    known, material = read_world(folder / "world", split="test"), read_world(folder / "world")
    good, other = (taught(Subject(folder / str(layer)), known) for layer in (-2, -1))
    models = {
        "true words": TrueWords(good, material),
        "good": good,
        "untrained": reset_connector(good),
        "shuffled patches": ShuffledPatches(good),
        "wrong pixels": with_normalisation(good, [0.0] * 3, [1.0] * 3),
        "foreign connector": with_connector(good, other.model.model.multi_modal_projector.state_dict()),
        "collapsed": Collapsed(good),
        "forgetful": forgetful(good),
    }
    found: dict[tuple[str, Part], dict[str, Estimate]] = {}

    def measure(kind: str, part: Part) -> dict[str, Estimate]:
        if (kind, part) not in found:
            done = diagnose(
                models[kind],
                material,
                name=kind,
                parts=(part,),
                untouched="world:lm",
                questions=120,
                progress=False,
            )
            assert not done.missing
            found[kind, part] = dict(done.scores)
        return found[kind, part]

    return measure


def taught(subject: Subject, known: Material) -> Subject:
    """The same model with its connector fitted to the words that are true of each patch of other pictures."""
    images = [load_image(case.image) for case in known.cases]
    patches = torch.cat(subject.patches(images) or [])
    words = torch.cat(TrueWords(subject, known).visual(images))
    connector = subject.model.model.multi_modal_projector.requires_grad_(True)
    optimizer = torch.optim.AdamW(connector.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(400):
        some = torch.randint(len(patches), (1024,), generator=draw)
        loss = torch.nn.functional.mse_loss(connector(patches[some]), words[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    connector.requires_grad_(False)
    return subject


def forgetful(subject: Subject) -> Subject:
    """The same model with noise in its language model."""
    other = with_connector(subject, subject.model.model.multi_modal_projector.state_dict())
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in other.model.model.language_model.layers.parameters():
            parameter += 0.5 * parameter.std() * torch.randn(parameter.shape, generator=draw)
    return other


def above(one: Estimate, other: Estimate) -> bool:
    """Whether the intervals lie apart, the first above."""
    return one.low > other.high


def test_words_fall_with_everything_that_breaks_the_way_to_them(scores: Measure):
    share = {kind: scores(kind, "words")["words/things/share"] for kind in ("true words", "good", *BROKEN)}
    assert share["true words"].value == 1.0 and share["good"].value > 0.6
    assert all(above(share["good"], share[kind]) for kind in BROKEN)


def test_captions_are_nearer_to_tokens_that_say_their_words(scores: Measure):
    """Recall of a caption's words, and TACS: in the good model above another caption's, and above the untrained."""
    for name in ("words/recall", "words/tacs"):
        good, untrained = (scores(kind, "words") for kind in ("good", "untrained"))
        assert above(good[f"{name}/own"], untrained[f"{name}/own"])
        assert above(good[f"{name}/own"], good[f"{name}/other"])


def test_geometry_tells_loud_tokens_and_tokens_that_all_say_the_same(scores: Measure):
    true, good, untrained, collapsed = (
        scores(kind, "geometry") for kind in ("true words", "good", "untrained", "collapsed")
    )
    assert above(untrained["geometry/norm_ratio"], true["geometry/norm_ratio"])
    assert above(good["geometry/visual_rank"], collapsed["geometry/visual_rank"])
    assert above(collapsed["geometry/visual_anisotropy"], good["geometry/visual_anisotropy"])


def test_geometry_tells_how_far_tokens_lie_from_words_and_not_where_they_stand(scores: Measure):
    found = {kind: scores(kind, "geometry") for kind in ("true words", "good", "untrained", "shuffled patches")}
    gap = {kind: score["geometry/unit_gap"] for kind, score in found.items()}
    assert above(gap["untrained"], gap["good"]) and above(gap["good"], gap["true words"])
    own = {kind: score["geometry/matching/2"] for kind, score in found.items()}
    assert own["good"].low > 0 and above(own["good"], own["untrained"])
    assert not above(own["good"], own["shuffled patches"]), "an image's mean state has no order"


def test_probes_read_what_stands_where_whatever_the_connector_did(scores: Measure):
    found = {kind: scores(kind, "probe") for kind in ("good", "untrained", "shuffled patches")}
    read = {kind: score["probe/colour/visual"] for kind, score in found.items()}
    assert above(read["good"], read["shuffled patches"])
    assert read["shuffled patches"].low < found["shuffled patches"]["probe/colour/shuffled"].high
    assert found["untrained"]["probe/colour/lost"].low <= 0.02, "a random connector keeps what a probe needs"


def test_answers_depend_on_images_that_say_true_words(scores: Measure):
    found = {kind: scores(kind, "sight") for kind in ("true words", "untrained")}
    sees, blind = (found[kind]["sight/swapped/difference"] for kind in found)
    assert sees.high < 0 and above(blind, sees) and blind.low < 0 < blind.high
    assert above(found["true words"]["sight/accuracy"], found["untrained"]["sight/accuracy"])


def test_a_true_word_corrects_answers_where_the_language_model_reads_words(scores: Measure):
    """Which it does in any of these models but one: what the connector writes is put right by hand."""
    good, deaf = (scores(kind, "cause") for kind in ("good", "forgetful"))
    corrected, by_control = (good[f"cause/corrections/1/corrected{how}"] for how in ("", "_by_control"))
    assert above(corrected, by_control)
    assert above(good["cause/corrections/1/followed"], deaf["cause/corrections/1/followed"])
    assert above(corrected, deaf["cause/corrections/1/corrected"])


def test_language_is_kept_where_nothing_touched_it(scores: Measure):
    good, noisy = (scores(kind, "kept")["kept/overall/difference/accuracy"] for kind in ("good", "forgetful"))
    assert (good.low, good.high) == (0.0, 0.0) and noisy.high < 0
