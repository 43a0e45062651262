"""Levels of alignment: how well each image-caption pair of a stage agrees, in N levels (AlignGPT).

    pairs -> scores (pairs.py; or given, similarities.py) -> cut points (ranking.py) -> the level of a row

Scores are stored; levels follow from them and from where the scores of the stage's training data are cut, so N and the
way of cutting can change without computing anything again. Validation rows take the cut points of the training data.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..data.store import Store
from ..errors import SightlineError
from ..methods.base import Setting
from ..models.digest import pixel_facts
from ..progress import reading_bar
from ..types import Sample
from .images import ImageJob, run_images
from .levelreport import LevelReport, write_record, write_report
from .pairs import PairScoring, RowScore, StoredScores, pair_keys
from .patchwords import encoder_facts, is_own_tower
from .ranking import By, Cuts, Scope, Scored, cut
from .similarities import GivenScores, given_facts, lowest_level, read_given

FORMAT = 1
"""Raised when scores are computed or kept in another way."""
FIX = "Run: sightline annotate RECIPE --method aligngpt"
NO_IMAGE = 0
"""The level of a row without an image."""

Place = tuple[int, int]
"""Where a row is: source, row in it."""
Row = tuple[Place, str, RowScore | None]
"""Where a row is, what its source is called, and its score; None if an image cannot be read."""


@dataclass(frozen=True)
class LevelOf:
    """The level of a row. It can be pickled."""

    scores: StoredScores | GivenScores
    cuts: Cuts

    def __call__(self, sample: Sample) -> int:
        """1 to the number of levels; 0 for a row without an image.

        Raises:
            ImageError: if an image cannot be read.
            SightlineError: if the row has no score.
        """
        return self.cuts(self.scores(sample), sample.source) if sample.images else NO_IMAGE


@dataclass(frozen=True)
class PairLevels:
    """How the rows of a stage get their levels."""

    encoder: str
    """A CLIP or SigLIP: hub id, folder, `world:clip`."""
    levels: int
    by: By
    """`rank`: levels of equally many rows. `width`: of equally wide stretches of the score."""
    scope: Scope
    """`all`: over all training data of the stage. `source`: within each of its sources."""
    given: str | None
    """Where scores are taken from instead: a file of rows with `id` and `similarity`, or `rows`: the data's own."""
    setting: Setting

    def compute(self) -> Path:
        """Score the pairs that have no score yet, and record the levels; gives the folder.

        Raises:
            SightlineError: for what stops it.
        """
        setting, folder = self.setting, self.folder
        if self.given is None:
            job = ImageJob(PairScoring(self.encoder, setting, self.facts))
            job.add(setting.stage.name, setting.sources, skip=setting.stage.bad_images == "skip")
            run_images(folder, job, setting.say)
        if self._is_whole():
            write_record(self._measured, folder)
        return folder

    def open(self) -> LevelOf:
        """The level of each row of the stage.

        Raises:
            SightlineError: if some scores are not there, with the command that computes them, or files are damaged.
        """
        return LevelOf(self._scores, self._cuts)

    def report(self) -> tuple[str, list[Path]]:
        """What the scores and levels are, in words, and files that show it."""
        if not self._is_whole():
            return "other processes still score pairs, so there is no report of levels; ask for it again", []
        return self._measured.told(), write_report(self._measured, self.folder)

    @cached_property
    def folder(self) -> Path:
        """Where scores made in this way are."""
        return Path(self.setting.recipe.annotations) / f"aligngpt-{_hash(self.facts)}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that the score of a pair depends on beside image and caption."""
        if self.given is not None:
            return {"format": FORMAT, **given_facts(self.given)}
        facts = {
            "format": FORMAT,
            "encoder": encoder_facts(self.encoder, "last"),
            "own tower": is_own_tower(self.encoder, self.setting),
            "preprocess": pixel_facts(self.setting.assembly.image_processor),
        }
        return json.loads(json.dumps(facts, default=str))

    def _is_whole(self) -> bool:
        """Whether no other process has scores to write yet."""
        return self.given is not None or not self._missing(Store(self.folder))

    @cached_property
    def _scores(self) -> StoredScores | GivenScores:
        if self.given is not None:
            return read_given(self.given)
        if not (self.folder / "provenance.json").is_file():
            raise SightlineError(
                "AlignGPT has no scores for the image-caption pairs of this stage, so they have no levels: there is no "
                f"{self.folder}; another encoder or transform has other scores. {FIX}"
            )
        return StoredScores(Store(self.folder))

    @cached_property
    def _scored(self) -> Scored:
        """The scores of the training data, once all of the stage are there and verified."""
        scores, training = self._scores, self.setting.sources[: len(self.setting.stage.data)]
        rows = self._given(scores) if isinstance(scores, GivenScores) else self._stored(scores)
        rows = [row for row in rows if row[0][0] < len(training)]
        there = [(place, source, score) for place, source, score in rows if score is not None]
        if not there:
            raise SightlineError(
                f"no row of stage '{self.setting.stage.name}' has an image and a score, so there are no levels. Give "
                "it data with images, or leave aligngpt out."
            )
        names = sorted({source for _, source, _ in there})
        number = {name: place for place, name in enumerate(names)}
        return Scored(
            scores=np.array([score.score for *_, score in there]),
            source=np.array([number[source] for _, source, _ in there]),
            names=tuple(names),
            places=np.array([place for place, *_ in there]),
            chunks=np.array([score.chunks for *_, score in there]),
            truncated=np.array([score.truncated for *_, score in there]),
            text_only=sum(map(len, training)) - len(rows),
            unreadable=len(rows) - len(there),
        )

    @cached_property
    def _cuts(self) -> Cuts:
        """Where the scores of the training data are cut; levels that are given stay as they are."""
        scored, scores = self._scored, self._scores
        if isinstance(scores, GivenScores):
            every = scored.scores.tolist() if scores.by_id is None else scores.by_id.values()
            if (low := lowest_level(every, self.levels)) is not None:
                self.setting.say(f"the similarities are whole numbers, and taken as levels counted from {low}")
                return Cuts(self.levels, tuple(float(low + step) for step in range(1, self.levels)), {})
        return cut(scored, self.levels, self.by, self.scope)

    @cached_property
    def _measured(self) -> LevelReport:
        how = {"levels": self.levels, "by": self.by, "scope": self.scope}
        made = {"encoder": self.encoder} if self.given is None else {"given": self.given}
        return LevelReport(self._scored, self._cuts, self.setting.sources, how | made, self.facts)

    def _stored(self, scores: StoredScores) -> list[Row]:
        if missing := self._missing(scores.store):
            raise SightlineError(
                "AlignGPT lacks the scores of some image-caption pairs of this stage, so their rows have no level: "
                f"{len(missing):,} are not in {self.folder}. {FIX}"
            )
        with reading_bar(f"verifying {self.folder}") as progress:
            if damaged := scores.store.damaged({key for *_, keys in self._keys for key in keys or ()}, progress):
                raise SightlineError(f"{damaged[0]} is damaged; its scores are not used. {FIX}")
        return [(place, source, None if keys is None else scores.of_keys(keys)) for place, source, keys in self._keys]

    def _given(self, scores: GivenScores) -> list[Row]:
        return [(place, sample.source, RowScore(scores(sample), 0, False)) for place, sample in self._rows()]

    def _missing(self, store: Store) -> set[str]:
        return {key for *_, keys in self._keys for key in keys or () if key not in store}

    @cached_property
    def _keys(self) -> list[tuple[Place, str, tuple[str, ...] | None]]:
        """Every row with an image, its source, and the keys of its pairs; None if an image cannot be read."""
        return [(place, sample.source, pair_keys(sample, remembered=True)) for place, sample in self._rows()]

    def _rows(self) -> Iterator[tuple[Place, Sample]]:
        """Every row with an image, and where it is."""
        sources: Sequence[Sequence[Sample]] = self.setting.sources
        total, done = sum(map(len, sources)), 0
        with reading_bar("looking for the scores of pairs") as progress:
            for number, source in enumerate(sources):
                for row in range(len(source)):
                    if (sample := source[row]).images:
                        yield (number, row), sample
                    done += 1
                    progress(done, total)


def _hash(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
