from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from xlm.errors import UserError
from xlm.nn.attention import KVCache
from xlm.testing.contracts import PredictorContract
from xlm.testing.factories import keyed, lm_examples, seq2seq_examples, tiny_tokenizer, unconditional_examples
from xlm.testing.toy import ExactCausal, digits, random_table
from xlm.trace import replay
from xlm_arlm.collator import (
    ARLMCollator,
    ARLMSeq2SeqCollator,
    ARLMSeq2SeqPredictionCollator,
    ARLMUnconditionalCollator,
)
from xlm_arlm.model import ARLMTransformer
from xlm_arlm.predictor import ARLMPredictor

TOKENIZER = tiny_tokenizer()
BOS, EOS, A, B, C, D = 2, 3, 4, 5, 6, 7
DRAWS = 20_000


def transformer(max_length=16, vocab_size=12):
    torch.manual_seed(0)
    model = ARLMTransformer(vocab_size=vocab_size, max_length=max_length, d_model=16, n_layers=2, n_heads=2).double()
    nn.init.normal_(model.head.weight, std=0.6)  # far from uniform, and from certain
    return model.eval()


def table_model(table=None):
    """Strings of four letters from a to d."""
    table = random_table().reshape(4, 4, 4, 4) if table is None else table
    return ExactCausal(table, token_ids=[A, B, C, D], vocab_size=12, bos_id=2, eos_id=EOS)


class Unigram(nn.Module):
    """The same distribution at every position."""

    max_length = 64

    def __init__(self, probabilities: dict[int, float]) -> None:
        super().__init__()
        self.head = nn.Linear(12, 12, bias=False, dtype=torch.float64)
        nn.init.eye_(self.head.weight)
        self.logits = torch.full((12,), -1e4, dtype=torch.float64)
        self.logits[list(probabilities)] = torch.tensor(list(probabilities.values()), dtype=torch.float64).log()
        self.batch_sizes = []

    def hidden(self, input_ids, attention_mask=None, **_):
        self.batch_sizes.append(len(input_ids))
        return self.logits.expand(*input_ids.shape, 12)

    def new_cache(self, batch, length):
        return KVCache(0, batch, 1, length, 1, torch.float64, "cpu")


def predictor(model, **options):
    return ARLMPredictor(model=model, tokenizer=TOKENIZER, **options)


def prompts(examples, max_length=16):
    return ARLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=max_length)(examples)


def nothing(n):
    return ARLMUnconditionalCollator(tokenizer=TOKENIZER)(unconditional_examples(n))


def opened(texts):
    collate = ARLMCollator(tokenizer=TOKENIZER, max_length=16, event_space="open")
    return collate(keyed([{"input_ids": list(ids)} for ids in texts]))


def window(texts):
    collate = ARLMCollator(tokenizer=TOKENIZER, max_length=16, event_space="window")
    return collate(keyed([{"input_ids": list(ids)} for ids in texts]))


def strings(letters, length):
    return torch.tensor(letters)[digits(len(letters), length)].tolist()


def probability(model, batch):
    return (-predictor(model).log_likelihood(batch)["nll"]).exp()


class TestAnswers(PredictorContract):
    def predictor(self):
        return predictor(transformer(), max_new_tokens=9)

    def collator(self):
        return ARLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=16)

    def examples(self):
        return seq2seq_examples([3, 0, 6, 4, 15], [2, 5, 1, 3, 0])

    def loss_collator(self):
        return ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16)

    def loss_examples(self):
        return seq2seq_examples([3, 0, 6, 4], [2, 5, 0, 3])


class TestTexts(TestAnswers):
    def predictor(self):
        return predictor(transformer(), temperature=0.7, top_k=8, top_p=0.9, min_p=0.01, repetition_penalty=1.1)

    def collator(self):
        return ARLMUnconditionalCollator(tokenizer=TOKENIZER)

    def examples(self):
        return unconditional_examples(5)

    def loss_collator(self):
        return ARLMCollator(tokenizer=TOKENIZER, max_length=8, event_space="open")

    def loss_examples(self):
        return lm_examples([3, 7, 0])


def test_a_row_of_padding_has_likelihood_1():
    result = predictor(transformer()).log_likelihood(window([[], [A, B]]))
    assert result["nll"][0] == 0
    assert result["n_tokens"].tolist() == [0, 2]
    assert (result["kind"], result["n_calls"]) == ("exact", 1)


def test_an_empty_prompt_is_no_prompt():
    model = transformer()
    empty = predictor(model).predict(prompts(keyed([{"prompt_ids": []}] * 4)))
    assert torch.equal(empty["ids"], predictor(model).predict(nothing(4))["ids"])


def test_answers_differ_with_their_key_alone():
    model, example = transformer(), seq2seq_examples([3], [0])[0]
    result = predictor(model).predict(prompts([example, example, {**example, "noise_key": 99}]))
    assert torch.equal(result["ids"][0], result["ids"][1])
    assert not torch.equal(result["ids"][0], result["ids"][2])


def test_finished_rows_leave_the_batch():
    model = Unigram({A: 0.7, EOS: 0.3})
    result = predictor(model).predict(nothing(50))
    assert len(set(result["n_calls"].tolist())) > 3
    assert sum(model.batch_sizes) == result["n_calls"].sum()
    assert torch.equal(result["n_calls"], result["lengths"] + 1)  # EOS takes a call too


