"""The small world's training questions with what LLaVA puts after a question: a line on how to answer.

The world asks `what colour is the star?` and no more. Benchmarks are asked with such a line, and a model that has never
seen one answers anything. LLaVA's own mixture teaches them; this writes one for the world, WORLD/instruct.llava.json:
the rows of instruct.json, a quarter as they are, the others with one of three lines. A choice is answered by its words,
since models as small as the world's learn no letters from so little.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

from from_world import options

from sightline.benchmarks.items import CAPTION, LETTER, SHORT, WORD
from sightline.benchmarks.letters import LETTERS, listed
from sightline.world.language import ANSWERS

WAYS = ("", SHORT, WORD, LETTER)
EPILOG = """\
example:
  python examples/benchmarks/lessons.py data/world
  sightline train world name=worded stages.1.data.path=data/world/instruct.llava.json
"""


def lesson(row: dict[str, Any]) -> dict[str, Any]:
    """A row with a line on how to answer it."""
    asked, told = row["conversations"]
    rng = random.Random(row["id"])
    if row["ability"] == "description":
        text = rng.choice((asked["value"], f"<image>\n{CAPTION}"))
    else:
        way, text = rng.choice(WAYS), asked["value"]
        if way == LETTER:
            choices, _ = options(row["id"], told["value"], ANSWERS[row["ability"]])
            text += f"\n{listed(dict(zip(LETTERS, choices, strict=False)))}"
        text += way
    return row | {"conversations": [asked | {"value": text}, told]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("world", metavar="WORLD", type=Path, help="a folder that `sightline world make` wrote")
    world: Path = parser.parse_args().world
    if not (world / "instruct.json").is_file():
        parser.error(f"{world / 'instruct.json'} is not there. Run: sightline world make {world}")
    rows = [lesson(row) for row in json.loads((world / "instruct.json").read_text(encoding="utf-8"))]
    text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
    (world / "instruct.llava.json").write_text(text, encoding="utf-8")
    print(f"{len(rows):,} rows in {world / 'instruct.llava.json'}")


if __name__ == "__main__":
    main()
