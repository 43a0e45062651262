"""The field's metrics, by hand, and against the packages that have them."""

import random
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.benchmarks import letters, open, texts, vqa, yesno
from sightline.benchmarks.cider import cider, words
from sightline.benchmarks.items import Answered, Item


@pytest.mark.parametrize(
    ("said", "normal"),
    [
        ("The Red Car.", "red car"),
        ("two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("3.5", "3.5"),
        ("1,000", "1000"),
        ("blue/green", "blue green"),
        ("what?", "what"),
        ("a  man\n(tall)", "man tall"),
        ("the dog's", "dog 's"),
        ("its", "its"),
        ("U.S.", "us"),
    ],
)
def test_answers_by_the_rules_of_the_challenge(said: str, normal: str):
    assert vqa.normalise(said) == normal


@pytest.mark.parametrize(("same", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_leaves_each_annotator_out_once(same: int, expected: float):
    """Three of ten: for each of the three two others agree, for each of the seven three do."""
    assert vqa.accuracy("Red", ["red"] * same + ["blue"] * (10 - same)) == pytest.approx(expected)


def test_anls_by_hand():
    assert texts.anls("Coca Cola", ["coca cola"]) == 1.0
    assert texts.anls("cocacola", ["coca cola", "pepsi"]) == pytest.approx(1 - 1 / 9)
    assert texts.anls("abc", ["xyz"]) == 0.0
    assert texts.anls("ab", ["abcd"]) == 0.5, "a half counts"
    assert texts.anls("ab", ["abcde"]) == 0.0, "less than a half does not"


@settings(max_examples=60, deadline=None)
@given(st.text("abc d", max_size=12), st.lists(st.text("abc d", min_size=1, max_size=12), min_size=1, max_size=3))
def test_anls_is_that_of_the_package(said: str, answers: list[str]):
    from anls import anls_score

    def plain(text: str) -> str:
        return " ".join(text.lower().split())

    theirs = anls_score(prediction=plain(said), gold_labels=[plain(a) for a in answers], threshold=0.5)
    similar = max(1 - texts.distance(plain(said), plain(a)) / max(len(plain(said)), len(plain(a)), 1) for a in answers)
    if plain(said) and all(plain(a) for a in answers) and similar != 0.5:  # which theirs drops, and lmms-eval counts
        assert texts.anls(said, answers) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("said", "true", "right"),
    [
        ("10", "10.4", True),
        ("10", "10.6", False),
        ("50%", "0.5", True),
        ("0.49", "50%", True),
        ("Yes", "yes", True),
        ("2010", "2011", True),
        ("0", "0", True),
        ("0.01", "0", False),
        ("-9.6", "-10", True),
        ("nan", "5", False),
    ],
)
def test_relaxed_accuracy(said: str, true: str, right: bool):
    assert texts.relaxed(said, true) is right


def test_exact_match_forgives_case_and_a_period():
    assert texts.exact(" Red. ", "red") and not texts.exact("a red", "red")


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(b)", None),
        ("(C) dogs", "C"),
        ("A cat", "A"),
        ("The answer is C.", "C"),
        ("cats", "B"),
        ("I see two dogs here", "C"),
        ("A and B", None),
        ("E", None),
        ("", None),
        ("none of them", None),
    ],
)
def test_the_letter_that_is_chosen(said: str, letter: str | None):
    assert letters.chosen(said, ["birds", "cats", "dogs"]) == letter


def test_an_article_at_the_head_of_an_option_is_no_letter():
    assert letters.chosen("A dog.", ["a cat", "a dog"]) == "B" and letters.chosen("A", ["a cat", "a dog"]) == "A"


def row(said: str, cluster: str = "", **truth) -> Answered:
    return Answered(Item(f"{said}{cluster}{truth}", "?", truth=truth, cluster=cluster), said)


def test_pope_is_the_mean_of_three_f1():
    rows = [row("Yes", f"{n}", answer="yes", split="random") for n in range(4)]
    rows += [row("No.", f"{n}", answer=true, split="popular") for n, true in enumerate(["yes", "no", "no", "yes"])]
    rows += [
        row("yes it is", f"{n}", answer=true, split="adversarial") for n, true in enumerate(["yes", "no", "no", "no"])
    ]
    scores = yesno.pope_scores(rows)
    f1 = [1.0, 0.0, 2 * 1 / (4 + 1)]
    assert [scores[f"{split}/f1"].value for split in yesno.POPE] == pytest.approx(f1)
    assert scores["f1"].value == pytest.approx(sum(f1) / 3)
    assert scores["f1"].low <= scores["f1"].value <= scores["f1"].high


