"""More than sixty kinds of broken rows, images and files: each is found, named, and comes with its fix."""

import re

import pytest
from PIL import Image
from rich.console import Console

from sightline.config import check
from sightline.doctor.findings import Finding
from sightline.doctor.report import Report
from sightline.doctor.run import examine

from . import broken


@pytest.fixture(scope="module")
def report(tiny, tmp_path_factory) -> Report:
    folder = tmp_path_factory.mktemp("broken")
    stage = {"trainable": ["connector", "language"]}
    held = {"path": str(folder / "held.json")}
    text = {"path": str(folder / "held.json"), "template": "plain"}
    recipe = check(
        {
            "name": "broken",
            "max_length": 400,
            "device": "cpu",
            "model": {"vision": str(tiny["clip"]), "language": str(tiny["llama"])},
            "stages": [
                {"name": "captions", "data": text, **stage},
                {"name": "chats", "data": broken.write(folder), "validation": held, **stage},
            ],
        }
    )
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, 1_000_000
    try:
        return examine(recipe, workers=0, model=False, console=Console(quiet=True))
    finally:
        Image.MAX_IMAGE_PIXELS = most


def findings(report: Report) -> list[Finding]:
    return [finding for group in report.ledger for finding in group.first]


def test_there_are_more_than_sixty_kinds():
    assert len({kind.name for kind in broken.KINDS}) == len(broken.KINDS) > 60


@pytest.mark.parametrize("kind", broken.KINDS, ids=lambda kind: kind.name[:20])
def test_each_kind_is_found_and_named_with_its_fix(report, kind):
    of_check = [finding for finding in findings(report) if finding.check.startswith(kind.check)]
    mine = [f for f in of_check if all(word in f"{f.where}: {f.message}" for word in kind.says)]
    assert mine, [f"{f.where}: {f.message}" for f in of_check]
    assert any(all(word in finding.fix for word in kind.fix) for finding in mine), [f.fix for f in mine]
    assert all(finding.fix.strip() for finding in mine)


def test_every_finding_says_where_what_and_what_to_do(report):
    for finding in findings(report):
        assert finding.where
        assert finding.message
        assert len(finding.fix) > 5, finding
        assert not re.search(r"Traceback|<class|Error\(", finding.message), finding


def test_healthy_rows_beside_them_are_not_accused(report):
    for finding in findings(report):
        assert "id 'good'" not in finding.where
        assert "ok.png" not in finding.where or finding.check == "text/same-image"


def test_a_row_that_is_also_trained_on_is_named(report):
    leak = next(finding for finding in findings(report) if finding.check == "rows/leak")
    assert "held out" in leak.where


def test_a_caption_of_nothing_is_named(report):
    finding = next(finding for finding in findings(report) if finding.check == "text/caption-of-nothing")
    assert "no image" in finding.message


def test_the_verdict_names_three_things(report):
    assert report.verdict == "training would fail"
    assert not report.ok
    assert len(report.fix_first) == 3
    assert {group.severity for group in report.fix_first} == {"error"}
