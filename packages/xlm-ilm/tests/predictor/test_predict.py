from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from xlm.errors import UserError
from xlm.testing.contracts import PredictorContract
from xlm.testing.factories import (
    infill_examples,
    keyed,
    lm_examples,
    seq2seq_examples,
    tiny_tokenizer,
    unconditional_examples,
)
from xlm.trace import by_row, replay
from xlm_ilm.collator import (
    ILMCollator,
    ILMInfillCollator,
    ILMInfillPredictionCollator,
    ILMSeq2SeqCollator,
    ILMSeq2SeqPredictionCollator,
    ILMUnconditionalCollator,
)
from xlm_ilm.model import ILMTransformer
from xlm_ilm.predictor import ILMPredictor, pairs

TOKENIZER = tiny_tokenizer()
PAD, MASK, BOS, EOS, A, B, C, D = range(8)
VOCAB = 12
PROMPTED = ILMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=12)
TEMPLATES = ILMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=12)
NOTHING = ILMUnconditionalCollator(tokenizer=TOKENIZER, max_length=9)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "pairs": {"temperature": 0.7, "top_k": 30, "top_p": 0.9, "min_p": 0.01},
    "two stages": {"draw": "two_stage", "top_k": 5, "gap_top_p": 0.8, "gap_temperature": 2.0},
    "threshold": {"stop_rule": "threshold", "stop_threshold": 0.55, "max_new_tokens": 6},
    "parallel": {"tokens_per_step": 3, "gap_distance": 2, "min_new_tokens": 4},
}


def network(max_length: int = 12) -> ILMTransformer:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32}
    model = ILMTransformer(vocab_size=VOCAB, max_length=max_length, **sizes).double()
    nn.init.normal_(model.head.weight, std=0.6)  # far from uniform, and from certain
    nn.init.normal_(model.stop_head.weight, std=0.2)
    nn.init.constant_(model.stop_head.bias, -1.0)
    return model.eval()


def predictor(model: Any = None, **options: Any) -> ILMPredictor:
    return ILMPredictor(model=network() if model is None else model, tokenizer=TOKENIZER, **options)


def prompts(*rows: list[int]) -> Any:
    return PROMPTED(keyed([{"prompt_ids": row} for row in rows]))


def template(ids: list[int | None], free: list[int] | None = None) -> dict[str, Any]:
    """One example; None is not given."""
    example = {"input_ids": [D if i is None else i for i in ids], "fixed": [i is not None for i in ids]}
    return example if free is None else {**example, "free": [i in free for i in range(len(ids))]}


class Prompted(PredictorContract):
    options: ClassVar[dict[str, Any]] = OPTIONS["plain"]

    def predictor(self):
        return predictor(**self.options)

    def collator(self):
        return PROMPTED

    def examples(self):
        return seq2seq_examples([3, 6, 0, 1, 11], [4, 1, 2, 3, 2])

    def loss_collator(self):
        return ILMSeq2SeqCollator(tokenizer=TOKENIZER, max_prompt_length=8, max_target_length=4, seed=0)

    def loss_examples(self):
        return seq2seq_examples([3, 6, 0, 1], [4, 1, 2, 0])


class TestAfterPrompts(Prompted):
    pass


class TestPairsAfterPrompts(Prompted):
    options = OPTIONS["pairs"]


class TestTwoStagesAfterPrompts(Prompted):
    options = OPTIONS["two stages"]


class TestThresholdAfterPrompts(Prompted):
    options = OPTIONS["threshold"]


class TestParallelAfterPrompts(Prompted):
    options = OPTIONS["parallel"]


class TestTemplates(Prompted):
    options: ClassVar = {"likelihood": "orders"}

    def collator(self):
        return TEMPLATES

    def examples(self):
        of_free_length = [
            template([A, None, B], [1]),
            template([None, C, None, None], [0, 2, 3]),
            template([None], [0]),
        ]
        rows = [*infill_examples([3, 10, 5, 1, 12]), *of_free_length]
        return keyed([{name: row[name] for name in ("input_ids", "fixed", "free") if name in row} for row in rows])

    def loss_collator(self):
        return ILMInfillCollator(tokenizer=TOKENIZER, max_length=10, seed=0)

    def loss_examples(self):
        return infill_examples([3, 10, 5, 1])


