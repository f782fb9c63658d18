from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close
from xlm.nn.rotary import rotary_table, rotate


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


def test_first_pair_turns_by_one_radian_a_position_and_the_next_by_base_to_minus_half():
    x = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64).expand(1, 1, 1, 4)
    turned = rotate(x, rotary_table(torch.tensor([[3]]), head_dim=4, base=10000.0)).flatten()
    expected = [math.cos(3), math.cos(0.03), math.sin(3), math.sin(0.03)]  # pairs (0, 2) and (1, 3)
    assert_close(turned, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)


def test_products_of_queries_and_keys_depend_on_distance_only():
    q, k = torch.randn(2, 1, 2, 6, 8, dtype=torch.float64)
    near, far = (rotary_table(torch.arange(6)[None] + start, 8) for start in (0, 1000))
    products = [rotate(q, table) @ rotate(k, table).mT for table in (near, far)]
    assert_close(*products, atol=1e-3, rtol=0)  # the angles are fp32, off by 1e-4 at position 1000


def test_every_row_is_turned_by_its_own_positions():
    x, positions = torch.randn(2, 3, 4, 8), torch.tensor([[0, 1, 2, 3], [7, 5, 0, 2]])
    for row in range(2):
        alone = rotate(x[row : row + 1], rotary_table(positions[row : row + 1], 8))
        assert_close(rotate(x, rotary_table(positions, 8))[row : row + 1], alone)


def test_bfloat16_states_stay_bfloat16():
    x = torch.randn(1, 2, 3, 8)
    table = rotary_table(torch.arange(3)[None], 8)
    low = rotate(x.bfloat16(), table)
    assert low.dtype == torch.bfloat16
    assert_close(low.float(), rotate(x, table), atol=0.03, rtol=0.02)


def test_gradient_of_the_rotation_equals_finite_differences():
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    table = rotary_table(torch.tensor([[0, 5, 9]]), 4)
    assert torch.autograd.gradcheck(lambda x: rotate(x, table), (x,))
    assert torch.autograd.gradgradcheck(lambda x: rotate(x, table), (x,))
