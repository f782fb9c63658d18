"""Likelihoods against enumeration: over orders, over sets of missing tokens, and over texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from xlm.errors import UserError
from xlm.noise import Stream, noise_keys
from xlm.testing.factories import tiny_tokenizer
from xlm.testing.insertion import ExactInserter, InconsistentInserter, random_text_table
from xlm.testing.insertion_laws import insertion_bound, insertion_steps, order_log_probabilities
from xlm_ilm.dropping import span_numbers
from xlm_ilm.model import ILMTransformer
from xlm_ilm.predictor import ILMPredictor
from xlm_ilm.types import ILMBatch

TOKENIZER = tiny_tokenizer(n_letters=4)
PAD, BOS, EOS, A, B, C = 0, 2, 3, 4, 5, 6
VOCAB = 8
EXACT = ExactInserter(random_text_table(2, 4), token_ids=[A, B], vocab_size=VOCAB)
INCONSISTENT = InconsistentInserter(token_ids=[A, B, C], vocab_size=VOCAB, length=4)


def whole(rows: Sequence[Sequence[int]], given: Sequence[Sequence[bool]], *, counts_stop: bool) -> ILMBatch:
    """A batch as collators make it; of the dropped tokens, which the likelihood draws anew, there are none."""
    width, index = 1 + max(map(len, rows)), torch.arange(len(rows))
    full_ids, droppable = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (ids, fixed) in enumerate(zip(rows, given, strict=True)):
        full_ids[i, : 1 + len(ids)] = torch.tensor([BOS, *ids])
        droppable[i, 1 : 1 + len(ids)] = ~torch.tensor(list(fixed), dtype=torch.bool)
    mask = torch.arange(width) <= torch.tensor([[len(ids)] for ids in rows])
    nothing = torch.empty(0, dtype=torch.int64)
    return {
        "input_ids": full_ids,
        "attention_mask": mask,
        "gaps": torch.zeros_like(mask),
        "gap_rows": nothing,
        "rows": nothing,
        "tokens": nothing,
        "n_dropped": torch.zeros_like(index),
        "full_ids": full_ids,
        "full_mask": None if bool(mask.all()) else mask,
        "span": span_numbers(droppable),
        "counts_stop": counts_stop,
        "trains_stop": True,
        "n_tokens": droppable.sum(1) + int(counts_stop),
        "index": index,
        "noise_key": noise_keys(0, Stream.EVAL, index),
    }


def copies(ids: Sequence[int], given: Sequence[bool], n: int, *, counts_stop: bool) -> ILMBatch:
    return whole([ids] * n, [given] * n, counts_stop=counts_stop)


def texts(rows: Sequence[Sequence[int]], *, counts_stop: bool) -> ILMBatch:
    return whole(rows, [[False] * len(ids) for ids in rows], counts_stop=counts_stop)


def predictor(model: Any, **options: Any) -> ILMPredictor:
    return ILMPredictor(model=model, tokenizer=TOKENIZER, **options)


def steps_of(model: Any, batch: ILMBatch, row: int = 0) -> Any:
    n = batch["full_ids"].shape[1] if batch["full_mask"] is None else int(batch["full_mask"][row].sum())
    never = [PAD, 1, BOS, *([EOS] if batch["counts_stop"] else [])]
    ids, span = batch["full_ids"][row, :n].tolist(), batch["span"][row, :n].tolist()
    return insertion_steps(model, ids, span=span, never=never)


def exact_nll(model: Any, batch: ILMBatch, row: int = 0) -> float:
    orders = order_log_probabilities(steps_of(model, batch, row), counts_stop=batch["counts_stop"])
    return -float(orders.logsumexp(0))


CASES = {
    "open": ([A, C, A], [False] * 3, True),
    "window": ([A, C, A, B], [False] * 4, False),
    "infill": ([A, C, B, A], [False, False, True, False], False),
    "seq2seq": ([C, B, A, A], [True, True, False, False], True),
    "empty target": ([C, B], [True, True], True),
    "nothing at all": ([], [], True),
}
cases = pytest.mark.parametrize(("ids", "given", "counts_stop"), CASES.values(), ids=CASES)


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


@cases
def test_the_bound_has_the_mean_of_all_numbers_and_sets_of_missing_tokens(ids, given, counts_stop):
    batch = copies(ids, given, 4000, counts_stop=counts_stop)
    result = predictor(INCONSISTENT).log_likelihood(batch, draws=1)
    expected = insertion_bound(steps_of(INCONSISTENT, batch), counts_stop=counts_stop)
    mean, error = mean_and_error(result["nll"])
    assert mean == pytest.approx(expected, abs=4 * error + 1e-9)
    assert expected >= exact_nll(INCONSISTENT, batch) - 1e-9
    assert (result["kind"], result["estimator"]) == ("bound", "insertion")
    assert result["n_tokens"].tolist() == batch["n_tokens"].tolist()
    assert result["n_calls"] == 1 + counts_stop


def test_the_bound_of_every_number_and_set_of_missing_tokens_is_enumerated_exactly(monkeypatch):
    from itertools import permutations

    from xlm import likelihood

    orders = list(permutations(range(3)))
    batch = copies([A, C, A], [False] * 3, len(orders), counts_stop=True)

    def enumerated(keys, length, *, stream=0, dtype=torch.float64):
        if stream == likelihood.OFFSET_STREAM:
            return torch.zeros(len(keys), length, dtype=dtype)  # three draws then take n = 1, 2 and 3
        return torch.tensor([[0, *[1 + place for place in order]] for order in orders], dtype=dtype) / 8

    monkeypatch.setattr(likelihood, "uniforms", enumerated)
    nll = predictor(INCONSISTENT).log_likelihood(batch, draws=3)["nll"]
    expected = insertion_bound(steps_of(INCONSISTENT, batch), counts_stop=True)
    assert float(nll.mean()) == pytest.approx(expected, abs=1e-10)
    assert float(nll.std()) > 1e-3


@cases
def test_whole_orders_have_the_probabilities_of_enumeration(ids, given, counts_stop):
    batch = copies(ids, given, 300, counts_stop=counts_stop)
    result = predictor(INCONSISTENT, likelihood="orders").log_likelihood(batch, draws=1)
    orders = order_log_probabilities(steps_of(INCONSISTENT, batch), counts_stop=counts_stop)
    expected = -(orders + math.lgamma(given.count(False) + 1)).sort(descending=True).values
    drawn = result["nll"].unique()
    assert_close(torch.stack([(drawn - value).abs().min() for value in expected]), torch.zeros(len(expected)).double())
    assert_close(torch.stack([(expected - value).abs().min() for value in drawn]), torch.zeros(len(drawn)).double())
    assert float(result["nll"].mean()) == pytest.approx(float(expected.mean()), abs=0.5)
    assert result["kind"] == "bound"
    assert result["n_calls"] == given.count(False) + counts_stop


def test_more_orders_come_nearer_to_the_probability_from_above():
    batch = copies([A, C, A], [False] * 3, 1000, counts_stop=True)
    exact = exact_nll(INCONSISTENT, batch)
    bound = insertion_bound(steps_of(INCONSISTENT, batch), counts_stop=True)
    means = []
    for draws in (1, 2, 8):
        values = predictor(INCONSISTENT, likelihood="orders").log_likelihood(batch, draws=draws)["nll"]
        means.append(mean_and_error(values))
    assert means[0][0] == pytest.approx(bound, abs=4 * means[0][1])
    assert means[0][0] > means[1][0] > means[2][0] > exact - 4 * means[2][1]
    assert bound - exact > 0.05
    assert means[2][0] - exact < (bound - exact) / 3


def test_the_reported_variance_of_whole_orders_is_that_of_their_draws():
    batch = copies([A, C, A], [False] * 3, 1500, counts_stop=True)
    result = predictor(INCONSISTENT, likelihood="orders").log_likelihood(batch, draws=12)
    assert float(result["mc_variance"].mean()) == pytest.approx(float(result["nll"].var()), rel=0.2)
    assert "mc_variance" not in predictor(INCONSISTENT, likelihood="orders").log_likelihood(batch, draws=1)


@pytest.mark.parametrize("likelihood", ["bound", "orders"])
@pytest.mark.parametrize("counts_stop", [True, False])
def test_eos_has_no_share_of_the_softmax_where_the_end_counts_and_one_where_it_does_not(likelihood, counts_stop):
    torch.manual_seed(0)
    network = ILMTransformer(vocab_size=VOCAB, max_length=4, d_model=16, n_layers=1, n_heads=2, d_ff=32).double().eval()
    torch.nn.init.normal_(network.head.weight)
    batch = copies([A], [False], 1, counts_stop=counts_stop)
    nll = float(predictor(network, likelihood=likelihood).log_likelihood(batch)["nll"])
    assert nll == pytest.approx(exact_nll(network, batch), abs=1e-9)  # one token has one order
    impossible = predictor(network, likelihood=likelihood).log_likelihood(copies([EOS], [False], 1, counts_stop=True))
    assert float(impossible["nll"]) == math.inf


@pytest.mark.parametrize("likelihood", ["bound", "orders"])
def test_no_draws_name_the_key_to_change(likelihood):
    batch = copies([A], [False], 1, counts_stop=True)
    with pytest.raises(UserError, match=r"harness\.likelihood_draws \(0\)"):
        predictor(INCONSISTENT, likelihood=likelihood).log_likelihood(batch, draws=0)
