"""Runs carried out by a runner that only pretends: what is resumed, shared, tuned, refused, and what comes out."""

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from rich.console import Console

from sightline.compare import work as work_module
from sightline.compare.folder import Comparison, Job, jobs_of, locked
from sightline.compare.progress import Watch
from sightline.compare.report import write_results
from sightline.compare.results import results_of
from sightline.compare.run import run_comparison
from sightline.errors import SightlineError
from sightline.train.signals import Stopped

from .stage import PowerCut, Pretence, begin, plan_values


def right(arm: str, seed: int, lr: float) -> float:
    """Of 8 questions: the baseline gets 6 or 7, more with the higher rate; without stage 1 one less; blind 2 or 3."""
    base = {"baseline": 6, "no-stage-1": 5, "blind": 2}[arm]
    return (base + seed % 2 * (arm != "no-stage-1") + (lr == 2e-3)) / 8


@pytest.fixture(autouse=True)
def no_flops(monkeypatch):
    """Counting them is tested with real runs."""
    monkeypatch.setattr(work_module, "_flops", lambda recipe, by_stage: 1000)


def brief(folder: Path) -> dict:
    """A plan of 8 runs: two arms, two seeds, one seed of tuning."""
    values = plan_values(folder, seeds=2)
    values["tuning"]["seeds"] = [100]
    return values | {"arms": values["arms"][1:]}


def scores(comparison: Comparison) -> dict[Job, dict]:
    return {job: row["scores"] for job, row in comparison.rows().items()}


def test_a_comparison_from_plan_to_words(folder: Path):
    comparison, runner = begin(plan_values(folder), folder / "out"), Pretence(right)
    assert run_comparison(comparison, runner) == []
    trained = [command for command in runner.commands if command[0] == "train"]
    assert len(trained) == 12 + 9 and all(command[2] == "--resume" for command in trained)
    asked = [command for command in runner.commands if command[0] == "eval"]
    assert len(asked) == 12 + 9, "the primary and the secondary outcome are on one file, which is asked once"
    for command in asked:
        tuning = "/runs/tuning/" in command[1]
        assert ("validation.questions" in command[3]) == tuning, "tuning never sees the claim's questions"
        assert ("--blank-images" in command) == ("blind" in command[1])

    row = json.loads((folder / "out" / "rows" / "blind.seed2.json").read_text())
    assert (row["arm"], row["seed"], row["setting"]) == ("blind", 2, 1), "the higher rate scored best"
    score = row["scores"]["test.questions.jsonl"]["by_ability"]["colour"]
    assert (score["value"], score["n"]) == (3 / 8, 8)
    compute = row["compute"]
    assert (compute["samples"], compute["tokens"], compute["steps"], compute["training_seconds"]) == (16, 480, 4, 8.0)
    assert str(folder) not in json.dumps(row), "no path of this machine"
    assert (folder / "out" / "rows" / "blind.seed2.json").read_text().count("\n") == 1
    chosen = json.loads((folder / "out" / "settings" / "no-stage-1.json").read_text())
    assert chosen["chosen"] == 1 and [tried["overrides"] for tried in chosen["tried"]] == [
        ["stages.1.lr=1e-3"],
        ["stages.1.lr=2e-3"],
    ]

    results, text = write_results(comparison, "sightline compare plan.yaml")
    assert results.complete and text == (folder / "out" / "results.md").read_text()
    assert len((folder / "out" / "results.jsonl").read_text().splitlines()) == 21
    stage_1, blind = results.primary.pairs
    assert stage_1.words == "a difference inside its noise; one that matters is not excluded"
    assert stage_1.difference is not None
    assert stage_1.difference.mean == pytest.approx((-1 / 8 - 2 / 8 - 1 / 8) / 3)
    assert stage_1.difference.level == 0.975
    assert blind.words == "no claim: the difference is the same on every seed, so how seeds vary was not seen"
    assert "| no-stage-1 minus baseline | -16.67 points | -42.52 to +9.19 points | 3 |" in text, "6.2053 sd / sqrt 3"
    assert "97.5% each, so that all 2 hold together with 95% (Bonferroni)" in text
    assert "commonest answer" in text
    assert "| seeds to see 10 points (80% power) |" in text
    assert "| blind minus baseline | -50.00 points | unknown: all seeds alike | 3 | unknown |" in text
    assert "| baseline | 91.7% | 73.7% to 100.0% |" in text, "no accuracy is above 100%"
    assert "Not a claim" in text and "claim waits" not in text
    assert "| blind | 8 s |" in text
    assert "| pretrain | 0 | 1.000, 50.0% |  | 1.000, 50.0% |" in text, "an arm without the stage has no point there"
    assert "| tune | 2 | 3.000, 50.0% | 3.000, 50.0% | 3.000, 50.0% |" in text, "the mean over seeds"


