"""The scores of `words.py` for a model and a material, a batch of images at a time."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..data.images import load_image
from ..data.words import inside_a_sentence
from ..errors import SightlineError
from ..progress import watched
from .material import Case, Material, TokenTruth, words_of
from .subject import Subject
from .words import Right, WordScores, nearest_words, recall, right, tacs, tacs_against, truth_table


def measure_words(
    subject: Subject, material: Material, *, top: int = 5, batch_size: int = 16, progress: bool = True
) -> WordScores:
    """The words of a model's visual tokens: how many are true, and how many of a caption's are there.

    Truth counts where the model sees the whole image and its tokens are a grid that the patches fill. Of the visual
    tokens no more than a batch's are held.

    Args:
        top: words of a token that count as found, for the recall of captions.
        batch_size: images at a time.
        progress: a bar on stderr once two seconds have passed.

    Raises:
        SightlineError: if the material has no images or no words, or an image cannot be read.
    """
    if not material.cases:
        raise SightlineError(f"'{material.name}' has no images, so there are no tokens to look at. Give some.")
    if not material.words:
        raise SightlineError(f"'{material.name}' has no words to choose from. Give a list of words.")
    cases, words = material.cases, tuple(dict.fromkeys(material.words))
    table = subject.words(words)
    groups = {name: [words.index(word) for word in group if word in words] for name, group in material.groups.items()}
    groups = {name: numbers for name, numbers in groups.items() if numbers}
    captions = _caption_ids(subject, cases)
    after = _next_with_caption(cases)

    near: list[Int[Tensor, "tokens top"]] = []
    truth: list[tuple[TokenTruth, ...]] = []
    chosen: dict[str, list[Int[Tensor, " tokens"]]] = {name: [] for name in groups}
    own, other = [], []
    for batch in watched(range(len(cases)), "words of visual tokens", batch_size=batch_size, progress=progress):
        images = [load_image(cases[number].image) for number in batch]
        for number, image, tokens in zip(batch, images, subject.visual(images, batch_size=batch_size), strict=True):
            grid = subject.grid(tokens)
            near.append(nearest_words(grid, table, top=top)[0].cpu())
            truth.append(subject.truth(cases[number], image, tokens))
            for name, numbers in groups.items():
                chosen[name].append(nearest_words(grid, table[numbers])[0][:, 0].cpu())
            if number in after:
                own.append(tacs(tokens, subject.embedding[captions[number]]))
                other.append(tacs(tokens, subject.embedding[captions[after[number]]]))

    told = [number for number, shown in enumerate(truth) if shown]
    true = torch.cat([truth_table(truth[number], words) for number in told]) if told else None
    shown = [token for number in told for token in truth[number]]
    clusters = [cases[number].id for number in told for _ in truth[number]]

    def among(said: Sequence[Tensor], places: Sequence[bool], numbers: Sequence[int]) -> Right | None:
        """Of the tokens at some places, those of which one of some words is true."""
        if true is None:
            return None
        mine = true[:, list(numbers)]
        kept = mine.any(1) & torch.tensor(places)
        names = [name for name, keep in zip(clusters, kept.tolist(), strict=True) if keep]
        return right(torch.cat([said[number] for number in told])[kept], mine[kept], names)

    first = [words_near[:, 0] for words_near in near]
    everywhere, every_word = [True] * len(shown), range(len(words))
    by_group = {name: among(chosen[name], everywhere, numbers) for name, numbers in groups.items()}
    return WordScores(
        images=len(cases),
        tokens=sum(len(words_near) for words_near in near),
        candidates=len(words),
        things=among(first, [token.item >= 0 for token in shown], every_word),
        background=among(first, [token.item < 0 for token in shown], every_word),
        by_group={name: score for name, score in by_group.items() if score is not None},
        recall=recall(_in_captions(cases, words), _in_images(near, len(words))),
        tacs=tacs_against(own, other),
    )


def _caption_ids(subject: Subject, cases: Sequence[Case]) -> list[Int[Tensor, " caption_tokens"]]:
    ids = inside_a_sentence(subject.tokenizer, [case.caption for case in cases])
    return [torch.tensor(row, dtype=torch.long, device=subject.device) for row in ids]


def _next_with_caption(cases: Sequence[Case]) -> dict[int, int]:
    """For each case with a caption the next one, in a ring, whose caption is another; none where all say the same."""
    told = [number for number, case in enumerate(cases) if words_of(case.caption)]
    found = {}
    for place, number in enumerate(told):
        ring = told[place + 1 :] + told[:place]
        other = next((candidate for candidate in ring if cases[candidate].caption != cases[number].caption), None)
        if other is not None:
            found[number] = other
    return found


def _in_captions(cases: Sequence[Case], words: Sequence[str]) -> Bool[Tensor, "images words"]:
    said = [set(words_of(case.caption)) for case in cases]
    return torch.tensor([[word.lower() in mine for word in words] for mine in said])


def _in_images(near: Sequence[Int[Tensor, "tokens top"]], words: int) -> Bool[Tensor, "images words"]:
    table = torch.zeros(len(near), words, dtype=torch.bool)
    for row, numbers in zip(table, near, strict=True):
        row[numbers.flatten()] = True
    return table
