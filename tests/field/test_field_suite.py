"""Every benchmark from its own files to its scores: what is asked, what is counted, and going on after a kill."""

import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from field_files import write_all
from typer.testing import CliRunner

from sightline.benchmarks.items import Answered, Benchmark, Item, Marking
from sightline.benchmarks.judge import read_answers
from sightline.benchmarks.marks import ANSWERS as JUDGED
from sightline.benchmarks.marks import REQUESTS, judge_of, judged
from sightline.benchmarks.run import ANSWERS, answer, items_of, read_scores, write_scores
from sightline.benchmarks.suite import BENCHMARKS, named, there
from sightline.cli import app
from sightline.errors import SightlineError

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_all(tmp_path_factory.mktemp("benchmarks"))


def truly(item: Item) -> str:
    """The right answer, as a model would say it."""
    truth = item.truth
    if "letter" in truth:
        return truth["letter"]
    if "captions" in truth:
        return truth["captions"][0]
    return (truth.get("answers") or [truth.get("answer", truth.get("reference"))])[0]


class Knows:
    """Knows every answer, or says the same of everything."""

    template, digest = "vicuna_v1", "0"

    def __init__(self, items: Sequence[Item], always: str | None = None) -> None:
        self.said = {item.prompt: always or truly(item) for item in items}
        self.asked: list[str] = []

    def answers(self, images, questions, *, max_new_tokens):
        self.asked += questions
        return [self.said[question] for question in questions]

    def letters(self, prompts, letters):
        return self.answers([], prompts, max_new_tokens=1)


def scored(benchmark: Benchmark, items: Sequence[Item], always: str | None = None):
    assert not isinstance(benchmark.score, Marking)
    return benchmark.score([Answered(item, always or truly(item)) for item in items])


@pytest.mark.parametrize("name", [name for name, each in BENCHMARKS.items() if not isinstance(each.score, Marking)])
def test_who_knows_everything_has_the_most_and_babble_the_least(root: Path, name: str):
    benchmark = BENCHMARKS[name]
    items = items_of(benchmark, root)
    most = {"mme": 2000.0, "coco": None, "textcaps": 0.0}.get(name, 1.0)
    best, worst = scored(benchmark, items), scored(benchmark, items, "zebra crossing")
    if most is None:
        assert best["cider"].value > 100 > worst["cider"].value == 0
    else:
        assert best[benchmark.primary].value == pytest.approx(most)
        assert worst[benchmark.primary].value == pytest.approx(2 / 3 if name == "pope" else 0.0), "POPE reads it as yes"
    for scores in (best, worst):
        assert all(score.low <= score.value <= score.high for score in scores.values())


PROMPTS = {
    "vqav2": f"What colour is it?{SHORT}",
    "gqa": f"Is it red?{SHORT}",
    "vizwiz": "What is this?\nWhen the provided information is insufficient, respond with 'Unanswerable'." + SHORT,
    "textvqa": f"what does it say?{SHORT}",
    "textvqa-ocr": f"what does it say?\nReference OCR token: STOP, RED{SHORT}",
    "chartqa": "How many?\nAnswer the question with a single word.",
    "scienceqa": f"Context: Look.\nWhich is red?\nA. box\nB. sky{LETTER}",
    "seed": f"What?\nA. a cat\nB. a dog\nC. a car\nD. a bus{LETTER}",
    "mmbench": f"Which?\nA. red\nB. blue\nC. green{LETTER}",
    "mmbench-cn": "Which?\nA. red\nB. blue\nC. green\n请直接回答选项字母。",
    "pope": f"Is there a box in the image?{SHORT}",
    "mme": f"Is it red?{SHORT}",
    "coco": "Provide a one-sentence caption for the provided image.",
    "llava-bench": "What is it?",
    "mm-vet": "What is x?",
}


@pytest.mark.parametrize("name", PROMPTS)
def test_the_first_question_in_llavas_words(root: Path, name: str):
    assert items_of(BENCHMARKS[name], root)[0].prompt == PROMPTS[name]


