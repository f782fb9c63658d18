from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from xlm.noise import LinearSchedule
from xlm.testing.factories import infill_examples, keyed, tiny_tokenizer
from xlm.testing.toy import ExactDenoiser, InconsistentDenoiser, entropy, random_table
from xlm_mdlm.collator import MDLMCollator, MDLMInfillCollator, MDLMSeq2SeqCollator
from xlm_mdlm.predictor import MDLMAncestralPredictor, MDLMFirstHittingPredictor, MDLMTopProbabilityPredictor

TOKENIZER = tiny_tokenizer(n_letters=4)
LETTERS = [4, 5, 6, 7]
NOISY: dict[str, Any] = {"tokenizer": TOKENIZER, "noise_schedule": LinearSchedule(), "seed": 0}


def strings_batch(model: Any, copies: int = 1) -> Any:
    rows = [{"input_ids": ids} for ids in model.all_strings().tolist()] * copies
    return MDLMCollator(**NOISY, max_length=4)(keyed(rows))


def test_the_bound_of_the_exact_posterior_is_the_entropy():
    model = ExactDenoiser(random_table(), token_ids=LETTERS, vocab_size=8)
    predictor = MDLMFirstHittingPredictor(model=model, tokenizer=TOKENIZER)
    result = predictor.log_likelihood(strings_batch(model), draws=64)
    assert result["kind"] == "bound"
    assert (result["n_tokens"] == 4).all()
    expected_nll = float((model.table.flatten() * result["nll"]).sum())
    standard_error = math.sqrt(float((model.table.flatten() ** 2 * result["mc_variance"]).sum()))
    assert abs(expected_nll - entropy(model.table)) < 3 * standard_error
    assert standard_error < 0.02


