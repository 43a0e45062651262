"""Benchmarks of every kind about a small world, from the files that `examples/benchmarks` writes to scores.

They are asked of a reader of pixels that knows the world's own files: whatever is lost on the way, a picture under
another's name, options in a wrong order, an answer misread, costs it points.
"""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from sightline.benchmarks.items import CAPTION, LETTER, Marking
from sightline.benchmarks.marks import judged
from sightline.benchmarks.run import answer, items_of
from sightline.benchmarks.suite import BENCHMARKS, there
from sightline.world.make import make_world

EXAMPLES = Path(__file__).parents[2] / "examples" / "benchmarks"
MOST = {"mme": 2000.0, "llava-bench": 100.0, "mm-vet": 100.0}
PICTURES = 24


sys.path.insert(0, str(EXAMPLES))
import from_world  # noqa: E402
import lessons  # noqa: E402
import word_judge  # noqa: E402

sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "world"
    make_world(folder, train=24, validation=PICTURES, test=1, novel=1)
    return folder


@pytest.fixture(scope="module")
def root(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks") / "all"
    from_world.make(from_world.World(world, "validation"), folder)
    return folder


class Knows:
    """Knows each picture by its pixels, and what the world's files say of it."""

    def __init__(self, world: Path) -> None:
        self.world = from_world.World(world, "validation")
        self.number = {Image.open(self.world.picture(n)).tobytes(): n for n in range(PICTURES)}
        asked = [json.loads(line) for line in (world / "validation.questions.jsonl").read_text().splitlines()]
        self.told = {(int(Path(row["image"]).stem), row["question"]): row["answer"] for row in asked}
        self.facts = {row["question"]: row["answer"] for row in self.world.facts()}

    def answers(self, images, questions, *, max_new_tokens):
        numbers = [self.number[some[0].tobytes()] if some else None for some in images]
        return [self.answer(number, asked) for number, asked in zip(numbers, questions, strict=True)]

    def letters(self, prompts, letters):
        return [self.answer(None, prompt.split("\n\n")[-1]) for prompt in prompts]

    def answer(self, number: int | None, asked: str) -> str:
        question, *lines = asked.split("\n")
        if question in (CAPTION, "describe the picture."):
            return self.world.captions(number)[0]
        options = dict(line.split(". ") for line in lines if line[1:3] == ". ")
        said = self.facts[question] if number is None else self.of_picture(number, question)
        return next(letter for letter, text in options.items() if text == said) if options else said

    def of_picture(self, number: int, question: str) -> str:
        if (number, question) in self.told:
            return self.told[number, question]
        colour, shape = question.removesuffix("?").split()[-2:]  # MME's own: is there a red star?
        return "yes" if (colour, shape) in [thing.pair for thing in self.world.scenes[number].things] else "no"


class Errs(Knows):
    """Knows as well, and says another thing."""

    def answer(self, number: int | None, asked: str) -> str:
        said = super().answer(number, asked)
        return {"yes": "no", "no": "yes", "A": "B", "B": "A", "C": "A", "D": "A"}.get(said, "zebra")


def test_a_benchmark_of_every_kind(root: Path):
    """By letter, by words, yes or no, captions, a judge, and by likelihood: those of the suite, each in its files."""
    names = {each.name for each in there(["all"], root)}
    assert names == {write.__name__.replace("_", "-") for write in from_world.KINDS} and len(names) == 12
    assert {BENCHMARKS[name].way for name in names} == {"answer", "letters"}
    assert {BENCHMARKS[name].primary for name in names} >= {"f1", "perception", "anls", "cider", "score", "circular"}


@pytest.mark.parametrize("name", [write.__name__.replace("_", "-") for write in from_world.KINDS])
def test_who_knows_the_world_has_every_point_and_who_errs_none(world: Path, root: Path, tmp_path: Path, name: str):
    benchmark = BENCHMARKS[name]
    items = items_of(benchmark, root)
    assert len(items) >= 10

    def scored(speaker):
        out = tmp_path / type(speaker).__name__ / name
        rows = answer(benchmark, items, speaker, out, settings={}, progress=False)
        if not isinstance(benchmark.score, Marking):
            return benchmark.score(rows)
        waiting: list[str] = []
        assert judged(benchmark, rows, out, None, None, None, waiting.append) is None and waiting
        word_judge.answer_folder(out)
        scores = judged(benchmark, rows, out, None, None, None, waiting.append)
        assert scores is not None
        return scores

    best, worst = scored(Knows(world))[benchmark.primary], scored(Errs(world))[benchmark.primary]
    if name == "coco":
        assert best.value > 200 and worst.value == 0, "four of the five captions say it otherwise"
    elif name == "llava-bench":
        assert best.value > 95 and worst.value < 20, "its lowest mark is 1 of 10"
    else:
        assert best.value == pytest.approx(MOST.get(name, 1.0)) and worst.value == 0


def test_lessons_are_asked_as_benchmarks_ask(world: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    """Every line that a benchmark adds on how to answer is in them, and their answers are the world's own."""
    monkeypatch.setattr(sys, "argv", ["lessons", str(world)])
    lessons.main()
    rows = json.loads((world / "instruct.llava.json").read_text())
    before = json.loads((world / "instruct.json").read_text())
    assert [row["conversations"][1] for row in rows] == [row["conversations"][1] for row in before]
    taught = {row["conversations"][0]["value"].split("\n")[-1] for row in rows}
    for name in ("pope", "vqav2", "chartqa", "scienceqa", "coco"):
        assert items_of(BENCHMARKS[name], root)[0].prompt.split("\n")[-1] in taught
    choices = [row for row in rows if row["conversations"][0]["value"].endswith(LETTER)]
    for row in choices:
        asked, told = (turn["value"] for turn in row["conversations"])
        assert f". {told}\n" in asked, "the right answer is one of the options"
    assert choices


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{world}", "{root}"), "is not empty, and benchmarks would"),
        (("nowhere", "new"), "Run: sightline world make"),
        (("{world}", "new", "--most", "8"), "8 pictures are too few"),
    ],
)
def test_what_cannot_be_written_is_said(world, root, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["from_world", *(a.format(world=world, root=root) for a in arguments)])
    with pytest.raises(SystemExit):
        from_world.main()
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir()), "nothing was left behind"
