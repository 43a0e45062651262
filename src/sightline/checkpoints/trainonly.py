"""What serves training alone, in the run folder: a saved model is without it, and some things are made with it later.

A stage that starts from a run goes on with it, and `sightline reconstruct` draws with it.
"""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..errors import SightlineError
from ..files import write_bytes
from ..models.left import Left, sources_of
from ..models.modeling import SightlineForConditionalGeneration

FILE = "train_only.safetensors"
MARK = ".train_only."


def save_train_only(model: SightlineForConditionalGeneration, folder: Path) -> None:
    """Write it beside the saved model of a run or a stage, where there is any."""
    methods = model.model.methods
    kept = {name: value.detach().cpu().contiguous() for name, value in methods.state_dict().items() if MARK in name}
    if kept:
        write_bytes(folder / FILE, save(kept, metadata=sources_of(methods)))


def read_train_only(path: str | Path) -> Left:
    """What a run left, if `path` is such a run or its model folder; else nothing.

    Raises:
        SightlineError: if the file is damaged.
    """
    file = next((place / FILE for place in (Path(path), Path(path).parent) if (place / FILE).is_file()), None)
    if file is None:
        return Left()
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return Left(tensors, opened.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise SightlineError(
            f"'{file}' cannot be read ({error}), so what served training alone would begin anew. Remove it if that is "
            "what you want."
        ) from None
