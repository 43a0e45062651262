"""Whether answers use the image, asked of models of which that is known."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sightline.data.images import load_image
from sightline.data.view import Sight
from sightline.diagnostics.cause import Table, cross_table, measure_cause, nearest_word, odds_ratio, tokens_of, toward
from sightline.diagnostics.material import Asked, Case, Material, TokenTruth
from sightline.diagnostics.sight import (
    attention_mass,
    derangement,
    measure_attention,
    measure_sight,
    permute_patches,
)
from sightline.diagnostics.subject import Prompted, Seen, Subject
from sightline.errors import SightlineError
from sightline.evaluation.metrics import Z95
from sightline.evaluation.questions import Question
from sightline.methods.base import OneView

COLOURS = ("red", "green", "blue", "pink")
GREY = len(COLOURS)
"""What a patch without an item is, and a blank image everywhere."""


class Known(Subject):
    """Sees a 2 x 2 picture of colours, a token a pixel, and names the colour that its tokens say.

    Args:
        blind: say the first colour, whatever there is to see.
        first: look at the first patch alone, so that the order of patches matters.
        mistaken: the share of pictures whose tokens say the next colour.
    """

    beside_grid = 0
    sight = Sight(CLIPImageProcessorPil(do_resize=False, do_center_crop=False), OneView())

    def __init__(self, *, blind: bool = False, first: bool = False, mistaken: float = 0.0) -> None:
        self.blind, self.first, self.mistaken = blind, first, mistaken

    def words(self, words):
        return torch.eye(GREY + 1)[[COLOURS.index(word) for word in words]]

    def prompted(self, images, questions):
        rows = []
        for (image,) in images:
            pixels = np.asarray(image)
            numbers = [int(n) if int(n) < GREY else GREY for n in pixels[:, :, 0].flatten()]
            if random.Random(int(pixels[0, 0, 1])).random() < self.mistaken:
                numbers = [(n + 1) % GREY if n < GREY else n for n in numbers]
            rows.append(torch.cat([3 * torch.eye(GREY + 1)[numbers], torch.ones(1, GREY + 1)]))
        visual = torch.tensor([[True] * 4 + [False]] * len(rows))
        return Prompted(torch.stack(rows), torch.ones(len(rows), 5).long(), visual, torch.zeros(len(rows), 5).long())

    def answers(self, prompt, *, max_new_tokens=16):
        if self.blind:
            return [COLOURS[0]] * len(prompt.embeds)
        seen = prompt.embeds[:, :1] if self.first else prompt.embeds[:, :4]
        return [COLOURS[number] for number in seen[:, :, :GREY].sum(1).argmax(1).tolist()]


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> Material:
    """Forty pictures: an item of a colour in one patch, the first in every picture, grey elsewhere."""
    folder = tmp_path_factory.mktemp("coloured")
    cases, questions, asked = [], [], {}
    for number in range(40):
        colour = number % len(COLOURS)
        pixels = np.full((2, 2, 3), 255, np.uint8)
        pixels[0, 0] = colour, number, 0
        Image.fromarray(pixels).save(path := folder / f"{number}.png")
        item = TokenTruth((COLOURS[colour],), 0, 0.9)
        ground = TokenTruth(("white",), -1, 0.0)
        cases.append(Case(str(number), path, f"a {COLOURS[colour]} thing", (item, ground, ground, ground)))
        questions.append(Question(f"q{number}", (path,), "what colour is it?", (COLOURS[colour],), "colour"))
        asked[f"q{number}"] = Asked(0, "colour")
    return Material("coloured", tuple(cases), tuple(questions), groups={"colour": COLOURS}, asked=asked)


def test_a_model_that_looks_fails_without_its_image(coloured):
    found = measure_sight(Known(), coloured.questions, batch_size=7, progress=False)
    assert found.accuracy.value == 1
    assert found.permuted.difference.value == 0 and found.permuted.same_answers.value == 1  # it looks everywhere
    assert found.blank.accuracy.value == 0.25  # of four colours the first
    assert found.swapped.accuracy.value < 0.5
    assert found.swapped.difference.value == pytest.approx(found.swapped.accuracy.value - 1)
    assert found.swapped.difference.high < 0


def test_a_blind_model_answers_the_same_whatever_it_is_shown(coloured):
    found = measure_sight(Known(blind=True), coloured.questions, progress=False)
    assert found.accuracy.value == 0.25
    for way in (found.swapped, found.blank, found.permuted):
        assert way.difference.value == way.difference.low == way.difference.high == 0
        assert way.same_answers.value == 1


def test_a_model_that_reads_places_fails_with_patches_permuted(coloured):
    found = measure_sight(Known(first=True), coloured.questions, progress=False)
    assert found.accuracy.value == 1 and found.permuted.difference.high < 0


@pytest.mark.parametrize("size", [2, 3, 10, 61])
def test_a_derangement_gives_no_image_its_own_and_each_once(size):
    for seed in range(30):
        found = derangement(list(range(size)), seed)
        assert sorted(found) == sorted(found.values()) == list(range(size))
        assert all(one != other for one, other in found.items())
    assert derangement(list(range(size)), 1) == derangement(list(range(size)), 1)


def test_one_image_cannot_be_swapped(coloured):
    with pytest.raises(SightlineError, match="cannot be swapped"):
        measure_sight(Known(), coloured.questions[:1], progress=False)


def test_patches_are_permuted_within_their_image():
    embeds = torch.arange(9.0)[None, :, None].expand(1, 9, 2)
    visual = torch.tensor([[False, True, True, True, False, True, True, True, False]])
    prompt = Prompted(embeds, torch.ones(1, 9).long(), visual, torch.zeros(1, 9).long())
    seen = set()
    for seed in range(20):
        found = permute_patches(prompt, torch.Generator().manual_seed(seed)).embeds[0, :, 0].tolist()
        assert found[0] == 0 and found[4] == 4 and found[8] == 8
        assert sorted(found[1:4]) == [1, 2, 3] and sorted(found[5:8]) == [5, 6, 7]
        seen.add(tuple(found))
    assert len(seen) > 10


def test_attention_on_the_image_by_hand():
    """Two layers, one row, two heads, three positions of which the first two are visual."""
    attention = torch.zeros(2, 1, 2, 3, 3)
    attention[0, 0, 0, 2], attention[0, 0, 1, 2] = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.0, 0.0, 1.0])
    attention[1, 0, :, 2] = torch.tensor([0.2, 0.2, 0.6])
    visual = torch.tensor([[True, True, False]])
    prompt = Prompted(torch.zeros(1, 3, 4), torch.ones(1, 3).long(), visual, torch.zeros(1, 3).long())
    mass = attention_mass(Seen(torch.zeros(3, 1, 3, 4), attention), prompt)
    torch.testing.assert_close(mass, torch.tensor([[0.375], [0.4]]))


def test_attention_of_a_model(tiny_subject, material):
    questions = material.questions[:10]
    found = measure_attention(tiny_subject, questions, progress=False)
    assert len(found.mass) == tiny_subject.model.config.text_config.num_hidden_layers
    assert all(0 < layer.low < layer.value < layer.high < 1 for layer in found.mass)
    prompt = tiny_subject.prompted([[load_image(questions[0].images[0])]], [questions[0].text])
    one = measure_attention(tiny_subject, questions[:1], progress=False)
    assert one.positions.value == pytest.approx(36 / prompt.embeds.shape[1])
    alone = measure_attention(tiny_subject, questions, batch_size=1, progress=False)
    assert [e.value for e in alone.mass] == pytest.approx([e.value for e in found.mass], abs=1e-4)


def test_a_model_is_asked_four_ways(tiny_subject, material):
    found = measure_sight(tiny_subject, material.questions[:12], max_new_tokens=2, progress=False)
    assert found.accuracy.n == found.swapped.accuracy.n == 12
    assert found.blank.same_answers.value < 1  # it was made loud enough to answer by what it sees


def test_where_answers_follow_words_a_correction_corrects(coloured):
    found = measure_cause(Known(mistaken=0.4), coloured, amounts=(0.0, 1.0), batch_size=7, progress=False)
    assert 0.3 < found.accuracy.value < 0.9
    assert found.words_right.value == found.accuracy.value
    assert found.table.word_right == found.table.answer_right == 0
    assert found.odds_ratio.low > 10
    nothing, whole = found.corrections
    assert nothing.true_word == nothing.wrong_word == found.accuracy and nothing.corrected.value == 0
    assert whole.true_word.value == whole.corrected.value == whole.followed.value == 1
    assert whole.wrong_word.value == whole.corrected_by_control.value == 0
    assert whole.difference.value == 1
    assert found.left_out == 0


def test_where_answers_do_not_look_words_change_nothing(coloured):
    found = measure_cause(Known(blind=True, mistaken=0.4), coloured, progress=False)
    assert found.odds_ratio.low < 1 < found.odds_ratio.high
    for correction in found.corrections:
        assert correction.difference.value == correction.corrected.value == 0


def test_the_item_that_a_question_is_about(material):
    """Read from the scene: its words are at its patches, and the answer among them."""
    cases = {case.image: case for case in material.cases}
    questions = [q for q in material.questions if q.id in material.asked]
    assert {q.ability for q in questions} == {"colour", "shape", "size", "reading"}
    assert all(q.id in material.asked for q in material.questions if q.ability in ("colour", "shape", "size"))
    for question in questions:
        about = material.asked[question.id]
        patches = [p for p in cases[question.images[0]].patches if p.item == about.item]
        assert patches and all(question.answers[0] in patch.words for patch in patches)
        assert question.answers[0] in material.groups[about.attribute]
        for name in {"colour", "shape"} - {about.attribute}:
            named = set(question.text.strip("?").split()) & set(material.groups[name])
            assert named <= set(patches[0].words)


def test_the_world_is_corrected_with_a_real_model(tiny_subject, material):
    found = measure_cause(tiny_subject, material, amounts=(1.0,), max_new_tokens=1, progress=False)
    assert found.accuracy.n == sum(a.attribute in ("colour", "shape") for a in material.asked.values())
    assert found.corrections[0].true_word.n == found.accuracy.n
    with pytest.raises(SightlineError, match="nothing can be corrected"):
        measure_cause(tiny_subject, Material("photographs", material.cases, material.questions), progress=False)


def test_tokens_of_an_item():
    tokens = [
        TokenTruth(("x",), item, coverage) for item, coverage in [(0, 0.8), (0, 0.41), (0, 0.2), (1, 0.9), (-1, 0.0)]
    ]
    assert tokens_of(tokens, 0) == [0, 1]
    assert tokens_of(tokens, 1) == [3]
    assert tokens_of(tokens, 2) == []


def test_a_word_is_that_of_most_of_the_item():
    words = torch.eye(3)
    assert nearest_word(torch.tensor([[5.0, 1.0, 0.0], [1.0, 0.9, 0.0], [0.0, 0.1, 1.0]]), words) == 0


def test_tokens_turn_and_keep_their_length():
    tokens, word = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([7.0, 0.0])
    torch.testing.assert_close(toward(tokens, word, 1.0), torch.tensor([[5.0, 0.0], [2.0, 0.0]]))
    torch.testing.assert_close(toward(tokens, word, 0.0), tokens)
    half = toward(tokens, word, 0.5)
    torch.testing.assert_close(half.norm(dim=1), tokens.norm(dim=1))
    torch.testing.assert_close(half[1], torch.tensor([1.0, 1.0]) * 2**0.5)


def test_an_odds_ratio_by_hand():
    """(9.5 x 7.5) / (1.5 x 2.5) = 19, with Woolf's interval around its logarithm."""
    word = [True] * 10 + [False] * 9
    answer = [True] * 9 + [False] + [True] * 2 + [False] * 7
    assert cross_table(word, answer) == Table(9, 1, 2, 7)
    found = odds_ratio(word, answer)
    assert found.value == pytest.approx(19)
    spread = np.exp(Z95 * np.sqrt(1 / 9.5 + 1 / 1.5 + 1 / 2.5 + 1 / 7.5))
    assert (found.low, found.high) == pytest.approx((19 / spread, 19 * spread))
    twice = odds_ratio(word * 2, answer * 2, [str(i) for i in range(19)] * 2)
    independent = odds_ratio(word * 2, answer * 2)
    assert twice.low < independent.low and twice.high > independent.high
