"""Answers as texts: ANLS (ST-VQA, DocVQA), relaxed accuracy (ChartQA), exact match (GQA).

Sources: Biten et al. 2019 (ANLS); Methani et al. 2020, Masry et al. 2022 (relaxed accuracy); Hudson and Manning 2019.
"""

from collections.abc import Sequence

LEAST = 0.5
"""Similarity below which ANLS gives nothing: another answer, not one that is spelled badly."""
TOLERANCE = 0.05


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity of one answer: its best over `answers`, 0 below a half."""
    return max((_similarity(_plain(prediction), _plain(answer)) for answer in answers), default=0.0)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _similarity(one: str, other: str) -> float:
    longest = max(len(one), len(other))
    similarity = 1.0 if longest == 0 else 1 - distance(one, other) / longest
    return similarity if similarity >= LEAST else 0.0


def distance(one: str, other: str) -> int:
    """Levenshtein's: the fewest letters to insert, delete or change."""
    before = list(range(len(other) + 1))
    for row, letter in enumerate(one, start=1):
        now = [row]
        for column, theirs in enumerate(other, start=1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (letter != theirs)))
        before = now
    return before[-1]


def relaxed(prediction: str, answer: str) -> bool:
    """Numbers may be off by five percent of the true one; other answers must be the same but for case."""
    said, true = _number(prediction), _number(answer)
    if said is not None and true:
        return abs(said - true) / abs(true) <= TOLERANCE
    return prediction.strip().lower() == answer.strip().lower()


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def exact(prediction: str, answer: str) -> bool:
    """GQA's: the same text but for case and a final period."""
    return prediction.strip().rstrip(".").lower() == answer.strip().rstrip(".").lower()
