"""Laws of answers, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from xlm.testing.answers import answers_have_law, causal_law, filtered, n_differences

EOS, A, B = 0, 1, 2


def predictions(*answers):
    lengths = [len(ids) for ids in answers]
    ids = [[*ids, *[9] * (max(lengths) - len(ids))] for ids in answers]
    return {"ids": torch.tensor(ids), "lengths": torch.tensor(lengths), "n_calls": torch.tensor(lengths)}


def test_answers_of_a_law_have_it_and_of_another_one_do_not():
    law = {(): 0.5, (A,): 0.25, (A, B): 0.25}
    drawn = predictions(*[()] * 500, *[(A,)] * 250, *[(A, B)] * 250)
    assert answers_have_law(drawn, law).passed
    assert not answers_have_law(drawn, {(): 0.4, (A,): 0.35, (A, B): 0.25}).passed


def test_an_answer_of_no_law_is_impossible():
    assert answers_have_law(predictions((A,), (B,)), {(A,): 1.0}).error == math.inf


def test_rows_have_their_laws_in_turn():
    a, b = {(A,): 1.0}, {(B,): 1.0}
    assert answers_have_law(predictions(*[(A,), (B,)] * 50), a, b).passed
    assert answers_have_law(predictions(*[(A,), (B,)] * 50), b, a).error == math.inf


class Coin(nn.Module):
    """Ends with probability 1/2, and otherwise says a (1/4) or b (1/4); a fourth token is as probable as EOS."""

    def forward(self, ids):
        return torch.tensor([0.5, 0.25, 0.25, 0.5]).log().expand(*ids.shape, 4)


def test_a_causal_law_is_the_product_of_its_steps():
    law = causal_law(Coin(), [A], eos_id=EOS, never=[3], most=2)
    assert law == pytest.approx({(): 0.5, (A,): 0.125, (B,): 0.125, **{(i, j): 1 / 16 for i in (A, B) for j in (A, B)}})


def test_a_causal_law_may_choose_and_end_otherwise():
    def never_end(logits, answer):
        return logits.index_fill(0, torch.tensor(EOS), -math.inf).softmax(0)

    law = causal_law(Coin(), [A], eos_id=EOS, never=[3], most=3, choose=never_end, ends=lambda ids: ids[-1] == B)
    assert law == pytest.approx({(B,): 0.5, (A, B): 0.25, (A, A, B): 0.125, (A, A, A): 0.125})


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0.4, 0.1, 0.3, 0.2]),
        ({"temperature": 0.0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [16 / 30, 1 / 30, 9 / 30, 4 / 30]),
        ({"top_k": 2}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.65}, [4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.75}, [4 / 9, 0, 3 / 9, 2 / 9]),
        ({"min_p": 0.45}, [4 / 9, 0, 3 / 9, 2 / 9]),
        ({"top_k": 2, "top_p": 0.55}, [1, 0, 0, 0]),  # 4/7 of what top_k leaves
    ],
    ids=str,
)
def test_filters_keep_what_they_promise(options, kept):
    p = filtered(torch.tensor([0.4, 0.1, 0.3, 0.2]).log(), **options)
    torch.testing.assert_close(p, torch.tensor(kept, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_differences_are_counted_over_tensors_and_shapes():
    left = {"ids": torch.tensor([1, 2, 3]), "mask": None, "n": 3}
    assert n_differences(left, {**left, "n": 4}) == 0
    assert n_differences(left, {**left, "ids": torch.tensor([1, 0, 0])}) == 2
    assert n_differences(left, {**left, "ids": torch.tensor([1, 2])}) == 3
