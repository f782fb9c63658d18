"""What is answered, with how many calls, and what is refused."""

from __future__ import annotations

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
from xlm.trace import replay
from xlm_mlm.collator import (
    MLMCollator,
    MLMInfillCollator,
    MLMInfillPredictionCollator,
    MLMSeq2SeqCollator,
    MLMSeq2SeqPredictionCollator,
    MLMUnconditionalCollator,
)
from xlm_mlm.model import MLMTransformer
from xlm_mlm.predictor import MLMPredictor, MLMReMDMPredictor

TOKENIZER = tiny_tokenizer()
PAD, MASK, EOS = 0, 1, 3
NOISY: dict[str, Any] = {"tokenizer": TOKENIZER, "seed": 0}
PROMPTED = MLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=11, max_target_length=5)
TEMPLATES = MLMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=10)
SAMPLERS: list[dict[str, Any]] = [
    {},
    {"tokens_per_step": 3},
    {"order": "top_probability"},
    {"order": "margin", "gumbel": 0.5},
    {"order": "entropy", "threshold": 0.5},
    {"factor": 1.0},
    {"block_length": 1},
]


def network() -> MLMTransformer:
    torch.manual_seed(0)
    model = MLMTransformer(vocab_size=12, max_length=32, d_model=16, n_layers=2, n_heads=2).double().eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.5)  # so that positions differ in how certain they are
    return model


def build(model: Any = None, **options: Any) -> MLMPredictor:
    return MLMPredictor(model=network() if model is None else model, tokenizer=TOKENIZER, **options)


def remdm(model: Any = None, **options: Any) -> MLMReMDMPredictor:
    return MLMReMDMPredictor(model=network() if model is None else model, tokenizer=TOKENIZER, **options)


class TestAfterPrompts(PredictorContract):
    options: ClassVar[dict[str, Any]] = {}

    def predictor(self):
        return build(**self.options)

    def collator(self):
        return PROMPTED

    def examples(self):
        return seq2seq_examples([3, 6, 0, 1], [4, 1, 2, 3])

    def loss_collator(self):
        return MLMSeq2SeqCollator(**NOISY, max_prompt_length=6, max_target_length=5)

    def loss_examples(self):
        return self.examples()


class TestThresholdAfterPrompts(TestAfterPrompts):
    options: ClassVar = {"order": "margin", "threshold": 0.4, "min_new_tokens": 2, "stop": ["ab"]}


class TestGumbelAfterPrompts(TestAfterPrompts):
    options: ClassVar = {"order": "entropy", "gumbel": 1.0, "tokens_per_step": 2}


class TestBlocksAfterPrompts(TestAfterPrompts):
    options: ClassVar = {"order": "margin", "block_length": 5, "tokens_per_step": 2}


class TestGuidedAfterPrompts(TestAfterPrompts):
    options: ClassVar = {"order": "margin", "guidance": 1.0}

    def examples(self):
        return seq2seq_examples([3, 6, 2, 1], [4, 1, 2, 3])


class TestReMDMAfterPrompts(TestAfterPrompts):
    def predictor(self):
        return remdm(steps=10, eta=0.5)


class TestPseudoLikelihoodAfterPrompts(TestAfterPrompts):
    options: ClassVar = {"likelihood": "pseudo", "factor": 1.0}


class TestCompletions(TestAfterPrompts):
    def collator(self):
        return MLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=8)


class TestInTemplates(TestAfterPrompts):
    options: ClassVar = {"order": "top_probability", "factor": 1.0}

    def collator(self):
        return TEMPLATES

    def examples(self):
        return infill_examples([3, 10, 5, 1])

    def loss_collator(self):
        return MLMInfillCollator(**NOISY, max_length=10, random_token_rate=0.5, keep_rate=0.5)