def test_a_killed_comparison_goes_on(folder: Path):
    """The machine dies after 5 commands, twice; nothing that has a row is done again."""
    whole, comparison = (begin(brief(folder), folder / name) for name in ("whole", "out"))
    run_comparison(whole, Pretence(right))
    lives = [Pretence(right, ends_after=5), Pretence(right, ends_after=5), Pretence(right)]
    for runner in lives[:2]:
        with pytest.raises(PowerCut):
            run_comparison(comparison, runner)
        assert runner.stopped == signal.SIGKILL
        assert begin(brief(folder), folder / "out") == comparison
    assert run_comparison(comparison, lives[2]) == []
    commands = [command for runner in lives for command in runner.commands]
    assert len(commands) <= 16 + 4, "each death costs one run's commands at most"
    assert len({command[1] for command in commands if command[0] == "eval"}) == 8
    assert scores(comparison) == scores(whole)
    assert run_comparison(comparison, Pretence(right, ends_after=0)) == [], "nothing is left to do"


@pytest.mark.parametrize("shared", [True, False], ids=["shared folder", "folders of their own"])
def test_shards_make_one_result(folder: Path, shared: bool):
    """Two processes, each with half of the runs: at once on one folder, or on two whose rows are copied together."""
    whole = begin(brief(folder), folder / "whole")
    run_comparison(whole, Pretence(right))
    if shared:
        parts = [begin(brief(folder), folder / "out") for _ in range(2)]
        options = [{"shard": (part, 2), "workers": 2, "poll": 0.3} for part in (1, 2)]
        runners = [Pretence(right), Pretence(right)]
        threads = [
            threading.Thread(target=run_comparison, args=(comparison, runner), kwargs=option)
            for comparison, runner, option in zip(parts, runners, options, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for comparison, option in zip(parts, options, strict=True):  # one may have left while the other began a run
            runners.append(Pretence(right))
            run_comparison(comparison, runners[-1], **option)
        asked = [command[1] for runner in runners for command in runner.commands if command[0] == "eval"]
        assert len(asked) == len(set(asked)) == 8, "no run is done twice"
        assert all(runner.commands for runner in runners[:2]), "both took part"
    else:
        parts = [begin(brief(folder), folder / f"out{part}") for part in (1, 2)]
        for _ in range(2):  # tuning, then the claim
            for part, comparison in enumerate(parts, start=1):
                run_comparison(comparison, Pretence(right), shard=(part, 2), poll=0.01)
            for kind in ("tuning", "rows"):
                for one, other in (parts, parts[::-1]):
                    (other.path / kind).mkdir(exist_ok=True)
                    for row in (one.path / kind).glob("*.json"):
                        (other.path / kind / row.name).write_bytes(row.read_bytes())
    for comparison in parts:
        assert scores(comparison) == scores(whole)
        assert results_of(comparison.plan, comparison.rows()).primary == results_of(whole.plan, whole.rows()).primary


def test_two_processes_do_no_run_twice(folder: Path):
    """Each ready to do every run, at once, on one folder."""
    runners = [Pretence(right), Pretence(right)]
    with ThreadPoolExecutor(2) as pool:
        comparisons = [begin(brief(folder), folder / "out") for _ in runners]
        options = {"workers": 2, "poll": 0.1}
        pairs = zip(comparisons, runners, strict=True)
        ends = [pool.submit(run_comparison, comparison, runner, **options) for comparison, runner in pairs]
        assert [end.result() for end in ends] == [[], []]
    commands = [tuple(command) for runner in runners for command in runner.commands]
    assert len(commands) == len(set(commands)) == 16 and len(comparisons[0].rows()) == 8


def test_workers_share_the_runs(folder: Path):
    comparison, runner = begin(brief(folder), folder / "out"), Pretence(right)
    run_comparison(comparison, runner, workers=3)
    assert len(runner.commands) == 16 and len(comparison.rows()) == 8


def test_a_run_that_another_process_holds_is_waited_for(folder: Path):
    comparison, runner = begin(plan_values(folder, tuning=None, seeds=1), folder / "out"), Pretence(right)
    job = Job("claim", "blind", 0)
    done = threading.Event()

    def other() -> None:
        with locked(comparison, job) as lock:
            assert lock is not None
            done.set()
            time.sleep(0.5)

    thread = threading.Thread(target=other)
    thread.start()
    done.wait()
    run_comparison(comparison, runner, poll=0.05)
    thread.join()
    assert comparison.done(job)


def test_what_fails_is_named_and_the_claim_waits(folder: Path):
    comparison, runner = begin(plan_values(folder), folder / "out"), Pretence(right)
    runner.fails = {"blind"}
    failures = run_comparison(comparison, runner, poll=0.01)
    assert len(failures) == 4, "its tuning; its runs of the claim never started"
    said = str(failures[0])
    assert (
        "tuning: blind, setting 0, seed 100: `sightline train` ended with code 2: error: the loss is not finite."
        in said
    )
    assert "Log:" in said
    results, text = write_results(comparison, "sightline compare plan.yaml")
    assert [job.arm for job in results.missing] == ["blind"] * 7
    assert "**The claim waits: 7 runs are missing.**" in text and "- claim: blind, seed 0" in text
    assert "Go on: `sightline compare plan.yaml`" in text
    assert {pair.words for pair in results.primary.pairs} == {"waits for runs that are missing"}
    assert run_comparison(comparison, Pretence(right)) == [], "mended, it goes on"
    assert write_results(comparison, "")[0].complete


def test_nothing_is_said_of_a_pair_while_runs_are_missing(folder: Path):
    """Of secondary outcomes neither, though both arms of the pair are done."""
    comparison = begin(plan_values(folder, tuning=None, seeds=4), folder / "out")
    runner = Pretence(right)
    runner.fails = {"no-stage-1"}
    run_comparison(comparison, runner)
    results, _ = write_results(comparison, "")
    (secondary,) = results.secondary
    for outcome in (results.primary, secondary):
        assert outcome.pairs[1].difference is not None and outcome.pairs[1].difference.seeds == 4
        assert {pair.words for pair in outcome.pairs} == {"waits for runs that are missing"}


def test_a_failure_is_told_by_its_own_words(folder: Path):
    """Not by those of an earlier attempt, which the log keeps."""
    comparison = begin(plan_values(folder, tuning=None, seeds=1), folder / "out")
    runner = Pretence(right)
    runner.fails = {"blind"}
    (first,) = run_comparison(comparison, runner)
    assert "error: the loss is not finite." in str(first)

    class Killed(Pretence):
        def _train(self, file: Path, log: Path) -> int:
            with log.open("a") as stream:
                stream.write("stage pretrain, step 7\n")
            return -signal.SIGKILL

    (second,) = run_comparison(comparison, Killed(right))
    assert "ended with code -9: stage pretrain, step 7 Log:" in str(second)
    assert "not finite" in (comparison.path / "logs" / "claim.blind.seed0.log").read_text()


def test_metrics_that_were_cut_off_fail_their_run_alone(folder: Path):
    class Cut(Pretence):
        def _train(self, file: Path, log: Path) -> int:
            code, metrics = super()._train(file, log), Path(str(file).removesuffix(".yaml")) / "metrics.jsonl"
            if "baseline" in file.name:
                metrics.write_text(metrics.read_text()[:-15])
            return code

    comparison = begin(plan_values(folder, tuning=None, seeds=1), folder / "out")
    (failure,) = run_comparison(comparison, Cut(right))
    assert "metrics.jsonl cannot be read" in str(failure) and "have it done again: rm -r '" in str(failure).lower()
    assert len(comparison.rows()) == 2, "the others are done"


def test_runs_of_several_versions_are_told(folder: Path):
    """Between runs, and within one that went on with another: its row has both."""
    comparison = begin(plan_values(folder, tuning=None, seeds=1), folder / "out")

    class Updated(Pretence):
        def _train(self, file: Path, log: Path) -> int:
            code, place = super()._train(file, log), Path(str(file).removesuffix(".yaml")) / "run.json"
            if "blind" in file.name:
                again = {"versions": {"sightline": "1", "torch": "3"}, "machine": {"device": "pretence"}}
                place.write_text(json.dumps(json.loads(place.read_text()) | {"resumed": [again, again]}))
            return code

    run_comparison(comparison, Updated(right))
    _, text = write_results(comparison, "")
    assert comparison.row(Job("claim", "blind", 0))["versions"] == {"sightline": "0 then 1", "torch": "3"}
    assert comparison.row(Job("claim", "blind", 0))["machine"] == {"device": "pretence"}
    assert "- versions: sightline 0\n- versions: sightline 0 then 1, torch 3\n- machine: device pretence" in text
    assert "several versions or machines, which adds noise" in text


def test_one_seed_claims_nothing(folder: Path):
    comparison = begin(plan_values(folder, tuning=None, seeds=1), folder / "out")
    run_comparison(comparison, Pretence(right))
    results, text = write_results(comparison, "")
    assert all(pair.words.startswith("no claim: it takes two seeds at least") for pair in results.primary.pairs)
    assert "unknown: one seed" in text and "inf" not in text and "nan" not in text
    assert "no arm was tuned: recipes as they are" in text


def test_a_report_before_any_run(folder: Path):
    comparison = begin(plan_values(folder), folder / "out")
    results, text = write_results(comparison, "go")
    assert "21 runs are missing" in text and "and 11 more" in text
    assert all(pair.difference is None for pair in results.primary.pairs)


OTHER = '{"plan": "other", "kind": "claim", "arm": "blind", "seed": 0, "setting": 0}'


@pytest.mark.parametrize("content", ["", "{}", "[1]", OTHER])
def test_a_row_that_is_none_is_refused(folder: Path, content: str):
    comparison = begin(plan_values(folder, tuning=None), folder / "out")
    run_comparison(comparison, Pretence(right))
    comparison.row_path(Job("claim", "blind", 0)).write_text(content)
    with pytest.raises(SightlineError, match=r"rows/blind.seed0.json is (not a row|a row of another).* rm '"):
        write_results(comparison, "")


@pytest.mark.parametrize("lacking", ["scores", "compute", "versions"])
def test_a_row_that_is_not_whole_is_refused(folder: Path, lacking: str):
    comparison = begin(plan_values(folder, tuning=None, seeds=1), folder / "out")
    run_comparison(comparison, Pretence(right))
    path = comparison.row_path(Job("claim", "blind", 0))
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != lacking}))
    with pytest.raises(SightlineError, match=r"rows/blind.seed0.json is not a row that can be read.* rm '"):
        write_results(comparison, "")


