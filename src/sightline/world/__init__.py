"""The small world: the embedded default, drawn from seeds, with known truth, and its tiny backbones.

    scene      what is there: backgrounds and things, a pure function of (seed, split, index)
    draw       its pixels, and which thing covers which patch
    language   its captions and its questions, whose answers follow from the scene
    make       a folder in LLaVA's formats, ready for training and evaluation
    backbones  a CLIP and a language model trained on it, saved in the standard way

Importing this package costs nothing: torch, numpy and Pillow are loaded by the modules that need them.
"""

from pathlib import Path
from typing import Literal

BACKBONES = Path(__file__).parent / "backbones"


def backbone_path(name: Literal["clip", "lm"]) -> Path:
    """The folder of a backbone that ships with the package; `from_pretrained` loads it."""
    return BACKBONES / name
