"""Levels of alignment: how well each image-caption pair of a stage agrees, in N levels (AlignGPT).

    pairs -> scores (pairs.py; or given, similarities.py) -> cut points (ranking.py) -> the level of a row

Scores are stored; levels follow from them and from where the scores of the stage's training data are cut, so N and the
way of cutting can change without computing anything again. Validation rows take the cut points of the training data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..data.store import Store
from ..errors import SightlineError
from ..methods.base import Setting
from ..models.digest import facts_name, plain, sight_facts
from ..progress import reading_bar
from ..types import Sample
from .images import ImageJob, run_images, world_size
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


class Lacking(SightlineError):
    """Some pairs have no scores yet."""


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
        try:
            write_record(self._measured(), folder)
        except Lacking:
            if world_size() == 1:
                raise
        return folder

    def open(self) -> LevelOf:
        """The level of each row of the stage.

        Raises:
            SightlineError: if some scores are not there, with the command that computes them, or files are damaged.
        """
        scores, scored = self._read()
        return LevelOf(scores, self._cut(scores, scored))

    def report(self) -> tuple[str, list[Path]]:
        """What the scores and levels are, in words, and files that show it."""
        try:
            measured = self._measured()
        except Lacking:
            if world_size() == 1:
                raise
            return "other processes still score pairs, so there is no report of levels yet: ask for it again", []
        return measured.told(), write_report(measured, self.folder)

    @cached_property
    def folder(self) -> Path:
        """Where scores made in this way are."""
        return Path(self.setting.recipe.annotations) / f"aligngpt-{facts_name(self.facts)}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """All that the score of a pair depends on beside image and caption."""
        if self.given is not None:
            return {"format": FORMAT, **given_facts(self.given)}
        facts = {
            "format": FORMAT,
            "encoder": encoder_facts(self.encoder, "last"),
            "own tower": is_own_tower(self.encoder, self.setting),
            **sight_facts(self.setting.assembly.sight),
        }
        return plain(facts)

    def _measured(self) -> LevelReport:
        scores, scored = self._read()
        how: dict[str, Any] = {"levels": self.levels, "by": self.by, "scope": self.scope}
        if self.given is None:
            how["encoder"] = self.encoder
        else:
            how |= {"given": self.given, "given levels are counted from": self._counted_from(scores, scored)}
        return LevelReport(scored, self._cut(scores, scored), self.setting.sources, how, self.facts)

    def _read(self) -> tuple[StoredScores | GivenScores, Scored]:
        """What reads the score of a row, and those of the training data; all of the stage are there and verified."""
        training = self.setting.sources[: len(self.setting.stage.data)]
        if self.given is not None:
            scores = read_given(self.given)
            rows: list[Row] = [(place, s.source, RowScore(scores(s), 0, False)) for place, s in self._rows()]
        else:
            scores, rows = self._stored()
        rows = [row for row in rows if row[0][0] < len(training)]
        there = [(place, source, score) for place, source, score in rows if score is not None]
        if not there:
            raise SightlineError(
                f"no row of stage '{self.setting.stage.name}' has an image and a score, so there are no levels. Give "
                "it data with images, or leave aligngpt out."
            )
        names = sorted({source for _, source, _ in there})
        number = {name: place for place, name in enumerate(names)}
        return scores, Scored(
            scores=np.array([score.score for *_, score in there]),
            source=np.array([number[source] for _, source, _ in there]),
            names=tuple(names),
            places=np.array([place for place, *_ in there]),
            chunks=np.array([score.chunks for *_, score in there]),
            truncated=np.array([score.truncated for *_, score in there]),
            text_only=sum(map(len, training)) - len(rows),
            unreadable=len(rows) - len(there),
        )

    def _cut(self, scores: StoredScores | GivenScores, scored: Scored) -> Cuts:
        """Where the scores of the training data are cut; levels that are given stay as they are."""
        if (low := self._counted_from(scores, scored)) is not None:
            return Cuts(self.levels, tuple(float(low + step) for step in range(1, self.levels)), {})
        return cut(scored, self.levels, self.by, self.scope)

    def _counted_from(self, scores: StoredScores | GivenScores, scored: Scored) -> int | None:
        """What levels that are given are counted from; None for scores."""
        if isinstance(scores, StoredScores):
            return None
        return lowest_level(scored.scores.tolist() if scores.by_id is None else scores.by_id.values(), self.levels)

    def _stored(self) -> tuple[StoredScores, list[Row]]:
        """What reads stored scores, and those of all rows with an image."""
        if not (self.folder / "provenance.json").is_file():
            raise SightlineError(
                "AlignGPT has no scores for the image-caption pairs of this stage, so they have no levels: there is no "
                f"{self.folder}; another encoder or transform has other scores. {FIX}"
            )
        store = Store(self.folder)
        rows = [(place, sample.source, pair_keys(sample, remembered=True)) for place, sample in self._rows()]
        wanted = {key for *_, keys in rows for key in keys or ()}
        if missing := sum(key not in store for key in wanted):
            raise Lacking(
                "AlignGPT lacks the scores of some image-caption pairs of this stage, so their rows have no level: "
                f"{missing:,} of {len(wanted):,} are not in {self.folder}. {FIX}"
            )
        with reading_bar(f"verifying {self.folder}") as progress:
            if damaged := store.damaged(wanted, progress):
                raise SightlineError(f"{damaged[0]} is damaged; its scores are not used. {FIX}")
        scores = StoredScores(store)
        return scores, [(place, source, None if keys is None else scores.of_keys(keys)) for place, source, keys in rows]

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