def test_a_row_of_another_setting_is_refused(folder: Path):
    comparison = begin(brief(folder), folder / "out")
    run_comparison(comparison, Pretence(right))
    first, second = (comparison.row_path(Job("tuning", "blind", 100, setting)) for setting in (0, 1))
    first.write_bytes(second.read_bytes())
    with pytest.raises(SightlineError, match=r"tuning/blind.setting0.seed100.json is a row of another plan or run"):
        write_results(comparison, "")


def test_tuning_rows_that_change_the_choice_afterwards_are_refused(folder: Path):
    comparison = begin(brief(folder), folder / "out")
    run_comparison(comparison, Pretence(right))
    for seed in (100,):
        path = comparison.row_path(Job("tuning", "blind", seed, 0))
        row = json.loads(path.read_text())
        row["scores"]["validation.questions.jsonl"]["by_ability"]["colour"]["value"] = 1.0
        path.write_text(json.dumps(row))
    with pytest.raises(SightlineError, match="was made with setting 1, and tuning now chooses 0"):
        write_results(comparison, "")


def test_equal_settings_take_the_first(folder: Path):
    comparison = begin(brief(folder), folder / "out")
    run_comparison(comparison, Pretence(lambda arm, seed, lr: 0.5))
    assert [comparison.chosen(arm) for arm in ("no-stage-1", "blind")] == [0, 0]


