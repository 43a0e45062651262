"""The command line: quick to help, and every mistake of the user's is one message and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from sightline import __version__, cli, eval_cli
from sightline.checkpoints import save_model
from sightline.data.templates import get_template
from sightline.generation import Assistant
from sightline.models.assemble import assemble

COMMANDS = [
    "train",
    "annotate",
    "doctor",
    "ask",
    "eval",
    "export",
    "import",
    "report",
    "reconstruct",
    "paint",
    "tables",
    "demo",
    "recipes",
    "world",
    "world make",
    "world build",
    "world sheet",
    "world check",
    "diagnose",
    "lens",
    "compare",
]
HEAVY = {"torch", "transformers", "numpy", "matplotlib", "scipy", "PIL"}

HELP_OF_EVERYTHING = """
import io, json, sys
from contextlib import redirect_stdout
from sightline.cli import main

out = {}
for words in json.loads(sys.argv[1]):
    sys.argv = ["sightline", *words.split(), "--help"]
    with redirect_stdout(io.StringIO()) as text:
        try:
            main()
        except SystemExit as exit:
            out[words] = [exit.code or 0, text.getvalue()]
print(json.dumps([out, sorted(sys.modules)]))
"""


@pytest.fixture
def sightline(monkeypatch, capsys):
    """`sightline("train", "x.yaml")` -> (exit code, standard output, standard error), in this process."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sightline", *map(str, arguments)])
        capsys.readouterr()
        code: object = 0
        try:
            cli.main()
        except SystemExit as leaving:
            code = leaving.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        assert isinstance(code, int)
        return code, out, err

    return run


