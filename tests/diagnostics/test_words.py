"""Words of visual tokens: cases made by hand, where it is known which words are right."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

import parts
from sightline.checkpoints import save_model
from sightline.data.templates import get_template
from sightline.data.words import inside_a_sentence
from sightline.diagnostics.material import Case, Material, TokenTruth, find_case, read_world
from sightline.diagnostics.measure_words import measure_words
from sightline.diagnostics.subject import Subject
from sightline.diagnostics.words import nearest_words, recall, right, tacs, tacs_against, truth_table
from sightline.errors import SightlineError
from sightline.models.assemble import assemble
from sightline.world.make import make_world

WORDS = ("red", "blue", "box", "ball")
TABLE = torch.tensor([[2.0, 0, 0], [0, 3.0, 0], [0, 0, 1.0], [1.0, 1, 0]])


def test_nearest_words_by_cosine_whatever_the_length():
    visual = torch.tensor([[5.0, 0.1, 0], [0.1, 0.1, 0], [0, 0, -1.0]])
    near, scores = nearest_words(visual, TABLE, top=2)
    assert near[:2].tolist() == [[0, 3], [3, near[1, 1]]]
    torch.testing.assert_close(scores[1, 0], torch.tensor(1.0))
    assert scores[2].max() == 0  # the opposite of a word is near none
    near, _ = nearest_words(visual, TABLE, top=99)
    assert near.shape == (3, 4)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    visual, table = torch.randn(50, 8), torch.randn(30, 8)
    whole = nearest_words(visual, table, top=3)
    monkeypatch.setattr("sightline.diagnostics.words.CHUNK", 64)
    torch.testing.assert_close(nearest_words(visual, table, top=3), whole)


def test_nothing_is_near_without_words_or_with_broken_tokens():
    with pytest.raises(SightlineError, match="list of words is empty"):
        nearest_words(torch.randn(2, 3), torch.empty(0, 3))
    with pytest.raises(SightlineError, match="not finite"):
        nearest_words(torch.full((2, 3), torch.nan), TABLE)


def test_right_beside_its_chance():
    true = torch.tensor([[True, False, True, False]] * 3 + [[False, True, False, False]])
    score = right(torch.tensor([0, 2, 1, 1]), true, ["a", "a", "b", "b"])
    assert score is not None
    assert score.share.value == 0.75
    # Dealt out at random: red (1/4 said, 3/4 true), box (1/4, 3/4), blue (2/4, 1/4).
    assert score.chance == pytest.approx(0.25 * 0.75 + 0.25 * 0.75 + 0.5 * 0.25)
    assert score.commonest == 0.75
    assert right(torch.tensor([], dtype=torch.long), true[:0]) is None


def test_chance_is_what_dealing_out_gives():
    torch.manual_seed(0)
    said, true = torch.randint(4, (4000,)), torch.rand(4000, 4) < 0.3
    score, dealt = right(said, true), right(said[torch.randperm(4000)], true)
    assert score is not None and dealt is not None
    assert dealt.share.value == pytest.approx(score.chance, abs=0.03)
    assert dealt.chance == score.chance


def test_tokens_of_one_image_stand_together():
    true = torch.eye(2, dtype=torch.bool).repeat_interleave(50, 0)
    apart, together = (
        right(torch.zeros(100).long(), true),
        right(torch.zeros(100).long(), true, ["a"] * 50 + ["b"] * 50),
    )
    assert apart is not None and together is not None
    assert together.share.high - together.share.low > 2 * (apart.share.high - apart.share.low)


def test_a_token_that_little_covers_is_nobodys():
    shown = [TokenTruth(("red", "box"), 0, 0.5), TokenTruth(("red", "box"), 0, 0.1), TokenTruth(("grey",), -1, 0.0)]
    assert truth_table(shown, ("red", "grey")).tolist() == [[True, False], [False, False], [False, True]]


def test_recall_beside_that_of_other_images():
    captions = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()  # the last has no word of the list
    images = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0], [1, 1, 1, 1]]).bool()
    score = recall(captions, images)
    assert score is not None
    assert (score.own.value, score.other.value, score.difference.value) == (3 / 4, 1 / 4, 2 / 4)
    assert score.own.n == 4
    assert recall(captions[1:], images[1:]) is None


def test_tacs_is_the_mean_of_the_ten_highest():
    caption = torch.eye(3)
    visual = torch.cat([torch.eye(3)[[0, 1, 2] * 2], torch.tensor([[1.0, 1, 0]] * 8)])
    assert tacs(visual, caption) == pytest.approx((6 + 4 / 2**0.5) / 10)
    assert tacs(visual[:6], caption) == pytest.approx(1)  # fewer than ten: all
    assert tacs(visual, -caption) < tacs(visual, caption)


def test_tacs_is_compared_image_by_image():
    score = tacs_against([0.5, 0.7, 0.9], [0.4, 0.6, 0.8])
    assert score is not None
    assert score.difference.value == pytest.approx(0.1)
    assert score.difference.high - score.difference.low < 1e-9 < score.own.high - score.own.low
    assert tacs_against([0.5], [0.4]) is None


@pytest.mark.parametrize("legacy", [True, False], ids=["legacy", "metaspace"])
def test_a_word_has_one_space_before_it(legacy: bool):
    tokenizer = parts.sentencepiece_tokenizer(legacy=legacy)
    assert [tokenizer.convert_ids_to_tokens(ids) for ids in inside_a_sentence(tokenizer, ["red"])] == [["▁red"]]


class Told(Subject):
    """A model whose visual tokens are what a test says."""

    def tell(self, visual: list[torch.Tensor]) -> None:
        self.told = iter(visual)

    def visual(self, images, *, batch_size: int = 32) -> list[torch.Tensor]:
        return [next(self.told) for _ in images]


def model(tiny, folder: Path, **options) -> Path:
    torch.manual_seed(3)
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), **options)
    save_model(assembly, folder / "model", get_template("vicuna_v1"))
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("world") / "w"
    make_world(folder, train=1, validation=12, test=1, novel=1)
    return read_world(folder)


@pytest.fixture(scope="module")
def told(tiny, tmp_path_factory: pytest.TempPathFactory) -> Told:
    subject = Told(model(tiny, tmp_path_factory.mktemp("told")))
    torch.manual_seed(0)
    with torch.no_grad():  # far from each other, so that a word of several tokens is nearest to itself
        subject.model.get_input_embeddings().weight.normal_()
    return subject


def true_tokens(subject: Subject, case: Case, turn: int) -> torch.Tensor:
    """For each patch the embedding of one of its true words, each in its turn."""
    return subject.words([patch.words[(turn + n) % len(patch.words)] for n, patch in enumerate(case.patches)])


def test_true_words_are_right_everywhere(told: Told, world: Material):
    told.tell([true_tokens(told, case, turn) for turn, case in enumerate(world.cases)])
    scores = measure_words(told, world, progress=False)
    assert scores.things is not None and scores.background is not None and scores.recall is not None
    assert scores.things.share.value == scores.background.share.value == 1
    assert scores.things.chance < 0.5 and scores.background.chance < 0.6
    assert scores.recall.own.value > scores.recall.other.value
    assert (scores.images, scores.tokens, scores.candidates) == (12, 12 * 36, len(world.words))


def test_each_group_is_chosen_from_alone(told: Told, world: Material):
    colours = world.groups["colour"]
    span = torch.linalg.qr(told.words(colours).T).Q
    seal = told.words(["seal"])
    beside = 3 * normalize(seal - seal @ span @ span.T, dim=-1)  # as near to one colour as to another

    def colour(case: Case) -> torch.Tensor:
        words = [next((word for word in patch.words if word in colours), "seal") for patch in case.patches]
        return normalize(told.words(words), dim=-1) + beside

    told.tell([colour(case) for case in world.cases])
    scores = measure_words(told, world, progress=False)
    assert set(scores.by_group) == {"colour", "shape", "size", "letter", "background"}
    assert scores.by_group["colour"].share.value == 1
    assert scores.things is not None and scores.things.share.value < 0.2  # of all words `seal` is the nearest


def test_shuffled_words_are_at_chance(told: Told, world: Material):
    tokens = torch.cat([true_tokens(told, case, turn) for turn, case in enumerate(world.cases)])
    torch.manual_seed(1)
    told.tell(list(tokens[torch.randperm(len(tokens))].split(36)))
    scores = measure_words(told, world, progress=False)
    assert scores.things is not None and scores.background is not None
    for score in (scores.things, scores.background):
        assert abs(score.share.value - score.chance) < 0.12
    assert scores.recall is not None and scores.recall.difference.low < 0.1


def test_the_words_of_the_caption_have_a_tacs_of_one(told: Told, world: Material):
    def caption(case: Case) -> torch.Tensor:
        ids = torch.tensor(inside_a_sentence(told.tokenizer, [case.caption])[0])
        return told.embedding[ids[torch.arange(36) % len(ids)]]

    told.tell([caption(case) for case in world.cases])
    scores = measure_words(told, world, progress=False)
    assert scores.tacs is not None
    assert scores.tacs.own.value == pytest.approx(1)
    assert scores.tacs.other.value <= scores.tacs.own.value


@pytest.mark.parametrize(
    "options",
    [{}, {"connector": "pool", "pooled_grid": 2}, {"connector": "pixel_shuffle"}, {"vision_select": "full"}],
    ids=["mlp", "pool", "pixel_shuffle", "with the class token"],
)
def test_any_connector_is_measured(tiny, tmp_path: Path, pictures: Path, options: dict):
    subject = Subject(model(tiny, tmp_path, **options))
    red, grey = TokenTruth(("red",), 0, 1.0), TokenTruth(("blue",), -1, 0.0)
    names = ["0.png", "2.png", "4.png"]  # square ones
    cases = tuple(Case(n, pictures / "images" / n, f"a {n} red box", (red,) * 8 + (grey,) * 8) for n in names)
    scores = measure_words(subject, Material("made", cases, words=("red", "blue", "box")), progress=False)
    grid = 4 if scores.tokens == 48 else 2
    assert scores.things is not None and scores.background is not None and scores.tacs is not None
    assert scores.things.share.n == scores.background.share.n == 3 * grid**2 // 2


def test_what_is_not_known_is_not_scored(tiny, tmp_path: Path, pictures: Path):
    subject = Subject(model(tiny, tmp_path))
    wide = Case("wide", pictures / "images" / "1.png", "", (TokenTruth(("red",), 0, 1.0),) * 16)
    scores = measure_words(subject, Material("wide", (wide,), words=("red", "blue")), progress=False)
    assert scores.things is scores.background is scores.recall is scores.tacs is None
    with pytest.raises(SightlineError, match="no words to choose from"):
        measure_words(subject, Material("wide", (wide,)), progress=False)
    with pytest.raises(SightlineError, match="no images"):
        measure_words(subject, Material("empty", (), words=("red",)), progress=False)


def test_a_case_is_found_by_its_path_or_its_name(tmp_path: Path):
    folder = tmp_path / "w"
    make_world(folder, train=2, validation=2, test=1, novel=1)
    by_name = find_case(folder, Path("train/000001.png"))
    assert by_name == find_case(folder, folder / "images" / "train" / "000001.png")
    assert by_name.image.is_file() and len(by_name.patches) == 36
    (tmp_path / "other.png").touch()
    for image, message in [
        (tmp_path / "other.png", "is not an image of"),
        (Path("train/000009.png"), "has no truth of an image"),
        (Path("nowhere/1.png"), "cannot read the truth"),
    ]:
        with pytest.raises(SightlineError, match=message):
            find_case(folder, image)
