from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Features, Value
from xlm.data.packing import Packed
from xlm.data.storage import Joined, Rows, write

TEXT = Features({"text": Value("string")})


def packed(texts: list[str]) -> Packed:
    ids = [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in texts]
    fixed = [row > 100 for row in ids]
    return Packed({"text": texts}, {"input_ids": ids, "fixed": fixed, "n_bytes": [len(row) for row in ids]})


def stored(path: Path, *batches: list[str]) -> Rows:
    write(path, [packed(batch) for batch in batches], TEXT)
    return Rows(path)


def fetch(rows: Rows | Joined, indices: list[int]):
    return rows.fetch(np.array(indices), np.array(indices) + 100, torch.tensor(indices) + 2**40)


@pytest.fixture
def rows(tmp_path):
    return stored(tmp_path / "rows.arrow", ["abc", ""], ["zd"], [f"{i}" for i in range(2000)])


def test_rows_come_back_in_any_order_with_their_keys(rows):
    last, first, empty = fetch(rows, [2002, 0, 1])
    assert last["input_ids"].tolist() == [*b"1999"]
    assert first["fixed"].tolist() == [False] * 3
    assert empty["input_ids"].tolist() == []
    assert (last["index"], last["position"], last["noise_key"]) == (2002, 2102, 2002 + 2**40)
    assert fetch(rows, [2])[0]["fixed"].tolist() == [True, False]


def test_text_and_bytes_come_back(rows):
    assert rows.text([2, 0]) == [{"text": "zd"}, {"text": "abc"}]
    assert rows.n_bytes([2, 0, 1]).tolist() == [2, 3, 0]


def test_rows_are_read_through_a_memory_map_and_travel_by_path(rows):
    assert not fetch(rows, [0])[0]["input_ids"].flags.owndata
    sent = pickle.dumps(rows)
    assert len(sent) < 1000
    assert fetch(pickle.loads(sent), [0])[0]["input_ids"].tolist() == [*b"abc"]


def test_joined_files_count_through_and_each_ends_at_its_size(tmp_path):
    one, two = stored(tmp_path / "1", ["a", "b", "c"]), stored(tmp_path / "2", ["x", "y"])
    found = fetch(Joined([one, two], [2, 2]), [3, 0, 2, 1])
    assert [bytes(row["input_ids"].astype(np.uint8)).decode() for row in found] == ["y", "a", "x", "b"]
    assert [row["index"] for row in found] == [3, 0, 2, 1]
    assert [row["position"] for row in found] == [103, 100, 102, 101]


def test_no_rows_make_no_file(tmp_path):
    assert write(tmp_path / "rows", [packed([])], TEXT) == 0
    assert not (tmp_path / "rows").exists()
