"""The language loss in chunks: the numbers of the plain one, without ever holding all logits."""

import pytest
import torch
from torch import Tensor, nn

from sightline.objectives import language
from sightline.objectives.language import language_sums, rows_right, token_losses
from sightline.types import IGNORE

WORDS, WIDTH, TOKENS = 50, 8, 33
EXACT = {"atol": 1e-12, "rtol": 1e-12}


class Head(nn.Linear):
    """Remembers how many positions it was asked for at once."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(WIDTH, WORDS, bias=False, dtype=dtype)
        self.asked: list[int] = []

    def forward(self, input: Tensor) -> Tensor:
        self.asked.append(len(input))
        return super().forward(input)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of four positions, from five positions on."""
    monkeypatch.setattr(language, "CHUNK", 4 * WORDS)
    monkeypatch.setattr(language, "LARGE_ON_CPU", 4 * WORDS)


def example(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(3, TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    labels = torch.randint(WORDS, (3, TOKENS)).masked_fill(torch.rand(3, TOKENS) < 0.4, IGNORE)
    return hidden, labels, torch.randint(3, 6, (3, TOKENS))


def gradients(head: Head, hidden: Tensor, labels: Tensor, kinds: Tensor) -> tuple[dict[int, Tensor], list]:
    hidden.grad = head.weight.grad = None
    sums = language_sums(hidden, head, labels, kinds, [3, 4, 5])
    (sums[3] / 7 + 2 * sums[4] + 0.1 * sums[5]).backward()
    return sums, [hidden.grad, head.weight.grad]


@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_are_exact(frozen: bool, monkeypatch, request) -> None:
    """Sums by kinds, each with a weight of its own, and the gradients of the states and of the head."""
    hidden, labels, kinds = example()
    head = Head()
    head.requires_grad_(not frozen)
    plain, expected = gradients(head, hidden, labels, kinds)
    assert len(head.asked) == 1
    request.getfixturevalue("small_chunks")
    chunked, got = gradients(head, hidden, labels, kinds)
    assert max(head.asked[1:]) == 4
    for kind, value in plain.items():
        torch.testing.assert_close(chunked[kind], value, **EXACT)
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, **EXACT)
    assert (got[1] is None) == frozen


def test_chunks_under_autocast(small_chunks: None) -> None:
    """bf16 products, in the recomputation too; losses, and what chunks add to the head's gradient, in fp32."""
    torch.manual_seed(0)
    hidden, targets = torch.randn(TOKENS, WIDTH, requires_grad=True), torch.randint(WORDS, (TOKENS,))
    head = Head(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = token_losses(hidden, head, targets)
    losses.sum().backward()
    chunked = [hidden.grad, head.weight.grad]
    hidden.grad = head.weight.grad = None
    one_by_one = []
    for some, wanted in zip(hidden.split(4), targets.split(4), strict=True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            one_by_one.append(token_losses(some, head, wanted))
        one_by_one[-1].sum().backward()
    assert losses.dtype == torch.float32
    assert torch.equal(losses, torch.cat(one_by_one))
    for mine, theirs in zip(chunked, [hidden.grad, head.weight.grad], strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("small_chunks")
def test_chunks_without_gradients() -> None:
    hidden, labels, kinds = example()
    head = Head()
    with torch.no_grad():
        sums = language_sums(hidden, head, labels, kinds, [3])
    assert not sums[3].requires_grad
    assert max(head.asked) == 4


def test_logits_are_never_held_together(small_chunks: None, monkeypatch) -> None:
    """What is kept for the backward pass does not grow with the vocabulary."""

    def kept(hidden: Tensor, head: Head, targets: Tensor) -> int:
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            sizes[x.data_ptr()] = x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            losses = token_losses(hidden, head, targets)
        del losses
        return sum(sizes.values())

    hidden = torch.randn(TOKENS, WIDTH, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(WORDS, (TOKENS,))
    chunked = kept(hidden, Head(), targets)
    monkeypatch.setattr(language, "LARGE_ON_CPU", TOKENS * WORDS)
    plain = kept(hidden, Head(), targets)
    assert plain >= TOKENS * WORDS
    assert chunked <= 2 * TOKENS * WIDTH


def test_a_row_is_right_when_every_token_of_its_answer_is_the_likeliest():
    head = torch.nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(4))
    says = torch.tensor([[1, 2, 3, 0], [1, 2, 3, 0], [1, 2, 3, 0]])  # what each position finds likeliest to come next
    labels = torch.tensor([[-100, 1, 2, -100], [-100, 1, 3, 3], [-100, -100, -100, -100]])
    hidden = torch.nn.functional.one_hot(says, 4).float()
    for chunk in (1, 1024):
        right, asked = rows_right(hidden, head, labels, chunk=chunk)
        assert (int(right), int(asked)) == (1, 2)
