"""What a judge is asked, and what it answers: a language model behind any endpoint of OpenAI's kind, or a person.

Requests are a file, a line each, in the form of OpenAI's batches. Answers are read from the same form, so that a batch
can be sent by whatever tool; `ask` sends them itself. Which judge it was stands beside every score: a score by one
judge says nothing beside a score by another.
"""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import SightlineError
from ..files import write_text
from .files import lines
from .items import Answered

PAIR = """You compare two answers to a question about an image. You do not see the image; what is in it is told here.

[What is in the image]
{context}

[Question]
{question}

[Answer 1]
{reference}

[Answer 2]
{said}

Rate helpfulness, relevance, accuracy and detail of each answer from 1 to 10. Begin with one line that holds two \
numbers, the mark of answer 1 and the mark of answer 2, with a space between them. Then say why."""
MARK = """Compare a prediction with the true answer to a question about an image, and give the prediction a mark from \
0.0 (wrong) to 1.0 (right) in steps of 0.1. In the true answer, <AND> means that both parts must be there, and <OR> \
that one is enough. Say the number alone.

[Question]
{question}

[True answer]
{reference}

[Prediction]
{said}"""
AGAIN = "Take its line out, and ask again."
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def request(row: Answered, prompt: str, judge: str) -> dict[str, Any]:
    """A request, as OpenAI's batches have it."""
    text = prompt.format(**row.item.truth, said=row.said)
    body = {"model": judge, "temperature": 0, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": row.item.id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def write_requests(rows: Sequence[Answered], prompt: str, judge: str, path: Path) -> None:
    """Write what a judge is to be asked."""
    write_text(path, "".join(json.dumps(request(row, prompt, judge), ensure_ascii=False) + "\n" for row in rows))


def read_answers(path: Path) -> dict[str, str]:
    """What a judge said, by the id of the request.

    Raises:
        SightlineError: for a line that is no answer.
    """
    found = {}
    for number, entry in enumerate(lines(path), start=1):
        try:
            found[entry["custom_id"]] = _text(entry["response"]["body"])
        except (KeyError, IndexError, TypeError):
            raise SightlineError(
                f"{path} line {number} is no answer of a judge, so its question has no mark. Lines are those of "
                "OpenAI's batches, with `custom_id` and `response`. Take it out, and ask again."
            ) from None
    return found


def _text(body: Any) -> str:
    return body["choices"][0]["message"]["content"] or ""


def ask(requests: Path, answers: Path, endpoint: str, key: str | None, said: Callable[[int, int], None]) -> None:
    """Send the requests that have no answer yet, one after another, and write each answer as it comes.

    Args:
        endpoint: such as http://localhost:8000/v1.
        said: called with how many are answered, and how many there are.

    Raises:
        SightlineError: if the endpoint cannot be reached or refuses; what was answered stays.
    """
    wanted = lines(requests)
    have = set(read_answers(answers)) if answers.is_file() else set()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    with answers.open("a+", encoding="utf-8") as file:
        file.seek(0)
        if (before := file.read()) and not before.endswith("\n"):
            file.write("\n")
        for entry in wanted:
            if entry["custom_id"] in have:
                continue
            body = _post(f"{endpoint.rstrip('/')}/chat/completions", entry["body"], headers)
            file.write(json.dumps({"custom_id": entry["custom_id"], "response": {"body": body}}) + "\n")
            file.flush()
            have.add(entry["custom_id"])
            said(len(have), len(wanted))


def _post(url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Any:
    if not url.startswith(("http://", "https://")):
        raise SightlineError(f"{url} is no address of a judge. Give one like http://localhost:8000/v1.")
    found = None
    try:
        call = urllib.request.Request(url, json.dumps(body).encode(), dict(headers))
        with urllib.request.urlopen(call, timeout=300) as answer:
            found = json.loads(answer.read())
            _text(found)
            return found
    except urllib.error.HTTPError as error:
        reason = f"{error} {error.read(200).decode(errors='replace')}".strip()
    except (OSError, ValueError) as error:
        reason = str(error)
    except (KeyError, IndexError, TypeError):
        reason = f"it said {str(found)[:200]}"
    raise SightlineError(f"the judge at {url} gave no answer: {reason}. What was answered stays; go on later.")


def pair(text: str, where: str) -> tuple[float, float]:
    """The two marks that a judge's answer begins with."""
    found = NUMBER.findall(text.strip().splitlines()[0] if text.strip() else "")
    if len(found) != 2:
        raise SightlineError(f"{where}: the judge's first line holds no two marks: {text[:80]!r}. {AGAIN}")
    return float(found[0]), float(found[1])


def mark(text: str, where: str) -> float:
    """The mark that a judge says, 0 to 1."""
    found = NUMBER.findall(text)
    if not found or not 0 <= float(found[0]) <= 1:
        raise SightlineError(f"{where}: the judge said no mark from 0 to 1: {text[:80]!r}. {AGAIN}")
    return float(found[0])
