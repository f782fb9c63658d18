"""What a family hands over, what its samplers claim, and the toys that both are held against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from xlm.protocols import Collator, Example
from xlm.testing import factories
from xlm.testing.toy import ExactDenoiser, InconsistentDenoiser, TableDenoiser, random_table

TOKENIZER = factories.tiny_tokenizer(n_letters=4)
LETTERS, VOCAB, LENGTH = [4, 5, 6, 7], 8, 4


@dataclass(frozen=True, kw_only=True)
class MaskedParts:
    """How a family builds its parts, for ``TOKENIZER``; every measurement builds them anew.

    Args:
        network: A small one in fp64 and evaluation mode, for rows of 8 tokens or more.
        loss: From a network.
        predictor: From a network and options (token filters, ``guidance``), of a sampler that reveals one position a
            call in random order.
        texts: Role ``lm``, from ``max_length`` and ``event_space``.
        pairs: Role ``seq2seq``, for prompts and targets of less than 5 tokens.
        templates: Role ``infill``, from ``max_length``.
        canvases: Role ``unconditional``, from ``max_length``.
        prompts: Role ``seq2seq_prediction``, for prompts of up to 4 tokens and a canvas of 4.
        gaps: Role ``infill_prediction``, from ``max_length``.
        told_mask_rate: Whether the network is told each row's ``mask_rate``.
    """

    network: Callable[[], nn.Module]
    loss: Callable[[Any], Any]
    predictor: Callable[..., Any]
    texts: Callable[[int, str], Collator]
    pairs: Callable[[], Collator]
    templates: Callable[[int], Collator]
    canvases: Callable[[int], Collator]
    prompts: Callable[[], Collator]
    gaps: Callable[[int], Collator]
    told_mask_rate: bool = False


@dataclass(frozen=True)
class Claim:
    """A sampler and the law that it says it has.

    Args:
        name: The sampler's, with its options.
        sampler: From a network.
        law: Probabilities of all strings under a network; None: those that ``log_likelihood`` states, which then must
            sum to 1.
    """

    name: str
    sampler: Callable[[Any], Any]
    law: Callable[[TableDenoiser], Tensor] | None = None


def exact() -> ExactDenoiser:
    """Knows the posterior."""
    return ExactDenoiser(random_table(), token_ids=LETTERS, vocab_size=VOCAB)


def inconsistent() -> InconsistentDenoiser:
    """Belongs to no joint law."""
    return InconsistentDenoiser(token_ids=LETTERS, vocab_size=VOCAB)


def every_string(parts: MaskedParts) -> Mapping[str, Any]:
    """All strings as windows, for likelihoods."""
    rows = [{"input_ids": ids} for ids in exact().all_strings().tolist()]
    return parts.texts(LENGTH, "window")(factories.keyed(rows))


def pair_examples() -> list[Example]:
    """Prompts and answers of unequal length, some of them empty."""
    return factories.seq2seq_examples([3, 0, 1, 4], [4, 1, 2, 0], n_letters=4)


def text_examples() -> list[Example]:
    """Texts of unequal length, one of them empty."""
    return factories.lm_examples([3, 7, 5, 0], n_letters=4)


def hidden(batch: Mapping[str, Any]) -> Bool[Tensor, "batch seq"]:
    """Which tokens the loss is of."""
    ids: Tensor = batch["input_ids"]
    return torch.zeros(ids.numel(), dtype=torch.bool).index_fill(0, batch["rows"], True).view_as(ids)