def test_what_is_counted_apart(root: Path):
    def scores(name: str) -> set[str]:
        return set(scored(BENCHMARKS[name], items_of(BENCHMARKS[name], root)))

    assert scores("scienceqa") == {"all", "image", "text"} and scores("seed") == {"all", "image", "video"}
    assert scores("mmbench") == {"circular", "single", "circular/colour", "circular/person"}
    assert scores("chartqa") == {"accuracy", "accuracy/human", "accuracy/augmented"}
    assert {"perception", "cognition", "existence", "code_reasoning"} <= scores("mme")
    assert {"f1", "random/f1", "adversarial/yes"} <= scores("pope")
    assert scores("mmlu") == {"accuracy", "accuracy/anatomy"}


def test_mmbench_asks_every_rotation_and_counts_a_question_once(root: Path):
    items = items_of(BENCHMARKS["mmbench"], root)
    assert [item.id for item in items] == ["1", "1000001", "2000001", "2", "1000002"]
    assert [item.truth["letter"] for item in items] == ["A", "C", "B", "B", "A"]
    assert items[3].prompt.startswith("A hint.\nWho?")
    always_a = scored(BENCHMARKS["mmbench"], items, always="A")
    assert always_a["single"].value == pytest.approx(2 / 5) and always_a["circular"].value == 0


def test_mmlu_shows_five_examples_of_its_subject(root: Path):
    item = items_of(BENCHMARKS["mmlu"], root)[0]
    assert item.prompt.count("Answer:") == 6 and item.prompt.endswith("D. four\nAnswer:")
    assert item.prompt.startswith("The following are multiple choice questions (with answers) about anatomy.")
    assert "What is 4, if any?\nA. one\nB. two\nC. three\nD. four\nAnswer: A\n\n" in item.prompt


def test_what_was_answered_is_not_asked_again(root: Path, tmp_path: Path):
    benchmark = BENCHMARKS["pope"]
    items, out = items_of(benchmark, root), tmp_path / "pope"
    settings = {"model": "m"}
    first = Knows(items)

    class Dies(Knows):
        def answers(self, images, questions, *, max_new_tokens):
            if len(self.asked) >= 4:
                raise KeyboardInterrupt
            return super().answers(images, questions, max_new_tokens=max_new_tokens)

    dying = Dies(items)
    with pytest.raises(KeyboardInterrupt):
        answer(benchmark, items, dying, out, settings=settings, batch_size=2, progress=False)
    with (out / ANSWERS).open("a") as file:
        file.write('{"id": "popular-1", "sa')  # a line that a power cut tore
    rows = answer(benchmark, items, first, out, settings=settings, batch_size=2, progress=False)
    assert len(dying.asked) == 4 and len(first.asked) == len(items) - 4
    assert [row.said for row in rows] == [truly(item) for item in items]
    whole = answer(benchmark, items, Knows(items), tmp_path / "whole", settings=settings, progress=False)
    assert (tmp_path / "whole" / ANSWERS).read_bytes() == (out / ANSWERS).read_bytes() and whole == rows
    with pytest.raises(SightlineError, match="has answers with another model, so they would be mixed"):
        answer(benchmark, items, first, out, settings={"model": "other"}, progress=False)
    with pytest.raises(SightlineError, match=r"has answers to other questions \(6 then, 3 now\)"):
        answer(benchmark, items[:3], first, out, settings=settings, progress=False)
    write_scores(benchmark, scored(benchmark, items), out, settings | {"ids": [item.id for item in items]})
    content, scores = read_scores(out / "scores.json")
    assert content["settings"]["ids"][0] == "random-0" and scores["f1"].value == 1


