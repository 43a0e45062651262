"""CIDEr of captions (Vedantam et al. 2015), as COCO's own evaluation computes it: CIDEr-D, n-grams of 1 to 4, sigma 6.

The words of a caption are found as COCO's tokenizer finds them (Stanford's, in Java): lower case, punctuation taken off
and dropped, contractions cut before their apostrophe. A test holds both against each other where there is Java.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

ORDER, SIGMA = 4, 6.0
WORD = re.compile(
    r"n't\b|'(?:s|re|ve|ll|d|m|n')\b|[a-z]+(?=n't\b)"  # can|n't, station|'s
    r"|(?:[a-z]\.){2,}|(?:mr|mrs|ms|dr|st|jr|sr|ave|vs|etc|co|inc|no)\.(?=\s)"  # u.s., st. louis
    r"|can(?=not\b)|(?<=can)not\b|(?:gon|wan)(?=na\b)|(?<=gon)na\b|(?<=wan)na\b|got(?=ta\b)|(?<=got)ta\b"
    r"|\w+(?:[-./:,]\w+)*|[&$%@#/()]"
)
WRITTEN = {"(": "-lrb-", ")": "-rrb-"}
"""How brackets come out of it; COCO's list of what to drop has them in capitals, so they stay."""

Grams = Counter[tuple[str, ...]]


def words(caption: str) -> list[str]:
    """The words of a caption."""
    return [WRITTEN.get(word) or word for word in WORD.findall(caption.lower())]


def grams(caption: str) -> Grams:
    """Its n-grams of every order, counted."""
    said = words(caption)
    return Counter(tuple(said[start : start + n]) for n in range(1, ORDER + 1) for start in range(len(said) - n + 1))


def cider(said: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """CIDEr-D of each image's caption, by its key; the score of a set is their mean. Ten is the most.

    Args:
        references: what people wrote of the same images, and of all that count for how common words are.
    """
    known = {key: [grams(text) for text in texts] for key, texts in references.items()}
    documents: Counter[tuple[str, ...]] = Counter()
    for texts in known.values():
        documents.update({gram for text in texts for gram in text})
    total = math.log(max(len(known), 1))
    return {key: _score(grams(text), known[key], documents, total) for key, text in said.items()}


def _score(own: Grams, references: Sequence[Grams], documents: Mapping[tuple[str, ...], int], total: float) -> float:
    mine, norms, length = _vector(own, documents, total)
    found = 0.0
    for reference in references:
        theirs, their_norms, their_length = _vector(reference, documents, total)
        penalty = math.exp(-((length - their_length) ** 2) / (2 * SIGMA**2))
        for order in range(ORDER):
            product = sum(
                min(weight, theirs[order].get(gram, 0.0)) * theirs[order].get(gram, 0.0)
                for gram, weight in mine[order].items()
            )
            if norms[order] and their_norms[order]:
                product /= norms[order] * their_norms[order]
            found += product * penalty
    return 10 * found / ORDER / len(references) if references else 0.0


def _vector(
    own: Grams, documents: Mapping[tuple[str, ...], int], total: float
) -> tuple[list[dict[tuple[str, ...], float]], list[float], int]:
    """Weights of n-grams by order, their norms, and the length as COCO's code counts it: bigrams."""
    weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(ORDER)]
    for gram, count in own.items():
        weights[len(gram) - 1][gram] = count * (total - math.log(max(documents.get(gram, 0), 1)))
    norms = [math.sqrt(sum(weight**2 for weight in of_order.values())) for of_order in weights]
    return weights, norms, sum(count for gram, count in own.items() if len(gram) == 2)
