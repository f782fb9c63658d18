"""What holds for every sampler, and the one thing that sets each apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from xlm.errors import UserError
from xlm.noise import CosineSchedule, LinearSchedule, noise_key
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
from xlm_mdlm.collator import (
    MDLMCollator,
    MDLMInfillCollator,
    MDLMInfillPredictionCollator,
    MDLMSeq2SeqCollator,
    MDLMSeq2SeqPredictionCollator,
    MDLMUnconditionalCollator,
)
from xlm_mdlm.model import MDLMTransformer
from xlm_mdlm.predictor import (
    MDLMAncestralPredictor,
    MDLMFirstHittingPredictor,
    MDLMPredictor,
    MDLMReMDMPredictor,
    MDLMTopProbabilityPredictor,
)

TOKENIZER = tiny_tokenizer()
PAD, MASK, EOS = 0, 1, 3
NOISY: dict[str, Any] = {"tokenizer": TOKENIZER, "noise_schedule": LinearSchedule(), "seed": 0}
CLASSES: list[type[MDLMPredictor]] = [
    MDLMFirstHittingPredictor,
    MDLMAncestralPredictor,
    MDLMTopProbabilityPredictor,
    MDLMReMDMPredictor,
]
IN_STEPS = (MDLMAncestralPredictor, MDLMReMDMPredictor)
PROMPTED = MDLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=11, max_target_length=5)
TEMPLATES = MDLMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=10)


def network(**options: Any) -> MDLMTransformer:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 12, "max_length": 32, "d_model": 16, "n_layers": 2, "n_heads": 2}
    model = MDLMTransformer(**{**sizes, **options}).double().eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.5)  # so that positions differ in how certain they are
    return model


def build(cls: type[MDLMPredictor], model: Any = None, **options: Any) -> MDLMPredictor:
    if cls in IN_STEPS:
        options = {"noise_schedule": LinearSchedule(), "steps": 4, **options}
    return cls(model=network() if model is None else model, tokenizer=TOKENIZER, **options)


class PromptedContract(PredictorContract):
    cls: ClassVar[type[MDLMPredictor]]
    options: ClassVar[dict[str, Any]] = {}

    def predictor(self):
        return build(self.cls, **self.options)

    def collator(self):
        return PROMPTED

    def examples(self):
        return seq2seq_examples([3, 6, 0, 1], [4, 1, 2, 3])

    def loss_collator(self):
        return MDLMSeq2SeqCollator(**NOISY, max_prompt_length=6, max_target_length=5)

    def loss_examples(self):
        return self.examples()


class TestFirstHittingAfterPrompts(PromptedContract):
    cls = MDLMFirstHittingPredictor


class TestConditionedFirstHittingAfterPrompts(PromptedContract):
    def predictor(self):
        return build(MDLMFirstHittingPredictor, network(condition_on_mask_rate=True))


class TestConditionedReMDMAfterPrompts(PromptedContract):
    def predictor(self):
        return build(MDLMReMDMPredictor, network(condition_on_mask_rate=True), steps=10, eta=0.5)


class TestFirstHittingCompletions(PromptedContract):
    cls = MDLMFirstHittingPredictor

    def collator(self):
        return MDLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=8)


class TestAncestralAfterPrompts(PromptedContract):
    cls = MDLMAncestralPredictor


class TestTopProbabilityAfterPrompts(PromptedContract):
    cls = MDLMTopProbabilityPredictor
    options: ClassVar = {"tokens_per_step": 2}


class TestThresholdAfterPrompts(PromptedContract):
    cls = MDLMTopProbabilityPredictor
    options: ClassVar = {"order": "entropy", "threshold": 0.4, "min_new_tokens": 2, "stop": ["ab"]}


class TestBlocksAfterPrompts(PromptedContract):
    cls = MDLMTopProbabilityPredictor
    options: ClassVar = {"order": "margin", "block_length": 1}


class TestNoisyOrderAfterPrompts(PromptedContract):
    cls = MDLMTopProbabilityPredictor
    options: ClassVar = {"order": "entropy", "gumbel": 1.0, "tokens_per_step": 2}


class TestReMDMAfterPrompts(PromptedContract):
    cls = MDLMReMDMPredictor
    options: ClassVar = {"steps": 10, "strategy": "rescale", "eta": 0.5}


class TestReMDMByConfidenceAfterPrompts(PromptedContract):
    cls = MDLMReMDMPredictor
    options: ClassVar = {"steps": 10, "strategy": "confidence", "eta": 1.0}


class TestGuidedAfterPrompts(PromptedContract):
    cls = MDLMTopProbabilityPredictor
    options: ClassVar = {"guidance": 1.0, "threshold": 0.4}

    def examples(self):
        return seq2seq_examples([3, 6, 2, 1], [4, 1, 2, 3])


class TestFirstHittingInTemplates(PromptedContract):
    cls = MDLMFirstHittingPredictor

    def collator(self):
        return TEMPLATES

    def examples(self):
        return infill_examples([3, 10, 5, 1])

    def loss_collator(self):
        return MDLMInfillCollator(**NOISY, max_length=10)


class TestAncestralInTemplates(TestFirstHittingInTemplates):
    cls = MDLMAncestralPredictor


class TestReMDMInTemplates(TestFirstHittingInTemplates):
    cls = MDLMReMDMPredictor
    options: ClassVar = {"steps": 10, "eta": 0.5}


class TestBlocksInTemplates(TestFirstHittingInTemplates):
    cls = MDLMTopProbabilityPredictor
    options: ClassVar = {"order": "random", "block_length": 3}


class TestTopProbabilityInTemplates(TestFirstHittingInTemplates):
    cls = MDLMTopProbabilityPredictor


class TestFirstHittingWithoutPrompt(TestFirstHittingInTemplates):
    def collator(self):
        return MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=8)

    def examples(self):
        return unconditional_examples(4)

    def loss_collator(self):
        return MDLMCollator(**NOISY, max_length=8, event_space="open")

    def loss_examples(self):
        return lm_examples([3, 7, 0, 5])


@pytest.mark.parametrize("cls", CLASSES)
def test_a_batch_in_fp32_gives_the_ids_of_its_rows_alone(cls):
    predictor = build(cls, network().float())
    examples = seq2seq_examples([3, 6, 0, 1, 5, 2], [1] * 6)
    ids = predictor.predict(PROMPTED(examples))["ids"]
    for i, example in enumerate(examples):
        alone = predictor.predict(PROMPTED([example]))["ids"][0]
        assert ids[i, : len(alone)].tolist() == alone.tolist()


@pytest.mark.parametrize("cls", CLASSES)
def test_given_tokens_stay_and_the_whole_row_is_returned(cls):
    rows = keyed([{"input_ids": [4, 5, 6, EOS, 7], "fixed": [1, 0, 1, 1, 0]}, {"input_ids": [8], "fixed": [1]}])
    predictions = build(cls).predict(TEMPLATES(rows))
    assert predictions["lengths"].tolist() == [5, 1]
    assert predictions["ids"][0, [0, 2, 3]].tolist() == [4, 6, EOS]
    assert predictions["ids"][1].tolist() == [8] + [PAD] * 4
    assert predictions["n_calls"][1] == 0


class AlwaysSays(nn.Module):
    """The same token at the same column, with certainty; counts its rows and remembers what it was told."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__()
        self.head = nn.Linear(12, 12, bias=False)
        nn.init.eye_(self.head.weight)
        self.tokens, self.calls, self.mask_rates, self.head_rows = tokens, [], [], []
        self.head.register_forward_hook(lambda _, inputs, __: self.head_rows.append(len(inputs[0])))

    def hidden(self, input_ids, attention_mask=None, *, mask_rate, **_):
        self.calls.append(input_ids.clone())
        self.mask_rates.append(mask_rate)
        return 50.0 * nn.functional.one_hot(torch.tensor(self.tokens), 12).expand(len(input_ids), -1, -1).float()


