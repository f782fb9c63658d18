"""The sampler against the law it claims, by enumeration (20,000 draws, chi-square)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from xlm.noise import Stream, noise_keys
from xlm.sampling import TokenFilter
from xlm.testing.factories import tiny_tokenizer
from xlm.testing.insertion import ExactInserter, InconsistentInserter, n_texts, random_text_table
from xlm.testing.insertion_laws import insertion_law
from xlm.testing.laws import chi_square
from xlm_ilm.predictor import ILMPredictor
from xlm_ilm.types import ILMPredictionBatch

TOKENIZER = tiny_tokenizer(n_letters=4)
BOS, EOS, A, B, C = 2, 3, 4, 5, 6
VOCAB = 8
DRAWS, FEWER = 20_000, 4_000
LEAST_P = 1e-3

LAWS: list[dict[str, Any]] = [
    {},
    {"top_k": 1000, "min_p": 0.0, "top_p": 1.0, "temperature": 1.0},
    {"draw": "two_stage"},
    {"draw": "two_stage", "top_k": 1000, "gap_top_k": 1000, "gap_top_p": 1.0, "gap_min_p": 0.0, "gap_temperature": 1.0},
]
"""The model's own law: without filters, and with filters that keep everything."""


def exact() -> ExactInserter:
    return ExactInserter(random_text_table(2, 4), token_ids=[A, B], vocab_size=VOCAB)


def inconsistent(length: int = 3, token_ids: tuple[int, ...] = (A, B)) -> InconsistentInserter:
    return InconsistentInserter(token_ids=token_ids, vocab_size=VOCAB, length=length)


def begin(
    ids: list[int], span: list[int], room: list[int], *, free: bool, n: int = DRAWS, whole: bool = False
) -> ILMPredictionBatch:
    index = torch.arange(n)
    ids, span, room = (torch.tensor([values]).repeat(n, 1) for values in ([BOS, *ids], span, room))
    return {
        "input_ids": ids,
        "attention_mask": None,
        "room": room,
        "span": span,
        "free": torch.full((n,), free),
        "prompt_lengths": torch.full((n,), 0 if whole else ids.shape[1] - 1),
        "whole": torch.full((n,), whole),
        "index": index,
        "noise_key": noise_keys(0, Stream.SAMPLE, index),
    }


def p_value(model: Any, batch: ILMPredictionBatch, law: dict[tuple[int, ...], float], **options: Any) -> float:
    """Of the rows drawn, their BOS and prompt included, under a law of whole rows."""
    predictions = ILMPredictor(model=model, tokenizer=TOKENIZER, **options).predict(batch)
    given = batch["input_ids"][0, : 1 + int(batch["prompt_lengths"][0])].tolist()
    number = {ids: i for i, ids in enumerate(law)}
    pairs = zip(predictions["ids"].tolist(), predictions["lengths"].tolist(), strict=True)
    drawn = torch.tensor([number[*given, *ids[:n]] for ids, n in pairs])
    counts = torch.bincount(drawn, minlength=len(law))
    return chi_square(counts, torch.tensor(list(law.values()), dtype=torch.float64))


@pytest.mark.parametrize("options", LAWS, ids=str)
def test_samples_of_the_exact_network_follow_its_table(options):
    model = exact()
    predictor = ILMPredictor(model=model, tokenizer=TOKENIZER, **options)
    predictions = predictor.predict(begin([], [0], [4], free=True))
    assert chi_square(model.count(predictions["ids"], predictions["lengths"]), model.table) > LEAST_P
    assert predictor.law.startswith("exact") == (options in (LAWS[0], LAWS[2]))


@pytest.mark.parametrize("options", LAWS, ids=str)
def test_samples_of_an_inconsistent_network_follow_the_recursion_over_texts(options):
    model = inconsistent()
    law = insertion_law(model, [BOS], span=[0], room=[3], free=True)
    assert p_value(model, begin([], [0], [3], free=True), law, **options) > LEAST_P


def test_a_law_of_other_logits_is_told_apart():
    model = inconsistent()
    law = insertion_law(model, [BOS], span=[0], room=[3], free=False)
    assert p_value(model, begin([], [0], [3], free=False), law) > LEAST_P
    model.insert_logits.data[0, 0, 0] += 1.0
    assert p_value(model, begin([], [0], [3], free=False), law) < 1e-9


