"""Insertion transformer (Patel et al., 2025). Differs: explicit positions, one output head, stopping read at [CLS]."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from xlm.nn.attention import attention_mask as visible_to
from xlm.nn.blocks import Block, LayerNorm, check_fits, depth_scaled_init
from xlm.nn.rotary import rotary_table


class ILMTransformer(nn.Module):
    """Predicts, for every gap of a text, which token to insert there, and whether nothing is missing.

    Rows are BOS and then tokens. The state of column g speaks for the gap right after that column. A learned vector
    [CLS] is put before every row inside the network; its state says whether to stop.

    Args:
        vocab_size: Token ids, control tokens included.
        max_length: Most tokens of a text; BOS and [CLS] come on top.
        d_model: Features.
        n_layers: Blocks.
        n_heads: Attention heads; 64 features each are usual.
        d_ff: Features inside the MLP; null means 4 x ``d_model``.
        dropout: Of attention's and MLP's output.
        tie_embeddings: Use the embedding as output head.
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
        self.max_length, self.head_dim = max_length, d_model // n_heads
        self.embed = nn.Embedding(vocab_size, d_model)
        self.cls = nn.Parameter(torch.empty(d_model))
        self.blocks = nn.ModuleList(Block(d_model, n_heads, d_ff, dropout) for _ in range(n_layers))
        self.norm = LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)
        self.stop_head = nn.Linear(d_model, 1)
        if tie_embeddings:
            self.head.weight = self.embed.weight
        depth_scaled_init(self, n_layers)
        nn.init.normal_(self.cls)  # as an embedding

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits of the tokens in every gap, not normalised: the softmax runs over all gaps of a row together."""
        logits: Tensor = self.head(self.hidden(input_ids, attention_mask, positions=positions))
        return logits

    def hidden(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
    ) -> Float[Tensor, "batch seq d_model"]:
        """States of the gap after every column."""
        return self.read(input_ids, attention_mask, positions=positions)[0]

    def read(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
    ) -> tuple[Float[Tensor, "batch seq d_model"], Float[Tensor, " batch"]]:
        """States of the gap after every column, and the logit of "nothing is missing" of every row.

        Args:
            input_ids: BOS and tokens.
            attention_mask: False at padding.
            positions: Place of each token in its text, 0 for BOS, so that tokens may be stored in any order; None for
                0, 1, 2, ...
        """
        batch, seq = input_ids.shape
        check_fits(seq - 1, self.max_length, "tokens")
        if positions is None:
            positions = torch.arange(seq, device=input_ids.device)[None]
        if attention_mask is not None:
            attention_mask = F.pad(attention_mask, (1, 0), value=True)
        rotary = rotary_table(F.pad(positions + 1, (1, 0)), self.head_dim)
        mask = visible_to(attention_mask, causal=False)
        tokens = self.embed(input_ids)
        x = torch.cat([self.cls.to(tokens.dtype).expand(batch, 1, -1), tokens], dim=1)
        for block in self.blocks:
            x = block(x, rotary, mask)
        states: Tensor = self.norm(x)
        stop_logit: Tensor = self.stop_head(states[:, 0]).squeeze(-1)
        return states[:, 1:], stop_logit
