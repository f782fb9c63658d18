from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from xlm.evaluation import LossEvaluation, entropy_of_answers


def evaluated(event_space: str, *, n_tokens: list[int], n_bytes: list[int] | None) -> dict[str, Any]:
    manager = SimpleNamespace(
        event_space=event_space,
        n_bytes=lambda index: None if n_bytes is None else torch.tensor(n_bytes)[index],
        source=SimpleNamespace(optimum=lambda: 0.5),
    )
    nll = torch.ones(len(n_tokens), dtype=torch.float64)
    losses = {"loss": nll.mean(), "nll": nll, "n_tokens": torch.tensor(n_tokens)}
    loss: Any = SimpleNamespace(loss_fn=lambda batch: losses)
    evaluation = LossEvaluation("test.text", manager, loss=loss, predictor=None, draws=None)
    evaluation.update({"index": torch.arange(len(n_tokens))})
    return evaluation.compute()


@pytest.mark.parametrize(
    ("event_space", "n_tokens", "n_bytes", "shown"),
    [
        ("window", [4, 4], [4, 4], True),
        ("open", [4, 3], [3, 2], True),  # the end of a text is a token without a byte
        ("window", [4, 4], [9, 4], False),
        ("open", [4, 3], [4, 3], False),
        ("window", [4, 4], None, False),
    ],
)
def test_the_optimum_of_a_language_is_shown_where_tokens_are_its_characters(event_space, n_tokens, n_bytes, shown):
    results = evaluated(event_space, n_tokens=n_tokens, n_bytes=n_bytes)
    assert results.get("optimum_nats_per_token") == (0.5 if shown else None)


def by_rate(*batches: tuple[list[float], list[float], list[int]]) -> LossEvaluation:
    """An evaluation that saw rows of these mask rates, nats and hidden tokens."""
    losses = {id(batch): batch for batch in batches}
    evaluation = LossEvaluation("val.text", None, loss=None, predictor=None, draws=None)
    evaluation._add_rows = lambda *_, **__: None  # type: ignore[method-assign]
    for rates, nats, tokens in losses.values():
        found = {"loss": torch.tensor(1.0), "nll": torch.tensor(nats), "n_tokens": torch.tensor(tokens)}
        found |= {"masked_nll": torch.tensor(nats), "n_masked": torch.tensor(tokens)}
        evaluation.loss = SimpleNamespace(loss_fn=lambda batch, found=found: found)
        evaluation.update({"index": torch.arange(len(rates)), "mask_rate": torch.tensor(rates)})
    return evaluation


FIRST = ([0.05, 0.55, 1.0], [3.0, 4.0, 9.0], [1, 2, 3])
SECOND = ([0.09, 0.3], [3.0, 0.0], [2, 0])
BY_RATE = {"0.0-0.1": 6 / 3, "0.5-0.6": 4 / 2, "0.9-1.0": 9 / 3}


def test_hidden_tokens_cost_their_sum_over_their_number_in_each_bin_of_the_mask_rate_and_empty_bins_are_absent():
    results = by_rate(FIRST, SECOND).compute()
    assert results["masked_cross_entropy_by_rate"] == BY_RATE
    assert results["masked_cross_entropy"] == 19 / 8


def test_bins_of_the_mask_rate_are_of_all_ranks(monkeypatch):
    shares = [by_rate(FIRST)._share(), by_rate(SECOND)._share()]
    monkeypatch.setattr("xlm.evaluation.gather", lambda share: shares)
    assert by_rate().compute()["masked_cross_entropy_by_rate"] == BY_RATE


def test_a_loss_without_rows_has_no_bins():
    assert "masked_cross_entropy_by_rate" not in evaluated("window", n_tokens=[4], n_bytes=None)


def test_the_least_cost_of_examples_known_by_heart_is_the_entropy_of_the_answers_to_each_question():
    pairs = [("q", "a"), ("q", "b"), ("q", "b"), ("r", "a")]
    assert entropy_of_answers(pairs) == pytest.approx(-(math.log(1 / 3) + 2 * math.log(2 / 3)))
    assert entropy_of_answers([("", str(i)) for i in range(8)]) == pytest.approx(8 * math.log(8))


@pytest.mark.parametrize(
    ("role", "example", "nats"),
    [
        ("lm", {"text": "ab"}, 2 * math.log(2)),
        ("seq2seq", {"prompt": "1+1=", "target": "2"}, 0),
        ("infill", {"text": "ab", "fixed": "10"}, 0),
    ],
)
def test_examples_trained_on_have_the_optimum_of_their_role(role, example, nats):
    others = {
        "lm": {"text": "ba"},
        "seq2seq": {"prompt": "1+2=", "target": "3"},
        "infill": {"text": "ba", "fixed": "10"},
    }
    manager = SimpleNamespace(
        event_space="window",
        role=role,
        of_training=True,
        n_bytes=lambda index: None,
        examples=lambda index: [[example, others[role]][i] for i in index],
        source=SimpleNamespace(optimum=lambda: 0.5),
    )
    nll = torch.ones(2, dtype=torch.float64)
    losses = {"loss": nll.mean(), "nll": nll, "n_tokens": torch.tensor([2, 2])}
    evaluation = LossEvaluation(
        "val.text", manager, loss=SimpleNamespace(loss_fn=lambda batch: losses), predictor=None, draws=None
    )
    evaluation.update({"index": torch.arange(2)})
    assert evaluation.compute()["optimum_nats_per_token"] == pytest.approx(nats / 4)