@pytest.mark.parametrize("cls", CLASSES)
def test_an_answer_ends_before_its_first_eos(cls):
    collate = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=5)
    predictor = build(cls, AlwaysSays([4, 5, EOS, 6, EOS]))
    batch = collate(unconditional_examples(2))
    predictions = predictor.predict(batch)
    assert predictions["ids"].tolist() == [[4, 5]] * 2
    assert predictor.to_dict(batch, predictions)[0]["prediction"] == "ab"


def test_rows_say_what_was_asked_and_what_was_answered():
    predictor = build(MDLMFirstHittingPredictor, AlwaysSays([9, 9, 4, 5, EOS, 6, EOS]))
    prompts = PROMPTED(keyed([{"prompt_ids": [8]}, {"prompt_ids": [6, 7]}]))
    rows = predictor.to_dict(prompts, predictor.predict(prompts))
    assert [(row["prompt"], row["prediction"]) for row in rows] == [("e", "ab"), ("cd", "ab")]
    template = TEMPLATES(keyed([{"input_ids": [4, 5, 6, 7, 8, 9, 10], "fixed": [1, 1, 0, 0, 1, 1, 1]}]))
    row = predictor.to_dict(template, predictor.predict(template))[0]
    assert (row["prompt"], row["prediction"]) == ("ab[MASK][MASK]efg", "abababefg"[:2] + "ab" + "efg")


