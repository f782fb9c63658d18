"""What the oracles of ILM are measured with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn
from xlm.protocols import Example
from xlm.testing import factories
from xlm.testing.answers import Law
from xlm.testing.insertion import ExactInserter, InconsistentInserter, random_text_table
from xlm.testing.insertion_laws import Steps, insertion_law, insertion_steps

from xlm_ilm import collator, loss, model, predictor

TOKENIZER = factories.tiny_tokenizer(n_letters=4)
PAD, CONTROL, BOS, EOS, LETTERS, VOCAB = 0, [0, 1, 2], 2, 3, [4, 5, 6, 7], 8
A, B, C, D = LETTERS


def network() -> Any:
    """Small, in fp64, far from uniform and from certain; its texts have a few tokens."""
    torch.manual_seed(0)
    net = model.ILMTransformer(vocab_size=VOCAB, max_length=12, d_model=16, n_layers=2, n_heads=2, d_ff=32)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)
    nn.init.constant_(net.stop_head.bias, -1.0)
    net.double().eval()
    return net


def exact(n_letters: int = 2, length: int = 4) -> ExactInserter:
    """Knows the posterior of a table of all texts."""
    table = random_text_table(n_letters, length)
    return ExactInserter(table, token_ids=LETTERS[:n_letters], vocab_size=VOCAB)


def inconsistent(length: int = 3, token_ids: Sequence[int] = (A, B)) -> InconsistentInserter:
    """Belongs to no joint law."""
    return InconsistentInserter(token_ids=token_ids, vocab_size=VOCAB, length=length)


def sampler(net: Any, **options: Any) -> predictor.ILMPredictor:
    """The predictor."""
    return predictor.ILMPredictor(model=net, tokenizer=TOKENIZER, **options)


def loss_of(net: Any, **options: Any) -> loss.ILMLoss:
    """The loss."""
    return loss.ILMLoss(model=net, tokenizer=TOKENIZER, **options)


def text_collator(space: Any = "open", max_length: int = 8) -> Any:
    """Role ``lm``."""
    return collator.ILMCollator(tokenizer=TOKENIZER, seed=0, max_length=max_length, event_space=space)


def pair_collator() -> Any:
    """Role ``seq2seq``."""
    return collator.ILMSeq2SeqCollator(tokenizer=TOKENIZER, seed=0, max_prompt_length=6, max_target_length=5)


def template_collator() -> Any:
    """Role ``infill``."""
    return collator.ILMInfillCollator(tokenizer=TOKENIZER, seed=0, max_length=8)


def prompt_collator() -> Any:
    """Role ``seq2seq_prediction``."""
    return collator.ILMSeq2SeqPredictionCollator(tokenizer=TOKENIZER, max_length=12)


def gap_collator(max_length: int = 12) -> Any:
    """Role ``infill_prediction``."""
    return collator.ILMInfillPredictionCollator(tokenizer=TOKENIZER, max_length=max_length)


def pair_examples() -> list[Example]:
    """Prompts and answers of unequal length, some of them empty."""
    return factories.seq2seq_examples([3, 6, 0, 1], [4, 1, 2, 0], n_letters=4)


def fp64(values: Sequence[float]) -> Float64[Tensor, " n"]:
    """A tensor of these numbers."""
    return torch.tensor(values, dtype=torch.float64)


def text_law(
    net: Any, start: Sequence[int] = (), *, span: Sequence[int] = (0,), room: Sequence[int] = (3,), **options: Any
) -> Law:
    """The recursion's law without BOS; of texts without a prompt unless said otherwise."""
    ends = insertion_law(net, [BOS, *start], span=span, room=room, **{"free": True, **options})
    return {ids[1:]: p for ids, p in ends.items()}


def steps_to(net: Any, example: Example, counts_stop: bool) -> Steps:
    """Every step on every way to a row, by enumeration."""
    prompt = list(example.get("prompt_ids", []))
    ids = [BOS, *prompt, *list(example["target_ids"] if "target_ids" in example else example["input_ids"])]
    given = [True] * (1 + len(prompt)) + [bool(fixed) for fixed in example.get("fixed", [])]
    given += [False] * (len(ids) - len(given))
    n_spans, span = -1, []
    for before, here in zip([True, *given], given, strict=False):
        n_spans += before and not here
        span.append(-1 if here else n_spans)
    return insertion_steps(net, ids, span=span, never=[*CONTROL, *([EOS] if counts_stop else [])])


ROWS: dict[str, tuple[Callable[[], Any], bool, list[dict[str, Any]]]] = {
    "texts": (text_collator, True, [{"input_ids": ids} for ids in ([A, B, C, D], [], [D, B, C], [C])]),
    "windows": (partial(text_collator, "window"), False, [{"input_ids": ids} for ids in ([B, A, C, D], [C, A, D, B])]),
    "pairs": (
        pair_collator,
        True,
        [{"prompt_ids": a, "target_ids": b} for a, b in (([A, B], [C, D, A]), ([], [B, A]), ([D, A, A], []))],
    ),
    "templates": (
        template_collator,
        False,
        [{"input_ids": [A, C, B, D], "fixed": [0, 0, 1, 0]}, {"input_ids": [B, A, D, C], "fixed": [1, 0, 0, 0]}],
    ),
}
"""Of each role a collator, whether the end counts, and rows whose tokens differ: what is missing can be seen."""
