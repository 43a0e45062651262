"""VQA accuracy: an answer is as right as people agree on it (VQAv2, VizWiz, TextVQA).

Answers are compared after the rules of the VQA challenge's own evaluation, as EvalAI and LLaVA's scripts apply them:
lower case, punctuation, number words, articles and contractions.

Sources: Antol et al. 2015; Goyal et al. 2017; the challenge's rules at visualqa.org/evaluation.
"""

import re
from collections.abc import Sequence

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(value) for value, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = frozenset({"a", "an", "the"})
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
SHORTENED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's i'd i'm
i've isn't it'd it'll let's ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't she'd she's
should've shouldn't somebody'd somebody'll somebody's someone'd someone'll someone's something'd something'll that'd
that's there'd there're there's they'd they'll they're they've wasn't we'd we've weren't what'll what're what's what've
when's where'd where's where've who'd who'll who's who've why'd why'll why're why's won't would've wouldn't y'all you'd
you'll you're you've
"""
CONTRACTIONS = {word.replace("'", ""): word for word in SHORTENED.split()}
"""What people write without the apostrophe. `ill`, `well`, `were`, `hell`, `shell` and `its` are words."""
BETWEEN_DIGITS = re.compile(r"(\d),(\d)")
PERIOD = re.compile(r"(?<!\d)\.(?!\d)")


def normalise(answer: str) -> str:
    """An answer by the rules of the challenge."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def _without_punctuation(text: str) -> str:
    """A mark beside a space goes; one between letters becomes a space; a period stays between digits."""
    found, number = text, BETWEEN_DIGITS.search(text) is not None
    for mark in PUNCTUATION:
        beside = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside or number else " ")
    return PERIOD.sub("", found)


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The mean, over everyone who answered, of min(others who said the same / 3, 1).

    Args:
        answers: one from each person, ten as a rule.
    """
    said = normalise(prediction)
    same = [normalise(answer) == said for answer in answers]
    total = sum(same)
    shares = [min((total - own) / 3, 1.0) for own in same]
    return sum(shares) / len(shares) if shares else 0.0