def test_windows_have_their_length_and_follow_the_table_of_windows():
    table = random_text_table(2, 4)
    table[: n_texts(2, 3)] = 0
    model = ExactInserter(table / table.sum(), token_ids=[A, B], vocab_size=VOCAB)
    predictions = ILMPredictor(model=model, tokenizer=TOKENIZER).predict(begin([], [0], [4], free=False))
    assert (predictions["lengths"] == 4).all()
    assert chi_square(model.count(predictions["ids"], predictions["lengths"]), model.table) > LEAST_P


@pytest.mark.parametrize("options", LAWS[:1] + LAWS[3:], ids=str)
def test_templates_of_fixed_room_follow_their_own_law(options):
    model = inconsistent(length=5)
    span, room = [0, -1, 2], [2, 0, 1]  # two before the first token, none between, one at the end
    law = insertion_law(model, [BOS, A, B], span=span, room=room, free=False)
    assert set(map(len, law)) == {6}
    assert p_value(model, begin([A, B], span, room, free=False, whole=True), law, **options) > LEAST_P


@pytest.mark.parametrize(("span", "room"), [([-1, 0, -1], [0, 2, 0]), ([0, -1, 0], [2, 0, 2])], ids=["one", "two"])
def test_gaps_of_free_length_share_their_room_and_follow_their_own_law(span, room):
    model = inconsistent(length=5)
    law = insertion_law(model, [BOS, A, B], span=span, room=room, free=True)
    assert max(map(len, law)) == 5
    assert p_value(model, begin([A, B], span, room, free=True, whole=True), law) > LEAST_P


def test_answers_follow_the_law_after_their_prompt():
    model = inconsistent(length=4)
    law = insertion_law(model, [BOS, B, A], span=[-1, -1, 0], room=[0, 0, 2], free=True)
    assert p_value(model, begin([B, A], [-1, -1, 0], [0, 0, 2], free=True), law) > LEAST_P


def test_eos_is_not_inserted_where_the_length_is_free():
    model = inconsistent(token_ids=(EOS, A, B))
    law = insertion_law(model, [BOS], span=[0], room=[2], free=True, never=[EOS])
    assert p_value(model, begin([], [0], [2], free=True), law) > LEAST_P
    assert p_value(model, begin([], [0], [2], free=True), law, top_k=1000) > LEAST_P


def test_in_windows_eos_is_a_token_like_others():
    model = inconsistent(token_ids=(EOS, A, B))
    law = insertion_law(model, [BOS], span=[0], room=[2], free=False)
    assert any(EOS in ids for ids in law)
    assert p_value(model, begin([], [0], [2], free=False), law) > LEAST_P


def test_rows_of_free_and_of_given_length_share_a_batch():
    model = inconsistent(token_ids=(EOS, A, B))
    free, given = begin([], [0], [2], free=True, n=200), begin([], [0], [2], free=False, n=200)
    both: Any = {
        name: None if free[name] is None else torch.cat([free[name], given[name]])  # type: ignore[literal-required]
        for name in free
    }
    for options in ({}, {"top_k": 1000}):
        predictor = ILMPredictor(model=model, tokenizer=TOKENIZER, **options)
        together, alone = predictor.predict(both), [predictor.predict(batch) for batch in (free, given)]
        assert together["lengths"].tolist() == [n for part in alone for n in part["lengths"].tolist()]
        assert torch.equal(together["ids"], torch.cat([part["ids"] for part in alone]))


@pytest.mark.parametrize(
    "filters",
    [
        {"temperature": 0.5},
        {"top_k": 2},
        {"top_p": 0.7},
        {"min_p": 0.5},
        {"temperature": 2.0, "top_k": 3, "top_p": 0.9, "min_p": 0.3},
    ],
    ids=str,
)
def test_a_joint_draw_filters_pairs(filters):
    model = inconsistent()

    def pairs(logits):
        return TokenFilter(**filters)(logits.flatten()).softmax(0).reshape(logits.shape)

    law = insertion_law(model, [BOS], span=[0], room=[3], free=True, pairs=pairs)
    predictor = ILMPredictor(model=model, tokenizer=TOKENIZER, **filters)
    assert "filtered pairs" in predictor.law
    assert p_value(model, begin([], [0], [3], free=True, n=FEWER), law, **filters) > LEAST_P