def test_first_hitting_calls_once_a_hidden_token_and_finished_rows_leave():
    model = AlwaysSays([4] * 4)
    rows = keyed([{"input_ids": [5] * 4, "fixed": fixed} for fixed in ([0, 0, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0])])
    n_calls = build(MDLMFirstHittingPredictor, model).predict(TEMPLATES(rows))["n_calls"]
    assert n_calls.tolist() == [4, 2, 1]
    assert [len(ids) for ids in model.calls] == [3, 2, 1, 1]
    assert model.head_rows == [3, 2, 1, 1]  # the head runs only where a token is revealed


def test_ancestral_calls_only_for_steps_that_reveal_something_and_runs_the_head_only_there():
    model = AlwaysSays([4] * 8)
    batch = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=8)(unconditional_examples(5))
    n_calls = build(MDLMAncestralPredictor, model, steps=1000).predict(batch)["n_calls"]
    assert (n_calls <= 8).all()
    assert sum(model.head_rows) == 5 * 8
    assert sum(len(ids) for ids in model.calls) == int(n_calls.sum())


def test_a_thousand_ancestral_steps_cost_no_more_than_one_call_a_hidden_token():
    """The prediction is reused while no token changes, so T need not be paid for."""
    model = AlwaysSays([4] * 8)
    rows = keyed([{"input_ids": [5] * 8, "fixed": [0] * 8}, {"input_ids": [5] * 8, "fixed": [1, 0] * 3 + [1, 1]}] * 20)
    batch = TEMPLATES(rows)
    n_calls = build(MDLMAncestralPredictor, model, steps=1024).predict(batch)["n_calls"]
    assert (n_calls <= batch["predicted"].sum(1)).all()
    assert sum(len(ids) for ids in model.calls) == int(n_calls.sum())
    alone = AlwaysSays([4] * 8)
    build(MDLMAncestralPredictor, alone, steps=1024).predict(TEMPLATES(rows[:1]))
    assert not any(torch.equal(one, other) for one, other in pairwise(alone.calls))


def test_remasking_without_eta_draws_what_the_ancestral_sampler_draws():
    batch, schedule = PROMPTED(seq2seq_examples([3, 6, 0, 1], [1] * 4)), CosineSchedule()
    plain = build(MDLMAncestralPredictor, noise_schedule=schedule, steps=7).predict(batch)
    other = build(MDLMReMDMPredictor, noise_schedule=schedule, steps=7, eta=0.0).predict(batch)
    assert torch.equal(plain["ids"], other["ids"])
    assert torch.equal(plain["n_calls"], other["n_calls"])


