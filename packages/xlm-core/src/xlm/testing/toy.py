"""Toy networks over short strings, whose laws can be enumerated. They stand wherever a family expects its Model.

A string has L letters out of K token ids: digit ``d`` is the letter ``token_ids[d]``. A pattern is a string with some
positions hidden: digit K. Both are numbered as in base K and K + 1, first position first. A table of shape (K,) * L
holds the probability of every string. States are logits already: ``head`` is the identity, in fp64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float64, Int, Int64
from torch import Tensor, nn

from xlm.nn.attention import KVCache

NEVER = -1e4  # instead of -inf, which the identity head would turn into nan


def random_table(n_letters: int = 4, length: int = 4, seed: int = 0) -> Float64[Tensor, "*letters"]:
    """Probabilities of all strings, far from uniform and none of them 0."""
    logits = torch.randn(n_letters**length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.softmax(0).reshape((n_letters,) * length)


def digits(base: int, length: int) -> Int64[Tensor, "strings length"]:
    """All strings over ``range(base)``, in the order of their numbers."""
    return torch.cartesian_prod(*[torch.arange(base)] * length).reshape(-1, length)


def entropy(table: Float64[Tensor, "*letters"]) -> float:
    """Nats a string."""
    return float(torch.special.entr(table).sum())


def number(digits_: Int[Tensor, "*batch length"], base: int) -> Int[Tensor, "*batch"]:
    """Numbers of strings given as digits."""
    place = base ** torch.arange(digits_.shape[-1] - 1, -1, -1, device=digits_.device)
    return (digits_ * place).sum(-1)


def identity_head(vocab_size: int) -> nn.Linear:
    """A head that changes nothing, in fp64."""
    head = nn.Linear(vocab_size, vocab_size, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.eye(vocab_size))
    return head


class _Toy(nn.Module):
    """Token ids and the identity head."""

    digit: Tensor

    def __init__(self, token_ids: Sequence[int], vocab_size: int, length: int) -> None:
        super().__init__()
        self.token_ids, self.vocab_size, self.length, self.max_length = list(token_ids), vocab_size, length, 1024
        self.n_letters = len(self.token_ids)
        digit = torch.full((vocab_size,), self.n_letters)
        digit[self.token_ids] = torch.arange(self.n_letters)
        self.register_buffer("digit", digit)
        self.head = identity_head(vocab_size)

    def _over_vocabulary(self, log_probabilities: Tensor) -> Tensor:
        logits = log_probabilities.new_full((*log_probabilities.shape[:-1], self.vocab_size), NEVER)
        logits[..., self.token_ids] = log_probabilities.clamp_min(NEVER)
        return logits

    def all_strings(self) -> Int64[Tensor, "strings length"]:
        """Token ids of all strings, in the order of their numbers."""
        return torch.tensor(self.token_ids)[digits(self.n_letters, self.length)]

    def count(self, ids: Int[Tensor, "samples length"]) -> Int64[Tensor, " strings"]:
        """How often each string occurs among samples.

        Raises:
            ValueError: a sample holds a token that is no letter.
        """
        sampled = self.digit[ids]
        if (sampled == self.n_letters).any():
            raise ValueError("a sample holds a token that is no letter of the toy")
        return torch.bincount(number(sampled, self.n_letters), minlength=self.n_letters**self.length)


class TableDenoiser(_Toy):
    """log p(x_i | visible tokens) from a table over patterns; the string stands at the last ``length`` positions.

    Args:
        log_conditional: Log-probabilities of the letter at each position, given each pattern; a parameter.
        token_ids: The letters.
        vocab_size: Number of ids.

    Every token that is no letter counts as hidden.
    """

    def __init__(
        self, log_conditional: Float64[Tensor, "patterns length letters"], *, token_ids: Sequence[int], vocab_size: int
    ) -> None:
        super().__init__(token_ids, vocab_size, log_conditional.shape[1])
        self.log_conditional = nn.Parameter(log_conditional)

    def hidden(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Bool[Tensor, "batch seq"] | None = None, **_: Any
    ) -> Float64[Tensor, "batch seq vocab"]:
        """Logits; before the string they are 0."""
        pattern = number(self.digit[input_ids[:, -self.length :]], self.n_letters + 1)
        logits = self._over_vocabulary(self.log_conditional[pattern])
        return nn.functional.pad(logits, (0, 0, input_ids.shape[1] - self.length, 0))

    def forward(
        self, input_ids: Int[Tensor, "batch seq"], attention_mask: Bool[Tensor, "batch seq"] | None = None, **_: Any
    ) -> Float64[Tensor, "batch seq vocab"]:
        """The same: the head is the identity."""
        logits: Tensor = self.head(self.hidden(input_ids, attention_mask))
        return logits


class ExactDenoiser(TableDenoiser):
    """The posterior of a table: a perfectly trained, time-free denoiser. Its any-order bound is the entropy."""

    def __init__(self, table: Float64[Tensor, "*letters"], *, token_ids: Sequence[int], vocab_size: int) -> None:
        n_letters, length = len(token_ids), table.ndim
        strings, patterns = digits(n_letters, length), digits(n_letters + 1, length)
        agrees = ((patterns[:, None] == strings) | (patterns[:, None] == n_letters)).all(-1)
        joint = agrees.to(torch.float64) * table.flatten()
        letter = nn.functional.one_hot(strings, n_letters).to(torch.float64)
        mass = torch.einsum("ps,slk->plk", joint, letter)
        super().__init__((mass / mass.sum(-1, keepdim=True)).log(), token_ids=token_ids, vocab_size=vocab_size)
        self.table = table


class InconsistentDenoiser(TableDenoiser):
    """Random conditionals that belong to no joint law, as a trained network's do: every order gives another p."""

    def __init__(self, *, token_ids: Sequence[int], vocab_size: int, length: int = 4, seed: int = 0) -> None:
        shape = ((len(token_ids) + 1) ** length, length, len(token_ids))
        logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        super().__init__(logits.log_softmax(-1), token_ids=token_ids, vocab_size=vocab_size)