def test_ctrl_c_stops_the_runs_and_says_how_to_go_on(folder: Path):
    comparison = begin(plan_values(folder, tuning=None), folder / "out")
    runner = Pretence(right)

    def slow(arm: str, seed: int, lr: float) -> float:
        if len(runner.commands) > 4 and not runner.stopped:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)
        return right(arm, seed, lr)

    runner.right = slow
    with pytest.raises(Stopped, match=r"of 9 runs are finished and nothing is lost. Go on with the same command"):
        run_comparison(comparison, runner)
    assert runner.stopped == signal.SIGTERM
    assert 0 < len(comparison.rows()) < 9
    run_comparison(comparison, Pretence(right))
    assert len(comparison.rows()) == 9


class Trains(Pretence):
    """The third run trains until it is stopped by one of `ends`; `asks` sends the signals of a user meanwhile."""

    def __init__(self, ends: set[int], asks) -> None:
        super().__init__(right)
        self.ends, self.asks = ends, asks

    def _train(self, file: Path, log: Path) -> int:
        if "blind" not in file.name:
            return super()._train(file, log)
        threading.Thread(target=self.asks).start()
        limit = time.monotonic() + 20
        while self.stopped not in self.ends:
            assert time.monotonic() < limit
            time.sleep(0.01)
        return 128 + self.stopped


