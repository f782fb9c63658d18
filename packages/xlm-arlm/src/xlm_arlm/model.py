"""Causal transformer: GPT-2's layout (Radford et al., 2019) with rotary positions and no biases."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from xlm.errors import UserError
from xlm.nn.attention import KVCache
from xlm.nn.attention import attention_mask as visible
from xlm.nn.blocks import Block, LayerNorm, depth_scaled_init
from xlm.nn.rotary import rotary_table


class ARLMTransformer(nn.Module):
    """Predicts the next token at every position from the tokens up to it.

    Args:
        vocab_size: Ids of the tokenizer, control tokens included.
        max_length: Most tokens read, BOS included; collators and predictors keep to it.
        d_model: Features of a state.
        n_layers: Blocks.
        n_heads: Heads of each block.
        d_ff: Features inside the MLP; null is 4 x d_model.
        dropout: Probability of dropping a feature of a branch.
        tie_embeddings: Whether the head's weight is the embedding's.

    Example:
        >>> model = ARLMTransformer(vocab_size=12, max_length=16, d_model=32, n_layers=2, n_heads=2)
        >>> model(torch.tensor([[2, 4, 5]])).shape
        torch.Size([1, 3, 12])
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        max_length: int,
        d_model: int = 768,
        n_layers: int = 12,
        n_heads: int = 12,
        d_ff: int | None = None,
        dropout: float = 0.0,
        tie_embeddings: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise UserError("must lie in [0, 1)", where="model.dropout", value=dropout, fix="use 0.1, or 0 for none")
        self.max_length, self.n_heads, self.head_dim = max_length, n_heads, d_model // n_heads
        self.embed = nn.Embedding(vocab_size, d_model)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_ff, dropout) for _ in range(n_layers))
        self.norm = LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_embeddings:
            self.head.weight = self.embed.weight
        depth_scaled_init(self, n_layers)

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch keys"] | None = None,
        **kwargs: Any,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits of the next token at every position; keyword arguments as in ``hidden``."""
        logits: Tensor = self.head(self.hidden(input_ids, attention_mask, **kwargs))
        return logits

    def hidden(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch keys"] | None = None,
        *,
        positions: Int[Tensor, "#batch seq"] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """States from which ``head`` predicts the next token.

        Args:
            input_ids: Tokens; with a cache those that follow what it holds, and they are added to it.
            attention_mask: False at padding, tokens in the cache included. None: no token sees padding.
            positions: Place of each token in its text; None counts columns, those in the cache included.
            segments: Number of each token's document; tokens see their own document only.
            cache: Keys and values of the tokens before, from ``new_cache``.
        """
        seq, past = input_ids.shape[1], 0 if cache is None else cache.length
        if positions is None:
            positions = torch.arange(past, past + seq, device=input_ids.device)[None]
        rotary = rotary_table(positions, self.head_dim)
        causal = seq > 1  # a single new token sees everything before it
        mask = visible(attention_mask, causal=causal, segments=segments)
        if mask is not None:
            mask = mask[:, :, -seq:]
        x = self.dropout(self.embed(input_ids))
        for i, block in enumerate(self.blocks):
            x = block(x, rotary, mask, causal=causal, cache=None if cache is None else cache.layer(i))
        states: Tensor = self.norm(x)
        return states

    def new_cache(self, batch: int, length: int) -> KVCache:
        """Room for ``length`` tokens of ``batch`` rows, in the dtype that attention computes in."""
        weight = self.embed.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return KVCache(len(self.blocks), batch, self.n_heads, length, self.head_dim, dtype, weight.device)
