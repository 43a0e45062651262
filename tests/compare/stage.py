"""A small comparison to carry out: recipes of tiny parts, question files, and a runner that only pretends to train."""

import json
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import yaml
from typer.testing import CliRunner

from sightline import cli
from sightline.compare.checks import check_plan
from sightline.compare.folder import Comparison, open_comparison
from sightline.compare.plan import Plan
from sightline.compare.read import parse_plan
from sightline.config import Recipe, load_recipe
from sightline.data.images import image_folder
from sightline.errors import SightlineError
from sightline.evaluation.questions import read_questions
from sightline.evaluation.scores import Prediction, score, write_scores

COLOURS = ("red", "blue", "green")


def write_recipe(path: Path, tiny: dict[str, Path], pictures: Path, **changes) -> Path:
    """Two stages of two steps."""
    shared = {"batch_size": 4, "steps": 2, "save_every": 1, "validate_every": 2}
    captions = {"path": str(pictures / "captions.json"), "template": "plain"}
    recipe = {
        "name": path.stem,
        "device": "cpu",
        "model": {"vision": str(tiny["clip"]), "language": str(tiny["llama"])},
        "stages": [
            {"name": "pretrain", "data": captions, "validation": captions, "trainable": ["connector"], **shared},
            {
                "name": "tune",
                "data": {"path": str(pictures / "chats.json")},
                "trainable": ["connector", "language"],
                **shared,
            },
        ],
    }
    path.write_text(yaml.safe_dump(recipe | changes))
    return path


def write_questions(path: Path, pictures: Path, numbers: range) -> Path:
    """Two questions on each of some pictures, of two abilities."""
    rows = []
    for number in numbers:
        shown = {"image": f"{number}.png", "answer": COLOURS[number % 3]}
        rows.append({"id": f"c{number}", "question": "What colour is it?", "ability": "colour", **shown})
        rows.append({"id": f"w{number}", "question": "Which colour?", "ability": "word", **shown})
    path.write_text("\n".join(map(json.dumps, rows)))
    if not (path.parent / "images").exists():
        (path.parent / "images").symlink_to(pictures / "images")
    return path


def write_material(folder: Path, tiny: dict[str, Path], pictures: Path) -> None:
    """What `plan_values` names: a recipe, and question files of two splits on different pictures."""
    write_recipe(folder / "base.yaml", tiny, pictures)
    write_questions(folder / "test.questions.jsonl", pictures, range(8))
    write_questions(folder / "validation.questions.jsonl", pictures, range(8, 12))


def plan_values(folder: Path, **changes) -> dict:
    """A plan with tuning; `folder` holds the recipes and the questions."""
    values = {
        "name": "small",
        "arms": [
            {"name": "baseline", "recipe": str(folder / "base.yaml")},
            {"name": "no-stage-1", "recipe": str(folder / "base.yaml"), "drop_stages": ["pretrain"]},
            {"name": "blind", "recipe": str(folder / "base.yaml"), "blank_images": "always"},
        ],
        "seeds": [0, 1, 2],
        "primary": {"questions": str(folder / "test.questions.jsonl"), "ability": "colour"},
        "smallest_effect": 0.1,
        "secondary": [{"questions": str(folder / "test.questions.jsonl")}],
        "tuning": {
            "seeds": [100, 101],
            "questions": str(folder / "validation.questions.jsonl"),
            "settings": [["stages.1.lr=1e-3"], ["stages.1.lr=2e-3"]],
        },
    }
    return {key: value for key, value in (values | changes).items() if value is not None}


def begin(values: dict, out: Path) -> Comparison:
    """A comparison begun, or gone on with, as the command line does it."""
    plan: Plan = parse_plan(values, "plan")
    return open_comparison(plan, yaml.safe_dump(values), check_plan(plan), out)


@cache
def read(text: str, file: Path) -> Recipe:
    """A recipe, read once: YAML takes longer than all the pretence."""
    return load_recipe(file)


class Pretence:
    """A runner whose runs score what `right` says: the share of right answers by arm, seed and learning rate.

    It leaves what `train` and `eval` leave. `ends_after` commands it dies, as a machine does.
    """

    def __init__(self, right: Callable[[str, int, float], float], ends_after: int | None = None) -> None:
        self.right, self.left = right, ends_after
        self.commands: list[list[str]] = []
        self.fails: set[str] = set()
        self.stopped = 0
        self._guard = threading.Lock()

    def __call__(self, arguments: list[str], *, log: Path, worker: int, lock: int) -> int:
        with self._guard:
            self.commands.append(arguments)
            if self.left is not None:
                self.left -= 1
                if self.left < 0:
                    raise PowerCut
        if arguments[0] == "train":
            return self._train(Path(arguments[1]), log)
        return self._evaluate(arguments)

    def stop(self, signum: int) -> None:
        self.stopped = signum

    def _train(self, file: Path, log: Path) -> int:
        recipe = read(file.read_text(), file)
        if recipe.name in self.fails:
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("stage pretrain\nerror: the loss is not finite.\nMend the data.\n")
            return 2
        run = recipe.run_folder
        run.mkdir(parents=True, exist_ok=True)
        (run / "recipe.yaml").write_text(file.read_text())
        (run / "model").mkdir(exist_ok=True)
        facts = {"versions": {"sightline": "0"}, "machine": {"device": "pretence"}, "seconds": 1.0}
        (run / "run.json").write_text(json.dumps(facts))
        lines = []
        for stage in recipe.stages:
            for step in (0, 2):
                kept = {"split": "validation", "set": "text", "loss": 1.0 + step * recipe.seed, "accuracy": 0.5}
                lines.append({"stage": stage.name, "step": step, **kept})
            for step in (1, 2):
                counts = {"samples": 4, "tokens": 120, "tokens_per_s": 60.0}
                lines.append({"stage": stage.name, "step": step, **counts})
            lines.append({"stage": stage.name, "step": 2, "split": "validation", "loss": 1.0})
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return 0

    def _evaluate(self, arguments: list[str]) -> int:
        run, options = Path(arguments[1]), dict(zip(arguments[2::2], arguments[3::2], strict=False))
        recipe = read((run / "recipe.yaml").read_text(), run / "recipe.yaml")
        share = self.right(recipe.name, recipe.seed, recipe.stages[-1].lr)
        data = Path(options["--data"])
        questions = read_questions(data, image_folder(data, None))
        groups: dict[str, int] = {}
        predictions = []
        for question in questions:
            place = groups.setdefault(question.ability, 0)
            groups[question.ability] += 1
            correct = place < round(share * len(questions) / 2)
            images = tuple(path.name for path in question.images)
            row = Prediction(question.id, images, question.text, question.answers, "", correct, question.ability)
            predictions.append(row)
        write_scores(Path(options["--out"]), predictions, score(predictions, settings={}, versions={}))
        return 0


class Here:
    """A runner that really trains and asks, in this process: nothing is imported again."""

    def __init__(self, *, threads: int, gpus: list[str] | None = None) -> None:
        pass

    def __call__(self, arguments: list[str], *, log: Path, worker: int, lock: int) -> int:
        result = CliRunner().invoke(cli.app, arguments)
        log.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(result.exception, PowerCut):
            raise result.exception
        failed = isinstance(result.exception, SightlineError)
        log.write_text(result.output + (f"error: {result.exception}\n" if failed else ""))
        return 2 if failed else result.exit_code

    def stop(self, signum: int) -> None:
        pass


class PowerCut(Exception):
    pass
