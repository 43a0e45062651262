"""The benchmarks by name."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import SightlineError, did_you_mean
from . import choices, mmlu, open, questions, yesno
from .items import Answered, Benchmark, Item, Marking
from .judge import MARK, PAIR, mark, pair
from .scoring import each
from .texts import anls, exact, relaxed
from .vqa import accuracy


def _vqa(row: Answered) -> float:
    return accuracy(row.said, row.item.truth["answers"])


def _anls(row: Answered) -> float:
    return anls(row.said, row.item.truth["answers"])


def _exact(row: Answered) -> float:
    return float(exact(row.said, row.item.truth["answers"][0]))


def _relaxed(row: Answered) -> float:
    return float(relaxed(row.said, row.item.truth["answers"][0]))


def _judged(name: str, title: str, files: str, read: Callable[[Path], list[Item]], marking: Marking) -> Benchmark:
    """A benchmark of free answers that a language model marks."""
    note = "a score is the judge's: compare those of one judge and one prompt alone"
    return Benchmark(name, title, files, read, marking, "score", max_new_tokens=512, note=note)


_ALL = (
    Benchmark(
        "vqav2",
        "VQAv2, validation",
        "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/",
        questions.vqav2,
        each(_vqa, group="type"),
        "accuracy",
        note="papers quote the server's test-dev, whose answers are not public",
    ),
    Benchmark(
        "gqa",
        "GQA, testdev balanced",
        "testdev_balanced_questions.json, images/",
        questions.gqa,
        each(_exact),
        "accuracy",
    ),
    Benchmark(
        "vizwiz",
        "VizWiz, validation",
        "val.json, val/",
        questions.vizwiz,
        each(_vqa),
        "accuracy",
        note="papers mostly quote the server's test split, which differs",
    ),
    Benchmark(
        "textvqa",
        "TextVQA, validation, the question alone",
        "TextVQA_0.5.1_val.json, train_images/",
        questions.textvqa,
        each(_vqa),
        "accuracy",
        note="LLaVA-1.5, SEA and AlignGPT add OCR tokens: textvqa-ocr",
    ),
    Benchmark(
        "textvqa-ocr",
        "TextVQA, validation, with OCR tokens",
        "the same, and TextVQA_Rosetta_OCR_v0.2_val.json",
        questions.textvqa_ocr,
        each(_vqa),
        "accuracy",
    ),
    Benchmark(
        "stvqa",
        "ST-VQA, task 3",
        "*task_3.json and its images",
        questions.stvqa,
        each(_anls, name="anls"),
        "anls",
        note="papers quote the server's test split",
    ),
    Benchmark(
        "docvqa",
        "DocVQA, validation",
        "val_v1.0_withQT.json, documents/",
        questions.docvqa,
        each(_anls, name="anls"),
        "anls",
        max_new_tokens=32,
        note="papers may quote the server's test split",
    ),
    Benchmark(
        "chartqa",
        "ChartQA, test",
        "test/test_human.json, test/test_augmented.json, test/png/",
        questions.chartqa,
        each(_relaxed, group="half"),
        "accuracy",
    ),
    Benchmark(
        "scienceqa",
        "ScienceQA, test",
        "problems.json, pid_splits.json, images/test/",
        choices.scienceqa,
        choices.by_letter,
        "image",
        note="`image` is SQA-IMG, `all` the full test split",
    ),
    Benchmark(
        "ai2d", "AI2D, test", "ai2d/questions/, ai2d/images/, ai2d_test_ids.csv", choices.ai2d, choices.by_letter, "all"
    ),
    Benchmark(
        "seed",
        "SEED-Bench",
        "SEED-Bench.json, SEED-Bench-image/, SEED-Bench-video-image/",
        choices.seed,
        choices.by_letter,
        "image",
        note="`all` counts the middle frames of videos, where they are there",
    ),
    Benchmark("mmbench", "MMBench, English, dev", "MMBench_DEV_EN.tsv", choices.mmbench, choices.circular, "circular"),
    Benchmark(
        "mmbench-cn", "MMBench, Chinese, dev", "MMBench_DEV_CN.tsv", choices.mmbench_cn, choices.circular, "circular"
    ),
    Benchmark("pope", "POPE", "coco/coco_pope_*.json, val2014/", yesno.pope, yesno.pope_scores, "f1"),
    Benchmark(
        "mme",
        "MME",
        "MME_Benchmark_release_version/<part>/",
        yesno.mme,
        yesno.mme_scores,
        "perception",
        note="`perception` of 2000 and `cognition` of 800 points; some papers add them",
    ),
    Benchmark(
        "coco",
        "COCO captions",
        "coco_karpathy_test.json or captions_val2014.json, val2014/",
        open.coco,
        open.cider_scores,
        "cider",
        max_new_tokens=64,
        note="say which split: Karpathy's test, or all of val2014",
    ),
    Benchmark(
        "textcaps",
        "TextCaps, validation",
        "TextCaps_0.1_val.json, train_images/",
        open.textcaps,
        open.cider_scores,
        "cider",
        max_new_tokens=64,
    ),
    _judged(
        "llava-bench",
        "LLaVA-Bench in the wild",
        "questions.jsonl, answers_gpt4.jsonl, context.jsonl, images/",
        open.llava_bench,
        Marking(PAIR, pair, open.relative),
    ),
    _judged("mm-vet", "MM-Vet", "mm-vet.json, images/", open.mm_vet, Marking(MARK, mark, open.marked)),
    Benchmark(
        "mmlu",
        "MMLU, 5 examples",
        "data/dev/*.csv, data/test/*.csv",
        mmlu.mmlu,
        mmlu.scores,
        "accuracy",
        way="letters",
        note="in the model's own template",
    ),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _ALL}


def there(names: Sequence[str], root: Path) -> list[Benchmark]:
    """The benchmarks of these names; for `all`, those that have a folder of their name below the root.

    Raises:
        SightlineError: for a name that none has, or if none is there.
    """
    if list(names) != ["all"]:
        return named([name.strip() for name in names])
    found = [benchmark for benchmark in _ALL if (root / benchmark.name).is_dir()]
    if not found:
        raise SightlineError(f"{root} has no folder with the name of a benchmark: {', '.join(BENCHMARKS)}.")
    return found


def named(names: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of these names.

    Raises:
        SightlineError: for a name that none has.
    """
    for name in names:
        if name not in BENCHMARKS:
            near = did_you_mean(name, BENCHMARKS) or "."
            raise SightlineError(f"there is no benchmark '{name}'{near} There are: {', '.join(BENCHMARKS)}.")
    return [BENCHMARKS[name] for name in names]