@pytest.mark.parametrize("options", [{"strategy": "rescale"}, {"strategy": "confidence"}, {"eta": 0.5}], ids=str)
def test_strategy_and_eta_change_what_is_hidden_again(options):
    batch = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=8)(unconditional_examples(20))
    settings = {"steps": 16, "trace": True, "strategy": "cap", "eta": 0.2}
    first, second = (
        build(MDLMReMDMPredictor, **{**settings, **more}).predict(batch)["trace"] for more in ({}, options)
    )
    assert first != second


@pytest.mark.parametrize("cls", CLASSES)
def test_guidance_takes_two_calls_a_step_and_moves_away_from_what_is_said_without_the_prompt(cls):
    batch = PROMPTED(seq2seq_examples([3, 6, 2, 1] * 10, [1] * 40))
    plain, guided = (build(cls, guidance=w, min_new_tokens=5).predict(batch) for w in (0.0, 4.0))
    assert (guided["ids"] != plain["ids"]).any()
    assert (guided["n_calls"] % 2 == 0).all()
    if cls in (MDLMFirstHittingPredictor, MDLMAncestralPredictor):  # whose steps depend on no token
        assert torch.equal(guided["n_calls"], 2 * plain["n_calls"])


@pytest.mark.parametrize("cls", CLASSES)
def test_guidance_without_anything_given_is_refused_before_any_call(cls):
    model = AlwaysSays([4] * 5)
    batch = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=5)(unconditional_examples(2))
    with pytest.raises(UserError, match=r"no given token in predictor\.guidance"):
        build(cls, model, guidance=1.0).predict(batch)
    assert not model.calls


@pytest.mark.parametrize(("per_step", "calls"), [(1, [8, 3]), (3, [3, 1]), (10, [1, 1])])
def test_top_probability_reveals_so_many_tokens_a_call(per_step, calls):
    rows = keyed([{"input_ids": [5] * 8, "fixed": [0] * 8}, {"input_ids": [5] * 8, "fixed": [1, 0] * 3 + [1, 1]}])
    predictor = build(MDLMTopProbabilityPredictor, AlwaysSays([4] * 8), tokens_per_step=per_step)
    assert predictor.predict(TEMPLATES(rows))["n_calls"].tolist() == calls


def certain_of(*p: float) -> AlwaysSays:
    """Says letter 4 with these probabilities at its columns, else letter 5; at column 0 every third time 6 instead."""
    model = AlwaysSays([4] * len(p))
    logits = torch.full((len(p), 12), -1e4)
    logits[:, 4], logits[:, 5] = torch.tensor(p).log(), (1 - torch.tensor(p)).log()
    logits[0, 5], logits[0, 6] = ((1 - torch.tensor(p[0])) / torch.tensor([1.5, 3])).log()
    model.hidden = lambda input_ids, *_, **__: logits.expand(len(input_ids), -1, -1)
    return model


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [[1], [2], [0]]),
        ({"order": "margin"}, [[0], [1], [2]]),
        ({"order": "entropy"}, [[1], [2], [0]]),
        ({"threshold": 0.57}, [[1, 2], [0]]),
        ({"factor": 1.3}, [[1, 2], [0]]),
        ({"block_length": 1}, [[0], [1], [2]]),
        ({"block_length": 1, "tokens_per_step": 2}, [[0], [1], [2]]),
        ({"gumbel": 1e-9}, [[1], [2], [0]]),
    ],
    ids=str,
)
def test_an_order_a_threshold_or_a_factor_says_what_is_revealed_when(options, steps):
    """Top probabilities 0.56, 0.6, 0.58; margins 0.27, 0.2, 0.16; (k + 1)(1 - p_k) = 0.8, 1.26, 1.76."""
    predictor = build(MDLMTopProbabilityPredictor, certain_of(0.56, 0.6, 0.58), trace=True, **options)
    batch = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=3)(unconditional_examples(1))
    found: dict[int, list[int]] = {}
    for event in predictor.predict(batch)["trace"]:
        found.setdefault(event["step"], []).append(event["position"])
    assert list(found.values()) == steps


