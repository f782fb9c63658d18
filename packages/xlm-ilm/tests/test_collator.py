from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from xlm.errors import UserError
from xlm.noise import low_discrepancy_times, noise_key, uniforms
from xlm.testing.contracts import CollatorContract, PredictionCollatorContract
from xlm.testing.factories import (
    infill_examples,
    keyed,
    lm_examples,
    seq2seq_examples,
    tiny_tokenizer,
    unconditional_examples,
)
from xlm_ilm.collator import (
    ILMCollator,
    ILMInfillCollator,
    ILMInfillPredictionCollator,
    ILMSeq2SeqCollator,
    ILMSeq2SeqPredictionCollator,
    ILMUnconditionalCollator,
)

TOKENIZER = tiny_tokenizer()
PAD, BOS = 0, 2
DROPPING: dict[str, Any] = {"tokenizer": TOKENIZER, "seed": 0}


def lm(**options: Any) -> ILMCollator:
    return ILMCollator(**{**DROPPING, "max_length": 8, **options})


def seq2seq(**options: Any) -> ILMSeq2SeqCollator:
    return ILMSeq2SeqCollator(**{**DROPPING, "max_prompt_length": 6, "max_target_length": 5, **options})


def infill(**options: Any) -> ILMInfillCollator:
    return ILMInfillCollator(**{**DROPPING, "max_length": 10, **options})


def to_fill(**options: Any) -> ILMInfillPredictionCollator:
    return ILMInfillPredictionCollator(**{"tokenizer": TOKENIZER, "max_length": 10, **options})


class Contract(CollatorContract):
    flat = ("rows", "tokens", "gap_rows")


class TestWindowCollator(Contract):
    def collator(self):
        return lm()

    def examples(self):
        return lm_examples([8, 8, 8])


class TestTextsOfGivenLengthCollator(Contract):
    def collator(self):
        return lm(event_space="given_length")

    def examples(self):
        return lm_examples([3, 8, 5])


class TestOpenCollator(Contract):
    def collator(self):
        return lm(event_space="open")

    def examples(self):
        return lm_examples([3, 8, 0, 5])


class TestSeq2SeqCollator(Contract):
    def collator(self):
        return seq2seq()

    def examples(self):
        return seq2seq_examples([3, 6, 0, 2], [4, 1, 2, 0])


class TestInfillCollator(Contract):
    def collator(self):
        return infill()

    def examples(self):
        return infill_examples([3, 10, 5])


class TestSeq2SeqPredictionCollator(PredictionCollatorContract):
    def collator(self):
        return ILMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=11, max_target_length=5)

    def examples(self):
        return seq2seq_examples([3, 6, 0], [4, 1, 2])


class TestInfillPredictionCollator(PredictionCollatorContract):
    def collator(self):
        return to_fill()

    def examples(self):
        return infill_examples([3, 10, 5])


class TestUnconditionalCollator(CollatorContract):
    def collator(self):
        return ILMUnconditionalCollator(tokenizer=TOKENIZER, max_length=6)

    def examples(self):
        return unconditional_examples(3)


def token_by_token(examples, *, seed: int, ends: bool) -> dict[str, Any]:
    """The batch by plain loops over rows and tokens."""
    inputs, open_gaps, rows, tokens, n_dropped, n_tokens, full_rows, spans = [], [], [], [], [], [], [], []
    for example in examples:
        prompt = list(example.get("prompt_ids", []))
        ids = prompt + list(example["target_ids"] if "target_ids" in example else example["input_ids"])
        given = [place < len(prompt) for place in range(len(ids))]
        for place, is_given in enumerate(example.get("fixed", [])):
            given[place] = bool(is_given)
        full, can_go = [BOS, *ids], [False, *(not g for g in given)]
        length = sum(can_go)
        n = int(float(low_discrepancy_times(torch.tensor([example["position"]]), seed)) * (length + 1))
        u = uniforms(torch.tensor([example["noise_key"]]), len(full), dtype=torch.float64)[0].tolist()
        gone = set(sorted((place for place in range(len(full)) if can_go[place]), key=lambda place: u[place])[:n])
        span, number = [], -1
        for place in range(len(full)):
            if can_go[place] and not can_go[place - 1]:
                number += 1
            span.append(number if can_go[place] else -1)
        misses = {span[place] for place in gone}
        kept, gaps = [], []
        for place, token in enumerate(full):
            if place in gone:
                rows.append((len(inputs), len(kept) - 1))
                tokens.append(token)
            else:
                kept.append(token)
                around = {span[place], span[place + 1] if place + 1 < len(full) else -1}
                gaps.append(bool(around & misses))
        inputs.append(kept)
        open_gaps.append(gaps)
        n_dropped.append(n)
        n_tokens.append(length + ends)
        full_rows.append(full)
        spans.append(span)
    seq, width = max(map(len, inputs)), max(map(len, full_rows))
    return {
        "input_ids": [row + [PAD] * (seq - len(row)) for row in inputs],
        "attention_mask": [[column < len(row) for column in range(seq)] for row in inputs],
        "gaps": [row + [False] * (seq - len(row)) for row in open_gaps],
        "gap_rows": [i * seq + gap for i, row in enumerate(open_gaps) for gap, is_open in enumerate(row) if is_open],
        "rows": [i * seq + column for i, column in rows],
        "tokens": tokens,
        "n_dropped": n_dropped,
        "full_ids": [row + [PAD] * (width - len(row)) for row in full_rows],
        "full_mask": [[column < len(row) for column in range(width)] for row in full_rows],
        "span": [row + [-1] * (width - len(row)) for row in spans],
        "n_tokens": n_tokens,
    }


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("collator", "examples", "ends"),
    [
        (lm, lm_examples([8] * 20), 0),
        (lambda **o: lm(event_space="open", **o), lm_examples([n % 9 for n in range(30)]), 1),
        (seq2seq, seq2seq_examples([n % 7 for n in range(40)], [n % 6 for n in range(40)]), 1),
        (infill, infill_examples([n % 10 + 1 for n in range(40)]), 0),
    ],
    ids=["window", "open", "seq2seq", "infill"],
)
def test_a_batch_is_what_loops_over_rows_and_tokens_give(collator, examples, ends, seed):
    batch, expected = collator(seed=seed)(examples), token_by_token(examples, seed=seed, ends=ends)
    for name, values in expected.items():
        if name.endswith("mask") and batch[name] is None:
            assert all(map(all, values)), name
        else:
            assert batch[name].tolist() == values, name