@pytest.mark.parametrize(
    ("tokens", "gaps"),
    [
        ({"temperature": 0.5}, {}),
        ({"top_k": 1}, {}),
        ({}, {"temperature": 0.5}),
        ({}, {"temperature": 0.0}),
        ({}, {"top_k": 1}),
        ({}, {"top_p": 0.4}),
        ({}, {"min_p": 0.7}),
        ({"top_p": 0.8}, {"top_k": 2, "temperature": 3.0}),
    ],
    ids=str,
)
def test_a_two_stage_draw_filters_gaps_and_then_tokens(tokens, gaps):
    model = inconsistent()

    def pairs(logits):
        gap = TokenFilter(**gaps)(logits.logsumexp(-1)).softmax(-1)
        return gap[:, None] * TokenFilter(**tokens)(logits).softmax(-1)

    law = insertion_law(model, [BOS], span=[0], room=[3], free=True, pairs=pairs)
    options = {"draw": "two_stage", **tokens, **{f"gap_{name}": value for name, value in gaps.items()}}
    assert p_value(model, begin([], [0], [3], free=True, n=FEWER), law, **options) > LEAST_P


@pytest.mark.parametrize("threshold", [0.7, 0.8])
def test_a_threshold_stops_as_soon_as_the_stop_head_reaches_it(threshold):
    model = inconsistent()
    law = insertion_law(model, [BOS], span=[0], room=[3], free=True, stops=lambda p: float(p >= threshold))
    options: dict[str, Any] = {"stop_rule": "threshold", "stop_threshold": threshold}
    assert p_value(model, begin([], [0], [3], free=True, n=FEWER), law, **options) > LEAST_P
    assert f"p_stop >= {threshold}" in ILMPredictor(model=model, tokenizer=TOKENIZER, **options).law


def test_with_min_new_tokens_no_text_stops_before():
    model = inconsistent()
    patient = copy.deepcopy(model)
    patient.stop_logits.data[: n_texts(2, 1)] = -1e4
    law = insertion_law(patient, [BOS], span=[0], room=[3], free=True)
    assert p_value(model, begin([], [0], [3], free=True, n=FEWER), law, min_new_tokens=2) > LEAST_P


def test_with_max_new_tokens_texts_end_there():
    model = inconsistent()
    law = insertion_law(model, [BOS], span=[0], room=[2], free=True)
    assert p_value(model, begin([], [0], [3], free=True, n=FEWER), law, max_new_tokens=2) > LEAST_P


def test_far_gaps_are_filled_in_one_call_each_by_its_own_softmax():
    model = inconsistent(length=5)
    span, room, ids = [0, -1, -1, 1], [1, 0, 0, 1], [A, B, A]
    with torch.no_grad():
        logits = model(torch.tensor([[BOS, *ids]]))[0, [0, 3]].double()
    first = logits.softmax(-1)
    law = {(BOS, a, *ids, b): float(first[0, a] * first[1, b]) for a in (A, B) for b in (A, B)}
    options: dict[str, Any] = {"tokens_per_step": 2, "gap_distance": 3}
    batch = begin(ids, span, room, free=False, whole=True)
    assert p_value(model, batch, law, **options) > LEAST_P
    sequential = insertion_law(model, [BOS, *ids], span=span, room=room, free=False)
    assert p_value(model, batch, sequential, **{**options, "gap_distance": 4}) > LEAST_P
    assert p_value(model, batch, sequential, **options) < 1e-9
    assert "2 insertions a call" in ILMPredictor(model=model, tokenizer=TOKENIZER, **options).law


class Rounded(torch.nn.Module):
    """Says what another network says, in a coarser type."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype, self.max_length = model, dtype, model.max_length
        self.head = copy.deepcopy(model.head).to(dtype)

    def read(self, *args: Any, **options: Any) -> Any:
        return tuple(values.to(torch.bfloat16).to(self.dtype) for values in self.model.read(*args, **options))


@pytest.mark.parametrize("options", LAWS[:2], ids=str)
def test_draws_from_bf16_have_the_law_of_the_same_numbers_in_fp64(options):
    model = inconsistent()
    law = insertion_law(Rounded(model, torch.float64), [BOS], span=[0], room=[3], free=True)
    assert p_value(Rounded(model, torch.bfloat16), begin([], [0], [3], free=True), law, **options) > LEAST_P
