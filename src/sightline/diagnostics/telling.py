"""Asking a model what is in a window of an image, and what is there, by the method that taught it to tell (VLSA)."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Int
from PIL import Image
from torch import Tensor

from ..annotate.codes import thumbnails, vq_facts
from ..config import Recipe
from ..data.images import to_rgb
from ..data.order import generator
from ..data.templates import IMAGE
from ..data.windows import LEVELS, Window
from ..errors import SightlineError
from ..methods.abilities import Task, Tells
from ..methods.base import Sizes
from ..methods.compose import build_methods, record_of
from ..models.codes import Codes
from ..runs import annotation_facts_of
from .captions import LONGEST, REQUEST
from .subject import Prompted, Subject


@dataclass(frozen=True)
class Cells:
    """An image in cells, and the window that is asked for."""

    codes: Int[Tensor, "rows columns"]
    pixels: Int[Tensor, "rows columns 3"]
    window: Window

    def true(self, task: Task) -> Tensor:
        """What is in the window, in the order in which it is told."""
        return self.window.of(self.codes if task == "vq" else self.pixels).flatten()


def telling(recipe: Recipe | None) -> Tells | None:
    """The method of a recipe that has a model tell what is in images, if there is one.

    Raises:
        SightlineError: if its VQ model is not where the recipe says.
    """
    record = record_of(recipe.methods if recipe else (), Tells)
    if record is None:
        return None
    (method,) = build_methods([record], Sizes(1, 1, 1, 1)).all
    assert isinstance(method, Tells)
    return method


def taught(subject: Subject) -> Tells | None:
    """The same of the run that a model is of.

    Raises:
        SightlineError: if its VQ model is not where the recipe says, or is no longer the one whose codes were taught.
    """
    method = telling(subject.recipe)
    if method is None:
        return None
    noted = [facts[method.name] for facts in annotation_facts_of(subject.path).values() if facts.get(method.name)]
    if noted and {facts.get("vq", {}).get("weights") for facts in noted} != {vq_facts(method.vq)["weights"]}:
        raise SightlineError(
            f"'{method.vq}' has other weights than when the model was taught its codes, so it would be asked for codes "
            "that it has never seen. Put back what was there; `sightline paint` takes it from elsewhere, too: --recipe "
            "recipe.yaml"
        )
    return method


def tells(recipe: Recipe | None) -> bool:
    """Whether a recipe has such a method, wherever its VQ model is."""
    return record_of(recipe.methods if recipe else (), Tells) is not None


def cells_of(subject: Subject, method: Tells, images: Sequence[Image.Image], seed: int = 0) -> list[Cells]:
    """Images in cells, with a random window each."""
    picture, codes = method.picture(subject.sight), Codes(method.vq, subject.device)
    found = []
    for number, image in enumerate(images):
        pixels = picture(to_rgb(image)).unsqueeze(0)
        window = Window.draw(method.grid, method.window, generator(seed, 8, number))
        cells = thumbnails(pixels.float(), method.grid)[0].long()
        found.append(Cells(codes.encode(pixels.to(subject.device))[0].cpu(), cells, window))
    return found


def believed(
    subject: Subject, method: Tells, task: Task, images: Sequence[Image.Image], windows: Sequence[Window]
) -> list[Int[Tensor, " values"]]:
    """What a model says is in windows of images, greedily; `UNREAD` where it cannot be read."""
    values = method.window**2 * (1 if task == "vq" else 3)
    texts = [method.write(task, [value] * values) for value in (0, (method.codes if task == "vq" else LEVELS) - 1)]
    longest = max(map(len, subject.answer_ids(texts)))
    said = subject.answers(asked(subject, method, task, images, windows), max_new_tokens=longest + 1)
    return [method.read(task, text) for text in said]


def asked(
    subject: Subject, method: Tells, task: Task, images: Sequence[Image.Image], windows: Sequence[Window]
) -> Prompted:
    """The questions about windows of images as training asks them: never first, but behind an exchange about the image,
    here the caption that the model itself gives."""
    shown = [[image] for image in images]
    captions = subject.assistant.answers(shown, [REQUEST] * len(shown), max_new_tokens=LONGEST)
    questions = [method.question(task, window) for window in windows]
    return subject.prompted(shown, questions, [(REQUEST, caption.replace(IMAGE, "")) for caption in captions])