def n_dropped(collate, ids: list[int], n: int, first: int = 0) -> list[int]:
    rows = [{"input_ids": ids, "index": 0, "position": p, "noise_key": noise_key(0, 0, p)} for p in range(first, n)]
    return collate(rows)["n_dropped"].tolist()


def test_every_number_of_missing_tokens_from_none_to_all_is_equally_likely():
    counts = Counter(n for seed in range(2000) for n in n_dropped(lm(seed=seed), [4, 5, 6, 7], 5, 4))
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_consecutive_rows_cover_the_numbers_of_missing_tokens_evenly():
    numbers = torch.tensor(n_dropped(lm(), [4] * 8, 9 * 64))
    assert (torch.bincount(numbers, minlength=9) - 64).abs().max() <= 2
    independent_variance_of_a_batch_mean = (9**2 - 1) / 12 / 32
    assert numbers.double().reshape(-1, 32).mean(1).var() < independent_variance_of_a_batch_mean / 5


def test_another_seed_drops_another_number_and_another_key_another_set():
    assert n_dropped(lm(seed=1), [4] * 8, 8) != n_dropped(lm(), [4] * 8, 8)
    rows = lm_examples([8] * 4)
    other = [{**row, "noise_key": row["noise_key"] + 1} for row in rows]
    assert lm()(other)["n_dropped"].tolist() == lm()(rows)["n_dropped"].tolist()
    assert lm()(other)["tokens"].tolist() != lm()(rows)["tokens"].tolist()


@pytest.mark.parametrize(
    ("collator", "examples", "n_tokens", "counts_stop", "trains_stop"),
    [
        (lm, lm_examples([8, 8]), [8, 8], False, True),
        (lambda: lm(event_space="given_length"), lm_examples([3, 0]), [3, 0], False, True),
        (lambda: lm(event_space="open"), lm_examples([3, 0]), [4, 1], True, True),
        (seq2seq, seq2seq_examples([3, 6], [4, 0]), [5, 1], True, True),
        (infill, keyed([{"input_ids": [4, 5, 6], "fixed": [0, 1, 0]}, {"input_ids": [4], "fixed": [1]}]), [2, 0], 0, 0),
    ],
    ids=["window", "given_length", "open", "seq2seq", "infill"],
)
def test_what_is_counted_and_what_is_learned(collator, examples, n_tokens, counts_stop, trains_stop):
    batch = collator()(examples)
    assert batch["n_tokens"].tolist() == n_tokens
    assert batch["counts_stop"] == counts_stop
    assert batch["trains_stop"] == trains_stop


def test_a_prompt_keeps_its_tokens_and_its_gaps_closed_but_for_the_last():
    batch = seq2seq()(keyed([{"prompt_ids": [4, 5], "target_ids": [6, 7, 8]}] * 12))
    assert batch["input_ids"][:, :3].tolist() == [[BOS, 4, 5]] * 12
    assert not batch["gaps"][:, :2].any()
    assert batch["gaps"][:, 2].tolist() == (batch["n_dropped"] > 0).tolist()
    assert batch["span"][0].tolist() == [-1, -1, -1, 0, 0, 0]


def test_rows_of_the_greatest_lengths_are_taken_and_longer_ones_refused_by_their_key():
    assert lm()(lm_examples([8]))["full_ids"].shape == (1, 9)
    assert seq2seq()(seq2seq_examples([6], [5]))["full_ids"].shape == (1, 12)
    with pytest.raises(UserError, match=r"a row has 9 tokens, 8 fit in datamodule\.max_length"):
        lm()(lm_examples([9]))
    with pytest.raises(UserError, match=r"a row has 7 tokens, 6 fit in datamodule\.max_prompt_length"):
        seq2seq()(seq2seq_examples([7], [2]))
    with pytest.raises(UserError, match=r"a row has 6 tokens, 5 fit in datamodule\.max_target_length"):
        seq2seq()(seq2seq_examples([2], [6]))


