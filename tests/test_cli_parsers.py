"""No input gives a traceback at the command line: recipes, overrides, run folders and model configs of any content."""

import contextlib
import io
import json
import sys
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sightline import cli

TEXT = st.text(max_size=60)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
ANYTHING = st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3), max_leaves=8)
DATA = {"path": "data/none.json"}
STAGE = {"name": "s", "data": DATA, "trainable": ["connector"]}
RECIPE = {"name": "r", "model": {"vision": "world:clip", "language": "world:lm"}, "stages": [STAGE]}
KEYS = ["name", "out", "seed", "device", "model", "model.vision", "methods", "stages", "stages.0", "stages.0.data.path",
        "stages.0.data", "stages.0.lr", "stages.0.trainable", "stages.0.weights", "stages.0.lora", "stages.0.epochs",
        "stages.0.init_from", "stages.9", "max_length", "parallel", "trackers", ""]  # fmt: skip


def command(*arguments: str) -> tuple[int, str]:
    """Exit code and what was said, of a command in this process; anything but an exit is a failure."""
    said = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["sightline", *arguments]),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(said),
    ):
        try:
            cli.main()
        except SystemExit as leaving:
            return int(leaving.code or 0), said.getvalue()
    return 0, said.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory):
    """An empty folder to be in, for the whole module: hypothesis runs many examples in one test."""
    folder = tmp_path_factory.mktemp("place")
    with contextlib.chdir(folder):
        yield folder


@settings(max_examples=40)
@given(content=st.binary(max_size=80) | TEXT.map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(content=b"name: &a [*a]")
@example(content=b"\xff\xfe")
@example(content=b"!!python/object:os.system {}")
def test_a_recipe_of_any_bytes(content: bytes, place: Path) -> None:
    (place / "recipe.yaml").write_bytes(content)
    for verb in ("train", "doctor"):
        code, said = command(verb, "recipe.yaml")
        assert code in (1, 2) and ("error" in said or "recipe" in said)


@settings(max_examples=40)
@given(key=st.sampled_from(KEYS), value=ANYTHING)
@example(key="name", value="\x00")
@example(key="out", value="\x00")
@example(key="out", value="a" * 5000)
@example(key="stages.0.data.path", value="\x00")
@example(key="stages.0.init_from", value="\x00")
@example(key="model.vision", value="\x00")
@example(key="device", value="\x00")
def test_a_recipe_with_anything_under_a_key(key: str, value, place: Path) -> None:
    (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    override = f"{key}={json.dumps(value)}"
    if "\x00" not in override and not any("\ud800" <= c <= "\udfff" for c in override):
        assert command("train", "recipe.yaml", override)[0] == 2
    values = json.loads(json.dumps(RECIPE))
    if key in values:
        values[key] = value
        (place / "recipe.yaml").write_text(yaml.safe_dump(values))
    assert command("train", "recipe.yaml")[0] == 2
    assert command("doctor", "recipe.yaml", "--no-model")[0] in (1, 2)


@settings(max_examples=40)
@given(
    words=st.lists(
        st.sampled_from(["--", "-", "--help", "--json", "=", "a=b=c", "\x01", "train", "é"]) | TEXT, max_size=4
    )
)
def test_any_words_after_a_command(words: list[str], place: Path) -> None:
    for verb in ("train", "doctor", "ask", "eval", "report", "export", "world"):
        assert command(verb, *words)[0] in (0, 1, 2)


@settings(max_examples=40)
@given(
    piece=st.sampled_from(["recipe.yaml", "run.json", "metrics.jsonl", "dropped.jsonl"]), content=st.binary(max_size=60)
)
def test_a_run_folder_with_any_bytes(piece: str, content: bytes, place: Path) -> None:
    run = place / "run"
    (run / "model").mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text("{}")
    (run / piece).write_bytes(content)
    assert command("report", "run", "--out", "page.html")[0] in (0, 2)
    (place / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"out": "run"}))
    for more in ([], ["--resume"]):
        assert command("train", "recipe.yaml", *more)[0] == 2
    (run / piece).unlink()


@settings(max_examples=40)
@given(value=ANYTHING | st.fixed_dictionaries({"model_type": st.sampled_from(["llava", "sightline", "clip", ""])}))
def test_a_model_with_any_config(value, place: Path) -> None:
    (place / "model").mkdir(exist_ok=True)
    (place / "model" / "config.json").write_text(json.dumps(value))
    assert command("ask", "model", "a question")[0] == 2
    assert command("export", "model", "--out", "exported")[0] == 2
