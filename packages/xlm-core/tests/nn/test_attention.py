from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close
from xlm.errors import UserError
from xlm.nn import attention as attention_module
from xlm.nn.attention import KVCache, SelfAttention, attention_mask
from xlm.nn.rotary import rotary_table

D_MODEL, N_HEADS, HEAD_DIM = 32, 4, 8


def table(positions: torch.Tensor):
    return rotary_table(positions, HEAD_DIM)


def counted(seq: int, start: int = 0):
    return table(torch.arange(start, start + seq)[None])


@pytest.fixture
def attention() -> SelfAttention:
    torch.manual_seed(0)
    return SelfAttention(D_MODEL, N_HEADS).double()


def states(batch: int, seq: int) -> torch.Tensor:
    return torch.randn(batch, seq, D_MODEL, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# Who sees whom


def test_no_mask_is_built_when_nothing_but_causality_hides():
    assert attention_mask(None, causal=False) is None
    assert attention_mask(None, causal=True) is None


def test_mask_of_a_padded_and_packed_causal_window_written_out():
    padding = torch.tensor([[True, True, True, True, False]])
    segments = torch.tensor([[0, 0, 1, 1, 1]])
    mask = attention_mask(padding, causal=True, segments=segments)
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert_close(mask, torch.tensor(expected, dtype=torch.bool)[None, None])


def test_without_causality_segments_are_blocks_and_padding_a_row_of_keys():
    segments = torch.tensor([[0, 0, 1]])
    blocks = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    assert_close(attention_mask(None, causal=False, segments=segments), blocks[None, None])
    padding = torch.tensor([[False, True, True]])
    assert_close(attention_mask(padding, causal=False), padding[None, None])


@pytest.mark.parametrize("causal", [False, True])
def test_every_position_of_a_row_that_is_all_padding_sees_something(causal: bool):
    mask = attention_mask(torch.tensor([[False, False], [True, True]]), causal=causal)
    assert mask is not None
    assert mask.any(-1).all()


@pytest.mark.parametrize("causal", [False, True])
def test_packed_documents_equal_separate_ones(attention: SelfAttention, causal: bool):
    x, lengths = states(1, 9), [4, 5]
    segments = torch.tensor([[0] * 4 + [1] * 5])
    mask = attention_mask(None, causal=causal, segments=segments)
    restarted = torch.cat([torch.arange(n) for n in lengths])[None]
    packed = attention(x, table(restarted), mask, causal=causal)
    separate = [attention(part, counted(part.shape[1]), causal=causal) for part in x.split(lengths, dim=1)]
    assert_close(packed, torch.cat(separate, dim=1), atol=1e-10, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
def test_left_padding_equals_right_padding_equals_none(attention: SelfAttention, causal: bool):
    x, junk = states(1, 5), 100 * states(1, 3)
    alone = attention(x, counted(5), causal=causal)
    real = torch.ones(1, 5, dtype=torch.bool)
    right = attention_mask(F.pad(real, (0, 3)), causal=causal)
    left = attention_mask(F.pad(real, (3, 0)), causal=causal)
    from_right = attention(torch.cat((x, junk), 1), counted(8), right, causal=causal)[:, :5]
    left_positions = torch.tensor([[0, 0, 0, 0, 1, 2, 3, 4]])
    from_left = attention(torch.cat((junk, x), 1), table(left_positions), left, causal=causal)[:, 3:]
    assert_close(from_right, alone, atol=1e-10, rtol=0)
    assert_close(from_left, alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_sees_nothing_gives_finite_output_and_gradients(dtype: torch.dtype):
    attention = SelfAttention(D_MODEL, N_HEADS).to(dtype)
    x = states(2, 4).to(dtype).requires_grad_()
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    mask[0, 0, 1] = False
    out = attention(x, counted(4), mask)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


# Values


def test_attention_equals_the_formula(attention: SelfAttention):
    x = states(2, 5)
    identity = torch.ones(1, 1, 5, HEAD_DIM), torch.zeros(1, 1, 5, HEAD_DIM)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    heads = []
    for part in range(N_HEADS):
        at = slice(part * HEAD_DIM, (part + 1) * HEAD_DIM)
        scores = q[..., at] @ k[..., at].mT / HEAD_DIM**0.5
        scores = scores.masked_fill(torch.ones(5, 5).triu(1) == 1, -torch.inf)
        heads.append(scores.softmax(-1) @ v[..., at])
    expected = torch.cat(heads, dim=-1) @ attention.out.weight.T
    assert_close(attention(x, identity, causal=True), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("how", ["full", "causal", "mask"])
def test_plain_products_of_a_bf16_step_agree_with_the_fused_kernel(how: str, monkeypatch: pytest.MonkeyPatch):
    attention = SelfAttention(D_MODEL, N_HEADS)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1]])
    mask = attention_mask(None, causal=False, segments=segments) if how == "mask" else None

    def step() -> list[torch.Tensor]:
        x = states(2, 7).float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = attention(x, counted(7), mask, causal=how == "causal")
        return [out, *torch.autograd.grad(out.float().pow(2).sum(), (x, attention.qkv.weight))]

    plain = step()
    monkeypatch.setattr(attention_module, "PLAIN_LENGTH", 0)
    kernel = step()
    assert not torch.equal(plain[2], kernel[2])  # two ways indeed
    for ours, fused in zip(plain, kernel, strict=True):
        assert (ours - fused).norm() / fused.norm() < 0.02


def test_causal_attention_equals_llama():
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaConfig, LlamaRotaryEmbedding

    config = LlamaConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=4, attn_implementation="sdpa")
    theirs, ours = LlamaAttention(config, layer_idx=0).eval(), SelfAttention(64, 4)
    projections = (theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight)
    ours.load_state_dict({"qkv.weight": torch.cat(projections), "out.weight": theirs.o_proj.weight})
    x, positions = torch.randn(2, 33, 64), torch.arange(5, 38)[None].expand(2, 33)
    expected, _ = theirs(x, LlamaRotaryEmbedding(config)(x, positions))
    difference = ours(x, rotary_table(positions, 16, config.rope_parameters["rope_theta"]), causal=True) - expected
    assert difference.abs().max() < 1e-5


