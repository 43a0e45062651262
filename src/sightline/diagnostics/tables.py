"""A diagnosis for a terminal: the numbers that say most, each beside those of models whose alignment is known."""

from collections.abc import Iterator, Mapping
from itertools import combinations

from rich.markup import escape
from rich.table import Table

from ..evaluation.metrics import Estimate
from .diagnose import Diagnosis

LINES: dict[str, tuple[tuple[str, str], ...]] = {
    "words": (
        ("words/things/share", "tokens of items whose nearest word is true"),
        ("words/things/chance", "  had the same words been dealt out at random"),
        ("words/background/share", "tokens of the background"),
        ("words/by_group/colour/share", "the right colour among colours"),
        ("words/by_group/shape/share", "the right shape among shapes"),
        ("words/by_group/letter/share", "the right letter among letters"),
        ("words/recall/own", "words of its caption found"),
        ("words/recall/other", "  of other captions"),
        ("words/tacs/own", "TACS with its caption"),
        ("words/tacs/other", "  with other captions"),
    ),
    "geometry": (
        ("geometry/gap", "modality gap"),
        ("geometry/unit_gap", "  of unit vectors"),
        ("geometry/norm_ratio", "norm of visual tokens over words"),
        ("geometry/visual_anisotropy", "anisotropy of visual tokens"),
        ("geometry/visual_rank", "effective rank of visual tokens"),
    ),
    "sight": (
        ("sight/accuracy", "answers right"),
        ("sight/swapped/accuracy", "  with the image of another question"),
        ("sight/blank/accuracy", "  with a blank image"),
        ("sight/permuted/accuracy", "  with patches in a random order"),
    ),
    "attention": (("attention/positions", "share of positions that are visual"),),
    "cause": (
        ("cause/words_right", "asked items with the right word"),
        ("cause/odds_ratio", "odds of a right answer, right over wrong word"),
        ("cause/corrections/1/corrected", "wrong answers put right by the true word"),
        ("cause/corrections/1/corrected_by_control", "  by a wrong word"),
        ("cause/corrections/1/followed", "answers that follow a wrong word"),
    ),
    "probe": (
        ("probe/colour/visual", "colour read from visual tokens"),
        ("probe/colour/patches", "  from the tower's patches"),
        ("probe/shape/visual", "shape read from visual tokens"),
        ("probe/shape/patches", "  from the tower's patches"),
        ("probe/letter/visual", "letter read from visual tokens"),
        ("probe/letter/patches", "  from the tower's patches"),
    ),
    "kept": (
        ("kept/overall/model/accuracy", "questions on text alone"),
        ("kept/overall/untouched/accuracy", "  by the untouched language model"),
        ("kept/overall/difference/accuracy", "  difference"),
        ("kept/overall/model/loss", "loss of the answers, nats"),
        ("kept/overall/difference/loss", "  difference"),
        ("kept/fact/model/accuracy", "facts"),
    ),
    "captions": (
        ("captions/own/right", "things in a caption that are there"),
        ("captions/own/wrong", "  that are not"),
        ("captions/own/recall", "share of what is there"),
    ),
    "cognition": (
        ("cognition/vq/own/accuracy", "codes right"),
        ("cognition/vq/wrong/accuracy", "  asked of another image"),
        ("cognition/vq/own/perplexity", "perplexity of a code"),
        ("cognition/vq/wrong/perplexity", "  asked of another image"),
        ("cognition/vq/marginal/perplexity", "  by how often codes occur"),
        ("cognition/pixels/own", "error of colours, of 255"),
        ("cognition/pixels/wrong", "  asked of another image"),
        ("cognition/pixels/mean", "  of the mean colour"),
        ("cognition/pixels/unread", "colours that are no numbers"),
    ),
    "information": (
        ("information/own/psnr", "PSNR of pictures drawn again, dB"),
        ("information/wrong/psnr", "  from another image's tokens"),
        ("information/own/ssim", "their SSIM"),
        ("information/wrong/ssim", "  from another image's tokens"),
        ("information/own/features", "distance of what an encoder sees"),
        ("information/wrong/features", "  from another image's tokens"),
    ),
}
"""What is printed of each part; every number goes to the JSON."""
LAYERS = (
    ("geometry/alignment", "implicit alignment", 0),
    ("geometry/matching", "own over other captions", 0),
    ("attention/mass", "attention on the image", 1),
)
"""Scores by layer, each with the number of its first: 0 is what the language model is given."""


