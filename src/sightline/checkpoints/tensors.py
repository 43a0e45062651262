"""Tensors of a checkpoint by name, from safetensors or from pickles that hold nothing else."""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import SightlineError
from ..models.hub import reason

WHOLE = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
"""What holds the weights in a folder; the first one that is there."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of a folder in one file or in several with an index.

    Raises:
        SightlineError: if there is none, it cannot be read, is cut short, or holds more than tensors.
    """
    if path.is_dir():
        path = next((path / name for name in WHOLE if (path / name).is_file()), path)
    if not path.is_file():
        raise SightlineError(
            f"no weights at '{path}'. Give a .bin or .safetensors file, or a local folder with "
            f"{' or '.join(WHOLE[1::2])} (or several of them and their index)."
        )
    if not path.name.endswith(".index.json"):
        return _read(path)
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not all(Path(str(file)).name == file for file in listed.values()):
        raise SightlineError(f"'{path}' lists no files beside it. Use an intact checkpoint.")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(listed.values())):
        tensors |= _read(path.parent / file)
    if odd := sorted(tensors.keys() ^ listed.keys()):
        raise SightlineError(
            f"'{path}' and the files that it lists disagree on {odd[0]}{f' and {len(odd) - 1} more' * (len(odd) > 1)}. "
            "Use an intact checkpoint."
        )
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        SightlineError: if it does not.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SightlineError(f"cannot read '{path}': {reason(error)}. Use an intact checkpoint.") from None
    if not isinstance(values, dict):
        raise SightlineError(f"'{path}' holds no mapping. Use an intact checkpoint.")
    return values


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        values = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise SightlineError(
            f"'{path}' is no file of tensors alone: loading it could run code that it holds, so it was not loaded. Get "
            "the weights from a source that you trust, or as safetensors."
        ) from None
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise SightlineError(f"cannot read '{path}': {reason(error)}. Use an intact file.") from None
    if not isinstance(values, dict):
        raise SightlineError(
            f"'{path}' holds a {type(values).__name__}, not weights by name. Use an intact checkpoint."
        )
    strange = next((k for k, v in values.items() if not (isinstance(k, str) and isinstance(v, Tensor))), None)
    if strange is not None:
        raise SightlineError(f"'{path}' holds {strange!r}, which is no tensor. Use a file of weights alone.")
    return values
