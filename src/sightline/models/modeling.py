"""The model, in the order of LLaVA's figure: encode, connect, splice, decode.

    pixels -> patches -> visual -> embeds -> hidden -> logits

It is transformers' LLaVA with one thing added: after each arrow, the methods of alignment may edit what came out. The
model never changes labels, masks or positions. The processor has laid out every placeholder; the model writes the
visual tokens into them once, and checks the counts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, Cache, LlavaForConditionalGeneration
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llava.modeling_llava import (
    LlavaCausalLMOutputWithPast,
    LlavaModel,
    LlavaPreTrainedModel,
)

from ..errors import SightlineError
from ..methods.base import Sizes
from ..methods.compose import build_methods
from ..types import ANSWER, IGNORE, PAD, PROMPT, VISUAL, Batch, Trace
from .configuration import SightlineConfig
from .connectors import build_connector, connector_width
from .packing import packs_into_one, plan
from .scales import from_tiles, to_tiles


class SightlineModel(LlavaModel):
    """Tower, connector, language model and methods; everything but the head."""

    config: SightlineConfig

    def __init__(self, config: SightlineConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_connector(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.methods = build_methods(config.methods or [], self.sizes, config.prefix_tokens)
        self.checkpoint_decoder = False
        """Whether decoder layers compute their activations again in the backward pass instead of keeping them."""
        self.post_init()

    @property
    def sizes(self) -> Sizes:
        """The sizes that methods build their modules from."""
        patches = self.config.tower.num_patches(self.config.vision_select)
        return Sizes(
            d_vision=connector_width(self.config),
            d_llm=self.config.llm.hidden_size,
            patches=patches,
            tokens=self.multi_modal_projector.num_tokens(patches),
        )

    def trace(
        self, batch: Batch, *, past_key_values: Cache | None = None, packing: bool = False, **decoder
    ) -> tuple[Trace, Cache | None]:
        """The forward pass from pixels to hidden states, with everything it saw on its way. Where the batch brings what
        the tower gives, the tower is not run."""
        states: dict[int, Tensor] = {}
        kept: dict[str, Tensor] = {}
        edit = partial(self.methods.edit, kept=kept)
        patches = batch.patches if len(batch.patches) else self.encode(batch.pixel_values, states)
        patches = edit("patches", patches, batch)
        visual = edit("visual", self.connect(patches), batch)
        embeds = edit("embeds", self.splice(batch, visual), batch)
        if packing:
            hidden, cache = self.decode_packed(embeds, batch.attention_mask), None
        else:
            hidden, cache = self.decode(embeds, batch.attention_mask, past_key_values=past_key_values, **decoder)
        hidden = edit("hidden", hidden, batch)
        trace = Trace(patches=patches, visual=visual, embeds=embeds, hidden=hidden, tower_states=states, kept=kept)
        return trace, cache

    def encode(
        self, pixel_values: Float[Tensor, "sum_views 3 height width"], kept: dict[int, Tensor] | None = None
    ) -> Float[Tensor, "sum_views patches d_vision"]:
        """Patches of every view, from the layers, the tokens and the scales that the config selects.

        Args:
            kept: where to put the hidden states that methods read.
        """
        layers = self.config.vision_feature_layer
        layers = [layers] if isinstance(layers, int) else list(layers)
        tower_trains = any(p.requires_grad for p in self.vision_tower.parameters())
        if not len(pixel_values) and not tower_trains:
            return pixel_values.new_zeros(0, self.sizes.patches, self.sizes.d_vision)
        # Towers cannot take an empty batch. One grey view keeps a training tower in the graph, with zero gradients.
        views = pixel_values if len(pixel_values) else pixel_values.new_zeros(1, *pixel_values.shape[1:])
        tower, scales = self.config.tower, self.config.vision_scales
        tiles = views if scales is None else to_tiles(views, scales, tower.image_size)
        with torch.set_grad_enabled(tower_trains and torch.is_grad_enabled()):
            also = self.methods.tower_states if kept is not None else ()
            states = self.vision_tower(tiles, output_hidden_states=[*layers, *also]).hidden_states
        if kept is not None:
            kept.update({layer: states[layer][: len(pixel_values)] for layer in also})
        drop = tower.prefix if self.config.vision_select == "patch" else 0
        patches = torch.cat([states[layer][:, drop:] for layer in layers], dim=-1)
        return (patches if scales is None else from_tiles(patches, scales))[: len(pixel_values)]

    def connect(self, patches: Float[Tensor, "views patches d_vision"]) -> Float[Tensor, "sum_tokens d_llm"]:
        """Visual tokens in the language model's space, packed."""
        return self.multi_modal_projector(patches).flatten(0, 1)

    def splice(self, batch: Batch, visual: Float[Tensor, "sum_tokens d_llm"]) -> Float[Tensor, "batch seq d_llm"]:
        """Token embeddings with the visual tokens in their placeholders: one masked write.

        Raises:
            SightlineError: if placeholders and visual tokens disagree, naming the rows.
        """
        embeds = self.get_input_embeddings()(batch.input_ids)
        places = batch.input_ids == self.config.image_token_id
        if int(places.sum()) != len(visual):
            raise SightlineError(
                f"{len(visual)} visual tokens for {int(places.sum())} placeholders in samples {', '.join(batch.ids)}: "
                f"the connector emits {self.sizes.tokens} for each view. Use this model's own processor."
            )
        return embeds.masked_scatter(places.unsqueeze(-1), visual.to(embeds.dtype))

    def decode(
        self, embeds: Float[Tensor, "batch seq d_llm"], attention_mask: Tensor | None, **decoder
    ) -> tuple[Float[Tensor, "batch seq d_llm"], Cache | None]:
        """The language model's last hidden states, and its cache. Those of padding mean nothing.

        Without a cache and with the padding on the right, causal attention alone keeps padding out of every real token,
        and goes without a mask: faster, and in less memory.
        """
        without_cache = decoder.get("use_cache") is False and decoder.get("past_key_values") is None
        if without_cache and attention_mask is not None and attention_mask.ndim == 2:
            padded_on_the_right = bool((attention_mask.diff(dim=1) <= 0).all())
            attention_mask = None if padded_on_the_right else attention_mask
        with checkpointed(self.language_model, self.checkpoint_decoder and torch.is_grad_enabled()):
            out = self.language_model(inputs_embeds=embeds, attention_mask=attention_mask, **decoder)
        return out.last_hidden_state, out.past_key_values

    def decode_packed(
        self, embeds: Float[Tensor, "batch seq d_llm"], attention_mask: Int[Tensor, "batch seq"]
    ) -> Float[Tensor, "batch seq d_llm"]:
        """The same hidden states from rows packed side by side, for training; zeros in the padding."""
        packing = plan(attention_mask, embeds.shape[2], one_sequence=packs_into_one(self.language_model))
        hidden, _ = self.decode(packing.pack(embeds), None, position_ids=packing.position_ids, use_cache=False)
        return packing.unpack(hidden, attention_mask.shape)


