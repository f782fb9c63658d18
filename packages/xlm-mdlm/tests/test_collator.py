from __future__ import annotations

from typing import Any

import pytest
import torch
from xlm.errors import UserError
from xlm.noise import CosineSchedule, LinearSchedule, low_discrepancy_times
from xlm.testing.contracts import CollatorContract, PredictionCollatorContract
from xlm.testing.factories import (
    infill_examples,
    keyed,
    lm_examples,
    seq2seq_examples,
    tiny_tokenizer,
    unconditional_examples,
)
from xlm_mdlm.collator import (
    MDLMCollator,
    MDLMInfillCollator,
    MDLMInfillPredictionCollator,
    MDLMSeq2SeqCollator,
    MDLMSeq2SeqPredictionCollator,
    MDLMUnconditionalCollator,
)

TOKENIZER = tiny_tokenizer()
PAD, MASK, BOS, EOS = 0, 1, 2, 3
NOISY: dict[str, Any] = {"tokenizer": TOKENIZER, "noise_schedule": LinearSchedule(), "seed": 0}


def lm(**options: Any) -> MDLMCollator:
    return MDLMCollator(**{**NOISY, "max_length": 8, **options})


def seq2seq(**options: Any) -> MDLMSeq2SeqCollator:
    return MDLMSeq2SeqCollator(**{**NOISY, "max_prompt_length": 6, "max_target_length": 5, **options})


def infill(**options: Any) -> MDLMInfillCollator:
    return MDLMInfillCollator(**{**NOISY, "max_length": 10, **options})


class TestWindowCollator(CollatorContract):
    def collator(self):
        return lm()

    def examples(self):
        return lm_examples([8, 8, 8])


class TestPaddedWindowCollator(CollatorContract):
    def collator(self):
        return lm(event_space="given_length")

    def examples(self):
        return lm_examples([3, 8, 5])


class TestOpenCollator(CollatorContract):
    def collator(self):
        return lm(event_space="open")

    def examples(self):
        return lm_examples([3, 7, 5])


class TestSeq2SeqCollator(CollatorContract):
    def collator(self):
        return seq2seq()

    def examples(self):
        return seq2seq_examples([3, 6, 0], [4, 1, 2])


class TestInfillCollator(CollatorContract):
    def collator(self):
        return infill()

    def examples(self):
        return infill_examples([3, 10, 5])


class TestSeq2SeqPredictionCollator(PredictionCollatorContract):
    def collator(self):
        return MDLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=11, max_target_length=5)

    def examples(self):
        return seq2seq_examples([3, 6, 0], [4, 1, 2])


class TestCompletionCollator(TestSeq2SeqPredictionCollator):
    def collator(self):
        return MDLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=11)


class TestInfillPredictionCollator(PredictionCollatorContract):
    def collator(self):
        return MDLMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=10)

    def examples(self):
        return infill_examples([3, 10, 5])


class TestUnconditionalCollator(CollatorContract):
    def collator(self):
        return MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=6)

    def examples(self):
        return unconditional_examples(3)


def test_hidden_tokens_are_masked_and_all_others_are_the_text():
    batch = lm()(lm_examples([8] * 64))
    hidden = batch["input_ids"] == MASK
    assert 0 < hidden.sum() < hidden.numel()
    assert (batch["input_ids"] == batch["target_ids"])[~hidden].all()
    assert torch.equal(batch["rows"], hidden.flatten().nonzero().squeeze(1))


def test_each_row_is_hidden_at_its_own_rate():
    batch = lm(max_length=2000)(lm_examples([2000] * 8))
    observed = (batch["input_ids"] == MASK).double().mean(1)
    standard_error = (batch["mask_rate"] * (1 - batch["mask_rate"]) / 2000).sqrt()
    assert ((observed - batch["mask_rate"]).abs() < 5 * standard_error).all()


def test_times_start_at_t_min_whose_factor_is_in_the_weight():
    examples = lm_examples([8] * 50)
    batch = lm(t_min=0.5, noise_schedule=CosineSchedule())(examples)
    t = 0.5 + 0.5 * low_discrepancy_times(torch.arange(50), 0)
    torch.testing.assert_close(batch["mask_rate"].double(), CosineSchedule().mask_rate(t), rtol=1e-6, atol=0)
    torch.testing.assert_close(batch["elbo_weight"].double(), 0.5 * CosineSchedule().elbo_weight(t), rtol=1e-6, atol=0)


def test_mask_rates_are_uniform_and_far_more_even_than_independent_ones():
    rates = lm(t_min=0.0)(lm_examples([8] * 4096))["mask_rate"]
    assert (rates.sort().values - torch.linspace(0, 1, 4096)).abs().max() < 0.01
    independent_variance_of_a_batch_mean = 1 / 12 / 32
    assert rates.reshape(-1, 32).mean(1).var() < independent_variance_of_a_batch_mean / 5


@pytest.mark.parametrize("ranks", [2, 4])
def test_noise_is_the_same_however_a_global_batch_is_split(ranks):
    examples = lm_examples([8] * 16)
    size = len(examples) // ranks
    parts = [lm()(examples[i : i + size]) for i in range(0, 16, size)]
    whole = lm()(examples)
    for name in ("input_ids", "mask_rate", "elbo_weight"):
        assert torch.equal(torch.cat([part[name] for part in parts]), whole[name])


def test_another_seed_gives_other_times_and_another_key_other_uniforms():
    examples = lm_examples([8] * 4)
    assert not torch.equal(lm(seed=1)(examples)["mask_rate"], lm()(examples)["mask_rate"])
    assert not torch.equal(lm()(lm_examples([8] * 4, seed=1))["rows"], lm()(examples)["rows"])


