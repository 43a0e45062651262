"""Look at a few pictures with a run's model: its lens, its captions, its gate, what it draws and paints."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

from ..data.images import load_image
from ..data.words import read_word_list
from ..diagnostics.captions import LONGEST, REQUEST
from ..diagnostics.lens import Lens, look, vocabulary_words
from ..diagnostics.levels import measure_gate
from ..diagnostics.material import find_case, take
from ..diagnostics.subject import Subject
from ..diagnostics.telling import tells
from ..errors import SightlineError
from ..evaluation.metrics import Estimate
from ..evaluation.questions import Question
from ..methods.abilities import Redraws
from ..methods.compose import record_of
from ..paint import paint
from ..reconstruct import Redrawn, reconstruct
from .answers import pick_gallery
from .looks import BY_ITSELF, Look, Looks, Map, Pictured, can_be_read, key_of, read_looks, write_looks
from .run_folder import Evaluation, Run
from .series import Series

MOST_QUESTIONS = 200
"""Questions that a gate is asked."""
T = TypeVar("T")


def look_where_missing(
    series: Sequence[Series],
    most: int,
    *,
    images_root: Path | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Look at the pictures of the first run's gallery with the model of every run that has not, or not with this one.

    Nothing is done where no picture was evaluated, or none can be read any more; a run without a model is passed over,
    and so is a blind twin.

    Args:
        most: pictures.
        images_root: where the images are, if they have moved since.

    Raises:
        SightlineError: if a model cannot be loaded, or what is seen cannot be kept in its run folder.
    """
    from rich.console import Console

    pictures = pictures_of(series[0].run, most, images_root)
    for one in series if pictures else ():
        run = one.run.path
        if one.is_twin or not one.run.has_model or looked(run, [path for _, path in pictures]):
            continue
        asked = questions_of(one.beside(series[0].run.evaluations[0].name), images_root)
        Console(stderr=True).print(
            f"looking at {len(pictures)} pictures with the model of {run}", style="dim", markup=False, soft_wrap=True
        )
        try:
            Looker(run, device).look_at(pictures, asked)
        except (SightlineError, OSError) as error:
            raise SightlineError(
                f"{error}\nSo '{run}' cannot be looked at. The page of what is there can be written: --pictures 0"
            ) from None


def pictures_of(run: Run, most: int, images_root: Path | None) -> list[tuple[str, Path]]:
    """The first pictures of a run's gallery that can be read, of questions about one; names and files."""
    if not run.evaluations:
        return []
    evaluation = run.evaluations[0]
    root = images_root if images_root is not None else Path(evaluation.scores.images_root)
    names = [row.images[0] for row in pick_gallery(evaluation.predictions) if len(row.images) == 1]
    return list(islice(((name, root / name) for name in dict.fromkeys(names) if can_be_read(root / name)), most))


def questions_of(evaluation: Evaluation | None, images_root: Path | None) -> list[Question]:
    """The questions of an evaluation about images that are there."""
    if evaluation is None:
        return []
    root = images_root if images_root is not None else Path(evaluation.scores.images_root)
    questions = [
        Question(row.id, tuple(root / image for image in row.images), row.question, row.answers, row.ability)
        for row in evaluation.predictions
    ]
    return [question for question in questions if question.images and all(image.is_file() for image in question.images)]


def looked(run: Path, pictures: Sequence[Path]) -> bool:
    """Whether a run has looks of just these pictures with just this model."""
    try:
        looks = read_looks(run)
    except SightlineError:
        return False
    return looks is not None and looks.key == key_of(run, pictures)


class Looker:
    """A run's model, and what has been seen with it so far."""

    def __init__(self, run: Path, device: torch.device | str) -> None:
        self.run = run
        self.device = device
        self.subject = Subject(run, device=device)
        self.images: dict[str, Image.Image] = {}
        """By the names of their files."""
        self.notes: list[str] = []

    def look_at(self, pictures: Sequence[tuple[str, Path]], questions: Sequence[Question]) -> Looks:
        """Look at pictures, and put what is found into the run folder.

        Args:
            pictures: names and files.
            questions: about images, for the gate.
        """
        paths = [path for _, path in pictures]
        images = [load_image(path) for path in paths]
        recipe = self.subject.recipe
        redraws = recipe is not None and record_of(recipe.methods, Redraws) is not None
        drawn = self._tried("Nothing was drawn again", self._redrawn, images) if redraws else None
        paints = tells(recipe)
        looks = []
        for number, ((name, path), image) in enumerate(zip(pictures, images, strict=True)):
            looks.append(
                Look(
                    name,
                    self._tried("There is no lens", self._map, number, path, image),
                    self._tried("There are no captions", self._captions, image) or {},
                    self._drawn(number, drawn) if drawn is not None else None,
                    self._tried("No window was painted", self._painted, number, image) if paints else None,
                )
            )
        gate = self._tried("The gate was not asked", self._gate, questions) or {}
        found = Looks(key_of(self.run, paths), tuple(looks), gate, tuple(dict.fromkeys(self.notes)))
        write_looks(self.run, found, self.images)
        return found

    def _tried(self, lack: str, of: Callable[..., T], *arguments: object) -> T | None:
        """What a part of the look gives; None, and why, where the model does not have it."""
        try:
            return of(*arguments)
        except SightlineError as error:
            self.notes.append(f"{lack}: {error}")
            return None

    def _map(self, number: int, path: Path, image: Image.Image) -> Map:
        lens = self._lens(path, image)
        name = f"{number}-seen.png"
        self.images[name] = lens.image
        return Map(name, lens.grid, lens.cells, lens.summary())

    def _lens(self, path: Path, image: Image.Image) -> Lens:
        """With truth and words where the picture is of a world folder, else with the tokenizer's words."""
        world = next((folder for folder in path.parents if (folder / "world.json").is_file()), None)
        if world is None:
            return look(self.subject, image, vocabulary_words(self.subject.tokenizer))
        case = find_case(world, path)
        return look(self.subject, image, read_word_list(world / "words.txt"), case=case)

    def _captions(self, image: Image.Image) -> dict[str, str]:
        assistant = self.subject.assistant
        asked = "" if assistant.template == "plain" else REQUEST
        found = {}
        for level in [None, *(assistant.levels if assistant.levelled is not None else ())]:
            (said,) = assistant.answers([[image]], [asked], max_new_tokens=LONGEST, level=level)
            found[BY_ITSELF if level is None else str(level)] = said
        return found

    def _redrawn(self, images: Sequence[Image.Image]) -> Redrawn:
        return reconstruct(self.run, images, device=self.device)

    def _drawn(self, number: int, redrawn: Redrawn) -> Pictured:
        name, one = f"{number}-drawn.png", slice(number, number + 1)
        self.images[name] = Redrawn(redrawn.original[one], redrawn.drawn[one]).sheet()
        return Pictured(name, f"PSNR {redrawn.psnr[number]:.1f} dB")

    def _painted(self, number: int, image: Image.Image) -> Pictured:
        painted, name = paint(self.subject, image, seed=number), f"{number}-painted.png"
        self.images[name] = painted.sheet()
        return Pictured(name, painted.summary)

    def _gate(self, questions: Sequence[Question]) -> dict[str, dict[str, Estimate]]:
        levelled = self.subject.levelled
        about_images = [question for question in questions if question.images]
        if levelled is None or not levelled.has_gate or not about_images:
            return {}
        weighed = measure_gate(self.subject, take(about_images, MOST_QUESTIONS))
        return {name: dict(weighing.weights) for name, weighing in weighed.items()}
