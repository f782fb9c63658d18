from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from xlm.nn.blocks import MLP, AdaLNBlock, Block, LayerNorm, TimeEmbedding, depth_scaled_init
from xlm.nn.rotary import rotary_table

ROTARY = rotary_table(torch.arange(5)[None], 8)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)


def test_layer_norm_divides_by_the_deviation_in_every_dtype():
    x = torch.tensor([1.0, 5.0, 1.0, 5.0])  # mean 3, deviation 2
    assert_close(LayerNorm(4)(x), torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    small = torch.tensor([-0.01, 0.01, -0.01, 0.01], dtype=torch.bfloat16)  # 1e-4 squared: an eps of 1e-5 would show
    assert_close(LayerNorm(4).bfloat16()(small).abs(), torch.ones(4, dtype=torch.bfloat16), atol=0.01, rtol=0.01)


def test_a_layer_has_twelve_d_squared_weights_unless_told_otherwise():
    matrices = sum(p.numel() for p in Block(16, 2).parameters() if p.ndim == 2)
    assert matrices == 12 * 16**2
    assert MLP(16, 24).up.weight.shape == (24, 16)


def test_block_adds_both_branches_to_the_residual_stream():
    block, x = Block(16, 2), torch.randn(2, 5, 16)
    middle = x + block.attention(block.attention_norm(x), ROTARY, causal=True)
    assert_close(block(x, ROTARY, causal=True), middle + block.mlp(block.mlp_norm(middle)))


def test_block_hides_what_its_mask_hides():
    block, x = Block(16, 2), torch.randn(1, 5, 16)
    mask = torch.tensor([True, True, True, True, False])[None, None, None]
    changed = x.clone()
    changed[:, 4, 0] += 1
    assert_close(block(x, ROTARY, mask)[:, :4], block(changed, ROTARY, mask)[:, :4])
    assert not torch.allclose(block(x, ROTARY)[:, :4], block(changed, ROTARY)[:, :4])


@pytest.mark.parametrize("make", [lambda p: Block(16, 2, dropout=p), lambda p: AdaLNBlock(16, 2, 4, dropout=p)])
def test_with_all_of_both_branches_dropped_only_the_residual_stream_is_left(make):
    block, x, condition = make(1.0), torch.randn(2, 5, 16), torch.randn(2, 4)
    if isinstance(block, AdaLNBlock):
        nn.init.normal_(block.modulation.weight)
        assert_close(block(x, condition, ROTARY), x)
    else:
        assert_close(block(x, ROTARY), x)


def test_conditioned_block_begins_as_the_identity():
    x = torch.randn(2, 5, 16)
    assert_close(AdaLNBlock(16, 2, 4)(x, torch.randn(2, 4), ROTARY), x)


def test_conditioned_block_equals_the_formula_with_each_of_its_six_parts():
    block, x, condition = AdaLNBlock(16, 2, 4), torch.randn(2, 5, 16), torch.randn(2, 4)
    nn.init.normal_(block.modulation.weight)
    nn.init.normal_(block.modulation.bias)
    parts = (condition @ block.modulation.weight.T + block.modulation.bias).reshape(2, 6, 1, 16)
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts.unbind(1)

    def norm(y: torch.Tensor) -> torch.Tensor:
        return (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()

    middle = x + gate * block.attention(norm(x) * (1 + scale) + shift, ROTARY, causal=True)
    expected = middle + mlp_gate * block.mlp(norm(middle) * (1 + mlp_scale) + mlp_shift)
    assert_close(block(x, condition, ROTARY, causal=True), expected)


def test_conditioned_block_learns_from_its_first_step():
    block = AdaLNBlock(16, 2, 4)
    block(torch.randn(2, 5, 16), torch.randn(2, 4), ROTARY).pow(2).sum().backward()
    assert block.modulation.weight.grad is not None
    assert block.modulation.weight.grad.abs().sum() > 0


def test_time_embedding_tells_near_rates_apart_and_depends_on_its_row_only():
    embed = TimeEmbedding(8)
    u = torch.tensor([0.5, 0.501, 0.9], dtype=torch.float64)
    together = embed(u)
    assert together.dtype == torch.float32
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    assert_close(together[2:], embed(u[2:]))


def test_initial_weights_are_scaled_by_depth_where_branches_end_and_zero_where_blocks_are_gated():
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Embedding(50, 128), Block(128, 2), AdaLNBlock(128, 2, 128), TimeEmbedding(128)])
    depth_scaled_init(model, n_layers=8)
    block, conditioned, time = model[1], model[2], model[3]
    assert_close(model[0].weight.std().item(), 1.0, atol=0, rtol=0.03)
    for weight in (block.attention.qkv.weight, block.mlp.up.weight, time.first.weight):
        assert_close(weight.std().item(), math.sqrt(2 / (5 * weight.shape[1])), atol=0, rtol=0.03)
    for weight in (block.attention.out.weight, block.mlp.down.weight, conditioned.mlp.down.weight):
        assert_close(weight.std().item(), math.sqrt(2 / (5 * weight.shape[1]) / 16), atol=0, rtol=0.03)
    assert not conditioned.modulation.weight.any()
    assert not time.first.bias.any()


def test_an_embedding_that_is_also_the_head_is_drawn_as_a_matrix():
    model = nn.ModuleList([nn.Linear(64, 50, bias=False), nn.Embedding(50, 64)])
    model[0].weight = model[1].weight
    depth_scaled_init(model, n_layers=1)
    assert_close(model[1].weight.std().item(), math.sqrt(2 / (5 * 64)), atol=0, rtol=0.05)


def test_every_layer_gets_its_own_draw():
    model = nn.ModuleList(Block(16, 2) for _ in range(3))
    depth_scaled_init(model, n_layers=3)
    weights = [block.attention.qkv.weight for block in model]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
