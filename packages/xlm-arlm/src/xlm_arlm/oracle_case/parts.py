"""What the oracles of ARLM are measured with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from xlm.protocols import Example
from xlm.testing import factories
from xlm.testing.answers import Law
from xlm.testing.toy import ExactCausal, digits, random_table

from xlm_arlm import collator, loss, model, predictor

TOKENIZER = factories.tiny_tokenizer(n_letters=4)
CONTROL, BOS, EOS, LETTERS, VOCAB, LENGTH = [0, 1, 2], 2, 3, [4, 5, 6, 7], 8, 4
A, B, C, D = LETTERS

FEW, MOST = 6, 4
"""Ids of a network whose letters are a and b, and most tokens of its texts: 31 texts in all."""


def network(vocab_size: int = VOCAB, max_length: int = 16) -> Any:
    """Small, in fp64, far from uniform and from certain."""
    torch.manual_seed(0)
    net = model.ARLMTransformer(vocab_size=vocab_size, max_length=max_length, d_model=16, n_layers=2, n_heads=2)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    net.double().eval()
    return net


def table(kind: type[ExactCausal] = ExactCausal) -> ExactCausal:
    """Knows what follows every prefix."""
    return kind(random_table(), token_ids=LETTERS, vocab_size=VOCAB, bos_id=BOS, eos_id=EOS)


def sampler(net: Any, **options: Any) -> predictor.ARLMPredictor:
    """The predictor, for texts as long as the table's and EOS."""
    return predictor.ARLMPredictor(model=net, tokenizer=TOKENIZER, **{"max_new_tokens": LENGTH + 1, **options})


def loss_of(net: Any) -> loss.ARLMLoss:
    """The loss."""
    return loss.ARLMLoss(model=net, tokenizer=TOKENIZER)


TEXTS: Any = collator.ARLMCollator(tokenizer=TOKENIZER, max_length=16, event_space="open")
WINDOWS: Any = collator.ARLMCollator(tokenizer=TOKENIZER, max_length=16, event_space="window")
PAIRS: Any = collator.ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16)
PAIRS_ON_PROMPT: Any = collator.ARLMSeq2SeqCollator(tokenizer=TOKENIZER, max_length=16, loss_on_prompt=True)
PROMPTS: Any = collator.ARLMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=16)
NOTHING: Any = collator.ARLMUnconditionalCollator(tokenizer=TOKENIZER)


def text_batch(rows: Sequence[Sequence[int]]) -> Any:
    """Of these texts, whose end is in the loss."""
    return TEXTS(factories.keyed([{"input_ids": list(ids)} for ids in rows]))


def window_batch(rows: Sequence[Sequence[int]], **columns: list[int]) -> Any:
    """Of these texts as windows."""
    return WINDOWS(factories.keyed([{"input_ids": list(ids), **columns} for ids in rows]))


def pair_examples() -> list[Example]:
    """Prompts and answers of unequal length, some of them empty."""
    return factories.seq2seq_examples([3, 0, 6, 1], [2, 5, 0, 3], n_letters=4)


def of_table(net: ExactCausal, given: Sequence[int] = ()) -> Law:
    """Answers after a prompt by the table itself."""
    law = {tuple(ids): float(p) for ids, p in zip(net.all_strings().tolist(), net.table.flatten(), strict=True)}
    law = {ids[len(given) :]: p for ids, p in law.items() if ids[: len(given)] == tuple(given)}
    return {ids: p / sum(law.values()) for ids, p in law.items()}


def every_text(length: int) -> tuple[list[list[int]], list[list[int]]]:
    """All texts of a and b of less than ``length`` letters, and all that have as many."""
    strings = [torch.tensor([A, B])[digits(2, n)].tolist() for n in range(1, length + 1)]
    return [[], *(ids for shorter in strings[:-1] for ids in shorter)], strings[-1]
