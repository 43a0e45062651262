"""Models whose alignment is known, to judge the diagnostics by: perfect by construction, or broken in one way.

Each is a `Subject` like any other, so that a diagnostic cannot tell how it came about.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from ..data.images import load_image, to_rgb
from ..errors import SightlineError
from .material import Material
from .subject import Prompted, Subject


class Altered(Subject, ABC):
    """Another look into the same model, with its visual tokens changed before the language model reads them."""

    def __init__(self, subject: Subject) -> None:
        self.assistant = subject.assistant
        self.model, self.tokenizer = subject.model, subject.tokenizer

    def prompted(self, images: Sequence[Sequence[Image.Image]], questions: Sequence[str]) -> Prompted:
        prompt = super().prompted(images, questions)
        changed = []
        for row, mine in enumerate(images):
            tokens = prompt.visual_of(row)
            parts = tokens.split(len(tokens) // len(mine)) if mine else ()
            new = [self.change(part, image) for part, image in zip(parts, mine, strict=True)]
            changed.append(torch.cat(new) if new else tokens)
        return prompt.with_visual(changed)

    @abstractmethod
    def change(self, visual: Tensor, image: Image.Image) -> Tensor:
        """The tokens to put in the place of an image's own, as many."""


class TrueWords(Altered):
    """Every visual token is the embedding of a word that is true of it: alignment as good as it can be."""

    def __init__(self, subject: Subject, material: Material) -> None:
        """
        Raises:
            SightlineError: if the material's truth is not known.
        """
        super().__init__(subject)
        if not material.has_truth:
            raise SightlineError(f"{material.name} has no truth by patch, so no true words. Give a world folder.")
        self.cases = {to_rgb(load_image(case.image)).tobytes(): case for case in material.cases}

    def change(self, visual: Tensor, image: Image.Image) -> Tensor:
        case = self.cases.get(to_rgb(image).tobytes())
        if case is None:  # a blank image, say: nothing is true of it
            return visual
        truth = self.truth(case, image, visual)
        if not truth:
            raise SightlineError(
                f"what {len(self.grid(visual))} visual tokens of image '{case.id}' show is not known: the model sees a "
                "part of it, or its tokens are no grid that divides the truth's patches. True words need both."
            )
        side = round(len(truth) ** 0.5)
        words = [token.words[sum(divmod(place, side)) % len(token.words)] for place, token in enumerate(truth)]
        return torch.cat([visual[: self.beside_grid], self.words(words).to(visual)])


class ShuffledPatches(Altered):
    """The tokens of every image in an order of their own, the same each time the image is seen."""

    def change(self, visual: Tensor, image: Image.Image) -> Tensor:
        seed = int.from_bytes(to_rgb(image).resize((4, 4)).tobytes()[:7], "big")
        order = torch.randperm(len(visual), generator=torch.Generator().manual_seed(seed))
        return visual[order.to(visual.device)]


def with_normalisation(subject: Subject, mean: Sequence[float], std: Sequence[float]) -> Subject:
    """The same model with pixels normalised otherwise than its tower was trained with."""
    other = copy.copy(subject)
    other.assistant = copy.copy(subject.assistant)
    other.assistant.prompts = copy.deepcopy(subject.assistant.prompts)
    other.image_processor.image_mean, other.image_processor.image_std = list(mean), list(std)
    return other


def with_connector(subject: Subject, weights: Mapping[str, Tensor]) -> Subject:
    """The same model with the connector of another.

    Raises:
        SightlineError: if that one has another shape.
    """
    other = copy.copy(subject)
    other.model = copy.deepcopy(subject.model)
    other.assistant = copy.copy(subject.assistant)
    other.assistant.model = other.model
    try:
        other.model.model.multi_modal_projector.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise SightlineError(f"the connectors differ: {str(error).splitlines()[-1].strip()}") from None
    return other


def reset_connector(subject: Subject, seed: int = 0) -> Subject:
    """The same model with a connector that was never trained."""
    fresh = copy.deepcopy(subject.model.model.multi_modal_projector)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in fresh.parameters():
            if parameter.ndim > 1:
                bound = parameter.shape[1] ** -0.5
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                parameter.zero_()
    return with_connector(subject, fresh.state_dict())
