from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from xlm.nn import chunks
from xlm.nn.blocks import Block
from xlm.nn.linear_logsumexp import chosen_logits, linear_logsumexp
from xlm.nn.rotary import rotary_table

ROWS, D_MODEL, VOCAB = 13, 6, 11


@pytest.fixture
def problem() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    states = torch.randn(ROWS, D_MODEL, dtype=torch.float64, requires_grad=True)
    return states, torch.randn(VOCAB, D_MODEL, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("chunk", [1, 4, 13, 100, None])
def test_values_and_gradients_equal_those_of_the_plain_formula(problem, chunk: int | None):
    states, weight = problem
    expected = (states @ weight.T).logsumexp(1)
    value = linear_logsumexp(states, weight, chunk=chunk)
    assert_close(value, expected, atol=1e-12, rtol=0)
    upstream = torch.randn(ROWS, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad(v, (states, weight), upstream) for v in (value, expected))
    assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_gradients_equal_finite_differences(problem):
    suppressed = torch.tensor([1, 4])
    assert torch.autograd.gradcheck(lambda s, w: linear_logsumexp(s, w, suppressed=suppressed, chunk=5), problem)
    tokens = torch.arange(ROWS) % VOCAB
    assert torch.autograd.gradcheck(lambda s, w: chosen_logits(s, w, tokens), problem)


def test_a_suppressed_token_is_not_in_the_sum_and_has_no_gradient(problem):
    states, weight = problem
    suppressed, kept = torch.tensor([2, 7]), [i for i in range(VOCAB) if i not in (2, 7)]
    value = linear_logsumexp(states, weight, suppressed=suppressed, chunk=4)
    assert_close(value, (states @ weight[kept].T).logsumexp(1), atol=1e-12, rtol=0)
    gradient = torch.autograd.grad(value.sum(), weight)[0]
    assert not gradient[suppressed].any()
    assert gradient[kept].abs().sum(1).all()


def test_no_rows_give_no_values_and_zero_gradients(problem):
    states, weight = problem
    value = linear_logsumexp(states[:0], weight)
    assert value.shape == (0,)
    gradients = torch.autograd.grad(value.sum(), (states, weight))
    assert not any(gradient.any() for gradient in gradients)


def test_a_second_backward_through_the_same_values_gives_the_same_gradients(problem):
    total = linear_logsumexp(*problem, chunk=4).sum()
    first = torch.autograd.grad(total, problem, retain_graph=True)
    assert_close(torch.autograd.grad(total, problem), first, atol=0, rtol=0)


def test_chosen_logits_are_those_of_the_head(problem):
    states, weight = problem
    tokens = torch.arange(ROWS) % VOCAB
    assert_close(chosen_logits(states, weight, tokens), (states @ weight.T)[torch.arange(ROWS), tokens])


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_agrees_with_double_precision_and_sums_in_single(autocast: bool):
    torch.manual_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    leaves = [torch.randn(40, 64).to(dtype).requires_grad_(), (0.3 * torch.randn(500, 64)).to(dtype).requires_grad_()]
    exact = [leaf.detach().bfloat16().double().requires_grad_() for leaf in leaves]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        value = linear_logsumexp(*leaves, chunk=7)
        chosen = chosen_logits(*leaves, torch.arange(40))
    expected = (exact[0] @ exact[1].T).logsumexp(1)
    assert value.dtype == chosen.dtype == torch.float32
    assert_close(value.double(), expected.detach(), atol=0.05, rtol=0.01)  # logits of size 5 are rounded to bf16
    ours, theirs = torch.autograd.grad(value.sum(), leaves), torch.autograd.grad(expected.sum(), exact)
    for gradient, leaf, wanted in zip(ours, leaves, theirs, strict=True):
        assert gradient.dtype == leaf.dtype
        assert (gradient.double() - wanted).norm() / wanted.norm() < 0.02


def test_a_chosen_logit_is_rounded_like_the_sum_it_belongs_to():
    torch.manual_seed(0)
    states, weight = 10 * torch.randn(200, 64).bfloat16(), torch.randn(500, 64).bfloat16()
    best = (states @ weight.T).argmax(1)
    assert_close(chosen_logits(states, weight, best), (states @ weight.T).amax(1).float(), atol=0, rtol=2**-7)
    assert (chosen_logits(states, weight, best) <= linear_logsumexp(states, weight) * (1 + 2**-7)).all()


def test_logits_never_exist_for_more_rows_than_a_chunk(problem, monkeypatch: pytest.MonkeyPatch):
    states, weight = problem
    seen: list[int] = []
    mm = torch.mm

    def watched(a: Tensor, b: Tensor, **kwargs: Tensor) -> Tensor:
        seen.append(len(a))
        return mm(a, b, **kwargs)

    monkeypatch.setattr(torch, "mm", watched)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", {"cpu": 4 * VOCAB * 8})  # four rows of doubles
    linear_logsumexp(states, weight).sum().backward()
    assert max(seen) <= 4
    assert sum(seen) == 2 * ROWS  # once forward, once backward


def test_bfloat16_matrix_products_see_sixteen_numbers_of_rows_an_octave(monkeypatch: pytest.MonkeyPatch):
    seen = set()
    mm = torch.mm

    def watched(a: Tensor, b: Tensor, **kwargs: Tensor) -> Tensor:
        seen.add(len(a))
        return mm(a, b, **kwargs)

    monkeypatch.setattr(torch, "mm", watched)
    for n in range(64, 128):
        value = linear_logsumexp(torch.zeros(n, 2, dtype=torch.bfloat16), torch.zeros(VOCAB, 2, dtype=torch.bfloat16))
        assert value.shape == (n,)
    assert seen == set(range(64, 129, 4))


@pytest.mark.slow
def test_a_compiled_sum_equals_the_eager_one():
    torch.manual_seed(0)
    block, head, rotary = Block(16, 2), nn.Linear(16, 20, bias=False), rotary_table(torch.arange(5)[None], 8)
    x = torch.randn(3, 5, 16)

    def total() -> Tensor:
        return linear_logsumexp(block(x, rotary).flatten(0, 1), head.weight).sum()

    parameters = [*block.parameters(), head.weight]
    eager, compiled = total(), torch.compile(total, backend="aot_eager")()
    assert_close(compiled, eager)
    assert_close(torch.autograd.grad(compiled, parameters), torch.autograd.grad(eager, parameters))
