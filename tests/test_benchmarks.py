"""The benchmarks run, at a size of seconds. What they claim is in benchmarks/results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sightline.world.make import make_world

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def train_step():
    sys.path.insert(0, str(BENCHMARKS))
    import train_step

    yield train_step
    sys.path.remove(str(BENCHMARKS))


@pytest.mark.parametrize("stage", [0, 1])
def test_a_step_is_the_same_in_every_arm_and_timed(train_step, stage: int) -> None:
    """`timed` compares losses and gradients of all arms before it times them."""
    case = train_step.Case("tiny", train_step.SCENARIOS[stage], torch.device("cpu"))
    rows = train_step.timed(case)
    assert [row["arm"] for row in rows] == [arm.name for arm in case.scenario.arms]
    assert rows[0]["ratio"] == rows[0]["low"] == rows[0]["high"] == 1
    for row in rows:
        assert row["low"] is None or row["low"] <= row["ratio"] <= row["high"]
        assert row["ms_per_sample"] > 0 and row["tflops"] > 0
    assert train_step.table(rows).count("| tiny |") == len(rows)


def test_arms_that_disagree_are_not_timed(train_step) -> None:
    case = train_step.Case("tiny", train_step.SCENARIOS[0], torch.device("cpu"))
    train_step.agree({"stock transformers": (2.0, 1.0), "sightline": (2.00001, 1.0)}, case)
    with pytest.raises(SystemExit, match=r"'sightline' has loss 2\.1"):
        train_step.agree({"stock transformers": (2.0, 1.0), "sightline": (2.1, 1.0)}, case)


def test_the_ratio_has_an_interval_over_batches(train_step) -> None:
    ratio, low, high = train_step.ratio_of([2.0, 4.0], [1.0, 1.0])
    assert (ratio, low, high) == (3.0, 2.0, 4.0)


def test_the_share_of_padding_follows_from_lengths(train_step) -> None:
    share = train_step.padding("conversations", 8, 64, rows=64)
    assert 0 < share["random, padded"] < share["random, packed"] <= 1
    assert share["random, padded"] < share["grouped, padded"] <= share["grouped, packed"] <= 1
    assert train_step.padding_table([share]).count("\n") == 2


def test_memory_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(BENCHMARKS / "train_step.py"),
        "--memory-of",
        "tiny",
        "stage 2",
        "sightline, packing",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    measured = json.loads(done.stdout)
    assert measured["held"] > measured["peak"] > 0


def test_rows_have_the_lengths_that_are_claimed(train_step) -> None:
    """Captions: median 15 tokens, 90th percentile 30. Conversations: 180 and 700."""
    from llava_sizes import SIZES, samples

    size = SIZES["1M"]
    for kind, (median, p90) in {"captions": (15, 30), "conversations": (180, 700)}.items():
        rows = samples(kind, 400, size)
        words = torch.tensor([[sum(t.text.count("w") for t in row.turns)] for row in rows], dtype=torch.float)
        assert float(words.quantile(0.5)) == pytest.approx(median, rel=0.1)
        assert float(words.quantile(0.9)) == pytest.approx(p90, rel=0.15)
    assert size.language_parameters() == pytest.approx(1e6, rel=0.02)
    assert SIZES["60M"].language_parameters() == pytest.approx(60e6, rel=0.02)
    assert all(
        SIZES[name].vision_parameters() == pytest.approx(SIZES[name].language_parameters() / 3, rel=0.08)
        for name in ("1M", "10M", "60M")
    )


def test_labels_are_timed_and_compared_with_fp64(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "sea_labels.py"), "--quick", "--threads", "1"]
    out = tmp_path / "sea_labels.json"
    subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=True, cwd=tmp_path)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["times"]["fp32 product"]["processor_ratio"] == result["times"]["fp32 product"]["wall_ratio"] == 1
    for found in result["found"].values():
        assert 0 <= found["fallback_share"] <= 1
        assert found["largest_loss"] < 1e-6 and found["largest_error_of_score"] < 1e-6
    assert [row["images"] for row in result["memory"]] == [1, 3]
    assert "labels, random" in out.with_suffix(".md").read_text(encoding="utf-8")


def test_a_step_with_sea_is_timed_beside_one_without(tmp_path: Path) -> None:
    out = tmp_path / "sea_step.json"
    command = [sys.executable, str(BENCHMARKS / "sea_step.py"), "--quick", "--out", str(out)]
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    (row,) = json.loads(out.read_text(encoding="utf-8"))["sizes"]
    assert row["size"] == "tiny" and row["low"] <= row["more_time"] <= row["high"]
    assert 0 < row["more_flops"] <= 0.01, "the loss is counted, and small"
    assert "By the formulas" in out.with_suffix(".md").read_text(encoding="utf-8")


def test_the_first_token_is_timed_part_by_part(tmp_path: Path) -> None:
    out = tmp_path / "first_token.json"
    command = [sys.executable, str(BENCHMARKS / "first_token.py"), "--quick", "--turns", "2", "--out", str(out)]
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [row["tokens"] for row in result["arms"]] == [9, 9, 9 + 6 * 7, 9 * 5]
    for row in result["arms"]:
        parts = dict(row["seconds"])
        assert parts.pop("whole") == pytest.approx(sum(parts.values()), abs=1e-3) and row["low"] <= row["high"]
        assert {"tower", "connector", "decoder"} <= parts.keys()
    assert result["arms"][1]["seconds"]["perceiver"] > 0 and result["off a line"] < 0.01
    assert "| 36 |" in out.with_suffix(".md").read_text(encoding="utf-8")


def test_recipes_are_timed_beside_each_other(tmp_path: Path) -> None:
    make_world(tmp_path / "data" / "world-high", view="high", train=64, validation=8, test=1, novel=1)
    names, out = ["world-high", "world-perceiver+stages.1.packing=true"], tmp_path / "times.json"
    sizes = ["--turns", "1", "--steps", "2", "--asked", "8", "--out", str(out)]
    command = [sys.executable, str(BENCHMARKS / "recipe_times.py"), *names, *sizes]
    subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    first, second = json.loads(out.read_text(encoding="utf-8"))["recipes"]
    assert [first["recipe"], second["recipe"]] == names and first["step"]["times"] == 1
    for what in ("step", "answer"):
        assert second[what]["seconds"] > 0 and second[what]["low"] <= second[what]["times"] <= second[what]["high"]
    assert "| world-perceiver+stages.1.packing=true |" in out.with_suffix(".md").read_text(encoding="utf-8")
