"""Which tokens are chosen, and what stands in their place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from xlm.errors import UserError
from xlm.noise import low_discrepancy_times
from xlm.testing.factories import infill_examples, keyed, lm_examples, seq2seq_examples, tiny_tokenizer
from xlm_mlm.collator import MLMCollator, MLMInfillCollator, MLMSeq2SeqCollator

TOKENIZER = tiny_tokenizer()
MASK, EOS = 1, 3
GENERATED = {3, *range(4, 12)}


def lm(**options: Any) -> MLMCollator:
    return MLMCollator(**{"tokenizer": TOKENIZER, "seed": 0, "max_length": 8, **options})


def seq2seq(**options: Any) -> MLMSeq2SeqCollator:
    return MLMSeq2SeqCollator(tokenizer=TOKENIZER, seed=0, max_prompt_length=6, max_target_length=5, **options)


def infill(**options: Any) -> MLMInfillCollator:
    return MLMInfillCollator(tokenizer=TOKENIZER, seed=0, max_length=10, **options)


def chosen(batch: Any) -> torch.Tensor:
    flat = torch.zeros(batch["input_ids"].numel(), dtype=torch.bool)
    flat[batch["rows"]] = True
    return flat.view_as(batch["input_ids"])


def close_to(rate: float, share: torch.Tensor, n: int) -> bool:
    return abs(float(share) - rate) < 4 * (rate * (1 - rate) / n) ** 0.5


def test_by_default_every_chosen_token_is_the_mask_token_and_all_others_are_the_text():
    batch = lm()(lm_examples([8] * 64))
    hidden = chosen(batch)
    assert 0 < hidden.sum() < hidden.numel()
    assert torch.equal(hidden, batch["input_ids"] == MASK)
    assert (batch["input_ids"] == batch["target_ids"])[~hidden].all()


def test_a_fixed_rate_chooses_that_share_of_the_tokens_in_every_row():
    share = chosen(lm(mask_rate=0.15, max_length=2000)(lm_examples([2000] * 8))).double().mean(1)
    assert all(close_to(0.15, row, 2000) for row in share)


def test_uniform_rates_lie_in_0_1_with_1_and_are_far_more_even_than_independent_ones():
    """A row of 2,000 tokens tells its rate to about 0.01."""
    share = chosen(lm(max_length=2000)(lm_examples([2000] * 64))).double().mean(1)
    rates = 1 - low_discrepancy_times(torch.arange(64), 0)
    assert ((share - rates).abs() < 5 * (rates * (1 - rates) / 2000).sqrt()).all()
    assert (rates.sort().values - (torch.arange(64) + 0.5) / 64).abs().max() < 2 / 64
    independent_variance_of_a_batch_mean = 1 / 12 / 8
    assert rates.view(8, 8).mean(1).var() < independent_variance_of_a_batch_mean / 5


@pytest.mark.parametrize("ranks", [2, 4])
def test_noise_is_the_same_however_a_global_batch_is_split(ranks):
    collate = lm(random_token_rate=0.3, keep_rate=0.3)
    examples = lm_examples([8] * 16)
    size = len(examples) // ranks
    parts = [collate(examples[i : i + size]) for i in range(0, 16, size)]
    assert torch.equal(torch.cat([part["input_ids"] for part in parts]), collate(examples)["input_ids"])


def test_another_seed_gives_other_rates_and_another_key_other_choices():
    examples, others = lm_examples([200] * 4), lm_examples([200] * 4, seed=1)
    assert not torch.equal(lm(seed=1, max_length=200)(examples)["rows"], lm(max_length=200)(examples)["rows"])
    fixed = lm(mask_rate=0.5, max_length=200)
    assert not torch.equal(fixed(others)["rows"], fixed(examples)["rows"])


def test_a_rate_of_one_hides_everything_that_is_predicted_and_nothing_else():
    assert chosen(lm(mask_rate=1.0)(lm_examples([8] * 4))).all()
    for collate, examples in (
        (seq2seq(mask_rate=1.0), seq2seq_examples([3, 6, 0], [4, 1, 2])),
        (infill(mask_rate=1.0), infill_examples([3, 10, 5])),
    ):
        batch = collate(examples)
        assert torch.equal(chosen(batch), batch["predicted"])
        assert (batch["input_ids"] == batch["target_ids"])[~batch["predicted"]].all()


def test_eighty_ten_ten_are_the_shares_of_masks_random_tokens_and_kept_tokens():
    batch = lm(mask_rate=0.5, random_token_rate=0.1, keep_rate=0.2, max_length=2000)(lm_examples([2000] * 16))
    at = chosen(batch)
    seen, targets = batch["input_ids"][at], batch["target_ids"][at]
    n = int(at.sum())
    assert close_to(0.7, (seen == MASK).double().mean(), n)
    by_chance = 0.1 / len(GENERATED)  # a random token may be the token itself
    assert close_to(0.2 + by_chance, (seen == targets).double().mean(), n)
    assert (batch["input_ids"] == batch["target_ids"])[~at].all()


def test_random_tokens_are_uniform_over_all_that_can_be_generated():
    batch = lm(mask_rate=1.0, random_token_rate=1.0, max_length=2000)(lm_examples([2000] * 8))
    counts = torch.bincount(batch["input_ids"].flatten(), minlength=12)
    assert set(counts.nonzero().squeeze(1).tolist()) == GENERATED
    assert all(close_to(1 / 9, counts[token] / 16000, 16000) for token in GENERATED)


def test_kept_tokens_are_predicted_all_the_same():
    batch = lm(mask_rate=0.5, keep_rate=1.0)(lm_examples([8] * 4))
    assert torch.equal(batch["input_ids"], batch["target_ids"])
    assert len(batch["rows"]) > 0


def test_corruption_chooses_the_same_tokens_and_touches_nothing_else_after_a_prompt():
    examples = seq2seq_examples([3, 6, 0], [4, 1, 2])
    plain, corrupted = seq2seq(mask_rate=0.7)(examples), seq2seq(mask_rate=0.7, random_token_rate=1.0)(examples)
    assert torch.equal(plain["rows"], corrupted["rows"])
    assert (corrupted["input_ids"] == corrupted["target_ids"])[~chosen(corrupted)].all()
    assert not (corrupted["input_ids"] == MASK).any()


def test_whole_words_are_chosen_or_left_together():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["[PAD]", "[MASK]", "[BOS]", "[EOS]", "play", "##ing", "##s", "cat"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[PAD]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    pad, mask, bos, eos = pieces[:4]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=pad, mask_token=mask, bos_token=bos, eos_token=eos
    )
    examples = keyed([{"input_ids": [4, 5, 6, 7, 4, 6, 7, 7]}] * 500)
    words = [[0, 1, 2], [3], [4, 5], [6], [7]]
    together, apart = (
        chosen(lm(tokenizer=tokenizer, mask_rate=0.5, whole_words=whole)(examples)) for whole in (True, False)
    )
    assert all((together[:, word].sum(1) % len(word) == 0).all() for word in words)
    assert close_to(0.5, together[:, [0, 3, 4, 6, 7]].double().mean(), 2500)
    assert any((apart[:, word].sum(1) % len(word) != 0).any() for word in words)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_rate": 0.0}, r"\(0, 1\] in collators\.{role}\.mask_rate \(0\.0\); fix: use uniform"),
        ({"mask_rate": 1.5}, r"\(0, 1\] in collators\.{role}\.mask_rate"),
        ({"random_token_rate": -0.1}, r"\[0, 1\] in collators\.{role}\.random_token_rate"),
        ({"random_token_rate": 1.1}, r"\[0, 1\] in collators\.{role}\.random_token_rate"),
        ({"keep_rate": -0.1}, r"in collators\.{role}\.keep_rate"),
        (
            {"keep_rate": 0.6, "random_token_rate": 0.5},
            r"\[0, 1 - random_token_rate = 0\.5\] in collators\.{role}",
        ),
    ],
)
def test_rates_outside_their_range_are_refused_by_their_key(options, message):
    for role, build in {"lm": lm, "seq2seq": seq2seq, "infill": infill}.items():
        with pytest.raises(UserError, match=message.replace("{role}", role)):
            build(**options)
