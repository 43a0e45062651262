"""Measures the shipped backbones anew."""

from collections.abc import Callable, Iterator, Sequence

from transformers import AutoTokenizer, CLIPModel, LlamaForCausalLM

from ..evaluation.metrics import Estimate
from . import Split, backbone_path
from .cards import load
from .measure_clip import measure_clip
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
        folder = backbone_path(name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        measure: Callable[..., dict[str, Estimate]]
        if name.startswith("clip"):
            model, measure, size = load(CLIPModel, folder), measure_clip, "pictures"
        else:
            model, measure, size = load(LlamaForCausalLM, folder), measure_lm, "scenes"
        for key, score in measure(model, tokenizer, split=split, seed=seed, **{size: sample}).items():
            yield judge(name, key, score) if split == "validation" else Finding(name, key, score)
