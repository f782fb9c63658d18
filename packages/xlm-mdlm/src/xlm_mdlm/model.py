"""Masked diffusion transformer (Sahoo et al., 2024). Differs: explicit positions, no time by default."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from xlm.nn.attention import attention_mask as visible_to
from xlm.nn.blocks import AdaLNBlock, Block, LayerNorm, TimeEmbedding, check_fits, depth_scaled_init
from xlm.nn.rotary import rotary_table

D_CONDITION = 128  # as in the authors' code


class MDLMTransformer(nn.Module):
    """Predicts the original token at every hidden position from all visible ones.

    Args:
        vocab_size: Token ids, control tokens included.
        max_length: Most positions of a row.
        d_model: Features.
        n_layers: Blocks.
        n_heads: Attention heads; 64 features each are usual.
        d_ff: Features inside the MLP; null means 4 x ``d_model``.
        dropout: Of attention's and MLP's output.
        tie_embeddings: Use the embedding as output head.
        condition_on_mask_rate: Tell the network the mask rate u, through adaLN-zero. By default it sees the tokens
            alone: their number of masks tells u well enough, and then samplers can be exact.
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
        condition_on_mask_rate: bool = False,
    ) -> None:
        super().__init__()
        self.max_length, self.head_dim = max_length, d_model // n_heads
        self.embed = nn.Embedding(vocab_size, d_model)
        self.embed_mask_rate = TimeEmbedding(D_CONDITION) if condition_on_mask_rate else None
        self.blocks = nn.ModuleList(
            AdaLNBlock(d_model, n_heads, D_CONDITION, d_ff, dropout)
            if condition_on_mask_rate
            else Block(d_model, n_heads, d_ff, dropout)
            for _ in range(n_layers)
        )
        self.norm = LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        if tie_embeddings:
            self.head.weight = self.embed.weight
        depth_scaled_init(self, n_layers)

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
        mask_rate: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits of every position, before SUBS: loss and samplers remove the mask token and keep visible tokens."""
        states = self.hidden(input_ids, attention_mask, positions=positions, segments=segments, mask_rate=mask_rate)
        logits: Tensor = self.head(states)
        return logits

    def hidden(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
        mask_rate: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """States of every position; ``mask_rate`` matters only to a network that is conditioned on it."""
        check_fits(input_ids.shape[1], self.max_length)
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        rotary = rotary_table(positions, self.head_dim)
        mask = visible_to(attention_mask, causal=False, segments=segments)
        x = self.embed(input_ids)
        if self.embed_mask_rate is None:
            for block in self.blocks:
                x = block(x, rotary, mask)
        else:
            assert mask_rate is not None, "a network conditioned on the mask rate needs mask_rate"
            condition = self.embed_mask_rate(mask_rate)
            for block in self.blocks:
                x = block(x, condition, rotary, mask)
        states: Tensor = self.norm(x)
        return states
