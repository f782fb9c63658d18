"""Which tokens make a word, read off the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

SPACES = tuple(" \t\r\nĠĊĉč▁")
"""White space as vocabularies write it: plainly, byte-level (GPT-2) and SentencePiece."""


class Words:
    """Words of token ids.

    WordPiece marks tokens that go on with a word with "##". Elsewhere a word begins with white space, as part of its
    first token (byte-level BPE, SentencePiece) or as a token of its own (characters, bytes). A vocabulary without
    either has one token a word. Control tokens are words of their own.

    Args:
        tokenizer: A ``PreTrainedTokenizerFast``.
    """

    def __init__(self, tokenizer: Any) -> None:
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        inside, starts = (
            torch.tensor([piece.startswith(mark) for piece in pieces], dtype=torch.bool) for mark in ("##", SPACES)
        )
        self.continues: Bool[Tensor, " vocab"] = inside if inside.sum() > starts.sum() else ~starts & bool(starts.any())
        self.control: Bool[Tensor, " vocab"] = torch.zeros(len(pieces), dtype=torch.bool)
        self.control[tokenizer.all_special_ids] = True

    def first(self, ids: Int[Tensor, "batch seq"], predicted: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
        """Column of the first token of each token's word; a word also begins after a token that is not predicted."""
        control = self.control[ids]
        begins = ~self.continues[ids] | control
        begins[:, 1:] |= control[:, :-1] | ~predicted[:, :-1]
        begins[:, :1] = True
        column = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        return torch.where(begins, column, 0).cummax(1).values
