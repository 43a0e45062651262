"""The papers' tables: every row has a recipe, and a run of it stands under what was published."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sightline.benchmarks.published import own_score, published
from sightline.benchmarks.run import write_scores
from sightline.benchmarks.suite import BENCHMARKS
from sightline.cli import app
from sightline.config import shipped_recipes
from sightline.errors import SightlineError
from sightline.evaluation.metrics import Estimate


def test_every_row_has_a_recipe_and_every_column_a_benchmark():
    for table in published():
        for row in table.rows:
            assert row.recipe in shipped_recipes(), f"{table.title}: {row.name}"
            assert list(row.scores) == table.columns, "a paper's row has all of its columns"
        for column in table.columns:
            assert column.partition("/")[0] in BENCHMARKS


def test_numbers_of_the_papers():
    """Spot checks against methods.md, and the sums that it gives: SEA's mean gain on Gemma-2B is 3.6 points."""
    sea = {(row.name, row.recipe): row.scores for table in published("SEA") for row in table.rows}
    with_sea, without = sea["+ SEA", "sea-llava-gemma-2b"], sea["LLaVA, Gemma-2B", "llava-gemma-2b"]
    assert sum(with_sea[key] - without[key] for key in with_sea) / 8 == pytest.approx(3.6, abs=0.05)
    with_sea, without = sea["+ SEA", "sea-llava-llama-3-8b"], sea["LLaVA, Llama-3-8B", "llava-llama-3-8b"]
    assert sum(with_sea[key] - without[key] for key in with_sea) / 8 == pytest.approx(0.01, abs=0.005)
    vlsa = {row.name: row.scores for row in published("vlsa")[2].rows}
    assert vlsa["(4) + a, b"]["mme/cognition"] - vlsa["(1) LLaVA-NeXT"]["mme/cognition"] == pytest.approx(31.0)


def test_a_run_stands_under_its_row(tmp_path: Path):
    def score(name: str, **scores: float) -> None:
        found = {key: Estimate(value, value, value, 9) for key, value in scores.items()}
        write_scores(BENCHMARKS[name], found, tmp_path / "vlsa-llama-3-8b" / "eval" / name, {})

    score("pope", f1=0.8712)
    score("mme", perception=1500.0, cognition=300.5)
    score("mm-vet", score=38.8)
    run = tmp_path / "vlsa-llama-3-8b"
    assert own_score(run, "pope") == pytest.approx(87.12) and own_score(run, "mme/both") == 1800.5
    assert own_score(run, "mme/cognition") == 300.5 and own_score(run, "gqa") is None
    said = CliRunner().invoke(app, ["tables", "VLSA", "--runs", str(tmp_path)], env={"COLUMNS": "200"})
    assert said.exit_code == 0 and said.output.count("yours") == 2
    assert "87.1" in said.output and "38.8" in said.output and "1,844.0" in said.output
    with pytest.raises(SightlineError, match="no tables of 'SAE'; did you mean 'SEA'"):
        published("SAE")
