"""The model of each stage: its shapes without its weights, the table of its parts, and what the recipe asks of them."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

from ..checkpoints.model import model_folder
from ..config import Model, Recipe, Stage
from ..data.processor import Processor
from ..data.templates import get_template
from ..errors import SightlineError
from ..models.assemble import IMAGE as IMAGE_TOKEN
from ..models.assemble import Assembly, attach_methods
from ..models.backbones import fit_image_processor, resolve
from ..models.configuration import SightlineConfig
from ..models.hub import found
from ..models.modeling import SightlineForConditionalGeneration
from ..models.towers import tower_spec
from ..plan.build import fresh_config, saved_config
from ..train.objective import Objective
from ..train.setup import PartRow, set_trainable
from .findings import Finding


@dataclass(frozen=True)
class StageParts:
    """The table of parts of a stage, and the bytes that training it takes before activations."""

    stage: str
    rows: tuple[PartRow, ...]

    @property
    def memory(self) -> int:
        """fp32 weights of all parts; gradients and AdamW's two states of those that train."""
        return sum(4 * row.parameters + 12 * row.trained for row in self.rows)

    def record(self) -> dict[str, Any]:
        return {"stage": self.stage, "memory_bytes": self.memory, "parts": [asdict(row) for row in self.rows]}


def skeleton(recipe: Recipe, stage: Stage, current: Assembly | None) -> Assembly:
    """The model that a stage starts from, on torch's meta device: shapes, tokenizer and image processor, no weights.

    Raises:
        SightlineError: for parts that cannot be found, or that do not fit.
    """
    if stage.init_from is not None:
        assembly = _saved(stage.init_from)
    elif current is not None:
        return current
    else:
        assert recipe.model is not None, "a recipe without parts starts from a saved model"
        assembly = _assembled(recipe.model)
    with torch.device("meta"):
        attach_methods(assembly, recipe.methods)
    return assembly


def _assembled(parts: Model) -> Assembly:
    vision, language = resolve(parts.vision), resolve(parts.language)
    tower: Any = found(lambda: AutoConfig.from_pretrained(vision), parts.vision)
    tower = tower.vision_config if hasattr(tower, "vision_config") else tower
    spec = tower_spec(tower)
    _check_layers(parts.vision_layer, tower.num_hidden_layers + 1)
    llm: Any = found(lambda: AutoConfig.from_pretrained(language), parts.language)
    tokenizer: Any = found(lambda: AutoTokenizer.from_pretrained(language), parts.language)
    image_processor = found(lambda: AutoImageProcessor.from_pretrained(vision, backend="pil"), parts.vision)
    if parts.image_fit == "crop" or parts.vision_scales is not None:
        image_processor = fit_image_processor(parts.vision, image_processor, spec, parts.image_fit, parts.vision_scales)
    config = fresh_config(parts, tower, llm)
    return _empty(config, tokenizer, image_processor)


def _check_layers(given: int | list[int], count: int) -> None:
    """As `assemble` checks them, which a model too large to load never reaches."""
    if not (layers := [given] if isinstance(given, int) else given) or any(not -count <= n < count for n in layers):
        raise SightlineError(
            f"vision_layer {given} is not among the tower's {count} states (0 to {count - 1}, or -1 back)."
        )


def _saved(path: str) -> Assembly:
    folder, config = model_folder(path), saved_config(path)
    methods, config.methods = config.methods or [], []
    tokenizer = found(lambda: AutoTokenizer.from_pretrained(folder), path)
    assembly = _empty(config, tokenizer, found(lambda: AutoImageProcessor.from_pretrained(folder, backend="pil"), path))
    with torch.device("meta"):
        attach_methods(assembly, methods)
    return assembly


def _empty(config: SightlineConfig, tokenizer: Any, image_processor: Any) -> Assembly:
    known = tokenizer.get_vocab()
    if IMAGE_TOKEN not in known:
        extra = {"additional_special_tokens": [IMAGE_TOKEN]}
        tokenizer.add_special_tokens(extra, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    config.llm.vocab_size = max(config.llm.vocab_size, len(tokenizer))
    with torch.device("meta"):
        model = SightlineForConditionalGeneration(config)
    return Assembly(model, tokenizer, image_processor)


def table(assembly: Assembly, stage: Stage) -> StageParts:
    """The parts of a stage's model.

    Raises:
        SightlineError: for an unknown part, or a weight of a loss that nothing gives.
    """
    rows = set_trainable(assembly.model, stage)
    Objective(assembly.model, stage.weights)
    return StageParts(stage.name, tuple(rows))


def processor(assembly: Assembly, recipe: Recipe, template: str) -> Processor:
    """The processor of a stage's rows."""
    return assembly.processor(get_template(template), max_length=recipe.max_length, blank_images=recipe.blank_images)


def odd_rates(stage: Stage, parts: StageParts) -> list[Finding]:
    """Trainable parts that would not move, or would move too far."""
    found: list[Finding] = []
    for row in (row for row in parts.rows if row.trainable):
        where = f"stage '{stage.name}', part '{row.part}'"
        key = f"stages lr_by_part.{row.part}" if row.part in stage.lr_by_part else "lr"
        if row.parameters == 0:
            message = "has no parameters: training it changes nothing."
            fix = f"Take '{row.part}' out of trainable."
            found.append(Finding("warning", "parts/empty", where, message, fix))
        elif row.lr == 0:
            message = "is listed in trainable, and its learning rate is 0: it would not move."
            fix = f"Give {key} a rate such as 1e-3 (connector) or 2e-5 (language), or take it out of trainable."
            found.append(Finding("error", "parts/rate", where, message, fix))
        elif row.lr > (0.1 if row.part == "connector" else 0.02):
            message = f"has a learning rate of {row.lr:g}, far above what AdamW takes: the loss would diverge."
            found.append(Finding("warning", "parts/rate", where, message, f"Lower {key}, for example to 1e-3."))
    return found
