"""Random LLaVA models of several sizes, and rows with the lengths of LLaVA's data, for the benchmarks.

Nothing is loaded: weights are random, images are noise, texts are words drawn at random from a vocabulary of 32,000
that has one token for each. What is real are the sizes and the lengths.

    language model   llama, 1M, 10M or 60M parameters besides its embeddings, 32,000 words, untied
    vision tower     CLIP's ViT with a third of that, 168 px by 14: 144 image tokens
    captions         lognormal, median 15 tokens, 90th percentile 30; template `plain`
    conversations    lognormal, median 180 tokens of text (questions and answers), 90th percentile 700, cut at 1,600; an
                     exchange for each 60 tokens, 12 of them the question; template `vicuna_v1`
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from sightline.data.collate import collate
from sightline.data.processor import Processor
from sightline.data.templates import IMAGE, get_template
from sightline.models.assemble import Assembly
from sightline.models.configuration import SightlineConfig
from sightline.models.modeling import SightlineForConditionalGeneration
from sightline.types import Batch, Example, Sample, Turn

Kind = Literal["captions", "conversations"]

P90 = 1.2816
"""Standard deviations from the median to the 90th percentile."""
LENGTHS: dict[Kind, tuple[int, int, int]] = {"captions": (15, 30, 200), "conversations": (180, 700, 1600)}
"""Median, 90th percentile and longest."""
EXCHANGE, QUESTION = 60, 12


@dataclass(frozen=True)
class Size:
    """Widths and depths of a model. Heads have 64 channels in the language model, 32 in the small towers."""

    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    words: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    side: int = 168

    def language_parameters(self) -> int:
        """Of the decoder, besides embeddings and head."""
        attention = 2 * self.width**2 + 2 * self.width * (self.width // self.heads) * self.kv_heads
        return self.layers * (attention + 3 * self.width * self.hidden)

    def vision_parameters(self) -> int:
        """Of the tower's layers."""
        return 12 * self.vision_width**2 * self.vision_layers


SIZES = {
    "tiny": Size(32, 64, 2, 2, 2, 500, 32, 2, 2, side=42),
    "1M": Size(128, 344, 5, 2, 2, 32_000, 96, 3, 3),
    "10M": Size(320, 856, 8, 5, 5, 32_000, 192, 7, 6),
    "60M": Size(640, 1712, 12, 10, 10, 32_000, 384, 11, 12),
    "8B-layers": Size(4096, 14_336, 8, 32, 8, 128_256, 1024, 24, 16, side=336),
}
"""`tiny` is for tests; `8B-layers` has eight of Llama-3-8B's layers and CLIP-L/336's tower, for a GPU."""


def build(size: Size) -> Assembly:
    """A model of random weights with its tokenizer and image processor. Seed torch first."""
    words = {"<s>": 0, "</s>": 1, "<unk>": 2, IMAGE: 3} | {f"w{number}": number for number in range(4, size.words)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special, additional_special_tokens=[IMAGE])
    config = SightlineConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=size.vision_width,
            intermediate_size=4 * size.vision_width,
            num_hidden_layers=size.vision_layers,
            num_attention_heads=size.vision_heads,
            image_size=size.side,
            patch_size=14,
        ),
        text_config=LlamaConfig(
            hidden_size=size.width,
            intermediate_size=size.hidden,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.kv_heads,
            vocab_size=size.words,
            max_position_embeddings=4096,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=2,
        ),
        image_token_index=3,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(size.side // 14) ** 2,
    )
    square = {"height": size.side, "width": size.side}
    pixels = CLIPImageProcessorPil(size={"shortest_edge": size.side}, crop_size=square)
    return Assembly(SightlineForConditionalGeneration(config), tokenizer, pixels)


def text_lengths(kind: Kind, count: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens of text of `count` rows."""
    median, p90, longest = LENGTHS[kind]
    lengths = np.exp(rng.normal(math.log(median), math.log(p90 / median) / P90, count))
    return lengths.round().astype(int).clip(2, longest)


def samples(kind: Kind, count: int, size: Size, *, seed: int = 0) -> list[Sample]:
    """Rows of one image and random words."""
    rng = np.random.default_rng(seed)
    lengths = text_lengths(kind, count, rng)
    if size is SIZES["tiny"]:
        lengths = (lengths // 5).clip(2)
    rows = []
    for number, length in enumerate(lengths):
        image = Image.fromarray(rng.integers(256, size=(size.side, size.side, 3), dtype=np.uint8))
        turns: list[Turn] = []
        exchanges = 1 if kind == "captions" else max(1, round(length / EXCHANGE))
        for exchange, share in enumerate(np.array_split(np.arange(length), exchanges)):
            asked = 0 if kind == "captions" else min(QUESTION, len(share) - 1)
            question, answer = (
                " ".join(f"w{word}" for word in rng.integers(4, size.words, n)) for n in (asked, len(share) - asked)
            )
            turns += [Turn("user", f"{IMAGE}\n{question}" if exchange == 0 else question), Turn("assistant", answer)]
        rows.append(Sample(id=str(number), images=(image,), turns=tuple(turns)))
    return rows


def processor_for(assembly: Assembly, kind: Kind) -> Processor:
    """Lays out the rows of a kind with its template."""
    return assembly.processor(get_template("plain" if kind == "captions" else "vicuna_v1"), max_length=4096)


def batches(examples: list[Example], batch_size: int, *, grouped: bool = False) -> list[Batch]:
    """The rows in order, `batch_size` at a time; grouped, those of like length together."""
    rows = sorted(examples, key=len) if grouped else examples
    cut = [collate(rows[at : at + batch_size], pad_id=2) for at in range(0, len(rows), batch_size)]
    order = torch.randperm(len(cut), generator=torch.Generator().manual_seed(0)).tolist()
    return [cut[number] for number in order] if grouped else cut