def test_an_answer_holds_no_eos_and_is_padded():
    result = predictor(Unigram({A: 0.7, EOS: 0.3})).predict(nothing(50))
    inside = torch.arange(result["ids"].shape[1]) < result["lengths"][:, None]
    assert torch.equal(result["ids"], torch.where(inside, A, 0))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"temperature": 0.0}, [A]),
        ({"top_k": 2}, [A, B]),
        ({"top_p": 0.6}, [A, B]),
        ({"min_p": 0.25}, [A, B, C]),
        ({"repetition_penalty": 1.0}, [A, B, C, D]),
    ],
)
def test_filters_keep_these_tokens(options, kept):
    model = Unigram({A: 0.5, B: 0.3, C: 0.15, D: 0.05})
    ids = predictor(model, max_new_tokens=1, **options).predict(nothing(500))["ids"]
    assert ids.unique().tolist() == kept


def test_a_repetition_penalty_counts_the_prompt_and_the_answer():
    model = Unigram({A: 0.4, B: 0.3, C: 0.2, D: 0.1})
    greedy = {"temperature": 0.0, "max_new_tokens": 3}
    batch = prompts(keyed([{"prompt_ids": [A]}, {"prompt_ids": [B, C]}]))
    assert predictor(model, **greedy).predict(batch)["ids"].tolist() == [[A, A, A], [A, A, A]]
    ids = predictor(model, repetition_penalty=10.0, **greedy).predict(batch)["ids"]
    assert ids.tolist() == [[B, C, D], [A, D, A]]  # all used: equally punished again


def test_a_bos_that_is_eos_is_no_repetition():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token
    batch = ARLMUnconditionalCollator(tokenizer=tokenizer)(unconditional_examples(1))
    model = Unigram({EOS: 0.6, A: 0.4})
    options = {"temperature": 0.0, "repetition_penalty": 10.0}
    assert ARLMPredictor(model=model, tokenizer=tokenizer, **options).predict(batch)["lengths"].tolist() == [0]


@pytest.mark.parametrize(
    ("options", "most"),
    [({"max_new_tokens": 5, "max_target_length": 7}, 5), ({"max_target_length": 7}, 7), ({}, 64)],
)
def test_max_new_tokens_comes_from_the_option_the_data_or_the_model(options, most):
    result = predictor(Unigram({A: 1.0}), **options).predict(nothing(2))
    assert result["lengths"].tolist() == [most, most]
    assert result["n_calls"].tolist() == [most, most]


def test_a_row_goes_on_as_far_as_the_model_can_read():
    model = Unigram({A: 1.0})
    model.max_length = 5
    rows = keyed([{"prompt_ids": [A] * n} for n in (4, 3, 0)])
    result = predictor(model).predict(prompts(rows, max_length=5))
    assert result["lengths"].tolist() == [1, 2, 5]  # the last token need not be read


def cycle_model():
    """The string abca."""
    table = torch.zeros(4, 4, 4, 4, dtype=torch.float64)
    table[0, 1, 2, 0] = 1
    return table_model(table)


@pytest.mark.parametrize(
    ("stop", "ids", "text"),
    [
        ("bc", [A, B, C], "a"),
        (["zz", "b"], [A, B], "a"),
        (["bca", "c"], [A, B, C], "ab"),
        ([], [A, B, C, A], "abca"),
    ],
)
def test_a_stop_string_ends_the_answer_and_is_cut_from_the_text(stop, ids, text):
    sampler, batch = predictor(cycle_model(), stop=stop), nothing(1)
    row = sampler.to_dict(batch, sampler.predict(batch))[0]
    assert (row["ids"], row["prediction"]) == (ids, text)


def test_a_stop_string_in_the_prompt_does_not_count():
    sampler = predictor(cycle_model(), stop="b")
    batch = prompts(keyed([{"prompt_ids": [A, B]}, {"prompt_ids": [A]}]))
    rows = sampler.to_dict(batch, sampler.predict(batch))
    assert [(row["prompt"], row["prediction"]) for row in rows] == [("ab", "ca"), ("a", "")]


def test_the_trace_replays_the_answer_with_its_probabilities():
    model, examples = transformer(), seq2seq_examples([3, 0, 6] * 8, [0] * 24)
    collate = ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16)
    sampler, batch = predictor(model, trace=True), prompts(examples)
    predictions = sampler.predict(batch)
    rows = sampler.to_dict(batch, predictions)
    for row, example in zip(rows, examples, strict=True):
        assert row["start_ids"] == [BOS, *example["prompt_ids"]]
        *_, whole = replay(row["trace"], row["start_ids"])
        last = whole[len(row["start_ids"]) :]
        assert row["trace"][0]["position"] == len(row["start_ids"])
        assert [token for token in last if token != EOS] == row["ids"]
        assert {event["action"] for event in row["trace"]} == {"append"}
        if last[-1] == EOS:
            answered = collate([{**example, "target_ids": row["ids"]}])
            product = math.prod(event["probability"] for event in row["trace"])
            assert probability(model, answered).item() == pytest.approx(product)
    assert any(row["trace"][-1]["token"] == EOS for row in rows)
    assert "trace" not in predictor(model).predict(batch)


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("max_new_tokens", {"max_new_tokens": 0}),
        ("min_new_tokens", {"min_new_tokens": -1}),
        ("min_new_tokens", {"min_new_tokens": 5, "max_new_tokens": 4}),
        ("repetition_penalty", {"repetition_penalty": 0.0}),
        ("stop", {"stop": ["a", ""]}),
        ("top_p", {"top_p": 0.0}),
    ],
)
def test_impossible_options_name_their_key(key, options):
    with pytest.raises(UserError, match=rf"predictor\.{key}"):
        predictor(Unigram({A: 1.0}), **options)