def test_a_stop_while_the_last_run_trains_is_one(folder: Path):
    """Nothing is to come, and yet it is not finished: a script that goes by the exit code must not think so."""
    comparison = begin(plan_values(folder, tuning=None, seeds=1), folder / "out")
    runner = Trains({signal.SIGTERM}, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped, match="2 of 3 runs are finished") as caught:
        run_comparison(comparison, runner)
    assert caught.value.exit_code == 128 + signal.SIGTERM


def test_a_second_ctrl_c_stops_at_once(folder: Path, monkeypatch):
    """Runs that take long to write their checkpoints are not waited for."""
    monkeypatch.setattr("sightline.train.signals.ECHO", 0.1)

    def twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.6)

    comparison = begin(plan_values(folder, tuning=None, seeds=1), folder / "out")
    runner = Trains({signal.SIGKILL}, twice)
    with pytest.raises(KeyboardInterrupt):
        run_comparison(comparison, runner)
    assert runner.stopped == signal.SIGKILL and len(comparison.rows()) == 2


def test_progress_tells_what_is_done_running_and_to_come(folder: Path):
    comparison = begin(plan_values(folder, tuning=None), folder / "out")
    console = Console(width=200, force_terminal=False, record=True)
    jobs = jobs_of(comparison.plan)
    run_comparison(comparison, Pretence(right), watch=Watch(comparison, jobs, 1, console=console))
    lines = console.export_text().splitlines()
    assert lines[0] == "claim: baseline, seed 0: running"
    assert lines[1] == "claim: baseline, seed 0: done in 0 s; 1 of 9 done, 0 running, 8 to come, about 1 min left"
    assert lines[-1].endswith("9 of 9 done, 0 running, 0 to come")


def test_weights_are_discarded_when_asked(folder: Path):
    comparison = begin(plan_values(folder, tuning=None, seeds=1), folder / "out")
    run_comparison(comparison, Pretence(right), discard=True)
    run = comparison.run_path(Job("claim", "blind", 0))
    assert not (run / "model").exists() and (run / "metrics.jsonl").is_file()
