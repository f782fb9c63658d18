"""From filled rows to answers: where they begin and end, and the JSON-ready rows that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlm.answers import json_rows
from xlm.protocols import Predictions, Tokenizer
from xlm.stopping import stopped_length
from xlm.trace import Trace
from xlm.unmasking.batch import MaskedPredictionBatch, places, real_tokens


def read_answers(
    tokenizer: Tokenizer,
    batch: MaskedPredictionBatch,
    ids: Int[Tensor, "batch seq"],
    n_calls: Int[Tensor, " batch"],
    *,
    stop: Sequence[str] = (),
    trace: Trace | None = None,
) -> Predictions:
    """Answers of whole rows. An answer that ends at EOS ends with the token that completes a stop string, too."""
    real, place = real_tokens(batch), places(batch)
    eos_id = -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
    pad_id = tokenizer.pad_token_id or 0
    answer, lengths = answers(
        ids,
        real & (place >= batch["prompt_lengths"][:, None]),
        ends_at=torch.where(batch["ends_at_eos"], eos_id, -1),
        pad_id=pad_id,
    )
    if stop:
        ends = [
            stopped_length(tokenizer, row[:n], stop) if may_stop else n
            for row, n, may_stop in zip(answer.tolist(), lengths.tolist(), batch["ends_at_eos"].tolist(), strict=True)
        ]
        lengths = torch.tensor(ends, device=lengths.device)
        kept = torch.arange(answer.shape[1], device=lengths.device) < lengths[:, None]
        answer = answer.masked_fill(~kept, pad_id)[:, : int(lengths.max())]
    predictions: Predictions = {"ids": answer, "lengths": lengths, "n_calls": n_calls}
    if trace is not None:
        predictions["trace"] = trace.events()
    return predictions


def answer_rows(
    tokenizer: Tokenizer, batch: MaskedPredictionBatch, preds: Predictions, *, stop: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """One JSON-ready row each; ``prompt`` is the prompt's text, or the template with its mask tokens."""
    real, ends = real_tokens(batch), batch["ends_at_eos"]
    given = real & ((places(batch) < batch["prompt_lengths"][:, None]) | ~ends[:, None])
    ids = batch["input_ids"]
    return json_rows(
        tokenizer,
        batch["index"],
        preds,
        prompts=[tokenizer.decode(row[shown].tolist()) for row, shown in zip(ids, given, strict=True)],
        starts=[row[there].tolist() for row, there in zip(ids, real, strict=True)],
        stop=[stop if may_stop else () for may_stop in ends.tolist()],
    )


def answers(
    ids: Int[Tensor, "batch seq"],
    answer: Bool[Tensor, "batch seq"],
    *,
    ends_at: Int[Tensor, " batch"],
    pad_id: int,
) -> tuple[Int[Tensor, "batch longest"], Int[Tensor, " batch"]]:
    """The tokens at ``answer``, moved to the left and cut before the first ``ends_at``, and how many they are.

    Args:
        ids: Whole rows.
        answer: Which tokens belong to the answer.
        ends_at: Token at which each row's answer ends; -1 for none.
        pad_id: What stands after the answer.
    """
    front = (~answer).to(torch.int8).argsort(dim=1, stable=True)
    ids, answer = ids.gather(1, front), answer.gather(1, front)
    kept = answer & ((ids == ends_at[:, None]).cumsum(1) == 0)
    lengths = kept.sum(1)
    return ids.masked_fill(~kept, pad_id)[:, : int(lengths.max())], lengths
