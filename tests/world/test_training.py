import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sightline.errors import SightlineError
from sightline.train.signals import Stopped
from sightline.world import training
from sightline.world.training import Descent, descend, one_thread

STEPS = 6
HOW = Descent(STEPS, lr=0.05, weight_decay=0.1, rate=lambda step: 1 / (1 + step))


@dataclass(frozen=True)
class Recipe:
    """What settles a training of these tests."""

    seed: int = 0


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def loss_on(model: torch.nn.Module) -> Callable[[int], Tensor]:
    """A pure function of weights and step; its gradient's norm lies on both sides of 1, so that clipping matters."""

    def loss_of(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(step)
        return 10.0 ** (step % 3 - 1) * (model(torch.randn(16, 4, generator=rng)) - 2).square().mean()

    return loss_of


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train(model: torch.nn.Module, state: Path, *, how: Descent = HOW, recipe: Recipe | None = None, **options) -> float:
    return descend(model, loss_on(model), how, state=state, recipe=recipe or Recipe(), **options)


def stop_at(step: int) -> training.Progress:
    """Interrupts a training when so many steps are done, as Ctrl-C does."""

    def progress(done: int, total: int, loss: float) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The file of a training under way; its folder is not there yet."""
    return tmp_path / "out" / "backbone.training.safetensors"


@pytest.fixture
def save_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)


def test_a_descent_is_adamw_down_a_clipped_gradient(state: Path):
    """Against the same written out, bit for bit."""
    ours, theirs = network(), network()
    norms = []
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1.0, betas=(0.9, 0.98), weight_decay=0.1)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = 0.05 / (1 + step)
        optimizer.zero_grad()
        loss_on(theirs)(step).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0))
        optimizer.step()
    train(ours, state)
    assert min(norms) < 1 < max(norms)
    assert torch.equal(weights(ours), weights(theirs))
    assert not torch.equal(weights(ours), weights(network()))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_asked_to_stop_saves_first(state: Path, signum: signal.Signals):
    whole, model = network(), network()
    train(whole, state)

    def ask(step: int) -> Tensor:
        if step == 2:
            os.kill(os.getpid(), signum)
        return loss_on(model)(step)

    with pytest.raises(Stopped, match="after step 3 of 6; nothing is lost") as stopped:
        descend(model, ask, HOW, state=state, recipe=Recipe())
    assert stopped.value.exit_code == 128 + signum and state.exists()
    model = network()
    train(model, state)
    assert torch.equal(weights(model), weights(whole))


@pytest.mark.usefixtures("save_each_step")
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(stop: int, state: Path, tmp_path: Path):
    """Its model is made anew and elsewhere, as after a crash; only the file connects the two."""
    whole, stopped = network(), network()
    train(whole, tmp_path / "whole.safetensors")
    with pytest.raises(KeyboardInterrupt):
        train(stopped, state, progress=stop_at(stop))

    resumed, steps = network(), []
    train(resumed, state, progress=lambda done, total, loss: steps.append((done, total)))
    assert torch.equal(weights(resumed), weights(whole))
    assert steps == [(done, STEPS) for done in range(stop + 1, STEPS + 1)]


@pytest.mark.usefixtures("save_each_step")
def test_a_crash_while_the_state_is_written_leaves_the_one_before(state: Path, monkeypatch: pytest.MonkeyPatch):
    whole = network()
    train(whole, state.with_name("whole.safetensors"))
    with pytest.raises(KeyboardInterrupt):
        train(network(), state, progress=stop_at(2))

    def write_half(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:100])
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half)
        with pytest.raises(OSError, match="no space left"):
            train(network(), state)
    resumed, steps = network(), []
    train(resumed, state, progress=lambda done, total, loss: steps.append(done))
    assert steps == [3, 4, 5, 6]
    assert torch.equal(weights(resumed), weights(whole))


def test_a_short_training_writes_no_state(state: Path):
    """A state goes to disk every half minute, not for each step."""
    train(network(), state)
    assert not state.parent.exists()


@pytest.mark.usefixtures("save_each_step")
def test_seconds_count_what_was_spent_before_an_interruption(state: Path):
    def slow(done: int, total: int, loss: float) -> None:
        time.sleep(0.3)
        stop_at(2)(done, total, loss)

    with pytest.raises(KeyboardInterrupt):
        train(network(), state, progress=slow)
    began = time.monotonic()
    seconds = train(network(), state)
    assert seconds > time.monotonic() - began


@pytest.mark.usefixtures("save_each_step")
def test_a_state_of_another_training_is_refused_and_left_alone(state: Path):
    with pytest.raises(KeyboardInterrupt):
        train(network(), state, progress=stop_at(2))
    before, model = state.read_bytes(), network()
    with pytest.raises(SightlineError, match=r"a training with other settings.*so it cannot go on.*Remove it.*: rm '"):
        train(model, state, recipe=Recipe(seed=1))
    assert state.read_bytes() == before
    assert torch.equal(weights(model), weights(network()))


@pytest.mark.usefixtures("save_each_step")
def test_a_state_of_another_version_of_torch_is_refused(state: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(KeyboardInterrupt):
        train(network(), state, progress=stop_at(2))
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    with pytest.raises(SightlineError, match="or another version of torch"):
        train(network(), state)


@pytest.mark.parametrize("content", [b"", b"no tensors here", "tensors without a word about them"])
def test_a_state_that_cannot_be_read_is_refused(content: bytes | str, state: Path):
    state.parent.mkdir()
    if isinstance(content, bytes):
        state.write_bytes(content)
    else:
        save_file({"x": torch.zeros(1)}, state)
    with pytest.raises(
        SightlineError, match=r"is no training under way that can be read.*Remove it to start anew: rm '"
    ):
        train(network(), state)


def test_progress_tells_the_steps_and_the_loss_of_each(state: Path):
    seen, model = [], network()
    first = loss_on(model)(0).item()
    train(model, state, progress=lambda *step: seen.append(step))
    assert [(done, total) for done, total, _ in seen] == [(step, STEPS) for step in range(1, STEPS + 1)]
    assert seen[0][2] == pytest.approx(first)


def test_a_model_is_trained_in_train_mode_and_left_in_eval_mode(state: Path):
    model, modes = network().eval(), []
    train(model, state, progress=lambda *_: modes.append(model.training))
    assert modes == [True] * STEPS and not model.training


def test_one_thread_seeds_and_leaves_everything_as_it_was():
    torch.manual_seed(5)
    expected = torch.rand(1)
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt), one_thread(7):
            assert torch.get_num_threads() == 1
            inside = torch.rand(1)
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(inside, torch.rand(1, generator=torch.Generator().manual_seed(7)))


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.world.test_training import network, train, weights, training
training.SAVE_EVERY = 0.0
model = network()
def slowly(done, total, loss):
    time.sleep(0.2 if {slow} else 0)
train(model, Path({state!r}), progress=slowly)
print(weights(model).numpy().tobytes().hex())
"""


def test_a_training_that_was_killed_goes_on_to_the_same_weights(state: Path):
    """Killed for real, by SIGKILL, once its first state is on disk."""
    root = Path(__file__).parents[2]

    def script(*, slow: bool) -> list[str]:
        return [sys.executable, "-c", KILLED.format(tests=str(root), state=str(state), slow=slow)]

    process = subprocess.Popen(script(slow=True), cwd=root, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and state.exists()
    out = subprocess.run(script(slow=False), cwd=root, capture_output=True, text=True, check=True).stdout
    model = network()
    train(model, state.with_name("other"))
    assert bytes.fromhex(out) == weights(model).numpy().tobytes()
