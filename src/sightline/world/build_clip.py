"""Builds the world's CLIP: a standard `CLIPModel`, trained on pictures and captions of the `train` split.

Contrast of pictures with captions alone teaches colour and background and leaves shape out. Three
additions, each measured in trials to be needed: crops of single things with short captions, first most of the steps and
later fewer; a term for each content word, whose own text feature must be near the four patches that answer to it best;
and captions with one word wrong.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from ..files import claim_empty
from .cards import Scores, save_backbone, write_card
from .clip_data import MEAN, STD, WORDS, ClipBatch, crop_batch, draw_scenes, picture_batch
from .scene import Geometry, Split
from .tokenizer import BOS_ID, EOS_ID, PAD_ID, build_tokenizer
from .training import Progress, descend, one_thread, run

MAX_TEXT = 48
"""Tokens; the longest caption has 30."""


@dataclass(frozen=True)
class ClipRecipe:
    """How the CLIP is built."""

    steps: int = 3000
    seed: int = 0
    scenes: int = 12_000
    """Training pictures, drawn once."""
    picture_batch: int = 64
    crop_batch: int = 160
    crop_share: tuple[float, float] = (0.9, 0.3)
    """Share of the steps that see crops, before and after `crop_until`."""
    crop_until: float = 0.45
    """Fraction of the steps."""
    shorten: float = 0.5
    """Share of the captions of pictures that name only one or two things."""
    best_patches: int = 4
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100


def clip_config(tokenizer: PreTrainedTokenizerFast, geometry: Geometry, *, patch: int = 16) -> CLIPConfig:
    """1.2 M parameters: a tower of 4 layers of width 128, a text tower of 2 layers of width 96."""
    return CLIPConfig(
        vision_config={
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": geometry.image,
            "patch_size": patch,
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


def clip_processor(tokenizer: PreTrainedTokenizerFast, geometry: Geometry) -> CLIPProcessor:
    """Pillow's image processor, so that pixels are the same on every machine, and the tokenizer."""
    size = geometry.image
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
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

    Pictures and crops alike: `positions` says where the patches stand, and for whole pictures the first
    result is what `CLIPModel.get_image_features` gives. Patches go the way of the class token
    (post_layernorm, visual_projection).
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
    absent = best.masked_fill(batch.words, -torch.inf).logsumexp(dim=1, keepdim=True)
    return F.softplus(absent - best)[batch.words].mean()


def train_clip(
    model: CLIPModel, tokenizer: PreTrainedTokenizerFast, recipe: ClipRecipe, geometry: Geometry
) -> Iterator[float]:
    """Trains `model` in place and yields the loss of each step."""
    rng = np.random.Generator(np.random.Philox(key=[recipe.seed, 1]))
    scenes, pixels = draw_scenes(recipe.seed, "train", recipe.scenes, geometry)
    patch = patch_size(model)
    patches = (geometry.image // patch) ** 2
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / recipe.warmup, 0.5 + 0.5 * np.cos(np.pi * step / recipe.steps) + 0.01),
    )
    model.train()
    for step in range(recipe.steps):
        if rng.random() < recipe.crop_share[step >= recipe.crop_until * recipe.steps]:
            batch = crop_batch(scenes, pixels, recipe.crop_batch, rng, patch=patch, geometry=geometry)
        else:
            batch = picture_batch(scenes, pixels, recipe.picture_batch, rng, patches=patches, shorten=recipe.shorten)
        images, dense = encode_pixels(model, batch.pixels, batch.positions)
        texts = encode_texts(model, tokenizer, (*WORDS, *batch.texts))
        words, captions = texts.split([len(WORDS), len(batch.texts)])
        scale = model.logit_scale.exp().clamp(max=100.0)
        loss = contrast_loss(scale * images @ captions.T, batch)
        loss = loss + word_loss(scale * dense @ words.T, batch, recipe.best_patches)
        descend(model, loss, optimizer, schedule)
        yield loss.item()
    model.eval()


def build_clip(
    out: Path, recipe: ClipRecipe | None = None, progress: Progress | None = None, *, measured: int = 300
) -> None:
    """Train the CLIP, save it to the folder `out`, measure what was saved, and write its card.

    Runs on one thread whatever the machine has, so that the weights depend on the recipe and torch's
    version alone.

    Args:
        measured: pictures of `validation` and of `novel` that the card's numbers are taken on.

    Raises:
        SightlineError: if `out` holds files already.
    """
    from .measure_clip import measure_clip

    recipe, geometry = recipe or ClipRecipe(), Geometry()
    claim_empty(out, "a backbone")
    tokenizer = build_tokenizer(append_eos=True, max_length=MAX_TEXT)
    with one_thread(recipe.seed) as clock:
        model = CLIPModel(clip_config(tokenizer, geometry))
        run(train_clip(model, tokenizer, recipe, geometry), recipe.steps, progress)
        seconds = clock()
        save_backbone(model, clip_processor(tokenizer, geometry), out)
        saved = CLIPModel.from_pretrained(out, dtype=torch.float32)
        splits: tuple[Split, ...] = ("validation", "novel")
        scores = [
            Scores(split, measured, measure_clip(saved, tokenizer, split=split, pictures=measured)) for split in splits
        ]
    write_card(
        out,
        seconds=seconds,
        scores=scores,
        data="pictures, crops of single things and captions of the world's train split; no truth by patch; which "
        "captions of a batch are true of which pictures is used, so that no true one is pushed away",
        objective="InfoNCE, a term for each content word, captions with one word wrong",
        recipe=asdict(recipe),
        words="a patch is nearest to the text feature of its word with a positive sign, last layer",
    )