class TestWithoutPrompt(TestAfterPrompts):
    def collator(self):
        return MLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=8)

    def examples(self):
        return unconditional_examples(4)

    def loss_collator(self):
        return MLMCollator(**NOISY, max_length=8, event_space="open")

    def loss_examples(self):
        return lm_examples([3, 7, 0, 5])


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_a_batch_in_fp32_gives_the_ids_of_its_rows_alone(options):
    predictor = build(network().float(), **options)
    examples = seq2seq_examples([3, 6, 0, 1, 5, 2, 4, 1], [1] * 8)
    ids = predictor.predict(PROMPTED(examples))["ids"]
    for i, example in enumerate(examples):
        alone = predictor.predict(PROMPTED([example]))["ids"][0]
        assert ids[i, : len(alone)].tolist() == alone.tolist()


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_ten_masks_need_at_most_ten_calls(options):
    batch = MLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=10)(unconditional_examples(8))
    predictions = build(trace=True, **options).predict(batch)
    assert (predictions["n_calls"] <= 10).all()
    steps = {(event["row"], event["step"]) for event in predictions["trace"]}
    assert len(steps) == int(predictions["n_calls"].sum()), "a call revealed nothing"


@pytest.mark.parametrize(("per_step", "calls"), [(1, [8, 3]), (3, [3, 1]), (10, [1, 1])])
def test_so_many_tokens_are_revealed_a_call(per_step, calls):
    rows = keyed([{"input_ids": [5] * 8, "fixed": [0] * 8}, {"input_ids": [5] * 8, "fixed": [1, 0] * 3 + [1, 1]}])
    for order in ("random", "entropy"):
        predictions = build(order=order, tokens_per_step=per_step).predict(TEMPLATES(rows))
        assert predictions["n_calls"].tolist() == calls


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
def test_the_trace_replays_from_the_template_to_the_answer(options):
    predictor, batch = build(trace=True, **options), TEMPLATES(infill_examples([3, 10, 5, 1]))
    predictions = predictor.predict(batch)
    for i, row in enumerate(predictor.to_dict(batch, predictions)):
        states = list(replay(row["trace"], batch["input_ids"][i, : predictions["lengths"][i]].tolist()))
        assert states[-1] == row["ids"]
        assert len(states) == 1 + row["n_calls"]
    assert "trace" not in build(**options).predict(batch)


def test_given_tokens_stay_and_the_whole_row_is_returned():
    rows = keyed([{"input_ids": [4, 5, 6, EOS, 7], "fixed": [1, 0, 1, 1, 0]}, {"input_ids": [8], "fixed": [1]}])
    predictions = build().predict(TEMPLATES(rows))
    assert predictions["lengths"].tolist() == [5, 1]
    assert predictions["ids"][0, [0, 2, 3]].tolist() == [4, 6, EOS]
    assert predictions["ids"][1].tolist() == [8] + [PAD] * 4
    assert predictions["n_calls"][1] == 0


