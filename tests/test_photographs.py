"""Real photographs through the same commands as everything else: train, eval, ask, report."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_photographs_train_evaluate_and_answer(tmp_path: Path) -> None:
    photographs = tmp_path / "data" / "photographs"
    _run(tmp_path, ROOT / "examples" / "photographs" / "make_photographs.py", photographs)
    recipe = ROOT / "examples" / "photographs" / "recipe.yaml"
    _sightline(tmp_path, "train", recipe, "stages.0.steps=8", "stages.1.steps=24")
    run = tmp_path / "runs" / "photographs"
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 32 and losses[-1] < losses[8]

    questions = photographs / "questions.jsonl"
    _sightline(tmp_path, "eval", run / "model", "--data", questions, "--images", photographs / "images")
    scores = json.loads((run / "eval" / "questions" / "scores.json").read_text())
    assert scores["n"] == len(questions.read_text().splitlines()) == 106
    predictions = (run / "eval" / "questions" / "predictions.jsonl").read_text().splitlines()
    assert len(predictions) == 106

    answers = [
        _sightline(tmp_path, "ask", run / "model", photographs / "images" / picture, "What is in the picture?")
        for picture in ("coffee.png", "crater.png", "cup.jpg", "cat_phone.jpg")
    ]
    assert any(answer.strip() for answer in answers), "colour, 16 bits, CMYK and EXIF: something is said"
    page = _sightline(tmp_path, "report", run).strip()
    assert (tmp_path / page).is_file()


def _sightline(cwd: Path, *arguments: object) -> str:
    return _run(cwd, "-m", "sightline", *arguments)


def _run(cwd: Path, *arguments: object) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
