"""Weights of AlignGPT's public code (github.com/AlignGPT-VL/AlignGPT at b3ddf5dc) as a model of ours.

    stage 1, mm_projector_align.bin    mm_projector.{0,2}.{weight,bias}
                                       align_indicators.indicator_embs [N, d_llm]
    stage 2, a whole checkpoint        those, and
                                       gated_weight_layer.mlp.{0,2}.{weight,bias} [256, 576], [N-1, 256]
                                       model.*, lm_head.weight (LLaMA), vision_tower.vision_tower.* (CLIP, frozen)

The method becomes `preset: aligngpt_paper`: what the public code computes for one image. Its vision tower is named, as
its own inference does; where a checkpoint holds one too, the two must agree. Pickles are read as tensors alone.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from ..data.templates import get_template
from ..errors import SightlineError
from ..files import claim_empty
from ..models.assemble import Assembly, assemble
from ..models.backbones import ImageFit, LanguageModel, check_complete
from ..models.hub import found, quiet
from .export import DTYPES, ExportType
from .model import save_model
from .tensors import read_json, read_tensors

TOKENS = 576
"""Visual tokens, a constant of the public code: its gate has an input for each."""
LEVELS = 8
PARTS = ("mm_projector.", "align_indicators.", "gated_weight_layer.", "vision_tower.")
BUFFERS = (".rotary_emb.inv_freq", ".position_ids")
"""Tables that old versions of transformers saved beside the weights, and compute."""
NAMES = {
    "align_indicators.indicator_embs": "model.methods.aligngpt.levels.weight",
    "gated_weight_layer.mlp.0.weight": "model.methods.aligngpt.gate.first.weight",
    "gated_weight_layer.mlp.0.bias": "model.methods.aligngpt.gate.first.bias",
    "gated_weight_layer.mlp.2.weight": "model.methods.aligngpt.gate.last.weight",
    "gated_weight_layer.mlp.2.bias": "model.methods.aligngpt.gate.last.bias",
}
MLP = {f"mm_projector.{at}.{kind}": f"linear_{n}.{kind}" for n, at in ((1, 0), (2, 2)) for kind in ("weight", "bias")}
LINEAR = {f"mm_projector.{kind}": f"linear.{kind}" for kind in ("weight", "bias")}


@dataclass(frozen=True)
class Imported:
    """What an import wrote."""

    folder: Path
    whole: bool
    """Whether it was a whole checkpoint; otherwise the language model is the one named, and the gate is fresh."""


def import_model(
    path: str | Path,
    out: Path,
    *,
    vision: str,
    language: str | None = None,
    template: str = "vicuna_v1",
    image_fit: ImageFit | None = None,
    dtype: ExportType = "fp32",
    seed: int = 0,
) -> Imported:
    """Write published weights as a model folder, for `ask`, `eval`, and `init_from` of a recipe's stage.

    Args:
        out: a new or empty folder.
        template: how turns become text; the public code's `v1` is ours.
        dtype: of the weights that are written.
        seed: for the gate of a stage-1 file, which is fresh.
        path, vision, language, image_fit: as in `import_aligngpt`.

    Raises:
        SightlineError: as `import_aligngpt` does; nothing is written then.
    """
    claim_empty(out, "the import")
    turns = get_template(template)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        assembly = import_aligngpt(path, vision=vision, language=language, image_fit=image_fit)
    for parameter in assembly.model.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])
    save_model(assembly, out, turns)
    return Imported(out, whole=language is None)


def import_aligngpt(
    path: str | Path, *, vision: str, language: str | None = None, image_fit: ImageFit | None = None
) -> Assembly:
    """Published weights in the model that they are of.

    The gate of a stage-1 file is fresh, from torch's global generator: seed it first.

    Args:
        path: `mm_projector_align.bin` or the folder that holds it, or the folder of a whole checkpoint.
        vision: the CLIP that the weights were trained with (openai/clip-vit-large-patch14-336).
        language: the language model that a stage-1 file was trained with (lmsys/vicuna-7b-v1.5).
        image_fit: by default as the checkpoint's config says; `pad` for a stage-1 file, as the public stage 2 has it.

    Raises:
        SightlineError: for weights that are missing, unexpected or of another shape, by their names; for a pickle that
            holds more than tensors; for parts that are not those of the checkpoint.
    """
    place, (weights, config) = str(path), read_published(Path(path))
    tower = {key: value for key, value in weights.items() if key.startswith("vision_tower.")}
    own = {key: value for key, value in weights.items() if key.startswith(PARTS) and key not in tower}
    llama = {key: value for key, value in weights.items() if not key.startswith(PARTS)}
    whole = bool(llama)
    if whole and language is not None:
        raise SightlineError(
            f"'{place}' is a whole checkpoint with its own language model, and '{language}' would take its place. "
            "Leave the language model out."
        )
    if not whole and language is None:
        raise SightlineError(
            f"'{place}' has no language model: it is a file of stage 1. Name the one that it was trained with: "
            "--language lmsys/vicuna-7b-v1.5"
        )
    connector = LINEAR if "mm_projector.weight" in own else MLP
    names = {key: f"model.multi_modal_projector.{name}" for key, name in connector.items()} | NAMES
    gated = whole or any(key.startswith("gated_weight_layer.") for key in own)
    wanted = {key: name for key, name in names.items() if gated or not key.startswith("gated_weight_layer.")}
    check_names(place, wanted.keys() - own.keys(), own.keys() - wanted.keys())

    layer, fit = settings(place, config, whole=whole)
    levels = len(own["align_indicators.indicator_embs"])
    method = {"name": "aligngpt", "preset": "aligngpt_paper"} | ({"levels": levels} if levels != LEVELS else {})
    assembly = assemble(
        vision,
        load_llama(place, llama, config) if whole else str(language),
        connector="linear" if connector is LINEAR else "mlp",
        vision_layer=layer,
        image_fit=image_fit or fit,
        methods=[method],
    )
    model = assembly.model
    if model.model.sizes.tokens != TOKENS:
        raise SightlineError(
            f"'{vision}' gives {model.model.sizes.tokens} visual tokens, and the public code's gate reads {TOKENS}: "
            "those of a CLIP-L/14 at 336 pixels. Name the tower that the weights were trained with."
        )
    fill(place, dict(model.named_parameters()), {wanted[key]: (key, value) for key, value in own.items()})
    if tower:
        check_tower(place, vision, tower, model.model.vision_tower.state_dict())
    if whole:
        model.config.base = {**(model.config.base or {}), "trained": ["language"]}  # no base that could be loaded again
    model.eval()
    return assembly


def read_published(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights at a path by their public names, and the config beside them, empty if there is none."""
    folder = path if path.is_dir() else path.parent
    of_stage_1 = folder / "mm_projector_align.bin"
    tensors = read_tensors(of_stage_1 if path.is_dir() and of_stage_1.is_file() else path)
    weights: dict[str, Tensor] = {}
    for key, value in tensors.items():
        short = key.removeprefix("model.")
        name = short if short.startswith(PARTS) else key  # LLaVA's own checkpoints have them under `model.`
        if name in weights:
            raise SightlineError(f"'{path}' has {name} twice, with and without `model.`. Use an intact checkpoint.")
        if not name.endswith(BUFFERS):
            weights[name] = value
    config = folder / "config.json"
    return weights, read_json(config) if config.is_file() else {}


