from __future__ import annotations

from typing import Any

import pytest
from xlm.errors import UserError
from xlm.testing.contracts import CollatorContract, PredictionCollatorContract
from xlm.testing.factories import (
    infill_examples,
    keyed,
    lm_examples,
    seq2seq_examples,
    tiny_tokenizer,
    unconditional_examples,
)
from xlm_mlm.collator import (
    MLMCollator,
    MLMInfillCollator,
    MLMInfillPredictionCollator,
    MLMSeq2SeqCollator,
    MLMSeq2SeqPredictionCollator,
    MLMUnconditionalCollator,
)

TOKENIZER = tiny_tokenizer()
PAD, MASK, BOS, EOS = 0, 1, 2, 3
NOISY: dict[str, Any] = {"tokenizer": TOKENIZER, "seed": 0}
BERT: dict[str, Any] = {"mask_rate": 0.5, "random_token_rate": 0.3, "keep_rate": 0.3, "whole_words": True}


def lm(**options: Any) -> MLMCollator:
    return MLMCollator(**{**NOISY, "max_length": 8, **options})


def seq2seq(**options: Any) -> MLMSeq2SeqCollator:
    return MLMSeq2SeqCollator(**{**NOISY, "max_prompt_length": 6, "max_target_length": 5, **options})


def infill(**options: Any) -> MLMInfillCollator:
    return MLMInfillCollator(**{**NOISY, "max_length": 10, **options})


class TestWindowCollator(CollatorContract):
    def collator(self):
        return lm()

    def examples(self):
        return lm_examples([8, 8, 8])


class TestPaddedWindowCollator(CollatorContract):
    def collator(self):
        return lm(event_space="given_length", **BERT)

    def examples(self):
        return lm_examples([3, 8, 5])


class TestOpenCollator(CollatorContract):
    def collator(self):
        return lm(event_space="open", **BERT)

    def examples(self):
        return lm_examples([3, 7, 5])


class TestSeq2SeqCollator(CollatorContract):
    def collator(self):
        return seq2seq()

    def examples(self):
        return seq2seq_examples([3, 6, 0], [4, 1, 2])


class TestCorruptingSeq2SeqCollator(TestSeq2SeqCollator):
    def collator(self):
        return seq2seq(**BERT)


class TestInfillCollator(CollatorContract):
    def collator(self):
        return infill(**BERT)

    def examples(self):
        return infill_examples([3, 10, 5])


class TestSeq2SeqPredictionCollator(PredictionCollatorContract):
    def collator(self):
        return MLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=11, max_target_length=5)

    def examples(self):
        return seq2seq_examples([3, 6, 0], [4, 1, 2])


class TestCompletionCollator(TestSeq2SeqPredictionCollator):
    def collator(self):
        return MLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=11, max_prompt_length=6)


class TestInfillPredictionCollator(PredictionCollatorContract):
    def collator(self):
        return MLMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=10)

    def examples(self):
        return infill_examples([3, 10, 5])


class TestUnconditionalCollator(CollatorContract):
    def collator(self):
        return MLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=6)

    def examples(self):
        return unconditional_examples(3)


def test_segments_of_a_window_are_passed_on():
    examples = [{**example, "segments": [0] * 3 + [1] * 5} for example in lm_examples([8, 8])]
    assert lm()(examples)["segments"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1]] * 2
    assert lm()(lm_examples([8, 8]))["segments"] is None


def test_an_open_canvas_is_filled_with_eos_which_can_be_chosen_but_is_counted_once():
    batch = lm(event_space="open")(keyed([{"input_ids": [4, 5]}, {"input_ids": [4, 5, 6, 7, 8, 9, 10]}]))
    assert batch["target_ids"].tolist() == [[4, 5] + [EOS] * 6, [4, 5, 6, 7, 8, 9, 10, EOS]]
    assert batch["attention_mask"] is None
    assert batch["predicted"].all()
    assert batch["n_tokens"].tolist() == [3, 8]


def test_prompts_are_never_chosen_and_stand_left_padded_before_the_canvas():
    rows = [{"prompt_ids": [4], "target_ids": [5, 6]}, {"prompt_ids": [7, 8, 9], "target_ids": []}]
    batch = seq2seq(mask_rate=1.0)(keyed(rows))
    assert batch["target_ids"].tolist() == [[PAD, PAD, 4, 5, 6, EOS, EOS, EOS], [7, 8, 9] + [EOS] * 5]
    assert batch["input_ids"].tolist() == [[PAD, PAD, 4] + [MASK] * 5, [7, 8, 9] + [MASK] * 5]
    assert batch["positions"].tolist() == [[0, 0, 0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert batch["n_tokens"].tolist() == [3, 1]


def test_given_tokens_are_neither_chosen_nor_counted():
    rows = [{"input_ids": [4, 5, 6], "fixed": [True, False, True]}, {"input_ids": [7], "fixed": [False]}]
    batch = infill(mask_rate=1.0)(keyed(rows))
    assert batch["input_ids"].tolist() == [[4, MASK, 6], [MASK, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[True] * 3, [True, False, False]]
    assert batch["n_tokens"].tolist() == [1, 1]


def test_prompts_templates_and_nothing_are_completed_by_masks():
    prompts = MLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=8, max_target_length=2)
    batch = prompts(keyed([{"prompt_ids": [4]}, {"prompt_ids": [5, 6]}]))
    assert batch["input_ids"].tolist() == [[PAD, 4, MASK, MASK], [5, 6, MASK, MASK]]
    template = MLMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=10)
    assert template(keyed([{"input_ids": [4, 5], "fixed": [1, 0]}]))["input_ids"].tolist() == [[4, MASK]]
    nothing = MLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=3)
    assert nothing(unconditional_examples(1))["input_ids"].tolist() == [[MASK] * 3]


@pytest.mark.parametrize(("options", "fits"), [({}, 7), ({"max_target_length": 3}, 5), ({"max_prompt_length": 2}, 2)])
def test_a_prompt_may_take_what_the_canvas_leaves(options, fits):
    collate = MLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=8, **options)
    collate(keyed([{"prompt_ids": [4] * fits}]))
    with pytest.raises(UserError, match=f"a row has {fits + 1} tokens, {fits} fit"):
        collate(keyed([{"prompt_ids": [4] * (fits + 1)}]))


def test_a_tokenizer_without_a_mask_token_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.mask_token = None
    for build in (lm, seq2seq, infill):
        with pytest.raises(UserError, match="the tokenizer has no mask token"):
            build(tokenizer=tokenizer)