def test_full_attention_equals_modernbert():
    from transformers.models.modernbert.modeling_modernbert import (
        ModernBertAttention,
        ModernBertConfig,
        ModernBertRotaryEmbedding,
    )

    kind = "full_attention"
    config = ModernBertConfig(
        hidden_size=64, num_attention_heads=4, num_hidden_layers=1, layer_types=[kind], attn_implementation="sdpa"
    )
    theirs, ours = ModernBertAttention(config, layer_idx=0).eval(), SelfAttention(64, 4)
    ours.load_state_dict({"qkv.weight": theirs.Wqkv.weight, "out.weight": theirs.Wo.weight})
    x, positions = torch.randn(2, 33, 64), torch.arange(5, 38)[None].expand(2, 33)
    expected, _ = theirs(x, ModernBertRotaryEmbedding(config)(x, positions, kind))
    difference = ours(x, rotary_table(positions, 16, config.rope_parameters[kind]["rope_theta"])) - expected
    assert difference.abs().max() < 1e-5


# The cache


def cache_for(batch: int, length: int) -> KVCache:
    return KVCache(1, batch, N_HEADS, length, HEAD_DIM, torch.float64, "cpu")


@pytest.mark.parametrize("pieces", [[1, 1, 1, 1, 1, 1], [3, 1, 2], [6]])
def test_cached_decoding_equals_one_pass(attention: SelfAttention, pieces: list[int]):
    x, cache, out = states(2, 6), cache_for(2, 8), []
    for part in x.split(pieces, dim=1):
        start = cache.length
        out.append(attention(part, counted(part.shape[1], start), causal=True, cache=cache.layer(0)))
    assert cache.length == 6
    assert_close(torch.cat(out, dim=1), attention(x, counted(6), causal=True), atol=1e-10, rtol=0)


def test_cached_decoding_of_left_padded_rows_equals_each_row_alone(attention: SelfAttention):
    x, cache = states(2, 5), cache_for(2, 5)
    padding = torch.tensor([[False, False, True, True], [True, True, True, True]])
    positions = torch.tensor([[0, 0, 0, 1], [0, 1, 2, 3]])
    attention(x[:, :4], table(positions), attention_mask(padding, causal=True), causal=True, cache=cache.layer(0))
    seen = attention_mask(F.pad(padding, (0, 1), value=True), causal=False)
    last = attention(x[:, 4:], table(torch.tensor([[2], [4]])), seen, cache=cache.layer(0))
    for row, length in enumerate((3, 5)):
        alone = attention(x[row : row + 1, -length:], counted(length), causal=True)[:, -1:]
        assert_close(last[row : row + 1], alone, atol=1e-10, rtol=0)


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_rows_that_are_kept_go_on_as_if_the_others_had_never_been(attention: SelfAttention, rows: torch.Tensor):
    x, cache = states(3, 5), cache_for(3, 5)
    attention(x[:, :4], counted(4), causal=True, cache=cache.layer(0))
    cache.keep(rows)
    last = attention(x[rows, 4:], counted(1, 4), causal=True, cache=cache.layer(0))
    assert_close(last, attention(x, counted(5), causal=True)[rows, 4:], atol=1e-10, rtol=0)


def test_cache_storage_is_allocated_once(attention: SelfAttention):
    cache = cache_for(1, 4)
    before = cache.layer(0).keys.data_ptr()
    for start in range(4):
        attention(states(1, 1), counted(1, start), causal=True, cache=cache.layer(0))
    assert cache.layer(0).keys.data_ptr() == before


def test_a_full_cache_says_how_much_is_needed(attention: SelfAttention):
    with pytest.raises(ValueError, match="holds 4 positions, 5 are needed"):
        attention(states(1, 5), counted(5), causal=True, cache=cache_for(1, 4).layer(0))


# Options


def test_dropout_acts_in_training_only():
    attention, x = SelfAttention(D_MODEL, N_HEADS, dropout=0.5), states(1, 4).float()
    dropped = attention(x, counted(4)) == 0
    assert 0.25 < dropped.float().mean() < 0.75
    assert not (attention.eval()(x, counted(4)) == 0).any()


def test_heads_that_do_not_divide_the_width_are_refused_by_their_key():
    with pytest.raises(UserError, match=r"model\.n_heads \(5\)"):
        SelfAttention(32, 5)
