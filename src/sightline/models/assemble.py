"""A vision-language model from its parts: any CLIP, SigLIP or DINOv2 tower, any causal language model, a connector."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..data.features import Features
from ..data.processor import Processor
from ..data.templates import IMAGE, Template
from ..data.view import Sight
from ..errors import SightlineError
from ..methods.compose import Methods, build_methods
from .backbones import ImageFit, LanguageModel, add_tokens, load_language_model, load_tower, location
from .configuration import SightlineConfig, stock_strategy
from .connectors import ConnectorName, build_connector, resolve_options
from .left import Left, go_on
from .modeling import SightlineForConditionalGeneration
from .scales import check_scales
from .towers import PatchSelect, tower_spec


@dataclass(frozen=True)
class Assembly:
    """A model with what it takes to feed it."""

    model: SightlineForConditionalGeneration
    tokenizer: Any
    image_processor: Any

    def to(self, device: torch.device | str) -> "Assembly":
        """The same, with the model on `device`."""
        nn.Module.to(self.model, device)
        return self

    @property
    def sight(self) -> Sight:
        """What the model is first shown of an image."""
        return Sight(self.image_processor, self.model.model.methods.views)

    def processor(
        self,
        template: Template,
        *,
        max_length: int = 2048,
        blank_images: bool = False,
        features: Features | None = None,
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
            features=features,
        )


def assemble(
    vision: str,
    language: str | LanguageModel,
    *,
    connector: ConnectorName = "mlp",
    shuffle_factor: int | None = None,
    pooled_grid: int | None = None,
    vision_layer: int | list[int] = -2,
    vision_select: PatchSelect = "patch",
    vision_scales: list[int] | None = None,
    image_fit: ImageFit = "pad",
    methods: Sequence[Mapping[str, Any]] = (),
) -> Assembly:
    """Put a tower, a fresh connector, methods and a language model together.

    The connector's and the methods' weights are drawn from torch's global generator: seed it first.

    Args:
        vision: a CLIP, SigLIP or DINOv2 checkpoint (a whole CLIP or SigLIP gives its tower).
        language: a causal language model with its tokenizer, or where they are.
        shuffle_factor: of `pixel_shuffle`, the patches along the side of a token; 2 by default.
        pooled_grid: of `pool`, the tokens along a side; by default half the tower's grid.
        vision_layer: which of the tower's hidden states to take (LLaVA: -2); a list concatenates them.
        vision_select: `patch` takes the grid of patches, `full` also the tokens before it.
        vision_scales: multiples of the tower's size at which it sees an image (S2), such as [1, 2, 3]; its patches are
            then as many times wider as there are scales.
        image_fit: how an image that is not square meets the tower: `pad` to a square as LLaVA-1.5's tuning does,
            `crop` as the tower's own processor does.

    Raises:
        SightlineError: for parts that cannot be found, or that LLaVA's shape cannot express.
    """
    scales = check_scales(vision_scales, vision_select)
    tower, image_processor = load_tower(vision, image_fit, scales)
    if isinstance(language, str):
        language = LanguageModel(language, *load_language_model(language))
    lm, tokenizer = language.model, language.tokenizer
    if lm.config.tie_word_embeddings and not hasattr(lm.base_model, "embed_tokens"):
        raise SightlineError(
            f"'{language.name}' ties its output layer to a table that is not called `embed_tokens`, and LLaVA finds "
            "none (GPT-2 and OPT do this). Use another language model."
        )
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
        vision_scales=scales,
        base={"vision": location(vision), "language": location(language.name)},
        **resolve_options(connector, spec, vision_select, shuffle_factor=shuffle_factor, pooled_grid=pooled_grid),
    )
    with torch.device("meta"):
        model = SightlineForConditionalGeneration(config)
    inner = model.model
    inner.vision_tower = tower
    inner.language_model = lm.base_model
    model.lm_head = lm.get_output_embeddings()
    inner.multi_modal_projector = build_connector(config)
    inner.methods = Methods()
    model.generation_config = lm.generation_config
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    _check_expressible(lm, model, language.name)
    assembly = Assembly(model, tokenizer, image_processor)
    attach_methods(assembly, methods)
    return assembly


def attach_methods(assembly: Assembly, records: Sequence[Mapping[str, Any]], left: Left | None = None) -> list[str]:
    """Give a model that has no methods those of a recipe, and the tokenizer the tokens of their slots.

    A model that has these methods keeps their weights, and takes the recipe's options. Those that serve training alone
    it need not have: they go on with what is left of them, or begin anew.

    Returns:
        What was left of parts that do not go on with it, each with the reason.

    Raises:
        SightlineError: if the model has other methods already, or theirs need weights that it does not have.
    """
    had = set(assembly.model.model.methods)
    _replace_methods(assembly, [dict(record) for record in records])
    methods = assembly.model.model.methods
    return go_on(methods, left or Left(), {method.name for method in methods.all} - had)


def _replace_methods(assembly: Assembly, wanted: list[dict[str, Any]]) -> None:
    model = assembly.model
    have = model.config.methods or []
    if have == wanted:
        return
    with torch.random.fork_rng(devices=(), enabled=bool(have)):  # nothing that is drawn stays
        methods = build_methods(wanted, model.model.sizes, model.config.prefix_tokens)
    if have:
        check_options(have, wanted, model.model.methods, methods)
        kept, own = model.model.methods.state_dict(), methods.state_dict()
        fits = {name: kept[name] for name, value in own.items() if name in kept and kept[name].shape == value.shape}
        methods.to(model.device).load_state_dict(own | fits, assign=True)
        methods.train(model.model.methods.training)
    slots = [slot.token for slot in methods.slots]  # those of the prefix are known already
    add_tokens(model, assembly.tokenizer, slots, methods.tokens)
    model.config.methods = wanted
    model.config.slot_token_ids = {token: assembly.tokenizer.convert_tokens_to_ids(token) for token in slots}
    model.model.methods = methods


def check_options(
    have: Sequence[Mapping[str, Any]], wanted: Sequence[Mapping[str, Any]], of_model: Methods, of_recipe: Methods
) -> None:
    """That a saved model can take a recipe's methods and options: they need no weights but those that it has. What
    serves training alone is saved with no model, and may begin anew.

    Raises:
        SightlineError: if they do, or the recipe lacks a method that the model was made with.
    """
    old, new = of_model.state_dict(), of_recipe.state_dict()
    needed = ((name, value) for name, value in new.items() if ".train_only." not in name)
    lacking = [name for name, value in needed if name not in old or old[name].shape != value.shape]
    names = {record["name"] for record in wanted}
    if all(record["name"] in names for record in have) and not lacking:
        return
    why = f", whose options need weights that it does not have ({lacking[0]})" if lacking else ""
    raise SightlineError(f"the model was made with methods {have} and the recipe lists {wanted}{why}. Make them agree.")


def _check_expressible(lm: Any, model: SightlineForConditionalGeneration, name: str) -> None:
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
        ours = head(model.model.language_model(input_ids=ids).last_hidden_state)
        # At 100 a soft cap shows, whatever the size of the weights (Gemma-2 caps at 30).
        scale = 100 / float(ours.abs().max().clamp(min=1e-6))
        hook = head.register_forward_hook(lambda _module, _inputs, logits: logits * scale)  # pyright: ignore
        theirs = lm(input_ids=ids).logits
        hook.remove()
    lm.train(was_training)
    if not torch.allclose(theirs, ours * scale, atol=1e-2, rtol=1e-3):
        raise SightlineError(
            f"'{name}' changes its logits after the output layer (a soft cap or a scale), which LLaVA leaves out: "
            "the model would be trained on other logits than it was made for. Use another language model."
        )
