"""The toys are what they say: everything is recomputed from the table by summing over strings."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close
from xlm.protocols import Model
from xlm.testing.toy import ExactCausal, ExactDenoiser, InconsistentDenoiser, entropy, number, random_table

PAD, MASK, BOS, EOS = range(4)
LETTERS, VOCAB = [5, 4, 7], 8  # not in the order of their ids
TABLE = random_table(n_letters=3, length=4)
DENOISER = ExactDenoiser(TABLE, token_ids=LETTERS, vocab_size=VOCAB)
CAUSAL = ExactCausal(TABLE, token_ids=LETTERS, vocab_size=VOCAB, bos_id=BOS, eos_id=EOS)
STRINGS = DENOISER.all_strings()


def test_strings_are_numbered_as_the_table_is():
    assert STRINGS[0].tolist() == [5, 5, 5, 5]
    assert STRINGS[5].tolist() == [5, 5, 4, 7]  # 0012 in base 3
    assert DENOISER.count(STRINGS[[5, 5, 80]]).nonzero().flatten().tolist() == [5, 80]
    assert number(torch.tensor([[0, 0, 1, 2]]), 3).tolist() == [5]
    assert_close(float(TABLE.sum()), 1.0)


def test_a_sample_with_a_foreign_token_is_refused():
    with pytest.raises(ValueError, match="no letter"):
        DENOISER.count(torch.tensor([[5, 5, MASK, 5]]))


def test_entropy_of_a_uniform_table_is_log_of_its_size():
    assert_close(entropy(torch.full((2, 2, 2), 1 / 8, dtype=torch.float64)), torch.log(torch.tensor(8.0)).item())


def test_the_exact_denoiser_is_the_posterior_of_the_table():
    probabilities = DENOISER(torch.tensor([[5, MASK, MASK, 7]])).softmax(-1)[0]
    joint = TABLE[0, :, :, 2] / TABLE[0, :, :, 2].sum()
    assert_close(probabilities[1, LETTERS], joint.sum(1))
    assert_close(probabilities[2, LETTERS], joint.sum(0))
    assert probabilities[[0, 3], [5, 7]].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("model", [DENOISER, InconsistentDenoiser(token_ids=LETTERS, vocab_size=VOCAB)])
def test_a_denoiser_gives_mass_to_letters_only_and_ignores_what_stands_before_the_string(model):
    string = torch.tensor([[MASK, 4, MASK, 7], [5, MASK, 5, MASK]])
    logits = model(string)
    assert_close(logits.softmax(-1)[..., LETTERS].sum(-1), torch.ones(2, 4, dtype=torch.float64))
    prompted = torch.cat([torch.tensor([[PAD, BOS], [BOS, 5]]), string], 1)
    assert torch.equal(model(prompted)[:, 2:], logits)


def test_the_inconsistent_denoiser_belongs_to_no_joint_law():
    model = InconsistentDenoiser(token_ids=LETTERS, vocab_size=VOCAB)

    def log_p(order):
        ids, total = torch.full((1, 4), MASK), 0.0
        for position in order:
            total += model(ids)[0, position, 4].item()
            ids[0, position] = 4
        return total

    assert abs(log_p([0, 1, 2, 3]) - log_p([3, 2, 1, 0])) > 0.1


def test_the_causal_toy_gives_the_table_by_the_chain_rule_and_then_ends():
    ids = torch.cat([torch.full((len(STRINGS), 1), BOS), STRINGS], 1)
    log_probabilities = CAUSAL(ids).log_softmax(-1)
    log_p = log_probabilities[:, :-1].gather(-1, STRINGS[..., None]).sum((1, 2))
    assert_close(log_p, TABLE.flatten().log())
    assert_close(log_probabilities[:, -1, EOS], torch.zeros(len(STRINGS), dtype=torch.float64))


def test_padding_changes_nothing_for_the_causal_toy():
    ids = torch.tensor([[BOS, 5, 4]])
    padded = torch.tensor([[PAD, PAD, BOS, 5, 4, PAD]])
    assert torch.equal(CAUSAL(padded)[:, 2:5], CAUSAL(ids))


def test_cached_decoding_of_the_causal_toy_gives_the_same_logits_after_rows_left():
    ids = torch.tensor([[PAD, BOS, 5, 4], [BOS, 7, 7, 5]])
    cache = CAUSAL.new_cache(2, 6)
    CAUSAL.hidden(ids[:, :2], cache=cache)
    assert cache.length == 2
    cache.keep(torch.tensor([1]))
    assert torch.equal(CAUSAL.hidden(ids[1:, 2:], cache=cache), CAUSAL.hidden(ids)[1:, 2:])


def test_toys_are_models_whose_head_is_the_identity():
    for toy in (DENOISER, CAUSAL):
        assert isinstance(toy, Model)
        states = toy.hidden(STRINGS)
        assert states.dtype == torch.float64
        assert torch.equal(toy.head(states), states)