class TestParallelTemplates(TestTemplates):
    options = OPTIONS["parallel"]


class TestTexts(Prompted):
    def collator(self):
        return NOTHING

    def examples(self):
        return unconditional_examples(5)

    def loss_collator(self):
        return ILMCollator(tokenizer=TOKENIZER, max_length=8, seed=0, event_space="open")

    def loss_examples(self):
        return lm_examples([3, 7, 0, 5])


class TestWindows(TestTexts):
    def loss_collator(self):
        return ILMCollator(tokenizer=TOKENIZER, max_length=5, seed=0, event_space="window")

    def loss_examples(self):
        return lm_examples([5, 5, 5])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_batch_in_fp32_gives_the_ids_of_its_rows_alone(options):
    sample = predictor(network().float(), **options)
    rows = [[A, B, C], [], [A], [D] * 7, [C, B], [B] * 5, [C], [A, A]]
    together = sample.predict(prompts(*rows))
    for i, example in enumerate(keyed([{"prompt_ids": row} for row in rows])):
        alone = sample.predict(PROMPTED([example]))
        n = int(alone["lengths"][0])
        assert together["ids"][i, :n].tolist() == alone["ids"][0].tolist()
        assert (together["lengths"][i], together["n_calls"][i]) == (n, alone["n_calls"][0])


def test_pairs_are_the_same_however_few_logits_exist_at_a_time(monkeypatch):
    batch, sample = prompts([A, B, C], [], [A], [D] * 7), predictor(**OPTIONS["pairs"])
    at_once = sample.predict(batch)["ids"]
    monkeypatch.setattr(pairs, "MAX_LOGITS", 1)
    assert torch.equal(sample.predict(batch)["ids"], at_once)


def test_neither_control_tokens_nor_eos_are_inserted_where_the_length_is_free():
    model = network()
    with torch.no_grad():
        model.head.weight[: EOS + 1] = 1.5 * model.head.weight[C]  # more probable than c, which is
    for options in ({}, {"top_k": 3}):
        ids = predictor(model, **options).predict(NOTHING(unconditional_examples(50)))["ids"]
        assert not torch.isin(ids[ids != PAD], torch.tensor([MASK, BOS, EOS])).any()
        assert (ids != PAD).any()
    windows = predictor(model).predict(TEMPLATES(keyed([template([None] * 6)] * 20)))["ids"]
    assert (windows == EOS).any()
    assert not torch.isin(windows, torch.tensor([PAD, MASK, BOS])).any()


def test_a_tokenizer_without_eos_is_served():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    sample = ILMPredictor(model=network(), tokenizer=tokenizer)
    predictions = sample.predict(NOTHING(unconditional_examples(20)))
    assert not torch.isin(predictions["ids"], torch.tensor([MASK, BOS])).any()
    batch = ILMCollator(tokenizer=TOKENIZER, max_length=8, seed=0, event_space="open")(lm_examples([3, 7, 0]))
    assert sample.log_likelihood(batch)["nll"].isfinite().all()


def test_given_tokens_stay_in_their_places_and_gaps_of_fixed_size_are_filled():
    rows = keyed([template([A, None, None, B, EOS, None]), template([None, C]), template([D])])
    predictions = predictor(max_new_tokens=1).predict(TEMPLATES(rows))
    assert predictions["lengths"].tolist() == [6, 2, 1]
    assert predictions["ids"][0, [0, 3, 4]].tolist() == [A, B, EOS]
    assert predictions["ids"][1, 1:].tolist() == [C, *[PAD] * 4]
    assert predictions["ids"][2].tolist() == [D, *[PAD] * 5]
    assert predictions["n_calls"].tolist() == [3, 1, 0]


