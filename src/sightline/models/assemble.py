"""A vision-language model from its parts: any CLIP, SigLIP or DINOv2 tower, any causal language model, a connector.

Parts are named by a local folder, a hub id, or `world:clip` and `world:lm` for the tiny ones that ship with Sightline.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoTokenizer,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_MAPPING
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from ..data.processor import Processor, output_size
from ..data.templates import IMAGE, Template
from ..errors import SightlineError
from ..methods.compose import Methods, build_methods
from .configuration import SightlineConfig, stock_strategy
from .connectors import CONNECTORS, ConnectorName
from .modeling import SightlineForConditionalGeneration
from .quiet import quiet
from .towers import PatchSelect, tower_spec

ImageFit = Literal["pad", "crop"]


@dataclass(frozen=True)
class Assembly:
    """A model with what it takes to feed it."""

    model: SightlineForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    image_processor: BaseImageProcessor

    def to(self, device: torch.device | str) -> "Assembly":
        """The same, with the model on `device`."""
        self.model.to(device)
        return self

    def processor(
        self, template: Template, *, max_length: int = 2048, blank_images: bool = False
    ) -> Processor:
        """The processor that lays out rows for this model."""
        inner = self.model.model
        return Processor(
            self.tokenizer,
            self.image_processor,
            template,
            tokens_per_view=inner.sizes.tokens,
            methods=inner.methods,
            max_length=max_length,
            blank_images=blank_images,
        )


def assemble(
    vision: str,
    language: str,
    *,
    connector: ConnectorName = "mlp",
    vision_layer: int | list[int] = -2,
    vision_select: PatchSelect = "patch",
    image_fit: ImageFit = "pad",
    methods: Sequence[Mapping[str, Any]] = (),
) -> Assembly:
    """Put a tower, a fresh connector, methods and a language model together.

    The connector's and the methods' weights are drawn from torch's global generator: seed it first.

    Args:
        vision: a CLIP, SigLIP or DINOv2 checkpoint (a whole CLIP or SigLIP gives its tower).
        language: a causal language model with its tokenizer.
        vision_layer: which of the tower's hidden states to take (LLaVA: -2); a list concatenates them.
        vision_select: `patch` takes the grid of patches, `full` also the tokens before it.
        image_fit: how an image that is not square meets the tower: `pad` to a square as LLaVA-1.5's tuning does,
            `crop` as the tower's own processor does.

    Raises:
        SightlineError: for parts that cannot be found, or that LLaVA's shape cannot express.
    """
    tower, image_processor = load_tower(vision, image_fit)
    lm, tokenizer = load_language_model(language)
    add_tokens(lm, tokenizer, [IMAGE])

    spec = tower_spec(tower.config)
    layers = [vision_layer] if isinstance(vision_layer, int) else vision_layer
    count = tower.config.num_hidden_layers + 1
    if not layers or any(not -count <= layer < count for layer in layers):
        raise SightlineError(
            f"vision_layer {vision_layer} is not among the tower's {count} states (0 to {count - 1}, or -1 back)."
        )
    config = SightlineConfig(
        vision_config=tower.config,
        text_config=lm.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=vision_layer,
        vision_feature_select_strategy=stock_strategy(spec, vision_select) or "full",
        image_seq_length=spec.num_patches(vision_select),
        tie_word_embeddings=lm.config.tie_word_embeddings,
        connector=connector,
        vision_select=vision_select,
    )
    with torch.device("meta"):
        model = SightlineForConditionalGeneration(config)
    inner = model.model
    inner.vision_tower = tower
    inner.language_model = lm.base_model
    model.lm_head = lm.get_output_embeddings()
    inner.multi_modal_projector = CONNECTORS[connector](config)
    inner.methods = Methods()
    model.generation_config = lm.generation_config
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    _check_expressible(lm, model, language)
    assembly = Assembly(model, tokenizer, image_processor)
    attach_methods(assembly, methods)
    return assembly


def attach_methods(assembly: Assembly, records: Sequence[Mapping[str, Any]]) -> None:
    """Give a model that has no methods those of a recipe, and the tokenizer the tokens of their slots.

    Raises:
        SightlineError: if the model has other methods already.
    """
    model, wanted = assembly.model, [dict(record) for record in records]
    have = model.config.methods or []
    if have == wanted:
        return
    if have:
        raise SightlineError(
            f"the model was made with methods {have} and the recipe lists {wanted}. Make them agree."
        )
    methods = build_methods(wanted, model.model.sizes)
    tokens = [slot.token for slot in methods.slots]
    add_tokens(model, assembly.tokenizer, tokens)
    model.config.methods = wanted
    model.config.slot_token_ids = {token: assembly.tokenizer.convert_tokens_to_ids(token) for token in tokens}
    model.model.methods = methods


def load_tower(name: str, image_fit: ImageFit = "pad") -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A vision tower in fp32, and the image processor that feeds it (Pillow, so that pixels agree everywhere)."""
    path = resolve(name)
    config: PreTrainedConfig = _found(lambda: AutoConfig.from_pretrained(path), name)
    config = config.vision_config if hasattr(config, "vision_config") else config
    spec = tower_spec(config)
    tower, info = _found(
        lambda: MODEL_MAPPING[type(config)].from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        ),
        name,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise SightlineError(f"'{name}' lacks weights of its vision tower: {_first(info['missing_keys'])}.")
    image_processor = _found(lambda: AutoImageProcessor.from_pretrained(path, backend="pil"), name)
    side = {"height": spec.image_size, "width": spec.image_size}
    if image_fit == "pad":
        image_processor = LlavaImageProcessorPil(
            do_pad=True,
            size={"shortest_edge": spec.image_size},
            crop_size=side,
            resample=image_processor.resample,
            image_mean=image_processor.image_mean,
            image_std=image_processor.image_std,
            rescale_factor=image_processor.rescale_factor,
        )
    if output_size(image_processor) != (spec.image_size, spec.image_size):
        raise SightlineError(
            f"'{name}': its image processor gives {output_size(image_processor)} pixels and its tower takes "
            f"{spec.image_size}x{spec.image_size}. Use model.image_fit=pad, or mend preprocessor_config.json."
        )
    return tower, image_processor


