"""Builds the world's CLIPs: standard `CLIPModel`s, trained on pictures and captions of the `train` split.

Contrast of pictures with captions alone teaches colour and background and leaves shape out. What makes the difference
was measured in trials: cells with one item and short captions, first most of the steps and later fewer; a term for
each content word, whose own text feature must be near the patches that answer to it best; captions with one attribute
wrong; and cells without colour, so that a shape is known in colours it was never seen in. `CONTRAST_ONLY` does without
all of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from .cards import Build, finish, load
from .clip_data import MEAN, STD, ClipBatch, Kind, clip_batch
from .draw import SIDE
from .tokenizer import BOS_ID, EOS_ID, PAD_ID, build_tokenizer
from .training import Descent, Progress, descend, ends_with_its_parent, one_thread

MAX_TEXT = 80
BOX = 4
"""Pillow's number for the filter that averages: a high view becomes the low view exactly."""


@dataclass(frozen=True)
class ClipRecipe:
    """How a CLIP is built."""

    steps: int = 8000
    seed: int = 0
    width: int = 128
    layers: int = 6
    """Of the vision tower: LLaVA reads the layer before the last, which must know letters already."""
    patch: int = 16
    early: dict[Kind, float] = field(
        default_factory=lambda: {"cell": 0.5, "fine cell": 0.25, "grey cell": 0.15, "picture": 0.05, "quarter": 0.05}
    )
    """Share of the steps that see each kind of batch, before `early_until`."""
    late: dict[Kind, float] = field(
        default_factory=lambda: {"cell": 0.09, "fine cell": 0.08, "grey cell": 0.08, "picture": 0.55, "quarter": 0.2}
    )
    early_until: float = 0.4
    """Fraction of the steps."""
    crops: int = 160
    """Cells in a batch."""
    pictures: int = 64
    """Pictures, or quarters, in a batch."""
    shorten: float = 0.5
    """Share of the captions of pictures that name only some things."""
    wrong: int = 3
    """Captions beside each picture's own that have one attribute wrong."""
    word_term: bool = True
    """Whether content words by themselves are compared with patches."""
    best_patches: int = 4
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100


CONTRAST_ONLY = ClipRecipe(
    steps=5000, early={"picture": 1.0}, late={"picture": 1.0}, shorten=0.0, wrong=0, word_term=False
)
"""Pictures and their captions, InfoNCE, and nothing else but that a true caption is never pushed away."""
CELLS = (
    "cells of single items (squares of 2 x 2 patches at their place) and quarters of the high view, with what is in "
    "them; which of a cell's patches shows what is not told"
)


def clip_config(tokenizer: PreTrainedTokenizerFast, recipe: ClipRecipe) -> CLIPConfig:
    """A tower as the recipe has it, and a text tower of 2 layers of width 96."""
    return CLIPConfig(
        vision_config={
            "hidden_size": recipe.width,
            "intermediate_size": 4 * recipe.width,
            "num_hidden_layers": recipe.layers,
            "num_attention_heads": recipe.width // 32,
            "image_size": SIDE["low"],
            "patch_size": recipe.patch,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "max_position_embeddings": MAX_TEXT,
            "bos_token_id": BOS_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
        },
        projection_dim=96,
    )


def clip_processor(tokenizer: PreTrainedTokenizerFast) -> CLIPProcessor:
    """Pillow's image processor, so that pixels are the same on every machine, and the tokenizer."""
    side = SIDE["low"]
    images = CLIPImageProcessorPil(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        resample=BOX,
        image_mean=[MEAN] * 3,
        image_std=[STD] * 3,
    )
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def patch_size(model: CLIPModel) -> int:
    """Width of a patch in pixels."""
    size = model.vision_model.embeddings.patch_size
    assert isinstance(size, int)
    return size


def encode_pixels(
    model: CLIPModel, pixels: Float[Tensor, "batch 3 height width"], positions: Int[Tensor, " tokens"]
) -> tuple[Float[Tensor, "batch d_joint"], Float[Tensor, "batch patches d_joint"]]:
    """Image and patch features in the joint space, of unit length.

    Pictures and crops alike: `positions` says where the patches stand, and for whole pictures the first result is what
    `CLIPModel.get_image_features` gives. Patches go the way of the class token (post_layernorm, visual_projection).
    """
    tower = model.vision_model
    patches = tower.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
    first = tower.embeddings.class_embedding.expand(len(pixels), 1, -1)
    embeds = torch.cat([first, patches], dim=1) + tower.embeddings.position_embedding(positions)
    hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(embeds)).last_hidden_state
    joint = F.normalize(model.visual_projection(tower.post_layernorm(hidden)), dim=-1)
    return joint[:, 0], joint[:, 1:]