def test_document_masks_are_refused_in_one_line():
    with pytest.raises(UserError, match="document_mask") as error:
        lm()([{**example, "segments": [0] * 8} for example in lm_examples([8])])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["pad", "bos"])
def test_a_tokenizer_without_a_token_that_rows_need_is_refused(name):
    tokenizer = tiny_tokenizer()
    setattr(tokenizer, f"{name}_token", None)
    for build in (lm, seq2seq, infill, to_fill):
        with pytest.raises(UserError, match=f"the tokenizer has no {name} token"):
            build(tokenizer=tokenizer)


def test_after_a_prompt_there_is_room_for_what_it_leaves():
    collate = ILMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=8, max_target_length=2)
    batch = collate(keyed([{"prompt_ids": [4]}, {"prompt_ids": [5, 6]}, {"prompt_ids": []}]))
    assert batch["input_ids"].tolist() == [[BOS, 4, PAD], [BOS, 5, 6], [BOS, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[True, True, False], [True] * 3, [True, False, False]]
    assert batch["room"].tolist() == [[0, 7, 0], [0, 0, 6], [8, 0, 0]]
    assert batch["span"].tolist() == [[-1, 0, -1], [-1, -1, 0], [0, -1, -1]]
    assert batch["prompt_lengths"].tolist() == [1, 2, 0]
    assert batch["free"].all()
    assert not batch["whole"].any()


@pytest.mark.parametrize(("asked", "fix"), [(5, "use 4 or fewer"), (9, "use 4 or fewer")])
def test_an_answer_that_does_not_fit_after_a_prompt_names_the_key_that_asked_for_it(asked, fix):
    collate = ILMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=8, max_target_length=asked)
    with pytest.raises(UserError, match=rf"a row has 4 tokens, {max(8 - asked, 0)} fit .* in max_new_tokens .*{fix}"):
        collate(keyed([{"prompt_ids": [4]}, {"prompt_ids": [4] * 4}]))


@pytest.mark.parametrize(("options", "fits"), [({}, 7), ({"max_target_length": 3}, 5), ({"max_prompt_length": 2}, 2)])
def test_a_prompt_may_take_what_the_answer_leaves(options, fits):
    collate = ILMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=8, **options)
    assert (collate(keyed([{"prompt_ids": [4] * fits}]))["room"].amax(1) > 0).all()
    with pytest.raises(UserError, match=f"a row has {fits + 1} tokens, {fits} fit"):
        collate(keyed([{"prompt_ids": [4] * (fits + 1)}]))


def test_without_a_prompt_there_is_bos_and_room():
    batch = ILMUnconditionalCollator(tokenizer=TOKENIZER, max_length=6)(unconditional_examples(2))
    assert batch["input_ids"].tolist() == [[BOS]] * 2
    assert batch["room"].tolist() == [[6]] * 2
    assert batch["free"].all()


def test_a_template_is_its_fixed_tokens_with_as_much_room_as_its_gaps_have():
    rows = [{"input_ids": [4, 9, 9, 6, 9], "fixed": [1, 0, 0, 1, 0]}, {"input_ids": [7, 8], "fixed": [1, 1]}]
    batch = to_fill()(keyed(rows))
    assert batch["input_ids"].tolist() == [[BOS, 4, 6], [BOS, 7, 8]]
    assert batch["attention_mask"] is None
    assert batch["room"].tolist() == [[0, 2, 1], [0, 0, 0]]
    assert batch["span"].tolist() == [[-1, 0, 1], [-1, -1, -1]]
    assert batch["prompt_lengths"].tolist() == [0, 0]
    assert not batch["free"].any()
    assert batch["whole"].all()


def test_gaps_of_free_length_share_the_room_that_fixed_tokens_leave():
    rows = [
        {"input_ids": [9, 4, 9, 6], "fixed": [0, 1, 0, 1], "free": [1, 0, 1, 0]},
        {"input_ids": [4, 9], "fixed": [1, 0]},
    ]
    batch = to_fill()(keyed(rows))
    assert ILMInfillPredictionCollator.free_gaps
    assert batch["input_ids"].tolist() == [[BOS, 4, 6], [BOS, 4, PAD]]
    assert batch["room"].tolist() == [[8, 8, 0], [0, 1, 0]]
    assert batch["span"].tolist() == [[0, 0, -1], [-1, 0, -1]]
    assert batch["free"].tolist() == [True, False]


def test_gaps_of_free_and_of_given_length_in_one_template_are_refused():
    row = {"input_ids": [9, 4, 9], "fixed": [0, 1, 0], "free": [1, 0, 0]}
    with pytest.raises(UserError, match="mixes gaps of free and of given length in template"):
        to_fill()(keyed([row]))
