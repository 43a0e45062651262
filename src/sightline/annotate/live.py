"""Labels of patches made in the training step itself, from what the model's own tower computes anyway.

The step pays for the last layers of the way to the joint space, and for the product with the list of words: 0.2% of a
stage-1 step of a 7B model. Nothing is stored. Padding is labelled like the rest, since a step does not know it.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..types import Batch
from .labels import packed, unpacked
from .patchwords import Labelling, PatchWords


class LiveLabels:
    """Labels and draws for the images of a batch."""

    def __init__(self, words: PatchWords) -> None:
        """
        Raises:
            SightlineError: if the encoder cannot be loaded, or its sign cannot be measured.
        """
        self.labelling = Labelling(words, words.vocabulary)
        self.labelling.sign = words.settle_sign(self.labelling)
        self.how = words.how

    def __deepcopy__(self, memo: dict[int, object]) -> "LiveLabels":
        """A copied model labels with the same encoder: it is frozen, and not a part of the model."""
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        """Which of the tower's hidden states are read."""
        return self.labelling.joint.layers

    @torch.no_grad()
    def drawn(self, states: Mapping[int, Tensor], batch: Batch, *, epoch: int) -> Int[Tensor, "drawn 4"]:
        """Rows of (number of the image in the batch, place in its grid, word, priority).

        Args:
            states: of the tower for every view; an image's first is labelled.
            epoch: another one draws otherwise.
        """
        device = batch.input_ids.device
        if not batch.num_images:
            return torch.zeros(0, 4, dtype=torch.long, device=device)
        first = batch.view_counts.cumsum(0) - batch.view_counts
        best = self.labelling.best_of({layer: state[first] for layer, state in states.items()})
        labels = packed(*best, self.labelling.id_type)
        pixels, rows = batch.pixel_values[first].cpu(), []
        for image, seen in enumerate(pixels):
            number = int(hashlib.sha256(seen.contiguous().numpy().data).hexdigest()[:15], 16)
            ids, scores = unpacked({name: value[image : image + 1] for name, value in labels.items()})
            found = self.how.draw(number, epoch, ids, scores)
            rows.append(self.how.rows(image, number, epoch, found))
        return torch.from_numpy(np.concatenate(rows)).to(device)
