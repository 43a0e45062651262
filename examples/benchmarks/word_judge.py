"""A stand-in for a judge that counts words: it shows how requests are answered by file where no language model is.

MM-Vet's mark is the share of the true answer's words that were said; LLaVA-Bench's, from 1 to 10, the share of an
answer's words that are in what is told of the image. Marks in earnest are a language model's.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

from sightline.benchmarks.marks import ANSWERS, REQUESTS

PART = re.compile(r"^\[([^]]+)\]\n(.*?)(?=\n\n|\Z)", flags=re.MULTILINE | re.DOTALL)
EPILOG = "example: python examples/benchmarks/word_judge.py runs/world/eval/{llava-bench,mm-vet}"


def marked(prompt: str) -> str:
    """What the judge says."""
    parts = dict(PART.findall(prompt))
    if "True answer" in parts:
        return f"{share(parts['True answer'], parts['Prediction']):.1f}"
    told = parts["What is in the image"]
    return " ".join(f"{1 + 9 * share(parts[answer], told):.0f}" for answer in ("Answer 1", "Answer 2"))


def share(text: str, of: str) -> float:
    """The share of a text's words that another has."""
    words, others = set(re.findall(r"\w+", text.lower())), set(re.findall(r"\w+", of.lower()))
    return len(words & others) / max(len(words), 1)


def answer_folder(folder: Path) -> int:
    """Write an answer to each request in a benchmark's folder, and say how many."""
    requests = [json.loads(line) for line in (folder / REQUESTS).read_text(encoding="utf-8").splitlines()]
    (folder / ANSWERS).write_text("".join(json.dumps(answer(each)) + "\n" for each in requests), encoding="utf-8")
    return len(requests)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """A line of an answered batch, in OpenAI's form."""
    said = marked(request["body"]["messages"][0]["content"])
    return {"custom_id": request["custom_id"], "response": {"body": {"choices": [{"message": {"content": said}}]}}}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", metavar="FOLDER", nargs="+", type=Path, help=f"a benchmark's, with {REQUESTS}")
    for folder in parser.parse_args().folders:
        if not (folder / REQUESTS).is_file():
            parser.error(f"{folder} has no {REQUESTS}. Run `sightline eval` first; it says where the file is.")
        print(f"{answer_folder(folder)} marks in {folder / ANSWERS}")


if __name__ == "__main__":
    main()
