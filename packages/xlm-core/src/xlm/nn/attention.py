"""Self-attention on torch's fused kernels, its masks, and the cache for decoding one token at a time."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from xlm.errors import UserError
from xlm.nn.rotary import RotaryTable, rotate

PLAIN_LENGTH = 512
"""Longest keys which a bf16 training step on a CPU attends to by plain products: the backward pass of torch's fused CPU
kernel takes several times as long there, and the probabilities are still small beside the other activations."""

AttentionMask = Bool[Tensor, "#batch 1 #seq keys"]
"""True where a query may see a key."""


def attention_mask(
    padding: Bool[Tensor, "batch seq"] | None, *, causal: bool, segments: Int[Tensor, "batch seq"] | None = None
) -> Bool[Tensor, "batch 1 #seq seq"] | None:
    """Who sees whom; None when nothing but causality hides anything, which ``SelfAttention(causal=...)`` covers faster.

    Every position sees at least one key, itself if nothing else, so no kernel meets an empty softmax.

    Args:
        padding: True at real tokens.
        causal: Whether a position sees only itself and what stands before it.
        segments: Document number of every position of a packed window; documents do not see each other.
    """
    if padding is None and segments is None:
        return None
    if padding is not None and segments is None and not causal:
        return (padding | ~padding.any(-1, keepdim=True))[:, None, None, :]
    some = padding if padding is not None else segments
    assert some is not None
    seq = some.shape[1]
    visible = torch.ones(seq, seq, dtype=torch.bool, device=some.device)[None, None]
    if causal:
        visible = visible.tril()
    if segments is not None:
        visible = visible & (segments[:, None, :, None] == segments[:, None, None, :])
    if padding is not None:
        visible = visible & padding[:, None, None, :]
    return visible | torch.eye(seq, dtype=torch.bool, device=some.device)


class LayerCache:
    """Keys and values of one layer, in storage allocated once."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.length = keys, values, 0

    def append(
        self, k: Float[Tensor, "batch heads new head_dim"], v: Float[Tensor, "batch heads new head_dim"]
    ) -> tuple[Float[Tensor, "batch heads keys head_dim"], Float[Tensor, "batch heads keys head_dim"]]:
        """Store the new keys and values and return all of them, as views."""
        end = self.length + k.shape[2]
        if end > self.keys.shape[2]:
            raise ValueError(f"the cache holds {self.keys.shape[2]} positions, {end} are needed. Make it longer.")
        self.keys[:, :, self.length : end] = k
        self.values[:, :, self.length : end] = v
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def keep(self, rows: Int[Tensor, " rows"] | Bool[Tensor, " batch"]) -> None:
        """Keep only these rows of the batch, in this order."""
        self.keys, self.values = (self._kept(storage, rows) for storage in (self.keys, self.values))

    def _kept(self, storage: Tensor, rows: Tensor) -> Tensor:
        kept = storage[rows, :, : self.length]
        storage = storage[: len(kept)]
        storage[:, :, : self.length] = kept
        return storage


class KVCache:
    """Keys and values of every layer while decoding; ``dtype`` is the one in which the model computes attention."""

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_heads: int,
        max_length: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        shape = (batch, n_heads, max_length, head_dim)
        self.layers = [
            LayerCache(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))
            for _ in range(n_layers)
        ]

    @property
    def length(self) -> int:
        """Positions that every layer holds."""
        return self.layers[-1].length

    def layer(self, i: int) -> LayerCache:
        """The part of layer ``i``."""
        return self.layers[i]

    def keep(self, rows: Int[Tensor, " rows"] | Bool[Tensor, " batch"]) -> None:
        """Keep only these rows of the batch in every layer: finished rows leave."""
        for layer in self.layers:
            layer.keep(rows)


class SelfAttention(nn.Module):
    """Multi-head self-attention with rotary positions and bias-free projections; ``dropout`` acts on its output."""

    def __init__(self, d_model: int, n_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        if d_model % (2 * n_heads):
            raise UserError(
                f"must divide model.d_model ({d_model}) into heads of an even number of features",
                where="model.n_heads",
                value=n_heads,
                fix="use heads of 64 features: n_heads = d_model / 64",
            )
        self.n_heads = n_heads
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch seq d_model"],
        rotary: RotaryTable,
        mask: AttentionMask | None = None,
        *,
        causal: bool = False,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """Attend; ``causal`` counts only without a ``mask``, which says everything. With a cache, x is what is new."""
        d_model, heads = x.shape[-1], self.n_heads
        qk, v = self.qkv(x).split((2 * d_model, d_model), dim=-1)
        q, k = rotate(qk.unflatten(-1, (2 * heads, -1)).transpose(1, 2), rotary).chunk(2, dim=1)
        v = v.unflatten(-1, (heads, -1)).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(k, v)
        out: Tensor = self.dropout(self.out(_attend(q, k, v, mask, causal).transpose(1, 2).flatten(2)))
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v; the queries are the newest of the keys' positions."""
    queries, keys = q.shape[2], k.shape[2]
    plain = q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and keys <= PLAIN_LENGTH
    causal = causal and mask is None and queries > 1
    if causal and (plain or queries < keys):
        mask, causal = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries), False
    if not plain:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    with torch.autocast(q.device.type, enabled=False):
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return torch.matmul(scores.softmax(-1), v)