def settings(place: str, config: Mapping[str, Any], *, whole: bool) -> tuple[int, ImageFit]:
    """The tower's layer and how images meet it, from a public config.

    Raises:
        SightlineError: for settings that we have no counterpart of, or a whole checkpoint without its config.
    """
    if whole and "hidden_size" not in config:
        raise SightlineError(f"'{place}' has no config.json of its language model. Use an intact checkpoint.")
    for key, known in (("mm_use_im_start_end", False), ("mm_vision_select_feature", "patch"), ("use_s2", False)):
        if config.get(key, known) != known:
            raise SightlineError(
                f"'{place}' was trained with {key}={config[key]}, which Sightline does not import. The published "
                f"models have {known}: use one of them."
            )
    padded = not whole or config.get("image_aspect_ratio") == "pad"
    return config.get("mm_vision_select_layer", -2), "pad" if padded else "crop"


def load_llama(place: str, state: dict[str, Tensor], config: Mapping[str, Any]) -> LanguageModel:
    """The language model of a whole checkpoint with its tokenizer, in fp32."""
    ours = {
        key: value
        for key, value in config.items()
        if key not in ("model_type", "architectures", "torch_dtype", "dtype") and "mm_" not in key
    }
    llama = LlamaConfig(**ours)
    told: Any = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with quiet():
        loaded: Any = LlamaForCausalLM.from_pretrained(
            None, config=llama, state_dict=state, dtype=torch.float32, **told
        )
    model, info = loaded
    check_names(place, (), info["unexpected_keys"])
    check_complete(place, info, "language model")
    folder = place if Path(place).is_dir() else str(Path(place).parent)
    return LanguageModel(folder, model, found(lambda: AutoTokenizer.from_pretrained(folder, config=llama), folder))


def check_names(place: str, missing: Iterable[str], unexpected: Iterable[str]) -> None:
    """Refuse weights that are not there, or have no place.

    Raises:
        SightlineError: naming the first of them.
    """
    for what, keys in (("lacks", sorted(missing)), ("has, and AlignGPT's public code has not,", sorted(unexpected))):
        if keys:
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            raise SightlineError(
                f"'{place}' {what} {', '.join(keys[:4])}{more}. Nothing was imported. Use an intact file of AlignGPT's "
                "public code: mm_projector_align.bin of stage 1, or the whole checkpoint of stage 2."
            )


@torch.no_grad()
def fill(place: str, parameters: Mapping[str, Tensor], values: Mapping[str, tuple[str, Tensor]]) -> None:
    """Copy values into parameters, each with the name that it had.

    Raises:
        SightlineError: for another shape, or what is no number.
    """
    for name, (key, value) in values.items():
        target = parameters[name]
        if value.shape != target.shape:
            raise SightlineError(
                f"'{place}': {key} has shape {tuple(value.shape)}, and with these parts it is {tuple(target.shape)}. "
                "Name the vision and language models that it was trained with."
            )
        if not bool(value.isfinite().all()):
            raise SightlineError(f"'{place}': {key} holds infinities or what is no number. Use an intact checkpoint.")
        target.copy_(value)


def check_tower(place: str, vision: str, given: Mapping[str, Tensor], named: Mapping[str, Tensor]) -> None:
    """Refuse a tower that is not the one in the checkpoint, up to the rounding of 16 bits.

    Raises:
        SightlineError: naming the first weight that differs.
    """
    theirs = {key.rpartition("vision_tower.")[2].removeprefix("vision_model."): value for key, value in given.items()}
    ours = {key.removeprefix("vision_model."): value for key, value in named.items() if not key.endswith(BUFFERS[1])}
    check_names(place, (f"vision_tower.{key}" for key in ours.keys() - theirs.keys()), ())
    for key, value in theirs.items():
        mine = ours.get(key)
        if mine is None or mine.shape != value.shape or not torch.allclose(value.float(), mine.float(), 2**-7, 1e-5):
            raise SightlineError(
                f"'{place}' was trained with another vision tower than '{vision}': {key} differs. What the language "
                "model has learned to read would be something else. Name that tower."
            )
