"""The joint space of an image-text encoder: its patches and its words as unit vectors, so that cosines compare them.

CLIP and SigLIP train one vector of an image, not its patches. Three ways to take a patch there:

    last      The last hidden state of each patch goes the way of the pooled vector: post-norm, then CLIP's projection
              or SigLIP's pooling head with that patch as its only key. CLIP's cosines are said to be inverted here,
              and SEA negates them: the sign is to be measured for each encoder.
    value     MaskCLIP (Zhou et al., 2022): in the last block, attention gives each patch its own value. Its released
              code keeps the residual and the MLP in vision transformers, and so do we; others drop both.
    surgery   CLIP Surgery (Li et al., 2023): a second path adds the outputs of v-v attention (softmax(v v^T) v) of the
              later blocks to the state where they begin, without MLPs; these blocks read the first path. Theirs are
              the last 6 of 12 blocks; we take half of any tower's, at least one.

`patches` reads hidden states from before post-norm, with all tokens: from `states`, or from another copy of the same
tower run with `output_hidden_states`. All is computed in the type of the weights (float32), whatever autocast says.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel, SiglipModel

from ..errors import SightlineError
from ..progress import watched
from .backbones import check_complete, resolve
from .digest import config_facts, digest
from .hub import found, load_weights, reason
from .towers import tower_spec

Extractor = Literal["last", "value", "surgery"]

FAMILIES = {"clip": CLIPModel, "siglip": SiglipModel}
"""By `model_type`; SigLIP 2 of a fixed resolution is a `siglip`."""
LEGACY_EOS = 2
"""CLIP's end of text in old configs, OpenAI's among them: transformers then reads a text at its highest id."""


class JointEncoder(nn.Module):
    """The joint space of a CLIP or SigLIP: patches of its tower on one side, words on the other. Frozen."""

    layers: tuple[int, ...]
    """Which of the tower's hidden states `patches` reads; 0 is what the first block reads."""
    grid: int
    """Patches along a side."""
    image_size: int
    """Pixels along a side."""
    d_joint: int

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, extractor: Extractor = "last") -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.extractor: Extractor = extractor
        self.is_clip = isinstance(model, CLIPModel)
        self.spec = tower_spec(model.config.vision_config)
        self.grid, self.image_size = self.spec.grid, self.spec.image_size
        self.d_joint = model.config.projection_dim if self.is_clip else self.spec.width
        depth = len(model.vision_model.encoder.layers)
        later = tuple(range(depth - max(1, depth // 2), depth))
        self.layers = {"last": (depth,), "value": (depth - 1,), "surgery": later}[extractor]
        self.eval()

    def train(self, mode: bool = True) -> "JointEncoder":
        """It is never in training mode, whatever it is a part of."""
        return super().train(False)

    @torch.no_grad()
    def states(
        self, pixels: Float[Tensor, "views 3 height width"]
    ) -> dict[int, Float[Tensor, "views tokens d_vision"]]:
        """The hidden states in `layers` of its own tower, all tokens kept."""
        if not len(pixels):  # towers cannot take an empty batch
            empty = pixels.new_zeros(0, self.grid**2 + self.spec.prefix, self.spec.width)
            return dict.fromkeys(self.layers, empty)
        pixels = pixels.to(self.model.dtype)
        with torch.autocast(pixels.device.type, enabled=False):
            hidden = self.model.vision_model(pixels, output_hidden_states=list(self.layers)).hidden_states
        return {layer: hidden[layer] for layer in self.layers}

    @torch.no_grad()
    def patches(self, states: Mapping[int, Tensor]) -> Float[Tensor, "views patches d_joint"]:
        """Patches in the joint space, in reading order, of unit length, from the hidden states in `layers`."""
        read = {layer: states[layer].to(self.model.dtype) for layer in self.layers}
        hidden, blocks = read[self.layers[0]], self.model.vision_model.encoder.layers
        tokens = self.grid**2 + self.spec.prefix
        assert hidden.shape[1] == tokens, f"{hidden.shape[1]} tokens of a view; its tower gives {tokens}, all kept"
        with torch.autocast(hidden.device.type, enabled=False):
            if self.extractor == "value":
                hidden = value_block(blocks[-1], hidden)
            elif self.extractor == "surgery":
                hidden = surgery_path(blocks, read)
            return F.normalize(self.head(hidden[:, self.spec.prefix :]), dim=-1)

    @torch.no_grad()
    def head(self, hidden: Float[Tensor, "views tokens d_vision"]) -> Float[Tensor, "views tokens d_joint"]:
        """Each token by itself through post-norm and what follows it; of CLIP's class token, the image's vector."""
        hidden = self.model.vision_model.post_layernorm(hidden)
        return self.model.visual_projection(hidden) if self.is_clip else pool_each(self.model.vision_model.head, hidden)

    @torch.no_grad()
    def words(
        self,
        words: Sequence[str],
        *,
        templates: Sequence[str] = ("{}",),
        batch_size: int = 256,
        progress: bool = False,
    ) -> Float[Tensor, "words d_joint"]:
        """Words, or any short texts, of unit length; those too long for the text side are cut.

        Args:
            templates: texts with `{}` where the word goes. Of several, the mean of unit vectors, made unit again.
            progress: show a bar if it takes longer than two seconds.
        """
        if not templates or not all("{}" in template for template in templates):
            raise SightlineError(f"templates {list(templates)}: each needs a '{{}}', where the word goes. Add it.")
        parts = [torch.empty(0, self.d_joint, dtype=self.model.dtype, device=self.model.device)]
        for some in watched(list(words), "words", batch_size=batch_size, progress=progress):
            each = [self._texts([template.replace("{}", word) for word in some]) for template in templates]
            parts.append(each[0] if len(each) == 1 else F.normalize(torch.stack(each).mean(0), dim=-1))
        return torch.cat(parts)

    def _texts(self, texts: list[str]) -> Float[Tensor, "texts d_joint"]:
        """As in training: CLIP reads up to the end of a text; SigLIP reads lower case, and its padding too."""
        if not self.is_clip:
            texts = [text.lower() for text in texts]
        inputs = self.tokenizer(
            texts,
            padding=True if self.is_clip else "max_length",
            padding_side="right",
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        ids = inputs["input_ids"].to(self.model.device)
        mask = inputs["attention_mask"].to(self.model.device) if self.is_clip else None
        with torch.autocast(ids.device.type, enabled=False):
            return F.normalize(self.model.get_text_features(ids, attention_mask=mask).pooler_output, dim=-1)

    def facts(self) -> dict[str, Any]:
        """What patches and words depend on, beside pixels and texts. As JSON would give it back.

        `tower` is the digest of the vision tower, equal to that of the same tower loaded alone in fp32, and `beside`
        that of all other weights: the text side, and CLIP's projections.
        """
        tower, others = self.model.vision_model, sorted(self.model.named_parameters())
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        return {
            "extractor": self.extractor,
            "layers": list(self.layers),
            "tower": digest(sorted(tower.named_parameters())),
            "beside": digest((name, weight) for name, weight in others if not name.startswith("vision_model.")),
            "vision": config_facts(self.model.config.vision_config),
            "text": config_facts(self.model.config.text_config),
            "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
        }


def load_joint(name: str, extractor: Extractor = "last") -> JointEncoder:
    """The joint space of a folder, a hub id or `world:clip`: in fp32, with its tokenizer and Pillow's image processor.

    Raises:
        SightlineError: if it cannot be found, is no whole CLIP or SigLIP, or its tokenizer does not fit its text side.
    """
    path = resolve(name)
    config: Any = found(lambda: AutoConfig.from_pretrained(path), name)
    kind = config.model_type
    if kind not in FAMILIES:
        raise SightlineError(
            f"'{name}' is of type '{kind}', without a joint space of patches and words, so no word can be compared "
            f"with its patches. Give a whole CLIP or SigLIP (types {', '.join(FAMILIES)})."
        )
    if kind == "siglip" and not config.vision_config.vision_use_head:
        raise SightlineError(f"'{name}' has no pooling head, which takes patches to its words. Give another SigLIP.")
    model, info = found(lambda: load_weights(FAMILIES[kind], path), name)
    check_complete(name, info, "image-text encoder")
    try:
        tokenizer: Any = found(lambda: AutoTokenizer.from_pretrained(path), name)
    except ImportError as error:
        raise SightlineError(
            f"'{name}': {reason(error).split('. ')[0]}, so its words cannot be read. Run: pip install sentencepiece"
        ) from None
    check_tokenizer(name, tokenizer, config.text_config, pools_at_end=kind == "clip")
    image_processor: Any = found(lambda: AutoImageProcessor.from_pretrained(path, backend="pil"), name)
    return JointEncoder(model, tokenizer, image_processor, extractor)


def check_tokenizer(name: str, tokenizer: Any, config: Any, *, pools_at_end: bool) -> None:
    """Refuse a tokenizer whose ids the text side has no rows for, or (CLIP) that ends no text where that side looks."""
    ids = tokenizer("a").input_ids
    end = max(ids, default=None) if config.eos_token_id == LEGACY_EOS else config.eos_token_id
    trouble = None
    if len(tokenizer) > config.vocab_size:
        trouble = f"has {len(tokenizer)} tokens for the {config.vocab_size} rows of its text side"
    elif tokenizer.pad_token is None:
        trouble = "has no padding token"
    elif pools_at_end and (not ids or ids[-1] != end):
        trouble = f"does not end a text with id {end}, at which its text side is read"
    if trouble:
        raise SightlineError(
            f"'{name}': its tokenizer {trouble}, so the vectors of words would mean nothing. Give the folder the "
            "tokenizer that the encoder was trained with."
        )


def value_block(block: Any, hidden: Float[Tensor, "views tokens d_vision"]) -> Float[Tensor, "views tokens d_vision"]:
    """A transformer block in which each token attends to itself alone (MaskCLIP)."""
    attention = block.self_attn
    hidden = hidden + attention.out_proj(attention.v_proj(block.layer_norm1(hidden)))
    return hidden + block.mlp(block.layer_norm2(hidden))


def surgery_path(blocks: Any, states: Mapping[int, Tensor]) -> Float[Tensor, "views tokens d_vision"]:
    """The first of `states`, and added to it the v-v attention of each block that reads one (CLIP Surgery)."""
    path = states[min(states)]
    for layer, state in states.items():
        attention = blocks[layer].self_attn
        values = attention.v_proj(blocks[layer].layer_norm1(state))
        values = values.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(values, values, values, scale=attention.scale)
        path = path + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return path


def pool_each(head: Any, hidden: Float[Tensor, "views tokens d_vision"]) -> Float[Tensor, "views tokens d_vision"]:
    """SigLIP's pooling head on each token alone: with one key the softmax is 1, and the probe plays no part."""
    attention, width = head.attention, hidden.shape[-1]
    values = F.linear(hidden, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
    pooled = attention.out_proj(values)
    return pooled + head.mlp(head.layernorm(pooled))
