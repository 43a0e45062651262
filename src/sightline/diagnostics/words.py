"""The words of visual tokens: is what a language model reads from a patch the name of what is there?

A word is the mean of the language model's input embeddings of its tokens; the word of a visual token is the one with
the highest cosine, the "recalled word" of SEA (arXiv 2408.11813v1, Figures 1 and 2), which shows examples. What is
counted here is ours: the share of tokens whose word is true, and the share of a caption's words that some token has.
TACS is of SEA's second version (EMNLP 2025).

A score means little alone: a model whose tokens all lie near one common word is right now and then. So beside each
stands what the same words would score, had they been dealt out to other tokens or to other images.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..errors import SightlineError
from ..evaluation.metrics import Estimate, bootstrap_interval, proportion_interval
from .material import COVERED, TokenTruth

TACS_TOKENS = 10
"""Visual tokens that an image's TACS is the mean of."""
CHUNK = 2**23
"""Cosines held at a time."""


@dataclass(frozen=True)
class Right:
    """How often the word of a token is true of it."""

    share: Estimate
    """With images as clusters."""
    chance: float
    """The share that would be right had the same words been dealt out to the same tokens at random."""
    commonest: float
    """The share that is right when every token is given the one word that is true most often."""


@dataclass(frozen=True)
class Against:
    """A score of images with their own captions, beside that with the captions of other images."""

    own: Estimate
    other: Estimate
    difference: Estimate
    """Paired by image."""


@dataclass(frozen=True)
class WordScores:
    """The words of a model's visual tokens. What the material does not tell is None, or absent."""

    images: int
    tokens: int
    candidates: int
    """Words to choose from."""
    things: Right | None = None
    """Tokens that an item covers by `COVERED` or more."""
    background: Right | None = None
    """Tokens that nothing covers."""
    by_group: Mapping[str, Right] = field(default_factory=dict)
    """The choice among the words of one group alone, for tokens of which one of them is true."""
    recall: Against | None = None
    """Share of a caption's words that are among the nearest of some token."""
    tacs: Against | None = None


def nearest_words(
    visual: Float[Tensor, "tokens d_llm"], table: Float[Tensor, "words d_llm"], *, top: int = 1
) -> tuple[Int[Tensor, "tokens top"], Float[Tensor, "tokens top"]]:
    """Numbers of the words with the highest cosine to each token, best first, and their cosines.

    Args:
        visual: visual tokens.
        table: embeddings of words.
        top: words for each token; all of them where there are fewer.

    Raises:
        SightlineError: if there are no words, or a token is not finite.
    """
    if not len(table):
        raise SightlineError("the list of words is empty, so no token has a nearest one. Give at least one word.")
    if not bool(torch.isfinite(visual).all()):
        raise SightlineError("the model makes visual tokens that are not finite, so they lie nowhere. Train it anew.")
    words = F.normalize(table.float(), dim=-1)
    found = [
        (F.normalize(some.float(), dim=-1) @ words.T).topk(min(top, len(words)))
        for some in visual.split(max(1, CHUNK // len(words)))
    ]
    return torch.cat([best.indices for best in found]), torch.cat([best.values for best in found])


def right(
    said: Int[Tensor, " tokens"], true: Bool[Tensor, "tokens words"], clusters: Sequence[str] | None = None
) -> Right | None:
    """How often the word said of a token is one of those that are true of it; None without tokens.

    Args:
        said: number of the word of each token.
        true: which words are true of each token.
        clusters: the image of each token.
    """
    if not len(said):
        return None
    hits = true.gather(1, said[:, None])[:, 0]
    share_said = torch.bincount(said, minlength=true.shape[1]).double() / len(said)
    share_true = true.double().mean(0)
    return Right(
        share=proportion_interval(hits.tolist(), clusters),
        chance=float(share_said @ share_true),
        commonest=float(share_true.max()),
    )


def recall(in_caption: Bool[Tensor, "images words"], in_image: Bool[Tensor, "images words"]) -> Against | None:
    """The share of the captions' words that their images have, and that all other images have.

    Args:
        in_caption: which words the caption of each image has; images without any count for nothing.
        in_image: which words some token of each image is near.

    Returns:
        None with fewer than two images that have words in their captions.
    """
    kept = in_caption.any(1)
    captions, images = in_caption[kept].double(), in_image[kept].double()
    count = len(captions)
    if count < 2:
        return None
    hits = captions @ images.T
    own = hits.diagonal()
    other = (hits.sum(1) - own) / (count - 1)
    against = _against(own, other, captions.sum(1), bounds=(0.0, 1.0))
    row, word = in_caption[kept].nonzero(as_tuple=True)
    found = in_image[kept][row, word]
    share = proportion_interval(found.tolist(), [str(number) for number in row.tolist()])
    return replace(against, own=share)


def tacs(
    visual: Float[Tensor, "tokens d_llm"], caption: Float[Tensor, "caption_tokens d_llm"], *, most: int = TACS_TOKENS
) -> float:
    """TACS of an image and a caption (SEA, EMNLP 2025): each visual token's highest cosine to a token of the caption,
    and of those the mean of the ten highest (of all where an image has fewer).

    Args:
        visual: an image's visual tokens.
        caption: input embeddings of the caption's tokens, at least one.
    """
    _, best = nearest_words(visual, caption)
    return float(best[:, 0].topk(min(most, len(best))).values.mean())


def tacs_against(own: Sequence[float], other: Sequence[float]) -> Against | None:
    """The mean TACS of images with their own captions and with another image's; None with fewer than two images."""
    if len(own) < 2:
        return None
    columns = torch.tensor([own, other, [1.0] * len(own)], dtype=torch.float64)
    return _against(columns[0], columns[1], columns[2], bounds=(-1.0, 1.0))


def words_known(truth: TokenTruth) -> tuple[str, ...]:
    """The words that are plainly true of a token: of an item that covers enough of it, or of a bare background."""
    return truth.words if truth.item < 0 or truth.coverage >= COVERED else ()


def truth_table(truth: Sequence[TokenTruth], words: Sequence[str]) -> Bool[Tensor, "tokens words"]:
    """Which words are plainly true of each token; none where an item covers little of it."""
    numbers = {word: number for number, word in enumerate(words)}
    table = torch.zeros(len(truth), len(words), dtype=torch.bool)
    for token, shown in enumerate(truth):
        for word in words_known(shown):
            if word in numbers:
                table[token, numbers[word]] = True
    return table


def _against(
    own: Float[Tensor, " images"],
    other: Float[Tensor, " images"],
    counts: Float[Tensor, " images"],
    *,
    bounds: tuple[float, float],
) -> Against:
    """Ratios of sums over images, with intervals from drawing whole images."""
    columns = torch.stack([own, other, counts], dim=1).numpy()
    low, high = bounds
    return Against(
        own=bootstrap_interval(columns, lambda total: total[:, 0] / total[:, 2], bounds=bounds),
        other=bootstrap_interval(columns, lambda total: total[:, 1] / total[:, 2], bounds=bounds),
        difference=bootstrap_interval(
            columns, lambda total: (total[:, 0] - total[:, 1]) / total[:, 2], bounds=(low - high, high - low)
        ),
    )
