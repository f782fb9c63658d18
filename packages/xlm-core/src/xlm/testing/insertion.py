"""Toy insertion networks over short texts, whose laws can be enumerated (``xlm.testing.insertion_laws``).

A text has 0..L letters out of K token ids. Texts are numbered as nodes of a tree: the empty one is 0, digit ``d``
after text ``n`` leads to K n + 1 + d; so shorter texts come first. An insertion network reads [BOS] and tokens; its
state at a column belongs to the gap right after that token, and a logit tells whether the text is complete:
``read(input_ids, attention_mask, positions=...) -> (states, stop_logit)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int, Int64
from torch import Tensor, nn

from xlm.testing.toy import NEVER, digits, identity_head


def n_texts(n_letters: int, length: int) -> int:
    """Texts of 0..length letters."""
    return sum(n_letters**n for n in range(length + 1))


def random_text_table(n_letters: int = 2, length: int = 4, seed: int = 0) -> Float64[Tensor, " texts"]:
    """Probabilities of all texts of 0..length letters, far from uniform and none of them 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_texts(n_letters, length), generator=generator, dtype=torch.float64).softmax(0)


class TableInserter(nn.Module):
    """An insertion network that looks everything up; states are logits already, and ``head`` is the identity, in fp64.

    Args:
        insert_logits: Of each letter in each gap, for each text; a parameter, as the next.
        stop_logits: Of each text being complete.
        token_ids: The letters. Other tokens of a row (BOS) change nothing; the row's first token must be one such.
        vocab_size: Number of ids.
    """

    digit: Tensor

    def __init__(
        self,
        insert_logits: Float64[Tensor, "texts gaps letters"],
        stop_logits: Float64[Tensor, " texts"],
        *,
        token_ids: Sequence[int],
        vocab_size: int,
    ) -> None:
        super().__init__()
        self.token_ids, self.vocab_size, self.n_letters = list(token_ids), vocab_size, len(token_ids)
        self.max_length = insert_logits.shape[1] - 1
        self.insert_logits, self.stop_logits = nn.Parameter(insert_logits), nn.Parameter(stop_logits)
        digit = torch.full((vocab_size,), self.n_letters)
        digit[self.token_ids] = torch.arange(self.n_letters)
        self.register_buffer("digit", digit)
        self.head = identity_head(vocab_size)

    def read(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        *,
        positions: Int[Tensor, "batch seq"] | None = None,
        **_: Any,
    ) -> tuple[Float64[Tensor, "batch seq vocab"], Float64[Tensor, " batch"]]:
        """Logits of every gap, and of being complete; ``positions`` say where the tokens stand, BOS at 0.

        Raises:
            IndexError: a text is longer than the table's.
        """
        seq = input_ids.shape[1]
        valid = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask
        at = torch.arange(seq, device=input_ids.device).expand_as(input_ids) if positions is None else positions
        order = at.masked_fill(~valid, seq + int(at.max())).argsort(dim=1)
        node = self._nodes(self.digit[input_ids].masked_fill(~valid, self.n_letters).gather(1, order))
        gaps = self.insert_logits[node].gather(
            1, at.clamp_max(self.max_length)[..., None].expand(-1, -1, self.n_letters)
        )
        logits = gaps.new_full((*gaps.shape[:-1], self.vocab_size), NEVER)
        logits[..., self.token_ids] = gaps
        return logits, self.stop_logits[node]

    def _nodes(self, digit: Int64[Tensor, "batch seq"]) -> Int64[Tensor, " batch"]:
        node = torch.zeros_like(digit[:, 0])
        for column in digit.T:
            node = torch.where(column < self.n_letters, self.n_letters * node + 1 + column, node)
        return node

    def hidden(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        **rest: Any,
    ) -> Float64[Tensor, "batch seq vocab"]:
        """The states of ``read``."""
        return self.read(input_ids, attention_mask, **rest)[0]

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch seq"] | None = None,
        **rest: Any,
    ) -> Float64[Tensor, "batch seq vocab"]:
        """The same: the head is the identity."""
        logits: Tensor = self.head(self.hidden(input_ids, attention_mask, **rest))
        return logits

    def texts(self) -> list[list[int]]:
        """Token ids of all texts, in the order of their numbers."""
        letters = torch.tensor(self.token_ids)
        longer = [letters[digits(self.n_letters, n)].tolist() for n in range(1, self.max_length + 1)]
        return [[], *(text for texts in longer for text in texts)]

    def count(self, ids: Int[Tensor, "samples seq"], lengths: Int[Tensor, " samples"]) -> Int64[Tensor, " texts"]:
        """How often each text occurs among samples, whose first ``lengths`` tokens count.

        Raises:
            ValueError: a sample holds a token that is no letter.
        """
        digit, valid = self.digit[ids], torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        if (digit[valid] == self.n_letters).any():
            raise ValueError("a sample holds a token that is no letter of the toy")
        padded = nn.functional.pad(digit.masked_fill(~valid, self.n_letters), (0, 1), value=self.n_letters)
        return torch.bincount(self._nodes(padded), minlength=len(self.stop_logits))


class ExactInserter(TableInserter):
    """A perfectly trained network: the posterior of a table p when each text is built in uniformly random order.

    The kept tokens y of a text x, n of whose L are missing, are met with weight p(x) / C(L, n) for every way to choose
    them; the next token is any of the missing with chance 1/n. What is missing depends on y, not on the order in which
    it came about, so every order of every x has probability p(x) / L!, and the bound is -log p(x) itself. A table with
    texts of one length only is the exact model of windows.
    """

    def __init__(self, table: Float64[Tensor, " texts"], *, token_ids: Sequence[int], vocab_size: int) -> None:
        n_letters, length = len(token_ids), 0
        while n_texts(n_letters, length) < len(table):
            length += 1
        all_digits = [text.tolist() for n in range(1, length + 1) for text in digits(n_letters, n)]
        met = torch.zeros(len(table), dtype=torch.float64)
        inserted = torch.zeros(len(table), length + 1, n_letters, dtype=torch.float64)
        for p, text in zip(table.tolist(), [[], *all_digits], strict=True):
            for n_kept in range(len(text) + 1):
                weight = p / math.comb(len(text), n_kept)
                for kept in combinations(range(len(text)), n_kept):
                    node = 0
                    for place in kept:
                        node = n_letters * node + 1 + text[place]
                    met[node] += weight
                    for place in set(range(len(text))) - set(kept):
                        gap = sum(other < place for other in kept)
                        inserted[node, gap, text[place]] += weight / (len(text) - n_kept)
        stop = torch.where(met > 0, table / met, 1.0)  # what cannot be met may be anything
        super().__init__(
            inserted.log().clamp_min(NEVER),
            torch.logit(stop.clamp(0, 1)).clamp(NEVER, -NEVER),
            token_ids=token_ids,
            vocab_size=vocab_size,
        )
        self.table = table


class InconsistentInserter(TableInserter):
    """Random logits that belong to no joint law, as a trained network's do; some texts grow beyond ``length``."""

    def __init__(self, *, token_ids: Sequence[int], vocab_size: int, length: int = 4, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        shape = (n_texts(len(token_ids), length), length + 1, len(token_ids))
        insert_logits = torch.randn(shape, generator=generator, dtype=torch.float64)
        stop_logits = torch.randn(shape[0], generator=generator, dtype=torch.float64)
        super().__init__(insert_logits, stop_logits, token_ids=token_ids, vocab_size=vocab_size)