def test_gaps_of_free_length_keep_the_given_tokens_around_them():
    rows = keyed([template([A, None, B, B], [1]), template([None, C, None], [0, 2]), template([None, None, D], [0, 1])])
    predictions = predictor(min_new_tokens=2).predict(TEMPLATES(rows * 10))
    texts = [ids[:n] for ids, n in zip(predictions["ids"].tolist(), predictions["lengths"].tolist(), strict=True)]
    for i, text in enumerate(texts):
        assert (text[0], text[-2:]) == (A, [B, B]) if i % 3 == 0 else C in text if i % 3 == 1 else text[-1] == D
    assert len({len(text) for text in texts}) > 2


class Says(nn.Module):
    """Puts ``text`` together from what is missing, left to right, then stops; keeps what it was shown."""

    def __init__(self, text: list[int], *, max_length: int = 12) -> None:
        super().__init__()
        self.text, self.max_length, self.shown = text, max_length, []
        self.head = nn.Linear(VOCAB, VOCAB, bias=False, dtype=torch.float64)
        nn.init.eye_(self.head.weight)
        self.head_rows: list[int] = []
        self.head.register_forward_hook(lambda _, inputs, __: self.head_rows.append(len(inputs[0])))

    def read(self, input_ids, attention_mask=None, *, positions=None):
        self.shown.append(input_ids.clone())
        states = torch.zeros(*input_ids.shape, VOCAB, dtype=torch.float64)
        n = input_ids.shape[1] if attention_mask is None else attention_mask.sum(1)
        stop = torch.zeros(len(input_ids), dtype=torch.float64)
        for row in range(len(input_ids)):
            last = int(positions[row][: int(n if isinstance(n, int) else n[row])].argmax())
            place = int(positions[row, last])
            stop[row] = 100.0 if place == len(self.text) else -100.0
            if place < len(self.text):
                states[row, last, self.text[place]] = 1000.0
        return states, stop


def test_rows_say_what_was_asked_and_what_was_answered():
    sample = predictor(Says([A, B, C, D, A]))
    batch = prompts([A], [A, B, C])
    rows = sample.to_dict(batch, sample.predict(batch))
    assert [(row["prompt"], row["prediction"], row["ids"]) for row in rows] == [
        ("a", "bcda", [B, C, D, A]),
        ("abc", "da", [D, A]),
    ]
    assert [row["n_calls"] for row in rows] == [5, 3]
    fixed = TEMPLATES(keyed([template([A, B, None, None]), template([A, None], [1])]))
    rows = sample.to_dict(fixed, sample.predict(fixed))
    assert [(row["prompt"], row["prediction"]) for row in rows] == [("ab[MASK][MASK]", "abcd"), ("a[MASK]", "abcda")]


def test_finished_rows_leave_the_batch():
    model = Says([A, B, C, D])
    predictor(model).predict(prompts([], [A, B, C], [A, B, C, D]))
    assert [len(shown) for shown in model.shown] == [3, 2, 1, 1, 1]


def test_what_was_read_is_not_moved_and_the_head_runs_in_open_gaps_only():
    model = Says([A, B, C, D])
    predictor(model, temperature=0.5).predict(prompts([A, B]))
    assert [shown.tolist() for shown in model.shown] == [[[BOS, A, B]], [[BOS, A, B, C]], [[BOS, A, B, C, D]]]
    assert model.head_rows == [1, 2]


def test_a_stop_string_ends_the_answer_after_it_and_its_text_before_it():
    batch = prompts([], [A, B])
    sample = predictor(Says([A, B, C, D, A, B]), stop=["da", "cd"])
    predictions = sample.predict(batch)
    assert predictions["ids"].tolist() == [[A, B, C, D], [C, D, PAD, PAD]]
    assert [row["prediction"] for row in sample.to_dict(batch, predictions)] == ["ab", ""]
    whole = TEMPLATES(keyed([template([A, B, C, None]), template([A, None], [1])]))
    answers = [(row["prediction"], row["ids"][-1]) for row in sample.to_dict(whole, sample.predict(whole))]
    assert answers == [("abcd", D), ("abcdab", B)]
    assert predictor(Says([A, B]), stop="b").predict(batch)["lengths"].tolist() == [2, 0]


