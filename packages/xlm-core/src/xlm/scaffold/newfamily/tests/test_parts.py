"""The contracts that every part keeps, whatever the idea."""

from __future__ import annotations

import pytest
import torch
from xlm.testing.contracts import (
    CollatorContract,
    LossContract,
    PackingContract,
    PredictionCollatorContract,
    PredictorContract,
)
from xlm.testing.factories import infill_examples, lm_examples, seq2seq_examples, unconditional_examples
from xlm.testing.masked import LENGTH
from xlm.testing.oracles import same

from xlm_newfamily import oracle_case

PARTS = oracle_case.parts()


def infill():
    return infill_examples([3, 8, 5], n_letters=4)


def pairs():
    return seq2seq_examples([3, 0, 1], [4, 1, 2], n_letters=4)


class TestModel(PackingContract):
    def model(self):
        return PARTS.network().float()


class TestWindows(CollatorContract):
    def collator(self):
        return PARTS.texts(8, "window")

    def examples(self):
        return lm_examples([8, 8, 8], n_letters=4)


class TestCanvases(CollatorContract):
    def collator(self):
        return PARTS.texts(8, "open")

    def examples(self):
        return lm_examples([3, 7, 5], n_letters=4)


class TestPairs(CollatorContract):
    def collator(self):
        return PARTS.pairs()

    def examples(self):
        return pairs()


class TestTemplates(CollatorContract):
    def collator(self):
        return PARTS.templates(8)

    def examples(self):
        return infill()


class TestPrompts(PredictionCollatorContract):
    def collator(self):
        return PARTS.prompts()

    def examples(self):
        return pairs()


class TestGaps(PredictionCollatorContract):
    def collator(self):
        return PARTS.gaps(8)

    def examples(self):
        return infill()


class TestEmptyCanvases(CollatorContract):
    def collator(self):
        return PARTS.canvases(8)

    def examples(self):
        return unconditional_examples(3)


class TestLoss(LossContract):
    def loss(self):
        return PARTS.loss(PARTS.network())

    def collator(self):
        return PARTS.pairs()

    def examples(self):
        return pairs()


class TestPredictor(PredictorContract):
    def predictor(self):
        return PARTS.predictor(PARTS.network())

    def collator(self):
        return PARTS.prompts()

    def examples(self):
        return pairs()

    def loss_collator(self):
        return PARTS.pairs()

    def loss_examples(self):
        return pairs()


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_each_filter_can_leave_the_most_probable_token_alone(options):
    batch = PARTS.canvases(LENGTH)(unconditional_examples(8))
    network = PARTS.network()
    drawn, greedy, filtered = (
        PARTS.predictor(network, **given).predict(batch)["ids"] for given in ({}, {"temperature": 0.0}, options)
    )
    assert torch.equal(filtered, greedy)
    assert not same(drawn, greedy)