def load_language_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in fp32 and its tokenizer."""
    path = resolve(name)
    lm, info = _found(
        lambda: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, output_loading_info=True),
        name,
    )
    if info["missing_keys"] or info["mismatched_keys"]:
        raise SightlineError(f"'{name}' lacks weights of its language model: {_first(info['missing_keys'])}.")
    return lm, _found(lambda: AutoTokenizer.from_pretrained(path), name)


def add_tokens(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Give the tokenizer `tokens` and a pad token where it lacks them; new embedding rows start at the mean of the old."""
    known = tokenizer.get_vocab()
    new = [token for token in tokens if token not in known]
    if new:
        tokenizer.add_special_tokens({"additional_special_tokens": new}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    rows = lm.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for table in {lm.get_input_embeddings(), lm.get_output_embeddings()}:
            with torch.no_grad():
                table.weight[rows:] = table.weight[:rows].mean(0)


def resolve(name: str) -> str:
    """Where a part is: the shipped folder for `world:...`, else the folder or hub id as it is.

    Raises:
        SightlineError: for an unknown `world:` part, or something that looks like a path and is not there.
    """
    if name.startswith("world:"):
        from ..world import backbone_path

        return str(backbone_path(name.removeprefix("world:")))
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not Path(name).expanduser().is_dir():
        raise SightlineError(
            f"no folder '{name}'. Give a local folder, a hub id, or world:clip and world:lm."
        )
    return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name


def _check_expressible(lm: PreTrainedModel, model: SightlineForConditionalGeneration, name: str) -> None:
    """Refuse a language model that does more than `lm_head(hidden)`: the trunk would train it on other logits."""
    head = lm.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise SightlineError(
            f"'{name}' has an output layer with a bias, which a LLaVA checkpoint cannot hold. Use another model."
        )
    ids = torch.arange(8).remainder(head.weight.shape[0]).unsqueeze(0)
    was_training = lm.training
    lm.eval()
    with torch.no_grad():
        theirs, ours = (
            lm(input_ids=ids).logits,
            head(model.model.language_model(input_ids=ids).last_hidden_state),
        )
    lm.train(was_training)
    if not torch.allclose(theirs, ours, atol=1e-4, rtol=1e-4):
        raise SightlineError(
            f"'{name}' changes its logits after the output layer (a soft cap or a scale), which LLaVA's shape leaves out: "
            "the model would be trained on other logits than it was made for. Use another language model."
        )


def _found(load, name: str):
    """`load()`, with what cannot be found or read said in one line."""
    try:
        with quiet():
            return load()
    except SightlineError:
        raise
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SightlineError(
            f"cannot load '{name}': {reason} Give a local folder or a hub id that can be reached."
        ) from None


def _first(names: Sequence[str] | set[str], most: int = 3) -> str:
    names = sorted(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
