"""The worked examples are by hand: ids of the tiny tokenizer are 0 pad, 1 mask, 2 bos, 3 eos, letters from 4 on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from xlm.errors import UserError
from xlm.testing.contracts import CollatorContract, PredictionCollatorContract
from xlm.testing.factories import keyed, lm_examples, seq2seq_examples, tiny_tokenizer, unconditional_examples
from xlm_arlm.collator import (
    ARLMCollator,
    ARLMSeq2SeqCollator,
    ARLMSeq2SeqPredictionCollator,
    ARLMUnconditionalCollator,
)

TOKENIZER = tiny_tokenizer()


class TestOpen(CollatorContract):
    def collator(self):
        return ARLMCollator(tokenizer=TOKENIZER, max_length=16, event_space="open")

    def examples(self):
        return lm_examples([3, 7, 0, 5])


class TestWindow(CollatorContract):
    def collator(self):
        return ARLMCollator(tokenizer=TOKENIZER, max_length=8, event_space="window")

    def examples(self):
        return lm_examples([8, 8, 8])


class TestPackedWindow(CollatorContract):
    def collator(self):
        return ARLMCollator(tokenizer=TOKENIZER, max_length=8, event_space="window")

    def examples(self):
        segments = [[0, 0, 0, 1, 1, 1, 1, 2], [4] * 8, [0, 1, 1, 1, 1, 1, 2, 2]]
        return [{**row, "segments": ids} for row, ids in zip(lm_examples([8, 8, 8]), segments, strict=True)]


class TestSeq2Seq(CollatorContract):
    def collator(self):
        return ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16)

    def examples(self):
        return seq2seq_examples([3, 0, 6, 4], [2, 5, 0, 3])


class TestSeq2SeqWithLossOnPrompt(TestSeq2Seq):
    def collator(self):
        return ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16, loss_on_prompt=True)


class TestSeq2SeqPrediction(PredictionCollatorContract):
    def collator(self):
        return ARLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=16)

    def examples(self):
        return seq2seq_examples([3, 0, 6], [2, 5, 1])


class TestUnconditional(CollatorContract):
    def collator(self):
        return ARLMUnconditionalCollator(tokenizer=TOKENIZER)

    def examples(self):
        return unconditional_examples(3)


def test_a_text_is_predicted_from_bos_up_to_its_eos():
    collate = ARLMCollator(tokenizer=TOKENIZER, max_length=4, event_space="open")
    batch = collate(keyed([{"input_ids": [4, 5, 6]}, {"input_ids": np.array([7])}]))
    assert batch["input_ids"].tolist() == [[2, 4, 5, 6], [2, 7, 0, 0]]
    assert batch["target_ids"].tolist() == [[4, 5, 6, 3], [7, 3, 0, 0]]
    assert batch["n_tokens"].tolist() == [4, 2]
    assert batch["rows"].tolist() == [0, 1, 2, 3, 4, 5]
    assert batch["attention_mask"] is None
    assert batch["positions"] is None


def test_every_token_of_a_window_is_predicted_and_nothing_is_masked():
    collate = ARLMCollator(tokenizer=TOKENIZER, max_length=4, event_space="window")
    batch = collate(keyed([{"input_ids": [4, 3, 6, 7]}]))
    assert batch["input_ids"].tolist() == [[2, 4, 3, 6]]
    assert batch["target_ids"].tolist() == [[4, 3, 6, 7]]
    assert batch["n_tokens"].tolist() == [4]
    assert batch["rows"] is None
    assert batch["attention_mask"] is None


def test_packed_documents_each_begin_with_bos_at_position_0():
    collate = ARLMCollator(tokenizer=TOKENIZER, max_length=6, event_space="window")
    batch = collate(keyed([{"input_ids": [4, 3, 5, 6, 3, 7], "segments": [8, 8, 9, 9, 9, 8]}]))
    assert batch["input_ids"].tolist() == [[2, 4, 2, 5, 6, 2]]
    assert batch["target_ids"].tolist() == [[4, 3, 5, 6, 3, 7]]
    assert batch["positions"].tolist() == [[0, 1, 0, 1, 2, 0]]
    assert batch["segments"].tolist() == [[8, 8, 9, 9, 9, 8]]


def test_prompts_end_and_targets_begin_at_one_column():
    collate = ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16)
    rows = [{"prompt_ids": [4], "target_ids": [5, 6]}, {"prompt_ids": [7, 8, 9], "target_ids": [10]}]
    batch = collate(keyed(rows))
    assert batch["input_ids"].tolist() == [[0, 0, 2, 4, 5, 6], [2, 7, 8, 9, 10, 0]]
    assert (batch["target_ids"] * batch["predicted"]).tolist() == [[0, 0, 0, 5, 6, 3], [0, 0, 0, 10, 3, 0]]
    assert batch["attention_mask"].tolist() == [[False, False, True, True, True, True], [True] * 5 + [False]]
    assert batch["positions"].tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 4]]
    assert batch["n_tokens"].tolist() == [3, 2]
    assert batch["rows"].tolist() == [3, 4, 5, 9, 10]


def test_prompts_of_equal_length_need_no_mask():
    batch = ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16)(seq2seq_examples([3, 3], [2, 5]))
    assert batch["attention_mask"] is None
    assert batch["positions"] is None


def test_loss_on_prompt_adds_the_prompts_tokens_to_the_loss_and_none_to_the_likelihood():
    collate = ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16, loss_on_prompt=True)
    rows = [{"prompt_ids": [4], "target_ids": [5, 6]}, {"prompt_ids": [7, 8, 9], "target_ids": [10]}]
    batch = collate(keyed(rows))
    assert batch["target_ids"].flatten()[batch["rows"]].tolist() == [4, 5, 6, 3, 7, 8, 9, 10, 3]
    assert batch["target_ids"][batch["predicted"]].tolist() == [5, 6, 3, 10, 3]
    assert batch["n_tokens"].tolist() == [3, 2]


def test_prompts_alone_are_left_padded():
    batch = ARLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=4)(seq2seq_examples([0, 3], [2, 5]))
    assert batch["input_ids"][0].tolist() == [0, 0, 0, 2]
    assert batch["attention_mask"].sum(1).tolist() == [1, 4]


def test_a_text_that_just_fits_is_taken_and_one_token_more_is_refused():
    opened = ARLMCollator(tokenizer=TOKENIZER, max_length=4, event_space="open")
    window = ARLMCollator(tokenizer=TOKENIZER, max_length=4, event_space="window")
    answered = ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=4)
    prompted = ARLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=4)
    for collate, fits, too_long in [
        (opened, lm_examples([3]), lm_examples([4])),
        (window, lm_examples([4]), lm_examples([5])),
        (answered, seq2seq_examples([1], [2]), seq2seq_examples([1], [3])),
        (prompted, seq2seq_examples([3], [0]), seq2seq_examples([4], [0])),
    ]:
        assert collate(fits)["input_ids"].shape == (1, 4)
        with pytest.raises(UserError, match=r"datamodule\.max_length"):
            collate(too_long)


def test_a_text_of_given_length_is_refused():
    with pytest.raises(UserError, match=r"datamodule\.event_space"):
        ARLMCollator(tokenizer=TOKENIZER, max_length=4, event_space="given_length")


def test_a_tokenizer_without_bos_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="bos"):
        ARLMUnconditionalCollator(tokenizer=tokenizer)


def test_ids_are_int64_whatever_the_data_set_holds():
    collate = ARLMCollator(tokenizer=TOKENIZER, max_length=4, event_space="window")
    batch = collate(keyed([{"input_ids": np.array([4, 5, 6, 7], dtype=np.uint16)}]))
    assert batch["input_ids"].dtype == batch["target_ids"].dtype == torch.int64