def test_a_window_counts_all_its_tokens_and_needs_no_attention_mask():
    batch = lm()(lm_examples([8, 8]))
    assert batch["attention_mask"] is None
    assert batch["predicted"].all()
    assert batch["n_tokens"].tolist() == [8, 8]


def test_segments_of_a_window_are_passed_on():
    examples = [{**example, "segments": [0] * 3 + [1] * 5} for example in lm_examples([8, 8])]
    assert lm()(examples)["segments"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]] * 2
    assert lm()(lm_examples([8, 8]))["segments"] is None


def test_an_open_canvas_is_filled_with_eos_which_can_be_hidden_but_is_counted_once():
    batch = lm(event_space="open")(keyed([{"input_ids": [4, 5]}, {"input_ids": [4, 5, 6, 7, 8, 9, 10]}]))
    assert batch["target_ids"].tolist() == [[4, 5] + [EOS] * 6, [4, 5, 6, 7, 8, 9, 10, EOS]]
    assert batch["attention_mask"] is None
    assert batch["predicted"].all()
    assert batch["n_tokens"].tolist() == [3, 8]


def test_a_text_that_leaves_no_room_for_eos_is_refused():
    with pytest.raises(UserError, match=r"a row has 8 tokens, 7 fit in datamodule\.max_length"):
        lm(event_space="open")(lm_examples([8]))


def test_prompts_are_never_hidden_and_stand_left_padded_before_the_canvas():
    rows = [{"prompt_ids": [4], "target_ids": [5, 6]}, {"prompt_ids": [7, 8, 9], "target_ids": []}]
    batch = seq2seq(t_min=0.99)(keyed(rows))
    assert batch["target_ids"].tolist() == [[PAD, PAD, 4, 5, 6, EOS, EOS, EOS], [7, 8, 9] + [EOS] * 5]
    assert batch["input_ids"][:, :3].tolist() == [[PAD, PAD, 4], [7, 8, 9]]
    assert batch["predicted"].tolist() == [[False] * 3 + [True] * 5] * 2
    assert batch["attention_mask"].tolist() == [[False] * 2 + [True] * 6, [True] * 8]
    assert batch["positions"].tolist() == [[0, 0, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert batch["n_tokens"].tolist() == [3, 1]


def test_prompts_of_equal_length_need_neither_attention_mask_nor_positions():
    batch = seq2seq()(seq2seq_examples([3, 3], [1, 4]))
    assert batch["attention_mask"] is None
    assert batch["positions"] is None


def test_given_tokens_are_neither_hidden_nor_counted():
    rows = [{"input_ids": [4, 5, 6], "fixed": [True, False, True]}, {"input_ids": [7], "fixed": [False]}]
    batch = infill(t_min=0.999)(keyed(rows))
    assert batch["predicted"].tolist() == [[False, True, False], [True, False, False]]
    assert batch["input_ids"][0, [0, 2]].tolist() == [4, 6]
    assert batch["target_ids"].tolist() == [[4, 5, 6], [7, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["n_tokens"].tolist() == [1, 1]


def test_a_prompt_to_complete_is_followed_by_masks():
    collate = MDLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=8, max_target_length=2)
    batch = collate(keyed([{"prompt_ids": [4]}, {"prompt_ids": [5, 6]}]))
    assert batch["input_ids"].tolist() == [[PAD, 4, MASK, MASK], [5, 6, MASK, MASK]]
    assert batch["prompt_lengths"].tolist() == [1, 2]
    assert batch["ends_at_eos"].all()


def test_without_a_target_length_a_prompt_is_completed_to_the_longest_row():
    collate = MDLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=5)
    batch = collate(keyed([{"prompt_ids": [4]}, {"prompt_ids": [5, 6, 7]}]))
    assert batch["input_ids"].tolist() == [[4, MASK, MASK, MASK, MASK], [5, 6, 7, MASK, MASK]]
    assert batch["predicted"].tolist() == [[False] + [True] * 4, [False] * 3 + [True] * 2]
    assert batch["attention_mask"] is None


@pytest.mark.parametrize(("options", "fits"), [({}, 7), ({"max_target_length": 3}, 5), ({"max_prompt_length": 2}, 2)])
def test_a_prompt_may_take_what_the_canvas_leaves(options, fits):
    collate = MDLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=8, **options)
    collate(keyed([{"prompt_ids": [4] * fits}]))
    with pytest.raises(UserError, match=f"a row has {fits + 1} tokens, {fits} fit"):
        collate(keyed([{"prompt_ids": [4] * (fits + 1)}]))


def test_a_template_to_fill_in_has_masks_in_its_gaps():
    collate = MDLMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=10)
    batch = collate(keyed([{"input_ids": [4, 5, 6], "fixed": [1, 0, 1]}, {"input_ids": [7], "fixed": [0]}]))
    assert batch["input_ids"].tolist() == [[4, MASK, 6], [MASK, PAD, PAD]]
    assert batch["predicted"].tolist() == [[False, True, False], [True, False, False]]
    assert not batch["ends_at_eos"].any()


def test_without_a_prompt_the_whole_canvas_is_masks():
    batch = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=6)(unconditional_examples(2))
    assert batch["input_ids"].tolist() == [[MASK] * 6] * 2
    assert batch["predicted"].all()


@pytest.mark.parametrize("t_min", [-0.1, 1.0, float("nan")])
def test_t_min_outside_its_range_is_refused_by_its_key(t_min):
    for role, build in {"lm": lm, "seq2seq": seq2seq, "infill": infill}.items():
        with pytest.raises(UserError, match=rf"\[0, 1\) in collators.{role}.t_min"):
            build(t_min=t_min)


def test_a_tokenizer_without_a_mask_token_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(UserError, match="the tokenizer has no mask token"):
        lm(tokenizer=tokenizer)