class AlwaysSays(nn.Module):
    """The same token at the same column, with certainty."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        self.head, self.tokens = nn.Linear(12, 12, bias=False), tokens
        nn.init.eye_(self.head.weight)

    def hidden(self, input_ids, attention_mask=None, *, positions=None, segments=None):
        return 50.0 * nn.functional.one_hot(torch.tensor(self.tokens), 12).expand(len(input_ids), -1, -1).float()


def test_rows_say_what_was_asked_and_what_was_answered_up_to_eos():
    predictor = build(AlwaysSays([9, 9, 4, 5, EOS, 6, EOS]))
    prompts = PROMPTED(keyed([{"prompt_ids": [8]}, {"prompt_ids": [6, 7]}]))
    rows = predictor.to_dict(prompts, predictor.predict(prompts))
    assert [(row["prompt"], row["prediction"]) for row in rows] == [("e", "ab"), ("cd", "ab")]
    template = TEMPLATES(keyed([{"input_ids": [4, 5, 6, 7, 8, 9, 10], "fixed": [1, 1, 0, 0, 1, 1, 1]}]))
    row = predictor.to_dict(template, predictor.predict(template))[0]
    assert (row["prompt"], row["prediction"]) == ("ab[MASK][MASK]efg", "ababefg")


def test_answers_end_at_stop_strings_and_not_before_their_least_length():
    batch = PROMPTED(keyed([{"prompt_ids": [8]}, {"prompt_ids": [6, 7]}]))
    stopping = build(AlwaysSays([9, 9, 4, 5, 6, 7, EOS]), stop=["c", "bc"])
    assert [row["prediction"] for row in stopping.to_dict(batch, stopping.predict(batch))] == ["a", "a"]
    ending = AlwaysSays([EOS] * 7)
    assert build(ending).predict(batch)["lengths"].tolist() == [0, 0]
    assert build(ending, min_new_tokens=3).predict(batch)["lengths"].tolist() == [3, 3]


def test_an_empty_prompt_and_one_as_long_as_allowed_are_answered_and_a_longer_one_is_refused():
    examples = keyed([{"prompt_ids": []}, {"prompt_ids": [4] * 6}])
    assert build(min_new_tokens=5).predict(PROMPTED(examples))["lengths"].tolist() == [5, 5]
    whole = MLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=8)
    assert build().predict(whole(keyed([{"prompt_ids": [4] * 7}])))["n_calls"].tolist() == [1]
    with pytest.raises(UserError, match=r"a row has 7 tokens, 6 fit .* in max_new_tokens \(5\)"):
        PROMPTED(keyed([{"prompt_ids": [4] * 7}]))


def test_a_greedy_text_has_an_exact_likelihood_and_every_other_one_an_infinite_cost():
    predictor = build(AlwaysSays([4] * 4), order="margin", top_k=1)
    batch = MLMCollator(**NOISY, max_length=4)(keyed([{"input_ids": [4] * 4}, {"input_ids": [4, 4, 5, 4]}]))
    assert predictor.log_likelihood(batch)["nll"].tolist() == [0, float("inf")]


def test_answers_in_blocks_stop_with_the_block_that_holds_eos():
    batch = MLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=6)(unconditional_examples(2))
    predictor = build(AlwaysSays([4, EOS, 4, 4, 4, 4]), block_length=2, trace=True)
    predictions = predictor.predict(batch)
    assert predictions["ids"].tolist() == [[4]] * 2
    assert predictions["n_calls"].tolist() == [2, 2]
    for row in predictor.to_dict(batch, predictions):
        assert list(replay(row["trace"], [MASK] * 6))[-1] == [4] + [EOS] * 5
    with pytest.raises(UserError, match=r"a canvas of 6 positions in predictor\.block_length \(4\); fix: use 3"):
        build(AlwaysSays([4] * 6), block_length=4).predict(batch)


def test_guidance_takes_two_calls_a_step_and_needs_something_given():
    batch = PROMPTED(seq2seq_examples([3, 6, 2, 1] * 10, [1] * 40))
    for make in (build, remdm):
        plain, guided = (make(guidance=w, min_new_tokens=5).predict(batch) for w in (0.0, 4.0))
        assert (guided["ids"] != plain["ids"]).any()
        assert (guided["n_calls"] % 2 == 0).all()
    nothing = MLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=6)(unconditional_examples(1))
    with pytest.raises(UserError, match=r"predictor\.guidance"):
        build(AlwaysSays([4] * 6), guidance=1.0).predict(nothing)


def test_a_pseudo_likelihood_of_a_guided_network_is_refused():
    with pytest.raises(UserError, match=r"guided network in predictor\.likelihood \(pseudo\)"):
        build(AlwaysSays([4]), likelihood="pseudo", guidance=1.0)


def test_remasking_says_its_law_and_reports_the_bound_of_the_network():
    batch = MLMCollator(**NOISY, max_length=8)(lm_examples([8] * 3))
    result = remdm(guidance=1.0, temperature=0.0).log_likelihood(batch, draws=2)
    assert torch.equal(result["nll"], build().log_likelihood(batch, draws=2)["nll"])
    assert result["kind"] == "bound"
    assert remdm(strategy="rescale").law.startswith("exact for T steps")
    assert remdm(strategy="confidence").law.startswith("approximate")
    assert build().law.startswith("exact")
    assert build(gumbel=0.5, order="margin").law.startswith("approximate")


def test_remasking_hides_and_reveals_and_never_touches_what_is_given():
    batch = TEMPLATES(infill_examples([3, 10, 5, 1]))
    predictor = remdm(steps=30, eta=0.3, trace=True)
    predictions = predictor.predict(batch)
    assert {event["action"] for event in predictions["trace"]} == {"reveal", "remask"}
    for i, row in enumerate(predictor.to_dict(batch, predictions)):
        given = ~batch["predicted"][i, : len(row["ids"])]
        assert torch.tensor(row["ids"])[given].tolist() == batch["input_ids"][i, : len(row["ids"])][given].tolist()
        assert list(replay(row["trace"], batch["input_ids"][i, : len(row["ids"])].tolist()))[-1] == row["ids"]


@pytest.mark.parametrize(("name", "value"), [("steps", 0), ("eta", 1.5), ("guidance", -1.0), ("top_k", 0)])
def test_an_option_of_remasking_outside_its_range_is_refused_by_its_key(name: str, value: Any):
    with pytest.raises(UserError, match=rf"predictor\.{name}\b"):
        remdm(AlwaysSays([4]), **{name: value})


@pytest.mark.parametrize(
    ("options", "kind", "estimator"),
    [
        ({}, "bound", "any_order"),
        ({"order": "margin"}, "exact", "deterministic_order"),
        ({"order": "entropy", "threshold": 0.9}, "exact", "deterministic_order"),
        ({"order": "top_probability", "factor": 1.0}, "exact", "deterministic_order"),
        ({"order": "margin", "gumbel": 0.1}, "bound", "any_order"),
        ({"threshold": 0.9}, "bound", "any_order"),
        ({"order": "margin", "likelihood": "any_order"}, "bound", "any_order"),
        ({"order": "margin", "likelihood": "pseudo"}, "pseudo", "pseudo_log_likelihood"),
    ],
    ids=str,
)
def test_the_likelihood_is_exact_for_orders_without_randomness_and_otherwise_what_was_asked_for(
    options, kind, estimator
):
    batch = MLMCollator(**NOISY, max_length=8)(lm_examples([8] * 3))
    result = build(**options).log_likelihood(batch)
    assert (result["kind"], result["estimator"]) == (kind, estimator)


@pytest.mark.parametrize("options", [{}, {"order": "margin"}, {"likelihood": "pseudo"}], ids=str)
def test_likelihoods_do_not_depend_on_what_the_collator_hid_or_replaced(options):
    examples = lm_examples([8] * 3)
    plain = MLMCollator(**NOISY, max_length=8)(examples)
    other = MLMCollator(**NOISY, max_length=8, mask_rate=0.9, random_token_rate=0.5, keep_rate=0.5)(examples)
    predictor = build(**options)
    left, right = (predictor.log_likelihood(batch, draws=2)["nll"] for batch in (plain, other))
    assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("top_k", 0),
        ("min_p", 2.0),
        ("tokens_per_step", 0),
        ("threshold", 2.0),
        ("factor", -1.0),
        ("gumbel", -1.0),
        ("block_length", 0),
        ("min_new_tokens", -1),
        ("stop", ""),
        ("guidance", -1.0),
    ],
)
def test_an_option_outside_its_range_is_refused_by_its_key(name: str, value: Any):
    with pytest.raises(UserError, match=rf"predictor\.{name}\b"):
        build(AlwaysSays([4]), **{name: value})


def test_it_has_no_noise_schedule():
    assert build(AlwaysSays([4])).noise_schedule is None
