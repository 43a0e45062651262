"""Measures the shipped backbones anew."""

from collections.abc import Iterator, Sequence

from transformers import AutoTokenizer, CLIPModel, LlamaForCausalLM

from ..evaluation.metrics import Estimate
from ..models.diffusion import Latents
from . import Split, backbone_path
from .cards import load
from .measure_clip import measure_clip
from .measure_ldm import measure_denoiser, measure_vae, measure_vq
from .measure_lm import measure_lm
from .thresholds import Finding, judge


def check(
    backbones: Sequence[str], *, split: Split = "validation", sample: int = 300, seed: int = 0
) -> Iterator[Finding]:
    """Every score of the shipped backbones, measured now.

    Args:
        split: thresholds are for `validation`; on other splits no score has one.
        sample: pictures or scenes measured on.
    """
    for name in backbones:
        for key, score in _measure(name, split, sample, seed).items():
            yield judge(name, key, score) if split == "validation" else Finding(name, key, score)


def _measure(name: str, split: Split, sample: int, seed: int) -> dict[str, Estimate]:
    folder = backbone_path(name)
    if name == "vae":
        return measure_vae(folder, split, pictures=sample, seed=seed)
    if name == "vq":
        return measure_vq(folder, split, pictures=sample, seed=seed)
    if name == "denoiser":
        vae, clip = Latents(str(backbone_path("vae"))), load(CLIPModel, backbone_path("clip"))
        return measure_denoiser(folder, split, vae, clip, pictures=sample, seed=seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if name.startswith("clip"):
        return measure_clip(load(CLIPModel, folder), tokenizer, split=split, seed=seed, pictures=sample)
    return measure_lm(load(LlamaForCausalLM, folder), tokenizer, split=split, seed=seed, scenes=sample)
