from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from xlm.data.padding import flat_indices, keys, pad, padding_mask, positions
from xlm.errors import UserError

ROWS = [[5], [1, 2, 3], []]


def test_rows_are_filled_on_the_right_up_to_the_longest():
    assert pad(ROWS, 9).tolist() == [[5, 9, 9], [1, 2, 3], [9, 9, 9]]


def test_rows_are_filled_on_the_left_where_asked():
    assert pad(ROWS, 9, side="left").tolist() == [[9, 9, 5], [1, 2, 3], [9, 9, 9]]


def test_rows_are_filled_up_to_a_given_length():
    assert pad([[1, 2]], 0, length=4).tolist() == [[1, 2, 0, 0]]


def test_equal_rows_of_any_integer_type_become_int64_and_own_their_memory():
    source = np.array([1, 2], dtype=np.int32)
    padded = pad([source, source], 0)
    padded += 1
    assert padded.dtype == torch.int64
    assert source.tolist() == [1, 2]


def test_no_rows_and_only_empty_rows_keep_their_shape():
    assert pad([], 0).shape == (0, 0)
    assert pad([[], []], 0).shape == (2, 0)
    assert pad([[], []], 7, length=2).tolist() == [[7, 7], [7, 7]]


def test_a_row_longer_than_the_length_is_named_with_both_lengths():
    with pytest.raises(UserError, match=r"3 tokens, 2 fit in datamodule\.max_length"):
        pad([[1, 2, 3]], 0, length=2)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_mask_is_true_exactly_where_pad_put_tokens(side):
    lengths = [len(row) for row in ROWS]
    assert torch.equal(padding_mask(lengths, 4, side), pad(ROWS, 0, side=side, length=4) > 0)
    assert torch.equal(padding_mask(torch.tensor(lengths), 4, side), padding_mask(np.array(lengths), 4, side))


def test_keys_and_positions_keep_all_63_bits():
    examples = [{"index": 3, "position": 7, "noise_key": 2**63 - 1}, {"index": 4, "position": 8, "noise_key": 0}]
    assert keys(examples)["noise_key"].tolist() == [2**63 - 1, 0]
    assert keys(examples)["index"].tolist() == [3, 4]
    assert positions(examples).tolist() == [7, 8]


def test_importing_padding_loads_neither_datasets_nor_transformers_nor_lightning():
    heavy = "{'datasets', 'transformers', 'tokenizers', 'lightning'}"
    code = f"import sys, xlm.data.padding; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_flat_indices_number_the_chosen_places_row_by_row():
    chosen = torch.tensor([[False, True, True], [True, False, False]])
    assert flat_indices(chosen).tolist() == [1, 2, 3]
    assert flat_indices(chosen.T).tolist() == [1, 2, 4]