def test_a_judge_is_asked_by_file_and_its_answers_are_read(root: Path, tmp_path: Path):
    benchmark = BENCHMARKS["llava-bench"]
    rows = [Answered(item, "A box.") for item in items_of(benchmark, root)]
    said: list[str] = []
    assert judged(benchmark, rows, tmp_path, "judge-1", None, None, said.append) is None
    assert "2 of 2 answers wait for a judge" in said[0]
    requests = [json.loads(line) for line in (tmp_path / REQUESTS).read_text().splitlines()]
    text = requests[0]["body"]["messages"][0]["content"]
    assert all(part in text for part in ("A box that is red.", "What is it?", "A red box.", "A box."))
    assert requests[0]["body"]["model"] == "judge-1" and requests[0]["custom_id"] == "0"
    answers = [
        {"custom_id": f"{n}", "response": {"body": {"choices": [{"message": {"content": text}}]}}}
        for n, text in enumerate(("8 6\nbecause", "10 5\nso"))
    ]
    (tmp_path / JUDGED).write_text("\n".join(map(json.dumps, answers)))
    scores = judged(benchmark, rows, tmp_path, None, None, None, said.append)
    assert scores is not None and scores["score"].value == pytest.approx(100 * 11 / 18)
    answers[1]["response"]["body"]["choices"][0]["message"]["content"] = "both are fine"
    (tmp_path / JUDGED).write_text("\n".join(map(json.dumps, answers)))
    with pytest.raises(SightlineError, match=r"answers.jsonl, 1: .* no two marks: 'both are fine'. Take its line out"):
        judged(benchmark, rows, tmp_path, None, None, None, said.append)
    assert judge_of(tmp_path) == "judge-1", "the one whose requests were written stays the judge"
    with pytest.raises(SightlineError, match="has marks by 'judge-1', and those by 'judge-2' would be mixed"):
        judged(benchmark, rows, tmp_path, "judge-2", None, None, said.append)
    (tmp_path / JUDGED).unlink()
    assert judged(benchmark, rows, tmp_path, "judge-2", None, None, said.append) is None
    assert judge_of(tmp_path) == "judge-2"


def test_a_judge_behind_an_endpoint(root: Path, tmp_path: Path):
    """After one answer it is busy, then says no answer at all; what it said stays, and it is asked the rest later."""
    asked: list[dict] = []

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(429 if len(asked) == 2 else 200)
            self.end_headers()
            wrong = {2: {"error": "too many requests"}, 3: {"error": "no such model"}}
            right = {"choices": [{"message": {"content": "8 4"}}]}
            self.wfile.write(json.dumps(wrong.get(len(asked), right)).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    benchmark = BENCHMARKS["llava-bench"]
    rows = [Answered(item, "A box.") for item in items_of(benchmark, root)]
    for reason in ("HTTP Error 429: .*too many requests", "it said .*no such model"):
        with pytest.raises(SightlineError, match=f"gave no answer: {reason}"):
            judged(benchmark, rows, tmp_path, "j", url, "key", print)
        assert set(read_answers(tmp_path / JUDGED)) == {"0"}
    (tmp_path / JUDGED).write_text((tmp_path / JUDGED).read_text().rstrip())  # as many tools leave a last line
    scores = judged(benchmark, rows, tmp_path, "j", url, "key", print)
    server.shutdown()
    assert scores is not None and scores["score"].value == pytest.approx(50) and len(asked) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda place: (place / "val.json").unlink(), "vizwiz: .* has none of: val.json"),
        (lambda place: (place / "val" / "v1.jpg").unlink(), "vizwiz: val.json entry 0: image not found"),
        (lambda place: (place / "val.json").write_text("{"), "vizwiz: cannot read .*val.json"),
        (lambda place: (place / "val.json").write_text("[]"), "holds no list of entries"),
        (lambda place: (place / "val.json").write_text('[{"image": "v1.jpg"}]'), "entry 0 has no 'question'"),
        (
            lambda place: (place / "val.json").write_text('[{"image": "v1.jpg", "question": "q", "answers": [3]}]'),
            "vizwiz: its files in .* are not what they should be",
        ),
    ],
)
def test_files_that_are_not_a_benchmarks_own(tmp_path: Path, spoil, message: str):
    spoil(write_all(tmp_path) / "vizwiz")
    with pytest.raises(SightlineError, match=message):
        items_of(BENCHMARKS["vizwiz"], tmp_path)


def test_ai2d_wants_the_list_of_its_test_split(tmp_path: Path):
    place = write_all(tmp_path) / "ai2d"
    listed = place / "ai2d_test_ids.csv"
    before = items_of(BENCHMARKS["ai2d"], tmp_path)
    assert len(before) == 1, "two are there, one is listed"
    listed.rename(place / "ai2d" / listed.name)
    assert items_of(BENCHMARKS["ai2d"], tmp_path) == before
    (place / "ai2d" / listed.name).unlink()
    with pytest.raises(SightlineError, match=r"ai2d: .* has none of: ai2d_test_ids\.csv"):
        items_of(BENCHMARKS["ai2d"], tmp_path)