def test_ancestral_and_first_hitting_share_the_models_bound_whatever_the_filters():
    model = InconsistentDenoiser(token_ids=LETTERS, vocab_size=8)
    batch = strings_batch(model)
    plain = MDLMFirstHittingPredictor(model=model, tokenizer=TOKENIZER)
    other = MDLMAncestralPredictor(
        model=model, tokenizer=TOKENIZER, noise_schedule=LinearSchedule(), temperature=0.0, top_k=1
    )
    assert torch.equal(plain.log_likelihood(batch, draws=2)["nll"], other.log_likelihood(batch, draws=2)["nll"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokens_per_step": 2},
        {"tokens_per_step": 3, "temperature": 0.7},
        {"top_k": 2},
        {"temperature": 0.0},
        {"order": "margin"},
        {"order": "entropy", "tokens_per_step": 2},
        {"threshold": 0.5},
        {"order": "margin", "factor": 1.4, "temperature": 0.7},
        {"order": "entropy", "block_length": 3},
    ],
    ids=str,
)
def test_exact_likelihoods_of_the_deterministic_order_sum_to_one(options):
    model = InconsistentDenoiser(token_ids=LETTERS, vocab_size=8)
    predictor = MDLMTopProbabilityPredictor(model=model, tokenizer=TOKENIZER, **options)
    result = predictor.log_likelihood(strings_batch(model))
    assert result["kind"] == "exact"
    assert float((-result["nll"]).exp().sum()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("options", [{"order": "random"}, {"order": "margin", "gumbel": 0.1}], ids=str)
def test_an_order_with_randomness_reports_the_bound_of_the_network(options):
    model = InconsistentDenoiser(token_ids=LETTERS, vocab_size=8)
    batch = strings_batch(model)
    result = MDLMTopProbabilityPredictor(model=model, tokenizer=TOKENIZER, **options).log_likelihood(batch, draws=2)
    expected = MDLMFirstHittingPredictor(model=model, tokenizer=TOKENIZER).log_likelihood(batch, draws=2)
    assert (result["kind"], result["estimator"]) == ("bound", "any_order")
    assert torch.equal(result["nll"], expected["nll"])


def test_guidance_is_in_the_exact_likelihood_and_not_in_the_bound():
    model = InconsistentDenoiser(token_ids=LETTERS, vocab_size=8)
    batch = MDLMInfillCollator(**NOISY, max_length=4)(keyed([{"input_ids": [4, 5, 6, 7], "fixed": [1, 0, 0, 0]}]))
    for cls, same in ((MDLMFirstHittingPredictor, True), (MDLMTopProbabilityPredictor, False)):
        nll = [cls(model=model, tokenizer=TOKENIZER, guidance=w).log_likelihood(batch)["nll"] for w in (0.0, 2.0)]
        assert torch.equal(*nll) is same


@pytest.mark.parametrize("text", [[4, 5], [4], [4, 5, 6, 7, 4]], ids=str)
def test_a_text_is_paid_for_up_to_the_block_in_which_it_ends(text):
    """On a canvas of six; the network says every letter and EOS with the same probability."""

    class Uniform(nn.Module):
        head = nn.Linear(8, 8, bias=False)

        def hidden(self, input_ids, *_, **__):
            return torch.zeros(*input_ids.shape, 8)

    batch = MDLMCollator(**NOISY, max_length=6, event_space="open")(keyed([{"input_ids": text}]))
    predictor = MDLMTopProbabilityPredictor(model=Uniform(), tokenizer=TOKENIZER, block_length=2)
    n_paid = 2 * math.ceil((len(text) + 1) / 2)
    assert predictor.log_likelihood(batch)["nll"].tolist() == pytest.approx([n_paid * math.log(5)])


def test_given_tokens_are_conditions_and_cost_nothing():
    model = ExactDenoiser(random_table(), token_ids=LETTERS, vocab_size=8)
    rows = [{"input_ids": [6, a, 4, b], "fixed": [1, 0, 1, 0]} for a in LETTERS for b in LETTERS]
    batch = MDLMInfillCollator(**NOISY, max_length=4)(keyed(rows))
    result = MDLMTopProbabilityPredictor(model=model, tokenizer=TOKENIZER).log_likelihood(batch)
    agrees = (model.all_strings()[:, 0] == 6) & (model.all_strings()[:, 2] == 4)
    conditional = model.table.flatten()[agrees] / model.table.flatten()[agrees].sum()
    torch.testing.assert_close((-result["nll"]).exp(), conditional)
    assert (result["n_tokens"] == 2).all()


def test_one_hidden_token_is_one_exact_conditional_in_the_bound_too():
    model = ExactDenoiser(random_table(), token_ids=LETTERS, vocab_size=8)
    batch = MDLMInfillCollator(**NOISY, max_length=4)(keyed([{"input_ids": [4, 5, 6, 7], "fixed": [1, 0, 1, 1]}]))
    bound = MDLMFirstHittingPredictor(model=model, tokenizer=TOKENIZER).log_likelihood(batch)["nll"]
    expected = -model(torch.tensor([[4, 1, 6, 7]]))[0, 1].log_softmax(-1)[5]
    torch.testing.assert_close(bound[0], expected.detach())


def test_fill_of_an_open_canvas_is_in_the_sum_but_not_in_the_denominator():
    class Uniform(nn.Module):
        head = nn.Linear(8, 8, bias=False)

        def hidden(self, input_ids, *_, **__):
            return torch.zeros(*input_ids.shape, 8)

    batch = MDLMCollator(**NOISY, max_length=6, event_space="open")(keyed([{"input_ids": [4, 5]}]))
    for cls in (MDLMFirstHittingPredictor, MDLMTopProbabilityPredictor):
        result = cls(model=Uniform(), tokenizer=TOKENIZER).log_likelihood(batch)
        assert result["n_tokens"].tolist() == [3]
        assert result["nll"].tolist() == pytest.approx([6 * math.log(5)])  # four letters and EOS


class KnowsOnlyTheMaskRate(nn.Module):
    """Gives letter 4 the probability u and letter 5 the rest, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 8, bias=False, dtype=torch.float64)
        nn.init.eye_(self.head.weight)

    def hidden(self, input_ids, attention_mask=None, *, mask_rate, **_):
        logits = torch.full((len(input_ids), 8), -1e4, dtype=torch.float64)
        logits[:, 4], logits[:, 5] = mask_rate.double().log(), (1 - mask_rate.double()).log()
        return logits[:, None].expand(-1, input_ids.shape[1], -1)


def test_the_bound_of_a_conditioned_network_is_that_of_the_continuous_process():
    """A token is revealed at a uniform mask rate u and costs -log u: 1 nat on average. The training form agrees."""
    batch = MDLMCollator(**NOISY, max_length=4)(keyed([{"input_ids": [4] * 4}] * 4000))
    predictor = MDLMFirstHittingPredictor(model=KnowsOnlyTheMaskRate(), tokenizer=TOKENIZER)
    nll = predictor.log_likelihood(batch, draws=4)["nll"]
    assert abs(float(nll.mean()) - 4.0) < 4 * float(nll.std()) / math.sqrt(4000)


def test_the_exact_likelihood_of_a_conditioned_network_uses_the_mask_rates_of_its_sampler():
    batch = MDLMCollator(**NOISY, max_length=4)(keyed([{"input_ids": [4] * 4}]))
    predictor = MDLMTopProbabilityPredictor(model=KnowsOnlyTheMaskRate(), tokenizer=TOKENIZER)
    expected = -sum(math.log(k / 5) for k in (4, 3, 2, 1))
    assert predictor.log_likelihood(batch)["nll"].item() == pytest.approx(expected)


def test_a_row_without_anything_to_predict_costs_nothing():
    rows = [*infill_examples([4], n_letters=4), *infill_examples([4], n_letters=4, fixed_rate=2.0)]
    batch = MDLMInfillCollator(**NOISY, max_length=4)([{**row, "index": i} for i, row in enumerate(rows)])
    model = InconsistentDenoiser(token_ids=LETTERS, vocab_size=8)
    for cls in (MDLMFirstHittingPredictor, MDLMTopProbabilityPredictor):
        result = cls(model=model, tokenizer=TOKENIZER).log_likelihood(batch, draws=2)
        assert result["nll"][1] == 0
        assert result["n_tokens"][1] == 0
        assert result["nll"].isfinite().all()


def test_draws_of_the_bound_do_not_move_with_left_padding():
    model = InconsistentDenoiser(token_ids=LETTERS, vocab_size=8, length=5)
    collate = MDLMSeq2SeqCollator(**NOISY, max_prompt_length=6, max_target_length=5)
    examples = keyed([{"prompt_ids": [4] * n, "target_ids": [5, 6]} for n in (1, 6)])
    predictor = MDLMFirstHittingPredictor(model=model, tokenizer=TOKENIZER)
    together = predictor.log_likelihood(collate(examples))["nll"]
    alone = [predictor.log_likelihood(collate([example]))["nll"] for example in examples]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-12, atol=0)
