"""Rows as every family writes them."""

from __future__ import annotations

import torch
from xlm.answers import json_rows
from xlm.testing.factories import tiny_tokenizer

TOKENIZER = tiny_tokenizer()  # a = 4, b = 5, ...


def rows(**trace):
    lengths = torch.tensor([2, 3])
    predictions = {"ids": torch.tensor([[4, 5, 0], [4, 5, 6]]), "lengths": lengths, "n_calls": lengths + 1, **trace}
    asked = {"prompts": ["p", "q"], "starts": [[2], [2, 7]], "stop": [("b",), ()]}
    return json_rows(TOKENIZER, torch.tensor([8, 9]), predictions, **asked)


def test_a_row_says_what_was_asked_and_answered_and_what_it_cost():
    assert rows() == [
        {"index": 8, "prompt": "p", "prediction": "a", "ids": [4, 5], "n_calls": 3},
        {"index": 9, "prompt": "q", "prediction": "abc", "ids": [4, 5, 6], "n_calls": 4},
    ]


def test_a_traced_row_has_its_start_and_its_own_events_without_its_place_in_the_batch():
    event = {"step": 0, "action": "append", "position": 2, "token": 4, "probability": 0.5}
    first, second = rows(trace=[{**event, "row": 1}])
    assert (first["start_ids"], first["trace"]) == ([2], [])
    assert (second["start_ids"], second["trace"]) == ([2, 7], [event])
