"""What the oracle case does not say of samplers and likelihoods (20,000 draws, chi-square)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from xlm.testing.factories import keyed, tiny_tokenizer, unconditional_examples
from xlm.testing.laws import ancestral_law, any_order_law, chi_square, remasking_law
from xlm.testing.toy import ExactDenoiser, InconsistentDenoiser, random_table
from xlm_mlm.collator import MLMCollator, MLMUnconditionalCollator
from xlm_mlm.predictor import MLMPredictor, MLMReMDMPredictor

TOKENIZER = tiny_tokenizer(n_letters=4)
LETTERS = [4, 5, 6, 7]
DRAWS = 20_000
LEAST_P = 1e-3
SCHEDULES: list[dict[str, Any]] = [
    {},
    {"tokens_per_step": 2},
    {"tokens_per_step": 3},
    {"threshold": 0.5},
    {"factor": 1.4},
    {"block_length": 2, "tokens_per_step": 2},
]


def exact() -> ExactDenoiser:
    return ExactDenoiser(random_table(), token_ids=LETTERS, vocab_size=8)


def inconsistent() -> InconsistentDenoiser:
    return InconsistentDenoiser(token_ids=LETTERS, vocab_size=8)


def build(model: Any, **options: Any) -> MLMPredictor:
    return MLMPredictor(model=model, tokenizer=TOKENIZER, **options)


def counts(predictor: MLMPredictor, examples: Any = None, collate: Any = None) -> torch.Tensor:
    collate = collate or MLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=4)
    return predictor.model.count(predictor.predict(collate(examples or unconditional_examples(DRAWS)))["ids"])


def every_string(model: Any) -> Any:
    rows = [{"input_ids": ids} for ids in model.all_strings().tolist()]
    return MLMCollator(tokenizer=TOKENIZER, seed=0, max_length=4, random_token_rate=0.5)(keyed(rows))


@pytest.mark.parametrize("eta", [0.0, 0.4])
def test_remasking_follows_the_law_of_the_t_step_process_and_without_eta_that_of_ancestral_sampling(eta):
    model, rates = inconsistent(), [1.0, 0.75, 0.5, 0.25, 0.0]
    law = remasking_law(model, rates, [eta, eta, min(eta, 0.25 / 0.5), 0.0]) if eta else ancestral_law(model, rates)
    predictor = MLMReMDMPredictor(model=model, tokenizer=TOKENIZER, steps=4, strategy="cap", eta=eta)
    assert chi_square(counts(predictor), law) > LEAST_P


def test_several_tokens_a_call_have_another_law():
    model = exact()
    assert chi_square(counts(build(model, tokens_per_step=2)), model.table.flatten()) < 1e-9


@pytest.mark.parametrize("order", ["top_probability", "margin", "entropy"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_exact_likelihoods_sum_to_one_and_are_the_law_of_the_samples(order, schedule):
    model = inconsistent()
    predictor = build(model, order=order, **schedule)
    result = predictor.log_likelihood(every_string(model))
    law = (-result["nll"]).exp()
    assert result["kind"] == "exact"
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-9)
    assert chi_square(counts(predictor), law) > LEAST_P


@pytest.mark.parametrize("options", [{"temperature": 0.7}, {"top_k": 2}, {"top_p": 0.8}, {"min_p": 0.3}], ids=str)
def test_exact_likelihoods_are_after_the_token_filters(options):
    model = inconsistent()
    predictor = build(model, order="margin", tokens_per_step=2, **options)
    law = (-predictor.log_likelihood(every_string(model))["nll"]).exp()
    assert float(law.sum()) == pytest.approx(1.0, abs=1e-9)
    assert chi_square(counts(predictor), law) > LEAST_P
    assert chi_square(counts(build(model, order="margin", tokens_per_step=2)), law) < 1e-9


def test_the_bound_is_not_below_the_law_of_the_one_token_sampler():
    model = inconsistent()
    batch = every_string(model)
    bound, law = build(model).log_likelihood(batch, draws=256)["nll"], any_order_law(model)
    assert float((law * (bound + law.log())).sum()) > 0