def test_max_new_tokens_is_the_datas_longest_target_if_null():
    batch, text = prompts([A]), [A, B, C, D, A, B]
    assert predictor(Says(text)).predict(batch)["lengths"].tolist() == [5]
    assert predictor(Says(text), max_target_length=3).predict(batch)["lengths"].tolist() == [3]
    assert predictor(Says(text), max_target_length=3, max_new_tokens=4).predict(batch)["lengths"].tolist() == [4]


def test_max_new_tokens_may_exceed_the_datas_longest_target():
    collate = ILMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=12, max_prompt_length=6, max_target_length=3)
    sample = predictor(Says([A, B, C, D, A, B]), max_target_length=3, max_new_tokens=5)
    assert sample.predict(collate(keyed([{"prompt_ids": [A]}])))["lengths"].tolist() == [5]


def test_a_prompt_that_fills_the_model_has_an_empty_answer_and_a_longer_one_names_the_key():
    sample = predictor(network(max_length=4))
    collate = ILMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=6, max_prompt_length=6)
    predictions = sample.predict(collate(keyed([{"prompt_ids": [A] * 4}])))
    assert (predictions["lengths"].tolist(), predictions["n_calls"].tolist()) == ([0], [0])
    assert sample.predict(collate(keyed([{"prompt_ids": [A] * 3}])))["lengths"].tolist() <= [1]
    with pytest.raises(UserError, match=r"5 tokens in datamodule\.max_length \(4\)"):
        sample.predict(collate(keyed([{"prompt_ids": [A] * 5}])))
    with pytest.raises(UserError, match=r"7 tokens in datamodule\.max_length \(4\)"):
        sample.predict(TEMPLATES(keyed([template([A, None, None, *[B] * 4])])))


def test_an_empty_prompt_and_a_template_without_gaps_are_answered():
    assert predictor(Says([A, B])).predict(prompts([]))["ids"].tolist() == [[A, B]]
    predictions = predictor().predict(TEMPLATES(keyed([template([A, B])])))
    assert (predictions["ids"].tolist(), predictions["n_calls"].tolist()) == ([[A, B]], [0])


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("collate", [PROMPTED, TEMPLATES], ids=["prompts", "templates"])
def test_the_trace_replays_to_the_answer(options, collate):
    rows = [template([A, None, None, B, None, None]), template([None, C], [0]), template([A])]
    examples = keyed([{**row, "prompt_ids": row["input_ids"]} for row in rows])
    batch = collate(examples)
    sample = predictor(trace=True, **options)
    for i, row in enumerate(sample.to_dict(batch, sample.predict(batch))):
        states = list(replay(row["trace"], row["start_ids"]))
        tokens = zip(rows[i]["input_ids"], rows[i]["fixed"], strict=True)
        assert states[0] == [BOS, *(token for token, fixed in tokens if fixed or collate is PROMPTED)]
        assert states[-1][1 + int(batch["prompt_lengths"][i]) :] == row["ids"]
        assert {event["action"] for event in row["trace"]} <= {"insert"}
        assert all(0 < event["probability"] <= 1 for event in row["trace"])
        assert len(states) in (row["n_calls"], row["n_calls"] + 1)  # stopping is a call of its own


def test_the_trace_says_with_what_probability_a_pair_was_drawn():
    model = network()
    batch = TEMPLATES(keyed([template([A, None, B, None])] * 10))
    with torch.no_grad():
        expected = model(torch.tensor([[BOS, A, B]]))[0, 1:]
    expected[:, [PAD, MASK, BOS]] = -torch.inf
    expected = expected.flatten().softmax(0).reshape(2, VOCAB)
    for options in ({}, {"top_k": 1000}, {"draw": "two_stage"}):
        events = predictor(model, trace=True, **options).predict(batch)["trace"][:10]
        assert {event["position"] for event in events} == {2, 3}
        for i, event in enumerate(events):
            assert (event["row"], event["step"]) == (i, 0)
            assert event["probability"] == pytest.approx(float(expected[event["position"] - 2, event["token"]]))