class ExactCausal(_Toy):
    """log p(next token | prefix) of a table; after the last letter it says ``eos_id``.

    Letters that follow BOS (at any column, so padding may stand anywhere) are the prefix; other tokens change nothing.
    """

    def __init__(
        self,
        table: Float64[Tensor, "*letters"],
        *,
        token_ids: Sequence[int],
        vocab_size: int,
        bos_id: int,
        eos_id: int,
    ) -> None:
        n_letters, length = len(token_ids), table.ndim
        super().__init__(token_ids, vocab_size, length)
        self.bos_id, self.table = bos_id, table
        # Prefixes are the nodes of a tree: the root is 0, digit d leads from node s to node K s + 1 + d
        levels = [table.reshape(n_letters**depth, n_letters, -1).sum(-1) for depth in range(length)]
        inner = self._over_vocabulary(torch.cat([level / level.sum(-1, keepdim=True) for level in levels]).log())
        leaf = torch.full((vocab_size,), NEVER, dtype=torch.float64)
        leaf[eos_id] = 0.0
        self.log_next = nn.Parameter(torch.cat([inner, leaf.expand(table.numel(), -1)]))

    def new_cache(self, batch: int, length: int) -> KVCache:
        """An empty cache: the node that each row has reached is kept as a key."""
        return KVCache(1, batch, 1, length, 1, torch.float64, self.log_next.device)

    def hidden(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch keys"] | None = None,
        *,
        cache: KVCache | None = None,
        **_: Any,
    ) -> Float64[Tensor, "batch seq vocab"]:
        """Logits of the next token; with a cache ``input_ids`` continue what it holds."""
        layer = None if cache is None else cache.layer(0)
        node = torch.zeros(len(input_ids), dtype=torch.int64, device=input_ids.device)
        if layer is not None and layer.length:
            node = layer.keys[:, 0, layer.length - 1, 0].long()
        nodes = []
        for token in input_ids.T:
            digit = self.digit[token]
            below = torch.where(digit < self.n_letters, self.n_letters * node + 1 + digit, node)
            node = torch.where(token == self.bos_id, 0, below.clamp_max(len(self.log_next) - 1))
            nodes.append(node)
        path = torch.stack(nodes, dim=1)
        if layer is not None:
            layer.append(path[:, None, :, None].to(torch.float64), path[:, None, :, None].to(torch.float64))
        return self.log_next[path]

    def forward(
        self,
        input_ids: Int[Tensor, "batch seq"],
        attention_mask: Bool[Tensor, "batch keys"] | None = None,
        **kwargs: Any,
    ) -> Float64[Tensor, "batch seq vocab"]:
        """The same: the head is the identity."""
        logits: Tensor = self.head(self.hidden(input_ids, attention_mask, **kwargs))
        return logits
