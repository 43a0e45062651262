"""What serves training alone, in the run folder: a saved model is without it, and some things are made with it later.

A stage that starts from a run goes on with it, and `sightline reconstruct` draws with it.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..errors import SightlineError
from ..files import write_bytes
from ..models.modeling import SightlineForConditionalGeneration

FILE = "train_only.safetensors"
MARK = ".train_only."


def save_train_only(model: SightlineForConditionalGeneration, folder: Path) -> None:
    """Write it beside the saved model of a run or a stage, where there is any."""
    methods = model.model.methods.state_dict()
    kept = {name: value.detach().cpu().contiguous() for name, value in methods.items() if MARK in name}
    if kept:
        write_bytes(folder / FILE, save(kept))


@torch.no_grad()
def take_train_only(model: SightlineForConditionalGeneration, path: str | Path) -> bool:
    """Give a model what a run left, if `path` is such a run or its model folder. What has another shape stays fresh.

    Returns:
        Whether there was any.

    Raises:
        SightlineError: if the file is damaged.
    """
    file = next((place / FILE for place in (Path(path), Path(path).parent) if (place / FILE).is_file()), None)
    if file is None:
        return False
    try:
        left = load_file(file)
    except (OSError, SafetensorError) as error:
        raise SightlineError(
            f"'{file}' cannot be read ({error}), so what served training alone would begin anew. Remove it if that is "
            "what you want."
        ) from None
    state = model.model.methods.state_dict()
    for name, value in left.items():
        if name in state and state[name].shape == value.shape:
            state[name].copy_(value)
    return True