def test_two_insertions_a_call_need_about_half_the_calls_and_keep_their_distance():
    examples = keyed([template([None] * 10)] * 8)
    one, two = (predictor(trace=True, tokens_per_step=n, gap_distance=3).predict(TEMPLATES(examples)) for n in (1, 2))
    assert (one["n_calls"] == 10).all()
    assert (two["n_calls"] == 7).all()  # 0 to 3 tokens have no two gaps three apart, and 9 leave room for one
    assert (two["lengths"] == 10).all()
    for events in by_row(two["trace"], 8):
        for first, second in pairwise(events):
            if first["step"] == second["step"]:
                assert abs(first["position"] - second["position"]) >= 3


def test_one_insertion_a_call_is_the_sequential_sampler_whatever_the_distance():
    batch = NOTHING(unconditional_examples(20))
    plain, other = predictor(), predictor(tokens_per_step=1, gap_distance=2)
    assert torch.equal(plain.predict(batch)["ids"], other.predict(batch)["ids"])
    assert plain.law == other.law == "exact: the model's p, whose texts end at max_new_tokens at the latest"


def test_the_law_names_every_option_that_changes_it():
    law = predictor(min_new_tokens=2, stop_rule="threshold", tokens_per_step=2, top_k=3, draw="two_stage").law
    expected = ["gaps and tokens", "at least 2", "p_stop >= 0.5", "2 insertions a call"]
    assert law.startswith("its own")
    assert [part in law for part in expected] == [True] * 4


def test_greedy_takes_the_most_probable_pair():
    model = network()
    with torch.no_grad():
        logits = model(torch.tensor([[BOS, A, B]]))[0].index_fill(1, torch.tensor([PAD, MASK, BOS, EOS]), -torch.inf)
    gap, token = divmod(int(logits[[0, 2]].argmax()), VOCAB)
    batch = TEMPLATES(keyed([template([None, A, B, None], [0, 3])]))  # at either end, but not between a and b
    ids = predictor(model, temperature=0.0, min_new_tokens=1, max_new_tokens=1).predict(batch)["ids"][0].tolist()
    assert ids == ([token, A, B] if gap == 0 else [A, B, token])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, r"1 or more in predictor\.max_new_tokens \(0\)"),
        ({"min_new_tokens": -1}, r"max_new_tokens = 12\] in predictor\.min_new_tokens \(-1\)"),
        ({"min_new_tokens": 5, "max_new_tokens": 4}, r"max_new_tokens = 4\] in predictor\.min_new_tokens \(5\)"),
        ({"stop_rule": "never"}, r"bernoulli or threshold in predictor\.stop_rule \(never\)"),
        ({"stop_rule": "threshold", "stop_threshold": 0.0}, r"\(0, 1\] in predictor\.stop_threshold \(0\.0\)"),
        ({"stop_rule": "threshold", "stop_threshold": 1.5}, r"\(0, 1\] in predictor\.stop_threshold \(1\.5\)"),
        ({"stop_threshold": 0.7}, r"stop_rule=bernoulli in predictor\.stop_threshold \(0\.7\)"),
        ({"draw": "both"}, r"joint or two_stage in predictor\.draw \(both\)"),
        ({"gap_top_k": 2}, r"no gap of its own to filter in predictor\.draw \(joint\)"),
        ({"draw": "two_stage", "gap_top_p": 0.0}, r"predictor\.gap_top_p \(0\.0\); fix: use 1\.0 to keep every gap"),
        ({"top_p": 2.0}, r"predictor\.top_p \(2\.0\)"),
        ({"tokens_per_step": 0}, r"1 or more in predictor\.tokens_per_step \(0\)"),
        ({"gap_distance": 0}, r"1 or more in predictor\.gap_distance \(0\)"),
        ({"likelihood": "exact"}, r"bound or orders in predictor\.likelihood \(exact\)"),
        ({"stop": ["a", ""]}, r"empty string in predictor\.stop"),
    ],
    ids=str,
)
def test_a_bad_option_is_named_in_one_line(options, message):
    with pytest.raises(UserError, match=message) as caught:
        predictor(**options)
    assert "\n" not in str(caught.value)
