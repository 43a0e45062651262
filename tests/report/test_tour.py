"""What the demo says on its way; that it runs is tested with the README's commands."""

from io import StringIO

from rich.console import Console

from sightline.compare.claims import read_shipped
from sightline.demo import _show, seeds_say


def test_commands_are_shown_as_they_are_typed():
    said = StringIO()
    _show(Console(file=said, width=20), "train world out=runs/[new]/demo")
    assert said.getvalue() == "$ sightline train world out=runs/[new]/demo\n"


def test_seeds_say_a_line_for_each_comparison():
    assert len(seeds_say()) == len(read_shipped()) and all(line.endswith("seeds") for line in seeds_say())