@contextmanager
def checkpointed(decoder: nn.Module, enabled: bool) -> Iterator[None]:
    """Have a decoder's layers keep their inputs alone for the backward pass, inside the block.

    transformers checkpoints layers that are in training mode, and a frozen decoder is not, for its dropout's sake. The
    mode is therefore lent to the layers themselves, not to what is in them: dropout stays as it is. Without gradients
    (validation, generation) nothing is kept in any case, and callers leave it disabled.
    """
    layers = [module for module in decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not enabled:
        layers = []
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.training = layer.gradient_checkpointing = True
        layer.__dict__["_gradient_checkpointing_func"] = partial(checkpoint, use_reentrant=False)
    try:
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training, layer.gradient_checkpointing = mode, False


class SightlineForConditionalGeneration(LlavaForConditionalGeneration):
    """The trunk with its head: trains, generates, and saves the way transformers' models do."""

    config: SightlineConfig
    config_class = SightlineConfig

    def __init__(self, config: SightlineConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = SightlineModel(config)
        self.lm_head = nn.Linear(config.llm.hidden_size, config.llm.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"] | None = None,
        pixel_values: Float[Tensor, "sum_views 3 height width"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "batch seq"] | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        view_counts: Int[Tensor, " num_images"] | None = None,
        image_sizes: Int[Tensor, "num_images 2"] | None = None,
        kinds: Int[Tensor, "batch prompt"] | None = None,
        turn_ids: Int[Tensor, "batch prompt"] | None = None,
        prompt_mask: Tensor | None = None,
        labels: Int[Tensor, "batch seq"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs,
    ) -> LlavaCausalLMOutputWithPast:
        """transformers' call. A prefill runs the whole flow; later steps of generation run the language model alone."""
        decoder = {"position_ids": position_ids, "use_cache": use_cache}
        visual = None
        cached = past_key_values is not None and past_key_values.get_seq_length() > 0
        if cached and pixel_values is not None:
            raise SightlineError("images came after the prefill; the cache was built without them. Start a new cache.")
        if input_ids is None and pixel_values is not None:
            raise SightlineError("images came with inputs_embeds, which show no placeholders. Give input_ids instead.")
        if input_ids is not None and not cached:
            batch = self.prefill_batch(
                input_ids,
                attention_mask,
                pixel_values,
                view_counts,
                image_sizes,
                kinds=kinds,
                turn_ids=turn_ids,
                prompt_mask=prompt_mask,
            )
            trace, cache = self.model.trace(batch, past_key_values=past_key_values, **decoder)
            hidden, visual = trace.hidden, trace.visual
        else:
            embeds = inputs_embeds if inputs_embeds is not None else self.get_input_embeddings()(input_ids)
            hidden, cache = self.model.decode(embeds, attention_mask, past_key_values=past_key_values, **decoder)

        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(hidden[:, keep])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.llm.vocab_size)
        return LlavaCausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache, image_hidden_states=visual)

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **inputs,
    ):
        """Beams repeat rows. The images of a row are repeated together; transformers would repeat them one by one."""
        pixels, views, sizes = (inputs.pop(name, None) for name in ("pixel_values", "view_counts", "image_sizes"))
        if expand_size > 1 and pixels is not None and input_ids is not None:
            batch = self.prefill_batch(input_ids, inputs.get("attention_mask"), pixels, views, sizes)
            rows = torch.arange(batch.num_images).split(batch.image_counts.tolist())
            order = torch.cat([row.repeat(expand_size) for row in rows])
            images = pixels.split(batch.view_counts.tolist())
            pixels = torch.cat([images[image] for image in order])
            views, sizes = batch.view_counts[order], batch.image_sizes[order]
        expand = super()._expand_inputs_for_generation  # pyright: ignore
        input_ids, inputs = expand(expand_size, is_encoder_decoder, input_ids, **inputs)
        given = {"pixel_values": pixels, "view_counts": views, "image_sizes": sizes}
        return input_ids, inputs | {name: value for name, value in given.items() if value is not None}

    def prefill_batch(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        pixel_values: Tensor | None,
        view_counts: Tensor | None,
        image_sizes: Tensor | None = None,
        **known: Tensor | None,
    ) -> Batch:
        """What a caller of `generate` gave, as the `Batch` that methods read; what it left out is derived."""
        places = input_ids == self.config.image_token_id
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if pixel_values is None:
            side = self.config.pixels_side
            pixel_values = torch.zeros(0, 3, side, side, dtype=self.dtype, device=input_ids.device)
        if view_counts is None:
            view_counts = torch.ones(len(pixel_values), dtype=torch.long, device=input_ids.device)
        derived = torch.full_like(input_ids, PROMPT).masked_fill(places, VISUAL).masked_fill(attention_mask == 0, PAD)
        for slot in self.model.methods.slots:
            token_id = (self.config.slot_token_ids or {})[slot.token]
            at = input_ids == token_id
            if bool((places.any(1) & ~at.any(1)).any()):
                raise SightlineError(
                    f"a row has an image and lacks the token {slot.token}, which this model was trained with. Use this "
                    "model's own processor."
                )
            derived[at] = self.model.methods.kinds.index(slot.kind)
        views, side = self.model.methods.views, self.config.pixels_side
        if image_sizes is None:
            image_sizes = view_counts.new_full((len(view_counts), 2), side)
            if any(count != views.count((side, side), side) for count in view_counts.tolist()):
                raise SightlineError(
                    "images came as several views without `image_sizes`, from which their tokens are counted. Use this "
                    "model's own processor."
                )
        expected = [views.count((width, height), side) for height, width in image_sizes.tolist()]
        if expected != view_counts.tolist() or sum(expected) != len(pixel_values):
            raise SightlineError(
                f"images of {image_sizes.tolist()} (height, width) have {expected} views here, and "
                f"{view_counts.tolist()} came, in {len(pixel_values)} `pixel_values`. Use this model's own processor."
            )
        tokens = [
            views.tokens((width, height), side, self.model.sizes.tokens) for height, width in image_sizes.tolist()
        ]
        visual_counts = torch.tensor(tokens, dtype=torch.long, device=input_ids.device)
        kinds = _grown(known.get("kinds"), derived, ANSWER)
        return Batch(
            ids=tuple(f"prompt {i}" for i in range(len(input_ids))),
            input_ids=input_ids,
            attention_mask=attention_mask,
            labels=torch.full_like(input_ids, IGNORE),
            kinds=kinds,
            turn_ids=_grown(known.get("turn_ids"), torch.zeros_like(input_ids), 0),
            prompt_mask=_grown(known.get("prompt_mask"), kinds == PROMPT, False),
            pixel_values=pixel_values,
            view_counts=view_counts,
            visual_counts=visual_counts,
            image_sizes=image_sizes,
            image_counts=images_per_row(places.sum(1), visual_counts),
        )


AutoConfig.register("sightline", SightlineConfig, exist_ok=True)
AutoModelForImageTextToText.register(SightlineConfig, SightlineForConditionalGeneration, exist_ok=True)


def images_per_row(places: Int[Tensor, " batch"], visual_counts: Int[Tensor, " num_images"]) -> Int[Tensor, " batch"]:
    """How many images each row has, from its placeholders and the lengths of the images in order."""
    ends = visual_counts.cumsum(0)
    upto = torch.searchsorted(ends, places.cumsum(0), right=True)
    return upto.diff(prepend=upto.new_zeros(1))


def _grown(given: Tensor | None, derived: Tensor, value: int) -> Tensor:
    """What the caller gave for the prompt, `value` for what was generated since (without a cache), else `derived`."""
    if given is None:
        return derived
    return F.pad(given, (0, derived.shape[1] - given.shape[1]), value=value)
