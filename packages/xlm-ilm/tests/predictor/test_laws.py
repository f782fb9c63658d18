"""The sampler with filters against the law it claims, by enumeration; without them: the oracle case."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from xlm.noise import Stream, noise_keys
from xlm.sampling import TokenFilter
from xlm.testing.answers import answers_have_law
from xlm.testing.factories import tiny_tokenizer
from xlm.testing.insertion import InconsistentInserter
from xlm.testing.insertion_laws import insertion_law
from xlm_ilm.predictor import ILMPredictor
from xlm_ilm.types import ILMPredictionBatch

TOKENIZER = tiny_tokenizer(n_letters=4)
BOS, EOS, A, B, C = 2, 3, 4, 5, 6
VOCAB = 8
DRAWS = 4_000


def inconsistent(token_ids: tuple[int, ...] = (A, B)) -> InconsistentInserter:
    return InconsistentInserter(token_ids=token_ids, vocab_size=VOCAB, length=3)


def begin(room: int, *, free: bool = True, n: int = DRAWS) -> ILMPredictionBatch:
    index = torch.arange(n)
    return {
        "input_ids": torch.full((n, 1), BOS),
        "attention_mask": None,
        "room": torch.full((n, 1), room),
        "span": torch.zeros(n, 1, dtype=torch.int64),
        "free": torch.full((n,), free),
        "prompt_lengths": torch.zeros(n, dtype=torch.int64),
        "whole": torch.full((n,), False),
        "index": index,
        "noise_key": noise_keys(0, Stream.SAMPLE, index),
    }


def has_law(model: Any, law: dict[tuple[int, ...], float], **options: Any) -> bool:
    """Whether texts of up to three letters have a law of rows with their BOS."""
    predictions = ILMPredictor(model=model, tokenizer=TOKENIZER, **options).predict(begin(3))
    return answers_have_law(predictions, {ids[1:]: p for ids, p in law.items()}).passed


def test_rows_of_free_and_of_given_length_share_a_batch():
    model = inconsistent(token_ids=(EOS, A, B))
    free, given = begin(2, n=200), begin(2, free=False, n=200)
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
    assert has_law(model, law, **filters)
    assert "filtered pairs" in ILMPredictor(model=model, tokenizer=TOKENIZER, **filters).law


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
    assert has_law(model, law, **options)


class Rounded(torch.nn.Module):
    """Says what another network says, in a coarser type."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype, self.max_length = model, dtype, model.max_length
        self.head = copy.deepcopy(model.head).to(dtype)

    def read(self, *args: Any, **options: Any) -> Any:
        return tuple(values.to(torch.bfloat16).to(self.dtype) for values in self.model.read(*args, **options))


def test_pairs_drawn_jointly_from_bf16_have_the_law_of_the_same_numbers_in_fp64():
    model = inconsistent()
    law = insertion_law(Rounded(model, torch.float64), [BOS], span=[0], room=[3], free=True)
    assert has_law(Rounded(model, torch.bfloat16), law, top_k=1000)
