"""What the oracle case does not say of the samplers' laws (20,000 draws, chi-square)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from xlm.noise import CosineSchedule, LinearSchedule, LogLinearSchedule
from xlm.protocols import Example, NoiseSchedule
from xlm.sampling import top_probability_scores
from xlm.testing.factories import keyed, tiny_tokenizer, unconditional_examples
from xlm.testing.laws import ancestral_law, any_order_law, chi_square, one_token_law, remasking_law
from xlm.testing.toy import ExactDenoiser, InconsistentDenoiser, TableDenoiser, random_table
from xlm_mdlm.collator import (
    MDLMCollator,
    MDLMInfillPredictionCollator,
    MDLMUnconditionalCollator,
)
from xlm_mdlm.predictor import (
    MDLMAncestralPredictor,
    MDLMFirstHittingPredictor,
    MDLMPredictor,
    MDLMReMDMPredictor,
    MDLMTopProbabilityPredictor,
)

TOKENIZER = tiny_tokenizer(n_letters=4)
LETTERS = [4, 5, 6, 7]
MASK = 1
DRAWS = 20_000
LEAST_P = 1e-3


def exact() -> ExactDenoiser:
    return ExactDenoiser(random_table(), token_ids=LETTERS, vocab_size=8)


def inconsistent() -> InconsistentDenoiser:
    return InconsistentDenoiser(token_ids=LETTERS, vocab_size=8)


def first_hitting(model: Any, **options: Any) -> MDLMFirstHittingPredictor:
    return MDLMFirstHittingPredictor(model=model, tokenizer=TOKENIZER, **options)


def ancestral(model: Any, steps: int, schedule: NoiseSchedule, **options: Any) -> MDLMAncestralPredictor:
    return MDLMAncestralPredictor(model=model, tokenizer=TOKENIZER, noise_schedule=schedule, steps=steps, **options)


def counts(predictor: MDLMPredictor, examples: list[Example] | None = None, collate: Any = None) -> torch.Tensor:
    collate = collate or MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=4)
    batch = collate(examples or unconditional_examples(DRAWS))
    return predictor.model.count(predictor.predict(batch)["ids"])


def test_the_law_of_four_steps_is_told_apart_from_the_models_p():
    model = exact()
    assert chi_square(counts(ancestral(model, 4, LinearSchedule())), model.table.flatten()) < 1e-9


def test_ancestral_steps_follow_the_schedule():
    model, schedule = inconsistent(), CosineSchedule()
    rates = schedule.mask_rate(torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64)).tolist()
    assert chi_square(counts(ancestral(model, 4, schedule)), ancestral_law(model, rates)) > LEAST_P


def test_a_schedule_that_stops_short_of_its_end_starts_from_masks_all_the_same():
    model, schedule = inconsistent(), LogLinearSchedule(eps=0.5)
    law = ancestral_law(model, [1.0, 0.75, 0.5, 0.25, 0.0])
    assert chi_square(counts(ancestral(model, 4, schedule)), law) > LEAST_P


def top_probability_law(model: TableDenoiser, *, temperature: float, per_step: int) -> torch.Tensor:
    """Probability of every string, by a slow loop over strings and steps."""
    law = []
    for string in model.all_strings():
        state, p = torch.full((4,), MASK), 1.0
        while (state == MASK).any():
            logits = model(state[None])[0].detach()
            certainty = top_probability_scores(logits).masked_fill(state != MASK, -1.0)
            for i in certainty.argsort(descending=True, stable=True)[:per_step].tolist():
                if state[i] == MASK:
                    p *= float((logits[i] / temperature).softmax(-1)[string[i]])
                    state[i] = string[i]
        law.append(p)
    return torch.tensor(law, dtype=torch.float64)


@pytest.mark.parametrize("per_step", [1, 2, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_top_probability_samples_follow_the_law_of_their_deterministic_order(per_step, temperature):
    model = inconsistent()
    law = top_probability_law(model, temperature=temperature, per_step=per_step)
    predictor = MDLMTopProbabilityPredictor(
        model=model, tokenizer=TOKENIZER, tokens_per_step=per_step, temperature=temperature
    )
    assert float(law.sum()) == pytest.approx(1.0)
    every_string = MDLMCollator(tokenizer=TOKENIZER, noise_schedule=LinearSchedule(), seed=0, max_length=4)(
        keyed([{"input_ids": ids} for ids in model.all_strings().tolist()])
    )
    torch.testing.assert_close((-predictor.log_likelihood(every_string)["nll"]).exp(), law)
    assert chi_square(counts(predictor), law) > LEAST_P


def test_remasking_samples_follow_the_law_of_the_t_step_process_with_remasking():
    model, schedule = inconsistent(), CosineSchedule()
    rates = schedule.mask_rate(torch.tensor([1, 0.75, 0.5, 0.25, 0], dtype=torch.float64)).tolist()
    most = [1.0, *(min(1.0, v / (1 - u)) for u, v in pairwise(rates[1:]))]
    predictor = MDLMReMDMPredictor(
        model=model, tokenizer=TOKENIZER, noise_schedule=schedule, steps=4, strategy="rescale", eta=0.4
    )
    assert chi_square(counts(predictor), remasking_law(model, rates, [0.4 * sigma for sigma in most])) > LEAST_P


def order(model: Any, **options: Any) -> MDLMTopProbabilityPredictor:
    return MDLMTopProbabilityPredictor(model=model, tokenizer=TOKENIZER, **options)


@pytest.mark.parametrize("block_length", [None, 2])
def test_a_random_order_follows_the_mean_over_the_orders_that_keep_to_its_blocks(block_length):
    model = inconsistent()
    law = any_order_law(model, block_length=block_length)
    assert chi_square(counts(order(model, order="random", block_length=block_length)), law) > LEAST_P


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_gumbel_noise_chooses_positions_in_proportion_to_their_certainty_to_the_power_of_one_over_tau(tau):
    model = inconsistent()
    law = one_token_law(model, model.log_conditional.detach().amax(-1).mul(1 / tau).exp())
    assert chi_square(counts(order(model, gumbel=tau)), law) > LEAST_P


@pytest.mark.parametrize(
    "options", [{"block_length": 2}, {"block_length": 3, "tokens_per_step": 2, "top_k": 3}], ids=str
)
def test_samples_in_blocks_follow_their_exact_likelihoods(options):
    model = inconsistent()
    every_string = MDLMCollator(tokenizer=TOKENIZER, noise_schedule=LinearSchedule(), seed=0, max_length=4)(
        keyed([{"input_ids": ids} for ids in model.all_strings().tolist()])
    )
    examples = keyed([{"input_ids": [4] * 4, "fixed": [0] * 4}] * DRAWS)
    predictor = order(model, order="margin", **options)
    law = (-predictor.log_likelihood(every_string)["nll"]).exp()
    assert float(law.sum()) == pytest.approx(1.0)
    found = counts(predictor, examples, MDLMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=4))
    assert chi_square(found, law) > LEAST_P


def first_letter_law(options: dict[str, Any]) -> torch.Tensor:
    """Of one hidden position, where all samplers are one draw from the filtered distribution."""
    model = exact()
    examples = keyed([{"input_ids": [4, 5, 6, 7], "fixed": [1, 1, 0, 1]}] * 2000)
    batch = MDLMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=4)(examples)
    ids = first_hitting(model, **options).predict(batch)["ids"][:, 2]
    return torch.bincount(ids - 4, minlength=4) / 2000


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}], ids=str)
def test_each_token_filter_can_leave_the_most_probable_token_alone(options):
    model = exact()
    best = int(model(torch.tensor([[4, 5, MASK, 7]]))[0, 2].argmax()) - 4
    assert first_letter_law(options)[best] == 1


def test_temperature_reshapes_the_distribution_of_tokens():
    log_p = exact()(torch.tensor([[4, 5, MASK, 7]]))[0, 2, 4:].detach()
    torch.testing.assert_close(
        first_letter_law({"temperature": 2.0}).double(), (log_p / 2).softmax(0), rtol=0, atol=0.05
    )
