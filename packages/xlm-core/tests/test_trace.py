"""Recorded steps replay into the states that the sampler went through."""

from __future__ import annotations

import json

import torch
from xlm.trace import Trace, by_row, replay

MASK = 1


def record(trace, step, action, rows, positions, tokens):
    columns = (torch.tensor(column) for column in (rows, positions, tokens, [0.5] * len(rows)))
    trace.record(step, action, *columns)


def test_events_say_what_happened_where_and_how_probable_it_was():
    trace = Trace()
    trace.record(3, "reveal", torch.tensor([1]), torch.tensor([2]), torch.tensor([7]), torch.tensor([0.25]))
    assert trace.events() == [{"step": 3, "row": 1, "action": "reveal", "position": 2, "token": 7, "probability": 0.25}]


def test_an_unmasking_with_remasking_is_replayed_step_by_step():
    trace = Trace()
    record(trace, 0, "reveal", [0, 0, 1], [0, 2, 1], [5, 6, 7])
    record(trace, 1, "remask", [0], [2], [MASK])
    record(trace, 1, "reveal", [0], [1], [4])
    first, second = by_row(trace.events(), 2)
    assert list(replay(first, [MASK] * 3)) == [[1, 1, 1], [5, 1, 6], [5, 4, 1]]
    assert list(replay(second, [MASK] * 3)) == [[1, 1, 1], [1, 7, 1]]


def test_appended_and_inserted_tokens_make_room_in_the_order_of_events():
    trace = Trace()
    record(trace, 0, "append", [0], [1], [5])
    record(trace, 1, "insert", [0, 0], [1, 3], [6, 7])
    assert list(replay(trace.events(), [2])) == [[2], [2, 5], [2, 6, 5, 7]]


def test_replay_copies_its_states():
    start = [MASK, MASK]
    states = list(replay([{"step": 0, "row": 0, "action": "reveal", "position": 0, "token": 5}], start))
    assert start == [MASK, MASK]
    assert states[0] is not states[1]


def test_events_are_json_and_large_ids_survive():
    trace = Trace()
    record(trace, 0, "append", [0], [0], [2**31 + 1])
    assert json.loads(json.dumps(trace.events()))[0]["token"] == 2**31 + 1