@pytest.mark.parametrize("cls", CLASSES)
def test_eos_is_not_drawn_at_the_first_places_after_a_prompt(cls):
    collate = MDLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=8, max_target_length=4)
    batch = collate(keyed([{"prompt_ids": [4]}, {"prompt_ids": [4, 5]}]))
    ending = AlwaysSays([EOS] * 6)
    assert build(cls, ending).predict(batch)["lengths"].tolist() == [0, 0]
    assert build(cls, ending, min_new_tokens=3).predict(batch)["lengths"].tolist() == [3, 3]


@pytest.mark.parametrize("cls", CLASSES)
def test_an_answer_ends_at_a_stop_string(cls):
    batch = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=5)(unconditional_examples(2))
    predictor = build(cls, AlwaysSays([4, 5, 6, 7, EOS]), stop="bc")
    row = predictor.to_dict(batch, predictor.predict(batch))[0]
    assert (row["prediction"], row["ids"]) == ("a", [4, 5, 6])


def test_first_hitting_tells_the_mask_rate_at_which_the_next_token_is_revealed():
    model = AlwaysSays([4] * 4)
    batch = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=4)(unconditional_examples(4000))
    build(MDLMFirstHittingPredictor, model).predict(batch)
    assert all((later < earlier).all() for earlier, later in zip(model.mask_rates, model.mask_rates[1:], strict=False))
    for k, u in zip([4, 3, 2, 1], model.mask_rates, strict=True):  # Beta(k, N - k + 1)
        assert float(u.mean()) == pytest.approx(k / 5, abs=0.02)
        assert float(u.var()) == pytest.approx(k * (5 - k) / (25 * 6), rel=0.1)


def test_ancestral_tells_the_mask_rate_of_the_state():
    model = AlwaysSays([4] * 10)
    batch = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=10)(unconditional_examples(50))
    build(MDLMAncestralPredictor, model, noise_schedule=CosineSchedule(), steps=4).predict(batch)
    expected = CosineSchedule().mask_rate(torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64))
    for u, rate, ids in zip(model.mask_rates, expected, model.calls, strict=True):
        assert (u == rate).all()
        assert float((ids == MASK).double().mean()) == pytest.approx(float(rate), abs=0.1)


def test_remasking_tells_the_mask_rate_of_the_step():
    model = AlwaysSays([4] * 10)
    batch = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=10)(unconditional_examples(50))
    build(MDLMReMDMPredictor, model, noise_schedule=CosineSchedule(), steps=4, eta=0.5).predict(batch)
    expected = CosineSchedule().mask_rate(torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64))
    for u, rate, ids in zip(model.mask_rates, expected, model.calls, strict=True):
        assert (u == rate).all()
        assert float((ids == MASK).double().mean()) == pytest.approx(float(rate), abs=0.1)


def test_top_probability_tells_the_mean_mask_rate_of_the_next_reveal():
    model = AlwaysSays([4] * 4)
    batch = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=4)(unconditional_examples(1))
    build(MDLMTopProbabilityPredictor, model).predict(batch)
    assert [float(u) for u in model.mask_rates] == pytest.approx([4 / 5, 3 / 5, 2 / 5, 1 / 5])


@pytest.mark.parametrize("cls", CLASSES)
def test_the_trace_replays_from_the_template_to_the_answer(cls):
    examples = infill_examples([3, 10, 5, 1])
    predictor, batch = build(cls, trace=True), TEMPLATES(examples)
    predictions = predictor.predict(batch)
    for i, row in enumerate(predictor.to_dict(batch, predictions)):
        start = batch["input_ids"][i, : predictions["lengths"][i]].tolist()
        states = list(replay(row["trace"], start))
        assert states[-1] == row["ids"]
        assert len(states) == 1 + row["n_calls"] or cls is MDLMReMDMPredictor
        assert all(0 < event["probability"] <= 1 for event in row["trace"])


