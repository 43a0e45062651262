"""The small world: the embedded default, drawn from seeds, with known truth, and its tiny backbones.

    scene       what is there: a background, things, signs, cards; a pure function of (seed, split, index)
    draw        its pixels in two views, and which item covers which patch
    language    its captions and its questions, whose answers follow from the scene
    lexicon     facts that only text tells, and distractors
    claims      what a text states of a scene, and captions of graded noise
    make        a folder in LLaVA's formats, ready for training and evaluation
    sheet       a contact sheet to look at
    backbones   CLIPs, language models, a VAE, a denoiser and a VQ model trained on it, saved in the standard way
    build_*     how they are trained; measure_* what they know; thresholds what they must know

Importing this package costs nothing: torch, numpy and Pillow are loaded by the modules that need them.
"""

from enum import StrEnum
from pathlib import Path
from typing import Literal

from ..errors import SightlineError, did_you_mean

Split = Literal["train", "validation", "test", "novel"]
View = Literal["low", "high"]
"""The two views of a scene."""


class Backbone(StrEnum):
    """The world's backbones, `world:clip` and so on in a recipe."""

    clip = "clip"
    """Vision and text towers that know every word of the world."""
    clip_contrast = "clip-contrast"
    """The same towers, trained by contrast of pictures with captions alone."""
    lm = "lm"
    """A language model that binds words and knows the world's facts."""
    lm_small = "lm-small"
    """The same, two fifths of its size."""
    vae = "vae"
    """Pictures as latents, for reconstruction."""
    denoiser = "denoiser"
    """Draws latents of what the CLIP sees."""
    vq = "vq"
    """Pictures as codes, for cognition."""


_FOLDER = Path(__file__).parent / "backbones"


def backbone_path(name: str) -> Path:
    """The folder of a backbone that ships with the package; `from_pretrained` loads it.

    Raises:
        SightlineError: if there is none of that name, or it is built on demand.
    """
    names = [backbone.value for backbone in Backbone]
    if name not in names:
        near = did_you_mean(name, names) or "."
        raise SightlineError(f"the small world has no '{name}'{near} It has {', '.join(names)}.")
    folder = _FOLDER / name
    if not folder.is_dir():
        raise SightlineError(
            f"'{name}' does not ship with Sightline. Build it, and give its folder instead of 'world:{name}': "
            f"sightline world build {name} --out backbones/{name}"
        )
    return folder


def shipped() -> list[Backbone]:
    """The backbones whose weights are in the package."""
    return [backbone for backbone in Backbone if (_FOLDER / backbone.value).is_dir()]
