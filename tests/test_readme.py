"""Every `sightline` command of the README runs, in its order, in an empty folder; long ones in a short mode."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.config import reference

ROOT = Path(__file__).parents[1]
SHORTER = {
    ("demo",): ["--short"],
    ("world", "make"): ["--train", "48", "--validation", "16", "--test", "16", "--novel", "16"],
    ("train", "world-vlsa"): [
        f"stages.{n}.{key}" for n in (0, 1) for key in ("steps=2", "batch_size=8", "validation=[]")
    ],
    ("train",): ["stages.0.steps=3", "stages.1.steps=3"],
    ("diagnose",): ["--most", "12"],
}


RAN = "-- ran to its end --"
ONE_AFTER_ANOTHER = f"""
import json, sys
from sightline.cli import main
for line in json.loads(sys.argv[1]):
    sys.argv = ["sightline", *line]
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.exit(f"sightline {{' '.join(line)}} ended with {{end.code}}")
    print({RAN!r}, flush=True)
"""
"""All commands in one process, which imports torch and transformers once."""


def commands(text: str) -> list[list[str]]:
    """The `sightline` commands in the shell blocks of a page, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line[1:] for line in lines if line and line[0] == "sightline"]


@pytest.mark.timeout(600)
def test_every_command_of_the_readme_runs(tmp_path: Path) -> None:
    found = commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {command[0] for command in found} >= {"demo", "world", "train", "eval", "ask", "report", "recipes"}
    lines = []
    for command in found:
        extra = next((more for start, more in SHORTER.items() if tuple(command[: len(start)]) == start), [])
        lines.append([*command, *extra])
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_ANOTHER, json.dumps(lines)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count(RAN) == len(lines)
    assert (tmp_path / "runs" / "demo" / "report.html").is_file()
    assert (tmp_path / "runs" / "world" / "report.html").is_file()


def test_every_key_of_a_recipe_is_documented() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    for place, default, meaning in reference():
        assert f"| `{place}` | `{default}` | {meaning} |" in page, f"docs/recipes.md is behind on {place}"
        assert place.endswith("name") or meaning, place


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