def tables(diagnosis: Diagnosis, known: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Iterator[Table]:
    """One table for each part, and one by layer; then those of levels, where the model has some."""
    for part, lines in LINES.items():
        rows = [(name, label) for name, label in lines if name in diagnosis.scores]
        kinds = list(dict.fromkeys(kind for name, _ in rows for kind in known.get(name, {})))
        table = Table("", "", "95% interval", *kinds, title=part, title_justify="left", box=None, pad_edge=False)
        for name, label in rows:
            bands = [_band(known.get(name, {}).get(kind)) for kind in kinds]
            table.add_row(label, *_numbers(diagnosis.scores[name]), *bands)
        if rows:
            yield table
    deep = [(label, first, _by_layer(diagnosis.scores, path)) for path, label, first in LAYERS]
    deep = [(label, dict(enumerate(found, first))) for label, first, found in deep if found]
    if deep:  # a layer is a row: a language model of 32 would not fit as columns
        table = Table("layer", title="by layer, 0 is the input", title_justify="left", box=None, pad_edge=False)
        for label, _ in deep:
            table.add_column(label, justify="right")
        for layer in sorted({layer for _, found in deep for layer in found}):
            table.add_row(str(layer), *(f"{found[layer].value:.3f}" if layer in found else "" for _, found in deep))
        yield table

    yield from filter(None, (of(diagnosis.scores) for of in (_captions_table, _levels_table, _gate_table)))


def _captions_table(scores: Mapping[str, Estimate]) -> Table | None:
    """What captions name at each level."""
    start, end = "captions/level/", "/right"
    levels = [name[len(start) : -len(end)] for name in scores if name.startswith(start) and name.endswith(end)]
    if not levels:
        return None
    table = Table("level", title="captions at each level", title_justify="left", box=None, pad_edge=False)
    what = {"right": "right things", "wrong": "wrong things", "recall": "recall", "precision": "precision"}
    for heading in what.values():
        table.add_column(heading, justify="right")
    for level in levels:
        found = [scores.get(f"{start}{level}/{name}") for name in what]
        table.add_row(level, *(f"{each.value:.2f}" if each else "" for each in found))
    return table


def _levels_table(scores: Mapping[str, Estimate]) -> Table | None:
    """The norm of each level's vector, and its distance from every other."""
    start = "levels/norm/"
    levels = [name.removeprefix(start) for name in scores if name.startswith(start)]
    if not levels:
        return None
    title = "levels: norms, and cosine distances of one from another"
    table = Table("level", title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("norm", *levels):
        table.add_column(heading, justify="right")
    distance = {(a, b): scores[f"levels/cosine_distance/{a}/{b}"] for a, b in combinations(levels, 2)}
    for a in levels:
        row = [distance.get((a, b)) or distance.get((b, a)) for b in levels]
        table.add_row(a, f"{scores[start + a].value:.2f}", *(f"{each.value:.2f}" if each else "" for each in row))
    return table


def _gate_table(scores: Mapping[str, Estimate]) -> Table | None:
    """The mean weight that the gate gives each level, by type of question."""
    end = "/entropy"
    abilities = [name[len("gate/") : -len(end)] for name in scores if name.startswith("gate/") and name.endswith(end)]
    if not abilities:
        return None
    start = f"gate/{abilities[0]}/weights/"
    levels = [name.removeprefix(start) for name in scores if name.startswith(start)]
    title = "gate: weights in %, entropy"
    table = Table("", title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("n", *levels, "nats", "of most"):
        table.add_column(heading, justify="right")
    for ability in abilities:
        weights = [f"{scores[f'gate/{ability}/weights/{level}'].value:.0%}".removesuffix("%") for level in levels]
        entropy, share = scores[f"gate/{ability}/entropy"], scores.get(f"gate/{ability}/entropy_share")
        most = f"{share.value:.1%}" if share else ""
        table.add_row(escape(ability), str(entropy.n), *weights, f"{entropy.value:.3f}", most)
    return table


def _by_layer(scores: Mapping[str, Estimate], path: str) -> list[Estimate]:
    found = []
    while f"{path}/{len(found)}" in scores:
        found.append(scores[f"{path}/{len(found)}"])
    return found


def _numbers(score: Estimate) -> tuple[str, str]:
    bare = score.low == score.value == score.high
    return f"{score.value:.3f}", "" if bare else f"{score.low:.3f} to {score.high:.3f}"


def _band(band: Mapping[str, float] | None) -> str:
    return f"{band['low']:.2f}..{band['high']:.2f}" if band else ""
