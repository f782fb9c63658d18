"""From finished rows to answers: where they begin and end, and the JSON-ready rows that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from xlm.answers import json_rows
from xlm.protocols import Predictions, Tokenizer
from xlm.stopping import stopped_length
from xlm.trace import Trace

from xlm_ilm.predictor.rows import Rows
from xlm_ilm.types import ILMPredictionBatch


def read_answers(
    tokenizer: Tokenizer,
    batch: ILMPredictionBatch,
    rows: Rows,
    n_calls: Int[Tensor, " batch"],
    *,
    stop: Sequence[str],
    trace: Trace | None,
) -> Predictions:
    """What stands behind BOS and the prompt; where the length is free, up to the token that completes a stop string."""
    pad_id = tokenizer.pad_token_id or 0
    given = 1 + batch["prompt_lengths"]
    lengths = rows.lengths - given
    ids = rows.in_order(pad_id)
    column = torch.arange(int(lengths.max()), device=ids.device)
    answer = ids.gather(1, (column + given[:, None]).clamp_max(ids.shape[1] - 1))
    if stop:
        for i in (batch["free"] & ~batch["whole"]).nonzero().squeeze(1).tolist():
            lengths[i] = stopped_length(tokenizer, answer[i, : lengths[i]].tolist(), stop)
    answer = answer[:, : int(lengths.max())]
    valid = torch.arange(answer.shape[1], device=ids.device) < lengths[:, None]
    predictions: Predictions = {"ids": answer.masked_fill(~valid, pad_id), "lengths": lengths, "n_calls": n_calls}
    if trace is not None:
        predictions["trace"] = trace.events()
    return predictions


def answer_rows(
    tokenizer: Tokenizer, batch: ILMPredictionBatch, preds: Predictions, *, stop: Sequence[str]
) -> list[dict[str, Any]]:
    """One JSON-ready row each; ``prompt`` is the prompt's text, or the template with mask tokens in its gaps."""
    mask = batch["attention_mask"]
    lengths = [batch["input_ids"].shape[1]] * len(batch["index"]) if mask is None else mask.sum(1).tolist()
    starts = [ids[:n].tolist() for ids, n in zip(batch["input_ids"], lengths, strict=True)]
    ends = (batch["free"] & ~batch["whole"]).tolist()
    return json_rows(
        tokenizer,
        batch["index"],
        preds,
        prompts=[tokenizer.decode(_prompt(tokenizer, batch, row, start)) for row, start in enumerate(starts)],
        starts=starts,
        stop=[stop if may_stop else () for may_stop in ends],
    )


def _prompt(tokenizer: Tokenizer, batch: ILMPredictionBatch, row: int, start: list[int]) -> list[int]:
    """The given tokens without BOS; in a template a mask token stands for each missing one, or for a free gap."""
    if not batch["whole"][row] or tokenizer.mask_token_id is None:
        return start[1:]
    room = batch["room"][row, : len(start)].tolist()
    shown = [min(left, 1) if batch["free"][row] else left for left in room]
    return [i for token, n in zip(start, shown, strict=True) for i in [token, *[tokenizer.mask_token_id] * n]][1:]