def test_names(root: Path):
    assert {each.name for each in there(["all"], root)} == set(BENCHMARKS)
    with pytest.raises(SightlineError, match="no benchmark 'poppe'; did you mean 'pope'"):
        named(["poppe"])
    with pytest.raises(SightlineError, match="no folder with the name of a benchmark"):
        there(["all"], root / "gqa")


def test_the_worlds_model_is_scored_end_to_end(root: Path, tmp_path: Path):
    """Every kind of benchmark by the command, on a model that was never trained; twice, the second time from disk."""
    import torch

    from sightline.benchmarks.speaker import Speaking
    from sightline.checkpoints import save_model
    from sightline.data.templates import get_template
    from sightline.models.assemble import assemble

    torch.manual_seed(0)
    save_model(assemble("world:clip", "world:lm"), tmp_path / "model", get_template("vicuna_v1"))
    names = "gqa,pope,mme,mmbench,coco,mmlu,mm-vet"
    command = [
        "eval",
        str(tmp_path / "model"),
        "--benchmark",
        names,
        "--root",
        str(root),
        "--out",
        str(tmp_path / "out"),
        "--most",
        "4",
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "mm-vet: 1 of 1 answers wait for a judge" in done.output
    for name in names.split(","):
        said = [json.loads(line) for line in (tmp_path / "out" / name / ANSWERS).read_text().splitlines()]
        assert 1 <= len(said) <= 4
        if name == "mmlu":
            assert {row["said"] for row in said} <= set("ABCD")
        if name != "mm-vet":
            content, scores = read_scores(tmp_path / "out" / name / "scores.json")
            assert scores and content["settings"]["template"] == "vicuna_v1" and content["versions"]["sightline"]
    before = (tmp_path / "out" / "pope" / ANSWERS).read_bytes()
    command[1] += "/"  # as a shell completes it
    assert CliRunner().invoke(app, command).exit_code == 0
    assert (tmp_path / "out" / "pope" / ANSWERS).read_bytes() == before

    speaker = Speaking(str(tmp_path / "model"), device=torch.device("cpu"))
    prompts = [f"{question}\nAnswer:" for question in ("what does the crow eat?", "B?", "A. one\nB. two")]
    prompt = speaker.subject.prompted([[]] * 3, prompts)
    losses = torch.stack([speaker.subject.loss(prompt, [letter] * 3) for letter in "ABCD"])
    assert speaker.letters(prompts, "ABCD") == ["ABCD"[place] for place in losses.argmin(0)], "the least loss"


def test_a_try_has_a_folder_of_its_own(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """So that all questions can be asked after it, and `sightline tables` takes none for a score."""

    knows = Knows(items_of(BENCHMARKS["pope"], root))
    monkeypatch.setattr("sightline.benchmarks.speaker.Speaking", lambda *_, **__: knows)
    command = ["eval", str(tmp_path), "--benchmark", "pope", "--root", str(root)]
    for more, folder, asked in ((["--most", "2"], "first-2/pope", 2), ([], "pope", 6)):
        assert CliRunner().invoke(app, [*command, *more]).exit_code == 0
        assert len((tmp_path / "eval" / folder / ANSWERS).read_text().splitlines()) == asked


def test_ctrl_c_says_how_to_go_on(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("sightline.benchmarks.speaker.Speaking", lambda *_, **__: Knows([]))
    monkeypatch.setattr("sightline.benchmarks.run.answer", stopped)
    done = CliRunner().invoke(app, ["eval", str(tmp_path), "--benchmark", "gqa", "--root", str(root)])
    assert done.exit_code == 130 and f"{tmp_path / 'eval' / 'gqa'}; the same command goes on" in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "say what to score on"),
        (["--benchmark", "pope"], "no folder was named"),
        (["--benchmark", "pope", "--root", ".", "--blank-images"], "--blank-images would change nothing here"),
        (["--benchmark", "pope", "--root", ".", "--endpoint", "http://localhost"], "none was named"),
        (["--data", "x.jsonl", "--most", "3", "--judge", "j"], "--most, --judge would change nothing .* --benchmark"),
    ],
)
def test_what_goes_with_the_other_kind_of_evaluation_is_refused(options: list[str], message: str):
    with pytest.raises(SightlineError, match=message):
        CliRunner().invoke(app, ["eval", "model", *options], catch_exceptions=False)