def test_a_trace_counts_positions_from_the_first_token_of_the_prompt():
    predictor = build(MDLMFirstHittingPredictor, trace=True)
    examples = seq2seq_examples([1, 6], [1, 1])
    traces = [row["trace"] for row in (lambda b: predictor.to_dict(b, predictor.predict(b)))(PROMPTED(examples))]
    assert sorted(event["position"] for event in traces[0]) == [1, 2, 3, 4, 5]
    assert sorted(event["position"] for event in traces[1]) == [6, 7, 8, 9, 10]
    assert "trace" not in build(MDLMFirstHittingPredictor).predict(PROMPTED(examples))


def test_another_key_gives_another_sample():
    collate = MDLMUnconditionalCollator(tokenizer=TOKENIZER, max_length=8)
    same_key = [{"index": i, "position": i, "noise_key": noise_key(0, 1, 7)} for i in range(2)]
    ids = build(MDLMFirstHittingPredictor).fill(collate(same_key), None)[0]
    assert ids[0].tolist() == ids[1].tolist()
    others = build(MDLMFirstHittingPredictor).fill(collate(unconditional_examples(2)), None)[0]
    assert others[0].tolist() != others[1].tolist()


REFUSED: list[tuple[type[MDLMPredictor], str, Any]] = [
    (MDLMAncestralPredictor, "steps", 0),
    (MDLMReMDMPredictor, "steps", 0),
    (MDLMReMDMPredictor, "eta", -0.1),
    (MDLMReMDMPredictor, "eta", 1.1),
    (MDLMTopProbabilityPredictor, "gumbel", -1.0),
    (MDLMTopProbabilityPredictor, "block_length", 0),
    (MDLMTopProbabilityPredictor, "tokens_per_step", 0),
    (MDLMTopProbabilityPredictor, "threshold", 2.0),
    (MDLMTopProbabilityPredictor, "factor", -1.0),
    *(
        (cls, name, value)
        for cls in CLASSES
        for name, value in (
            ("temperature", -1.0),
            ("top_p", 0.0),
            ("top_k", 0),
            ("min_new_tokens", -1),
            ("stop", ""),
            ("guidance", -1.0),
        )
    ),
]


@pytest.mark.parametrize(("cls", "name", "value"), REFUSED)
def test_an_option_outside_its_range_is_refused_by_its_key(cls: Callable[..., Any], name: str, value: Any):
    with pytest.raises(UserError, match=rf"predictor\.{name}\b"):
        build(cls, AlwaysSays([4]), **{name: value})


@pytest.mark.parametrize(
    ("cls", "options", "label"),
    [
        (MDLMFirstHittingPredictor, {}, "exact: the reverse process"),
        (MDLMAncestralPredictor, {}, "exact for T steps: "),
        (MDLMReMDMPredictor, {"strategy": "rescale", "eta": 0.5}, "exact for T steps: "),
        (MDLMReMDMPredictor, {"strategy": "confidence"}, "approximate: "),
        (MDLMTopProbabilityPredictor, {"threshold": 0.9, "block_length": 4}, "exact: a law of its own"),
        (MDLMTopProbabilityPredictor, {"order": "random"}, "exact: the mean of the chain rule over all orders$"),
        (MDLMTopProbabilityPredictor, {"order": "random", "block_length": 4}, "exact: .* blocks"),
        (MDLMTopProbabilityPredictor, {"order": "random", "tokens_per_step": 2}, "approximate: "),
        (MDLMTopProbabilityPredictor, {"gumbel": 0.5}, "approximate: "),
    ],
)
def test_every_sampler_says_its_law(cls, options, label):
    assert re.match(label, build(cls, AlwaysSays([4]), **options).law)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_sampler_gives_back_its_schedule(cls):
    schedule = CosineSchedule()
    options = {} if cls is MDLMTopProbabilityPredictor else {"noise_schedule": schedule}
    assert build(cls, AlwaysSays([4]), **options).noise_schedule is (schedule if options else None)
