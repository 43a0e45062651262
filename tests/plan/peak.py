"""The most bytes that tensors hold at once, seen from below every operation; and a model large enough to tell."""

import weakref
from functools import partial

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint
from transformers import CLIPVisionConfig, LlamaConfig

from sightline.models.configuration import SightlineConfig
from sightline.models.modeling import SightlineForConditionalGeneration
from sightline.types import ANSWER, IGNORE, PROMPT, VISUAL, Batch

VOCABULARY, SIDE, TOKENS = 2000, 56, 16


class Peak(TorchDispatchMode):
    """Counts the storages that live; `held` are those that are there before."""

    def __init__(self, *held: Tensor) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0
        for tensor in held:
            self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self.drop, key)

    def drop(self, key: int) -> None:
        self.now -= self.sizes.pop(key)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        self.peak = max(self.peak, self.now)
        return out


def build(scales: list[int] | None = None) -> SightlineForConditionalGeneration:
    """A model of 2M parameters, wide enough that what is not counted does not show."""
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=14,
        projection_dim=64,
    )
    language = LlamaConfig(
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=6,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        attn_implementation="sdpa",
    )
    torch.manual_seed(0)
    return SightlineForConditionalGeneration(
        SightlineConfig(
            vision_config=vision,
            text_config=language,
            vision_feature_layer=-2,
            vision_scales=scales,
            tie_word_embeddings=False,
            image_token_index=VOCABULARY - 1,
        )
    )


def make_rows(rows: int, length: int, supervised: int, scale: int = 1) -> Batch:
    """Rows of an image, so many times the tower's size, and random text, the last `supervised` tokens with labels."""
    ids = torch.randint(10, VOCABULARY - 10, (rows, length))
    ids[:, 1 : 1 + TOKENS] = VOCABULARY - 1
    labels = torch.full_like(ids, IGNORE)
    labels[:, -supervised:] = ids[:, -supervised:]
    kinds = torch.full_like(ids, PROMPT).masked_fill(ids == VOCABULARY - 1, VISUAL)
    kinds = kinds.masked_fill(labels != IGNORE, ANSWER)
    one = torch.ones(rows, dtype=torch.long)
    return Batch(
        ids=tuple(map(str, range(rows))),
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        labels=labels,
        kinds=kinds,
        turn_ids=torch.zeros_like(ids),
        prompt_mask=kinds == PROMPT,
        pixel_values=torch.rand(rows, 3, scale * SIDE, scale * SIDE),
        view_counts=one,
        visual_counts=one * TOKENS,
        image_sizes=torch.full((rows, 2), SIDE),
        image_counts=one,
    )


def checkpoint_decoder(model: SightlineForConditionalGeneration) -> None:
    """Have the decoder's layers compute their activations again."""
    for layer in model.model.language_model.layers:
        layer.training = layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
