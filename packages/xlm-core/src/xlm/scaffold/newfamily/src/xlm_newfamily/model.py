"""A bidirectional pre-norm transformer with rotary positions, out of the core's blocks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from xlm.nn.attention import attention_mask as visible_to
from xlm.nn.blocks import Block, LayerNorm, check_fits, depth_scaled_init
from xlm.nn.rotary import rotary_table


class NewFamilyTransformer(nn.Module):
    """Predicts the original token at every hidden position from the tokens on both sides.

    Args:
        vocab_size: Token ids, control tokens included.
        max_length: Most positions of a row.
        d_model: Features.
        n_layers: Blocks.
        n_heads: Attention heads; 64 features each are usual.
        d_ff: Features inside the MLP; null means 4 x ``d_model``.
        dropout: Of attention's and MLP's output.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        max_length: int,
        d_model: int = 256,
        n_layers: int = 4,
        n_heads: int = 4,
        d_ff: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.max_length, self.head_dim = max_length, d_model // n_heads
        self.embed = nn.Embedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_ff, dropout) for _ in range(n_layers))
        self.norm = LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        depth_scaled_init(self, n_layers)

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits of every position; loss and sampler remove the tokens that are never generated."""
        states = self.hidden(input_ids, attention_mask, positions=positions, segments=segments)
        logits: Tensor = self.head(states)
        return logits

    def hidden(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        segments: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """States of every position; the head runs only where logits are needed."""
        check_fits(input_ids.shape[1], self.max_length)
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        rotary = rotary_table(positions, self.head_dim)
        mask = visible_to(attention_mask, causal=False, segments=segments)
        # YOUR IDEA: how states come about. `causal=True` above, other blocks here, or whatever your network does.
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x, rotary, mask)
        states: Tensor = self.norm(x)
        return states