def test_mme_counts_questions_and_images():
    rows = [
        row("yes", "count/1", answer="yes", part="count"),
        row("no", "count/1", answer="no", part="count"),
        row("yes", "count/2", answer="yes", part="count"),
        row("maybe", "count/2", answer="no", part="count"),
        row("No, it is not", "code_reasoning/1", answer="no", part="code_reasoning"),
        row("no", "code_reasoning/1", answer="yes", part="code_reasoning"),
    ]
    scores = yesno.mme_scores(rows)
    assert scores["count"].value == pytest.approx(75 + 50)
    assert scores["perception"].value == pytest.approx(125) and scores["cognition"].value == pytest.approx(50)


def test_judges_marks():
    rows = [row("x", category=kind) for kind in ("conv", "detail", "conv")]
    scores = open.relative([(8, 6), (10, 5), (9, 9)], rows)
    assert scores["score"].value == pytest.approx(100 * 20 / 27)
    assert scores["score/conv"].value == pytest.approx(100 * 15 / 17)
    marks = open.marked([1.0, 0.5, 0.0], [row("x", abilities=each) for each in (["ocr"], ["ocr", "math"], ["math"])])
    assert (marks["score"].value, marks["score/ocr"].value, marks["score/math"].value) == (50, 75, 25)


CAPTIONS = [
    "A man riding a wave on top of a surfboard.",
    "A young man surfs a small wave, on a white board",
    "Two dogs are playing with a frisbee in the grass.",
    "a black-and-white photo of a train at the station's platform",
    "The cat isn't sleeping; it's sitting on the couch!",
    "A group of people sitting around a table with food.",
]


def test_cider_is_that_of_the_package():
    """On random sets of the same words, cut by the same rule; the package's tokenizer is tested apart."""
    from pycocoevalcap.cider.cider import Cider

    draw = random.Random(0)
    vocabulary = " ".join(words(" ".join(CAPTIONS))).split()
    for _ in range(5):
        references = {
            f"{n}": [" ".join(draw.choices(vocabulary, k=draw.randint(3, 12))) for _ in range(5)] for n in range(8)
        }
        said = {key: " ".join(draw.choices(texts[0].split() + vocabulary, k=9)) for key, texts in references.items()}
        mean, each = Cider().compute_score(
            {key: [" ".join(words(text)) for text in texts] for key, texts in references.items()},
            {key: [" ".join(words(text))] for key, text in said.items()},
        )
        ours = cider(said, references)
        assert [ours[key] for key in references] == pytest.approx(each.tolist())
        assert sum(ours.values()) / len(ours) == pytest.approx(mean)


def test_a_caption_that_is_a_reference_scores_high_and_another_nothing():
    references = {f"{n}": [caption, caption] for n, caption in enumerate(CAPTIONS)}
    same = cider({key: texts[0] for key, texts in references.items()}, references)
    assert all(score == pytest.approx(10) for score in same.values())
    other = cider({"0": "nobody knows whatever"}, references)
    assert other["0"] == 0


ODD = [
    "a stop sign w/ graffiti & a 10:30 clock, $5.00",
    'two men\'s shoes (brown) "hello"',
    "a bus with number 42 on it -- parked",
    "a person who can't see; they've won",
    "U.S. flag and St. Louis, a black/white cat",
    "a cannot do attitude, I'm gonna go",
    "an e-mail @ home 50% off",
    "someone's half-eaten donut... the kids' toys",
]


def test_words_of_captions_by_hand():
    assert words(CAPTIONS[4]) == ["the", "cat", "is", "n't", "sleeping", "it", "'s", "sitting", "on", "the", "couch"]
    assert words(ODD[1]) == ["two", "men", "'s", "shoes", "-lrb-", "brown", "-rrb-", "hello"]


@pytest.mark.skipif(shutil.which("java") is None, reason="COCO's tokenizer needs Java")
def test_words_of_captions_are_those_of_cocos_tokenizer():
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions = {f"{n}": [{"caption": text}] for n, text in enumerate([*CAPTIONS, *ODD])}
    theirs = PTBTokenizer().tokenize(captions)
    for key, [row] in captions.items():
        assert " ".join(words(row["caption"])) == theirs[key][0]
