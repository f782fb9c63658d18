from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from xlm.errors import UserError
from xlm.nn.attention import KVCache
from xlm.noise import Stream, uniforms
from xlm.sampling import TokenFilter, draw, suppress, suppressed_ids
from xlm.testing.contracts import PredictorContract
from xlm.testing.factories import keyed, lm_examples, seq2seq_examples, tiny_tokenizer, unconditional_examples
from xlm.testing.laws import chi_square
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


def test_the_probabilities_of_all_windows_sum_to_1():
    every = probability(transformer(vocab_size=6), window(strings([EOS, A, B], 4)))
    assert every.sum().item() == pytest.approx(1, abs=1e-12)


def test_the_probabilities_of_all_texts_and_of_going_on_sum_to_1():
    model = transformer(vocab_size=6)
    ended = sum(probability(model, opened(strings([A, B], n))).sum().item() for n in (1, 2, 3))
    ended += probability(model, opened([[]])).sum().item()
    goes_on = probability(model, window(strings([A, B], 4))).sum().item()
    assert ended + goes_on == pytest.approx(1, abs=1e-12)


def test_the_likelihood_of_a_table_is_the_table():
    model = table_model()
    result = predictor(model).log_likelihood(opened(model.all_strings().tolist()))
    torch.testing.assert_close((-result["nll"]).exp(), model.table.flatten(), rtol=1e-10, atol=0)
    assert (result["kind"], result["n_calls"]) == ("exact", 1)


def test_the_likelihood_of_an_answer_is_conditional_on_its_prompt():
    model = table_model()
    rows = keyed([{"prompt_ids": ids[:n], "target_ids": ids[n:]} for ids in strings([A, B, C, D], 4) for n in (1, 3)])
    p = probability(model, ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16)(rows)).view(256, 2)
    joint = model.table.flatten()
    first, three = model.table.sum((1, 2, 3)), model.table.sum(3).flatten()
    torch.testing.assert_close(p[:, 0], joint / first.repeat_interleave(64), rtol=1e-10, atol=0)
    torch.testing.assert_close(p[:, 1], joint / three.repeat_interleave(4), rtol=1e-10, atol=0)


def test_a_row_of_padding_has_likelihood_1():
    result = predictor(transformer()).log_likelihood(window([[], [A, B]]))
    assert result["nll"][0] == 0
    assert result["n_tokens"].tolist() == [0, 2]


@pytest.mark.parametrize(
    "options", [{}, {"top_p": 1.0, "top_k": 12, "min_p": 0.0, "repetition_penalty": 1.0, "stop": "no such text"}]
)
def test_samples_follow_the_models_law(options):
    model = table_model()
    ids = predictor(model, **options).predict(nothing(DRAWS))["ids"]
    assert chi_square(model.count(ids), model.table.flatten()) > 1e-3


def test_samples_follow_the_law_given_prompts_of_unequal_length():
    model = table_model()
    rows = [{"prompt_ids": [A]}, {"prompt_ids": [B, C]}] * (DRAWS // 2)
    result = predictor(model).predict(prompts(keyed(rows)))
    assert result["lengths"].tolist() == [3, 2] * (DRAWS // 2)
    for first, given in ((0, model.table[0]), (1, model.table[1, 2])):
        letters = model.digit[result["ids"][first::2, : given.ndim]]
        counts = torch.bincount((letters * 4 ** torch.arange(given.ndim - 1, -1, -1)).sum(1), minlength=given.numel())
        assert chi_square(counts, given.flatten() / given.sum()) > 1e-3


def test_a_transformers_texts_follow_its_likelihood():
    model = transformer(vocab_size=6, max_length=3)
    result = predictor(model).predict(nothing(DRAWS))
    texts = [[], *(ids for n in (1, 2, 3) for ids in strings([A, B], n))]
    p = torch.cat([probability(model, opened(texts[:7])), probability(model, window(texts[7:]))])
    drawn = [ids[:length] for ids, length in zip(result["ids"].tolist(), result["lengths"].tolist(), strict=True)]
    assert chi_square(torch.tensor([drawn.count(text) for text in texts]), p) > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_cached_decoding_draws_what_recomputation_draws(temperature):
    model, examples = transformer(), seq2seq_examples([3, 0, 6, 14], [0, 0, 0, 0])
    batch = prompts(examples)
    result = predictor(model, temperature=temperature).predict(batch)
    u = uniforms(batch["noise_key"], 16, stream=Stream.SAMPLE, dtype=torch.float64)
    for i, example in enumerate(examples):
        ids = [2, *example["prompt_ids"]]
        for step in range(16 - len(ids) + 1):
            logits = suppress(model(torch.tensor([ids]))[:, -1], suppressed_ids(TOKENIZER))
            ids.append(int(draw(TokenFilter(temperature=temperature)(logits), u[i, step : step + 1])))
            if ids[-1] == EOS:
                break
        answer = [token for token in ids[1 + len(example["prompt_ids"]) :] if token != EOS]
        assert result["ids"][i, : result["lengths"][i]].tolist() == answer


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


def test_temperature_half_squares_the_probabilities():
    p = {A: 0.5, B: 0.3, C: 0.2}
    ids = predictor(Unigram(p), max_new_tokens=1, temperature=0.5).predict(nothing(DRAWS))["ids"]
    squared = torch.tensor([0.25, 0.09, 0.04])
    assert chi_square(torch.bincount(ids.flatten() - A, minlength=3), squared / squared.sum()) > 1e-3


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


def test_min_new_tokens_holds_eos_back():
    model = Unigram({A: 0.1, EOS: 0.9})
    lengths = predictor(model, min_new_tokens=5).predict(nothing(50))["lengths"]
    assert lengths.min() == 5
    assert predictor(model).predict(nothing(50))["lengths"].min() == 0


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