@pytest.fixture(scope="module")
def run_folder(tiny, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run")
    save_model(assemble(str(tiny["clip"]), str(tiny["llama"])), folder / "model", get_template("vicuna_v1"))
    return folder


def test_help_imports_nothing_heavy():
    """Every command's help exits with 0, and what is imported for it is light: `sightline --help` in under 0.5 s."""
    run = subprocess.run(
        [sys.executable, "-c", HELP_OF_EVERYTHING, json.dumps(["", *COMMANDS])], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    helps, modules = json.loads(run.stdout)
    assert {words: code for words, (code, _) in helps.items()} == dict.fromkeys(["", *COMMANDS], 0)
    for words, (_, text) in helps.items():
        assert "Usage" in text, words
    heavy = {name.partition(".")[0] for name in modules} & HEAVY
    assert not heavy


def test_every_command_is_in_the_list_above():
    from typer.main import get_command

    found = []
    for name, command in get_command(cli.app).commands.items():
        found += [name, *(f"{name} {inner}" for inner in getattr(command, "commands", {}))]
    assert sorted(found) == sorted(COMMANDS)


def test_the_script_and_the_module_are_one(tmp_path):
    """A recipe with typos through the installed script, and through `python -m`: each problem, exit 2, no traceback."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\nmodel: {vision: v, langauge: l}\nstages: [{name: s, data: {path: d}, trainable: []}]")
    script = Path(sys.executable).with_name("sightline")
    for command in ([script], [sys.executable, "-m", "sightline"]):
        run = subprocess.run([*command, "train", recipe, "sede=1"], capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 2
        assert run.stdout == ""
        heading, *problems = run.stderr.splitlines()
        assert heading == f"error: 4 problems in {recipe}:"
        assert [line.split(":")[0].strip() for line in problems] == [
            "model.language",
            "model.langauge",
            "stages.0.trainable",
            "sede",
        ]
        assert "did you mean 'language'?" in problems[1]
        assert "did you mean 'seed'?" in problems[3]
    assert [entry.name for entry in tmp_path.iterdir()] == ["recipe.yaml"]


def test_version(sightline):
    assert sightline("--version") == (0, f"sightline {__version__}\n", "")


def test_nothing_asked_is_help(sightline):
    code, out, err = sightline()
    assert "Usage" in out + err
    assert code in (0, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument"),
        (["tarin"], "No such command 'tarin'"),
        (["train", "nowhere.yaml"], "error: recipe not found: nowhere.yaml"),
        (["train", "."], "error: cannot read ."),
        (["ask", "nowhere", "Why?"], "error: no model at 'nowhere':"),
        (["ask", "nowhere", "w" * 5000], "error: no model at 'nowhere':"),
        (["ask", "nowhere", "a\nb\tc"], "error: no model at 'nowhere':"),
        (["ask", "nowhere"], "Missing argument"),
        (["ask", "nowhere", "gone.png", "Why?"], "error: image not found: gone.png"),
        (["ask", "nowhere", "Why?", "--device", "tpu9"], "error: device 'tpu9' cannot be used:"),
        (["ask", "nowhere", "Why?", "--max-new-tokens", "0"], "should be greater than or equal to 1"),
        (["eval", "nowhere", "--data", "gone.jsonl"], "gone.jsonl"),
        (["eval", "nowhere"], "error: say what to score on: --data FILE"),
        (["report", "nowhere"], "error:"),
        (["world", "make"], "Missing argument"),
    ],
)
def test_a_mistake_is_one_message(sightline, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = sightline(*arguments)
    assert code == 2
    assert message in " ".join(err.replace("│", "").split())
    assert out == ""
    assert not any(tmp_path.iterdir()), "nothing is written for a command that failed"


def test_an_image_without_a_question(sightline, tmp_path, run_folder):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for images in ([tmp_path / "a.png"], [tmp_path / "a.png"] * 2):
        code, _, err = sightline("ask", run_folder, *images, "--device", "cpu")
        assert code == 2
        assert "is a file, and there is no question. Add one: sightline ask MODEL IMAGE QUESTION" in err


@pytest.fixture(scope="module")
def captioner(tiny, tmp_path_factory) -> Path:
    """A model of levels as stage 1 leaves it: trained on captions alone."""
    torch.manual_seed(2)
    assembly = assemble(str(tiny["clip"]), str(tiny["llama"]), methods=[{"name": "aligngpt", "levels": 3}])
    with torch.no_grad():
        for parameter in assembly.model.parameters():
            if parameter.ndim > 1:
                parameter *= 4
    folder = tmp_path_factory.mktemp("captioner") / "model"
    save_model(assembly, folder, get_template("plain"))
    return folder


def test_a_model_of_captions_needs_no_question(sightline, tmp_path, captioner):
    picture = Image.new("RGB", (32, 32), "red")
    picture.save(tmp_path / "a.png")
    (expected,) = Assistant(captioner).answers([[picture]], [""], max_new_tokens=5)
    given = ("ask", captioner, tmp_path / "a.png")
    options = ("--max-new-tokens", 5, "--device", "cpu")
    for question in ([], [""]):
        code, out, err = sightline(*given, *question, *options)
        assert (code, out.strip(), err) == (0, expected, "")
    code, out, err = sightline(*given, "What?", *options)
    assert (code, out.strip()) == (0, expected) and "is not shown the question" in err
    code, _, err = sightline("ask", captioner, "What?", *options)
    assert code == 2 and "without an image there is nothing to ask it" in err


def test_levels_side_by_side(sightline, tmp_path, captioner):
    picture = Image.new("RGB", (32, 32), "red")
    picture.save(tmp_path / "a.png")
    given = ("ask", captioner, tmp_path / "a.png", "--max-new-tokens", 2, "--device", "cpu", "--level")
    model = Assistant(captioner)
    expected = [model.answers([[picture]], [""], max_new_tokens=2, level=level)[0] for level in (1, 2, 3)]
    code, out, _ = sightline(*given, "all")
    assert code == 0 and [line.split()[0] for line in out.splitlines() if line.strip()][:2] == ["level", "1"]
    for level, answer in enumerate(expected, start=1):
        assert any(
            line.startswith(f"{level} ") and " ".join(answer.split()) in " ".join(line.split())
            for line in out.splitlines()
        )
    code, out, _ = sightline(*given, 2)
    assert (code, out.strip()) == (0, expected[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["a.png", "What?", "--level", "2"],
            "has no levels, so none of them can be asked. Ask a model that was trained",
        ),
        (["a.png", "What?", "--level", "all"], "has no levels, so none of them can be asked"),
        (["a.png", "What?", "--level", "most"], "--level most is no level. Give a number from 1 on, or `all`."),
        (["What?", "--level", "2"], "there is none, so every level would answer alike"),
    ],
)
def test_levels_that_cannot_be_asked(sightline, tmp_path, monkeypatch, run_folder, arguments, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    code, out, err = sightline("ask", run_folder, *arguments, "--device", "cpu")
    assert (code, out) == (2, "") and message in err


def test_data_that_is_not_there_stops_before_anything_is_written(sightline, tmp_path, monkeypatch, tiny):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(
        f"name: x\nmodel: {{vision: {tiny['clip']}, language: {tiny['llama']}}}\n"
        "stages: [{name: s, data: {path: gone.json}, trainable: [connector]}]"
    )
    code, _, err = sightline("train", "r.yaml")
    assert code == 2
    assert err.lstrip().startswith("error: data file not found: gone.json")
    assert not Path("runs").exists()


def test_asking_streams_the_answer(sightline, tmp_path, run_folder):
    picture = Image.new("RGB", (32, 32), "red")
    picture.save(tmp_path / "a.png")
    question = "What colour is it? " + "Say so at length. " * 20
    (expected,) = Assistant(run_folder).answers([[picture]], [question], max_new_tokens=5)
    code, out, _ = sightline("ask", run_folder, tmp_path / "a.png", question, "--max-new-tokens", 5, "--device", "cpu")
    assert (code, out.strip()) == (0, expected)


def test_a_question_with_a_placeholder(sightline, run_folder):
    code, _, err = sightline("ask", run_folder, "<image> What?", "--device", "cpu")
    assert code == 2
    assert "<image>" in err


def test_evaluating_writes_into_the_run_folder(sightline, pictures, run_folder):
    data = pictures / "questions.jsonl"
    code, out, _ = sightline("eval", run_folder / "model", "--data", data, "--max-new-tokens", 2, "--device", "cpu")
    assert code == 0
    scores = run_folder / "eval" / "questions" / "scores.json"
    assert str(scores) in out.replace("\n", "")
    assert scores.is_file()


def test_stopping_is_not_a_traceback(sightline, monkeypatch):
    """Ctrl-C inside the training, through the real command line."""

    def stop(recipe, *, resume: bool) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sightline.train.train", stop)
    code, _, err = sightline("train", "world", "out=runs/x")
    assert code == 130
    assert "Go on: sightline train runs/x/recipe.yaml --resume" in err


def test_a_place_that_cannot_be_written_is_named(sightline, pictures, tmp_path):
    (tmp_path / "file").write_text("x")
    code, _, err = sightline("world", "make", tmp_path / "file" / "world", "--train", 1)
    assert code == 2
    assert "cannot read or write" in err and "file" in err and "Traceback" not in err


def test_recipes_are_listed(sightline):
    code, out, _ = sightline("recipes")
    assert code == 0
    assert "world" in out


@pytest.mark.parametrize(
    ("model", "blank", "expected"),
    [
        ("run", False, "run/eval/test.v2"),
        ("run/model", True, "run/eval/test.v2-blank"),
        ("org/name", False, "runs/eval/org--name/test.v2"),
    ],
)
def test_where_scores_go(tmp_path, monkeypatch, model, blank, expected):
    monkeypatch.chdir(tmp_path)
    Path("run/model").mkdir(parents=True)
    assert eval_cli.default_eval_folder(model, Path("data/test.v2.jsonl"), blank=blank) == Path(expected)
