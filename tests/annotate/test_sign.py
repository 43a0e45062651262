"""The sign of the cosine: measured on captions, for each encoder; never taken without a word."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from sightline.annotate import sign
from sightline.annotate.sign import Signs, measure_signs
from sightline.errors import SightlineError
from sightline.types import Sample, Turn

WORDS = ("Red", "blue", "box")


class ByColour:
    """Finds `blue` and `box` in every patch under one sign, and with it or not `Red` under the other."""

    batch = 2

    def __init__(self, *, inverted: bool = False, red_score: float = 0.2) -> None:
        self.sign, self.inverted, self.red_score = 1, inverted, red_score

    def views(self, image: Image.Image, key: str) -> dict[str, Tensor]:
        return {"pixels": torch.zeros(1, 3, 2, 2)}

    def best(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        right = (self.sign == 1) != self.inverted
        ids = torch.tensor([[[0], [0]]]) if not right else torch.tensor([[[1], [2]]])
        scores = torch.full(ids.shape, 0.2 if right else self.red_score)
        return ids, scores


def rows(*answers: str, image: Image.Image | Path | None = None) -> list[Sample]:
    picture = image if image is not None else Image.new("RGB", (4, 4))
    return [
        Sample(str(number), (picture,), (Turn("user", "a red thing?"), Turn("assistant", answer)))
        for number, answer in enumerate(answers)
    ]


@pytest.mark.parametrize("inverted", [False, True])
def test_the_sign_that_finds_more_of_the_captions_words_is_taken(inverted: bool):
    """Of `a blue box` both words, of `RED box` one of two; questions, and words that are not on the list, are left."""
    found = measure_signs(ByColour(inverted=inverted), [rows("a blue box", "RED box"), rows("no such word")], WORDS)
    right = -1 if inverted else 1
    assert found == Signs({right: 0.75, -right: 0.25}, pairs=2) and found.best == right
    assert found.told() == (
        "sign of the cosine: of the words in 2 captions, "
        + (
            "+1 finds 25.0% among the labels of their images and -1 finds 75.0%; -1 is taken"
            if inverted
            else "+1 finds 75.0% among the labels of their images and -1 finds 25.0%; +1 is taken"
        )
    )
    assert found.record() == {"sign": right, "recall": {f"{s:+d}": v for s, v in found.recall.items()}, "pairs": 2}


def test_labels_that_are_dropped_find_nothing():
    """A word whose score is 0 or less is none."""
    assert measure_signs(ByColour(red_score=0.0), [rows("red")], WORDS).recall[-1] == 0
    assert measure_signs(ByColour(red_score=0.1), [rows("red")], WORDS).recall[-1] == 1


def test_a_thousand_captions_are_enough(monkeypatch: pytest.MonkeyPatch):
    assert sign.PAIRS == 1000
    monkeypatch.setattr(sign, "PAIRS", 3)
    assert measure_signs(ByColour(), [rows(*["blue"] * 2), rows(*["blue"] * 5)], WORDS).pairs == 3


def test_where_nothing_can_be_measured_no_sign_is_taken(tmp_path: Path):
    """No word of the list; no image; no image that can be read."""
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    text = [Sample("0", (), (Turn("user", "?"), Turn("assistant", "red")))]
    for given in (rows("none of them"), text, rows("red", image=tmp_path / "torn.png")):
        with pytest.raises(SightlineError, match=r"the sign cannot be measured. Say it: sign: 1, or -1"):
            measure_signs(ByColour(), [given], WORDS)
    some = [*rows("red", image=tmp_path / "torn.png"), *rows("blue")]
    assert measure_signs(ByColour(), [some], WORDS).pairs == 1, "the others are measured"
    assert json.dumps(measure_signs(ByColour(), [some], WORDS).record())
