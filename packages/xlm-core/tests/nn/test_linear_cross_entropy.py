from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from xlm.nn import chunks
from xlm.nn import linear_cross_entropy as module
from xlm.nn.blocks import Block
from xlm.nn.linear_cross_entropy import linear_cross_entropy
from xlm.nn.rotary import rotary_table

ROWS, D_MODEL, VOCAB = 13, 6, 11


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    states = torch.randn(ROWS, D_MODEL, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, D_MODEL, dtype=torch.float64, requires_grad=True)
    return states, weight, torch.randint(VOCAB, (ROWS,))


@pytest.mark.parametrize("chunk", [1, 4, 13, 100, None])
def test_value_and_gradients_equal_those_of_the_plain_formula(problem, chunk: int | None):
    states, weight, targets = problem
    row_weights = torch.rand(ROWS, dtype=torch.float64)
    plain = F.cross_entropy(states @ weight.T, targets, reduction="none")
    expected = (row_weights * plain).sum()
    total, nll = linear_cross_entropy(states, weight, targets, row_weights=row_weights, chunk=chunk)
    assert_close(total, expected, atol=1e-10, rtol=0)
    assert_close(nll, plain.detach(), atol=1e-10, rtol=0)
    assert not nll.requires_grad
    ours, theirs = (torch.autograd.grad(value * 3, (states, weight)) for value in (total, expected))
    assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_gradients_equal_finite_differences(problem):
    states, weight, targets = problem
    suppressed = torch.tensor([1, 4])
    targets = torch.where((targets == 1) | (targets == 4), 0, targets)

    def loss(states: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(states, weight, targets, suppressed=suppressed, chunk=5)[0]

    assert torch.autograd.gradcheck(loss, (states, weight))


def test_a_row_without_row_weights_counts_once(problem):
    states, weight, targets = problem
    total, nll = linear_cross_entropy(states, weight, targets)
    assert_close(total.detach(), nll.sum(), atol=1e-12, rtol=0)


def test_a_suppressed_token_has_no_probability_and_no_gradient(problem):
    states, weight, _ = problem
    suppressed, kept = torch.tensor([2, 7]), [i for i in range(VOCAB) if i not in (2, 7)]
    targets = torch.tensor(kept)[torch.arange(ROWS) % len(kept)]
    total, _ = linear_cross_entropy(states, weight, targets, suppressed=suppressed, chunk=4)
    among_kept = F.cross_entropy(states @ weight[kept].T, torch.arange(ROWS) % len(kept), reduction="sum")
    assert_close(total, among_kept, atol=1e-10, rtol=0)
    gradient = torch.autograd.grad(total, weight)[0]
    assert not gradient[suppressed].any()
    _, impossible = linear_cross_entropy(states, weight, torch.full((ROWS,), 7), suppressed=suppressed)
    assert impossible.isposinf().all()


def test_an_impossible_row_of_weight_zero_adds_nothing(problem):
    states, weight, targets = problem
    targets[0], weights = 7, torch.ones(ROWS, dtype=torch.float64)
    weights[0] = 0
    targets[1:] = 3
    suppressed = torch.tensor([7])
    total, _ = linear_cross_entropy(states, weight, targets, row_weights=weights, suppressed=suppressed)
    without, _ = linear_cross_entropy(states[1:], weight, targets[1:], suppressed=suppressed)
    assert_close(total, without, atol=1e-10, rtol=0)
    ours, theirs = (torch.autograd.grad(value, (states, weight)) for value in (total, without))
    assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_no_rows_give_zero_and_zero_gradients(problem):
    states, weight, targets = problem
    total, nll = linear_cross_entropy(states[:0], weight, targets[:0])
    assert total.item() == 0
    assert nll.shape == (0,)
    d_states, d_weight = torch.autograd.grad(total, (states, weight))
    assert not d_states.any()
    assert not d_weight.any()


def test_a_second_backward_through_the_same_sum_gives_the_same_gradients(problem):
    states, weight, targets = problem
    total, _ = linear_cross_entropy(states, weight, targets, chunk=4)
    first = torch.autograd.grad(total * 2, (states, weight), retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    second = torch.autograd.grad(total * 2, (states, weight))
    assert_close(list(second), kept, atol=1e-12, rtol=0)
    assert_close(list(first), kept, atol=0, rtol=0)


@pytest.mark.parametrize("chunk", [3, None])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_agrees_with_double_precision_and_sums_in_single(autocast: bool, chunk: int | None):
    torch.manual_seed(0)
    states, weight, targets = torch.randn(40, 64), 0.3 * torch.randn(500, 64), torch.randint(500, (40,))
    dtype = torch.float32 if autocast else torch.bfloat16
    leaves = [states.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_()]
    exact = [leaf.detach().bfloat16().double().requires_grad_() for leaf in leaves]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        total, nll = linear_cross_entropy(*leaves, targets, chunk=chunk)
    assert total.dtype == nll.dtype == torch.float32
    expected = F.cross_entropy(exact[0] @ exact[1].T, targets, reduction="none")
    assert_close(nll.double(), expected.detach(), atol=0.05, rtol=0.01)  # logits of size 5 are rounded to bf16
    ours = torch.autograd.grad(total / 40, leaves)
    for gradient, leaf, wanted in zip(ours, leaves, torch.autograd.grad(expected.mean(), exact), strict=True):
        assert gradient.dtype == leaf.dtype
        assert (gradient.double() - wanted).norm() / wanted.norm() < 0.02


@pytest.mark.parametrize("rows", [1, 33, 100])
def test_bfloat16_rows_that_are_added_for_a_round_number_change_nothing(rows: int):
    torch.manual_seed(0)
    states, weight = torch.randn(rows, 8, requires_grad=True), torch.randn(VOCAB, 8, requires_grad=True)
    targets, row_weights = torch.randint(1, VOCAB, (rows,)), torch.rand(rows)
    with torch.autocast("cpu", torch.bfloat16):
        suppressed = torch.tensor([0])  # the target of rows that are added is impossible, too
        total, nll = linear_cross_entropy(states, weight, targets, row_weights=row_weights, suppressed=suppressed)
    ours = torch.autograd.grad(total, (states, weight))
    logits = (states @ weight.T).index_fill(1, suppressed, -torch.inf)
    plain = F.cross_entropy(logits, targets, reduction="none")
    theirs = torch.autograd.grad((row_weights * plain).sum(), (states, weight))
    assert_close(nll, plain.detach(), atol=0.05, rtol=0.02)
    assert_close(ours, theirs, atol=0.05, rtol=0.05)


def test_bfloat16_matrix_products_see_sixteen_numbers_of_rows_an_octave(monkeypatch: pytest.MonkeyPatch):
    seen = set()

    def spied(chunk, dtype, with_gradients, states, *rest):
        seen.add(len(states))
        return by_chunks(chunk, dtype, with_gradients, states, *rest)

    by_chunks = module._by_chunks
    monkeypatch.setattr(module, "_by_chunks", spied)
    for n in range(64, 128):
        states = torch.zeros(n, 2, dtype=torch.bfloat16)
        linear_cross_entropy(states, torch.zeros(VOCAB, 2, dtype=torch.bfloat16), torch.zeros(n, dtype=torch.int64))
    assert seen == set(range(64, 129, 4))


def test_autocast_multiplies_in_its_own_dtype():
    states, weight, targets = torch.randn(4, 8), torch.randn(16, 8), torch.randint(16, (4,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, nll = linear_cross_entropy(states, weight, targets)
    low = F.cross_entropy((states.bfloat16() @ weight.bfloat16().T).float(), targets, reduction="none")
    assert_close(nll, low)


def test_logits_never_exist_for_more_rows_than_a_chunk(problem, monkeypatch: pytest.MonkeyPatch):
    states, weight, targets = problem
    seen: list[int] = []
    mm = torch.mm

    def watched(a: Tensor, b: Tensor, **kwargs: Tensor) -> Tensor:
        seen.append(len(a))
        return mm(a, b, **kwargs)

    monkeypatch.setattr(torch, "mm", watched)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", {"cpu": 4 * VOCAB * 8})  # four rows of doubles
    linear_cross_entropy(states, weight, targets)
    assert max(seen) <= 4
    assert sum(seen) == 2 * ROWS  # logits and the states' gradient
    seen.clear()
    with torch.no_grad():
        linear_cross_entropy(states, weight, targets)
    assert sum(seen) == ROWS  # no gradient is computed where none is wanted


def test_rows_that_leave_the_cache_one_by_one_change_nothing(problem, monkeypatch: pytest.MonkeyPatch):
    states, weight, targets = problem
    whole = torch.autograd.grad(linear_cross_entropy(states, weight, targets)[0], (states, weight))
    monkeypatch.setattr(chunks, "CACHE_BYTES", 1)
    piecewise = torch.autograd.grad(linear_cross_entropy(states, weight, targets)[0], (states, weight))
    assert_close(piecewise, whole, atol=1e-12, rtol=0)


def test_a_head_tied_to_the_embedding_gets_the_gradient_of_both_uses(problem):
    _, weight, targets = problem
    ids = torch.arange(ROWS) % VOCAB
    total, _ = linear_cross_entropy(weight[ids], weight, targets)
    plain = F.cross_entropy(weight[ids] @ weight.T, targets, reduction="sum")
    assert_close(torch.autograd.grad(total, weight), torch.autograd.grad(plain, weight), atol=1e-10, rtol=0)


@pytest.mark.slow
def test_a_compiled_loss_equals_the_eager_one():
    torch.manual_seed(0)
    block, head, rotary = Block(16, 2), nn.Linear(16, 20, bias=False), rotary_table(torch.arange(5)[None], 8)
    x, targets, chosen = torch.randn(3, 5, 16), torch.randint(20, (3, 5)), torch.rand(3, 5) < 0.5

    def loss() -> Tensor:
        return linear_cross_entropy(block(x, rotary, causal=True)[chosen], head.weight, targets[chosen])[0]

    parameters = [*block.parameters(), head.weight]
    eager, compiled = loss(), torch.compile(loss, backend="aot_eager")()
    assert_close(compiled, eager)
    assert_close(torch.autograd.grad(compiled, parameters), torch.autograd.grad(eager, parameters))
