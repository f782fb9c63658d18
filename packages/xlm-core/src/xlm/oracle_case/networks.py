"""Layers, and losses by chunks of logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xlm.nn import attention, linear_cross_entropy, linear_logsumexp, rotary
from xlm.oracle_case.parts import normal
from xlm.testing import oracles
from xlm.testing.gradients import gradient_error
from xlm.testing.oracles import Measured

CROSS_ENTROPY = "cross-entropy by chunks is that of all logits"
HEAD_GRADIENT = "the gradient of cross-entropy by chunks is that of finite differences"
LOGSUMEXP = "log-sum-exp by chunks is that of all logits, and so is its gradient"
LLAMA = "causal attention with rotary positions is that of transformers' Llama"
CACHE = "attention with a cache is that without"


def measures() -> dict[str, Callable[[], Measured]]:
    """By the statement that each measures."""
    return {
        CROSS_ENTROPY: _cross_entropy,
        HEAD_GRADIENT: _cross_entropy_gradient,
        LOGSUMEXP: _logsumexp,
        LLAMA: _llama,
        CACHE: _cache,
    }


def _head() -> tuple[nn.Parameter, nn.Parameter, Tensor, Tensor]:
    """States, weight, targets and what is never generated; no target is that."""
    return nn.Parameter(normal(11, 6)), nn.Parameter(normal(9, 6)), torch.arange(11) % 7 + 2, torch.tensor([0, 1])


def _cross_entropy() -> Measured:
    states, weight, targets, suppressed = _head()
    _, costs = linear_cross_entropy.linear_cross_entropy(states, weight, targets, suppressed=suppressed, chunk=4)
    logits = (states @ weight.T).detach()
    logits[:, suppressed] = -math.inf
    return oracles.equal(costs, F.cross_entropy(logits, targets, reduction="none"))


def _cross_entropy_gradient() -> Measured:
    states, weight, targets, suppressed = _head()
    options: dict[str, Any] = {
        "row_weights": torch.arange(11, dtype=torch.float64),
        "suppressed": suppressed,
        "chunk": 4,
    }

    def loss() -> Tensor:
        total: Tensor = linear_cross_entropy.linear_cross_entropy(states, weight, targets, **options)[0]
        return total

    return Measured(gradient_error(loss, [states, weight]), 1e-6, "relative difference from finite differences")


def _logsumexp() -> Measured:
    states, weight, _, suppressed = _head()
    weights = torch.arange(1, 12, dtype=torch.float64)

    def total() -> Tensor:
        values: Tensor = linear_logsumexp.linear_logsumexp(states, weight, suppressed=suppressed, chunk=4)
        return (values * weights).sum()

    logits = (states @ weight.T).detach()
    logits[:, suppressed] = -math.inf
    apart = abs(float(total().detach() - (logits.logsumexp(1) * weights).sum()))
    return Measured(max(apart, gradient_error(total, [states, weight])), 1e-6, "difference, of value or gradient")


def _llama() -> Measured:
    """With its weights, in fp32."""
    llama: Any = import_module("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(hidden_size=32, num_attention_heads=2, num_key_value_heads=2, attn_implementation="sdpa")
    torch.manual_seed(0)
    theirs, ours = llama.LlamaAttention(config, layer_idx=0).eval(), attention.SelfAttention(32, 2).eval()
    qkv = torch.cat([theirs.q_proj.weight, theirs.k_proj.weight, theirs.v_proj.weight])
    ours.load_state_dict({"qkv.weight": qkv, "out.weight": theirs.o_proj.weight})
    x, places = normal(2, 9, 32).float(), torch.arange(3, 12)[None].expand(2, 9)
    mask = torch.full((9, 9), -math.inf).triu(1)[None, None]
    with torch.no_grad():
        expected, _ = theirs(x, llama.LlamaRotaryEmbedding(config)(x, places), attention_mask=mask)
        table = rotary.rotary_table(places, 16, config.rope_parameters["rope_theta"])
        return oracles.equal(ours(x, table, causal=True), expected, 1e-5)


def _cache() -> Measured:
    torch.manual_seed(0)
    layer, x = attention.SelfAttention(32, 2).double().eval(), normal(2, 6, 32)
    table = partial(rotary.rotary_table, head_dim=16)
    places = torch.arange(6)[None].expand(2, 6)
    cache = attention.KVCache(1, 2, 2, 6, 16, torch.float64, "cpu")
    with torch.no_grad():
        parts = [
            layer(x[:, i : i + 1], table(places[:, i : i + 1]), causal=True, cache=cache.layer(0)) for i in range(6)
        ]
        return oracles.equal(torch.cat(parts, 1), layer(x, table(places), causal=True), 1e-10)