def encode_texts(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, texts: tuple[str, ...]
) -> Float[Tensor, "texts d_joint"]:
    """Text features in the joint space, of unit length."""
    tokens = tokenizer(list(texts), padding=True, return_tensors="pt")
    pooled = model.text_model(**tokens).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def contrast_loss(logits: Float[Tensor, "batch texts"], batch: ClipBatch) -> Float[Tensor, ""]:
    """InfoNCE in both directions; a picture's sum leaves out what is true of it without being its own caption."""
    size = len(logits)
    own = torch.zeros_like(batch.true)
    own[:, :size] = torch.eye(size, dtype=torch.bool)
    logits = logits.masked_fill(batch.true & ~own, -torch.inf)
    target = torch.arange(size)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :size].T, target)) / 2


def word_loss(
    similarity: Float[Tensor, "batch patches words"], batch: ClipBatch, best_patches: int
) -> Float[Tensor, ""]:
    """Each word that a picture shows against all that it does not, by the mean over its best patches."""
    best = similarity.topk(min(best_patches, similarity.shape[1]), dim=1).values.mean(dim=1)
    absent = best.masked_fill(~batch.absent, -torch.inf).logsumexp(dim=1, keepdim=True)
    return F.softplus(absent - best)[batch.present].mean()


def clip_loss(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, batch: ClipBatch, recipe: ClipRecipe
) -> Float[Tensor, ""]:
    """Contrast of pictures with captions, and of words with patches."""
    images, dense = encode_pixels(model, batch.pixels, batch.positions)
    scale = model.logit_scale.exp().clamp(max=100.0)
    loss = contrast_loss(scale * images @ encode_texts(model, tokenizer, batch.texts).T, batch)
    if recipe.word_term:
        words = encode_texts(model, tokenizer, batch.words)
        loss = loss + word_loss(scale * dense @ words.T, batch, recipe.best_patches)
    return loss


@dataclass(frozen=True)
class Steps(Dataset[ClipBatch]):
    """The batch of each step, a pure function of its number."""

    recipe: ClipRecipe

    def __getitem__(self, step: int) -> ClipBatch:
        recipe = self.recipe
        rng = np.random.Generator(np.random.Philox(key=[recipe.seed, 1], counter=[0, 0, 0, step]))
        shares = recipe.early if step < recipe.early_until * recipe.steps else recipe.late
        kinds, weights = list(shares), np.array(list(shares.values()))
        kind = kinds[int(np.searchsorted(weights.cumsum() / weights.sum(), rng.random(), side="right"))]
        size = recipe.crops if kind.endswith("cell") else recipe.pictures
        return clip_batch(
            kind, size, rng, seed=recipe.seed, patch=recipe.patch, shorten=recipe.shorten, wrong=recipe.wrong
        )

    def ahead(self, start: int) -> Iterator[ClipBatch]:
        """The batches from a step on, drawn by another process while this one trains."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(start, self.recipe.steps),
            num_workers=1,
            prefetch_factor=8,
            multiprocessing_context="fork",
            worker_init_fn=ends_with_its_parent,
        )
        return iter(loader)


def build_clip(
    out: Path, recipe: ClipRecipe | None = None, progress: Progress | None = None, *, measured: int = 300
) -> None:
    """Train a CLIP, save it to the folder `out`, measure what was saved, and write its card.

    A build that was stopped goes on when it is run again.

    Args:
        measured: pictures of `validation` and of `novel` that the card's numbers are taken on.

    Raises:
        SightlineError: if `out` holds files already, or a build of other settings is under way there.
    """
    from .measure_clip import measure_clip

    recipe = recipe or ClipRecipe()
    build = Build(out, recipe)
    tokenizer = build_tokenizer(append_eos=True, max_length=MAX_TEXT)
    batches: Iterator[ClipBatch] = iter(())

    def loss_of(step: int) -> Tensor:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = Steps(recipe).ahead(step)
            batch = next(batches)
        return clip_loss(model, tokenizer, batch, recipe)

    with one_thread(recipe.seed):
        model = CLIPModel(clip_config(tokenizer, recipe))
        seconds = descend(
            model,
            loss_of,
            Descent.cosine(recipe),
            state=build.state,
            recipe=recipe,
            progress=progress,
        )
        plain = not recipe.word_term and not recipe.wrong
        finish(
            build,
            "clip-contrast" if plain else "clip",
            model,
            clip_processor(tokenizer),
            measure=lambda folder, split: measure_clip(
                load(CLIPModel, folder), tokenizer, split=split, pictures=measured
            ),
            seconds=seconds,
            data="pictures and captions of the world's train split; which captions of a batch are true of which "
            "pictures is used, so that no true one is pushed away"
            + ("; nothing about places" if plain else f"; {CELLS}"),
            objective="InfoNCE"
            + ("" if plain else ", a term for each content word, captions with one attribute wrong"),
        )
