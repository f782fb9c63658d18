"""From finished rows to answers: where they begin and end, and the JSON-ready rows that say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from xlm.protocols import Predictions, Tokenizer
from xlm.stopping import stopped_length, text_before
from xlm.trace import Trace, by_row

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
    rows = []
    for i, (ids, n) in enumerate(zip(preds["ids"].tolist(), preds["lengths"].tolist(), strict=True)):
        text: str = tokenizer.decode(ids[:n], skip_special_tokens=True)
        if batch["free"][i] and not batch["whole"][i]:
            text = text_before(text, stop)
        rows.append(
            {
                "index": int(batch["index"][i]),
                "prompt": tokenizer.decode(_prompt(tokenizer, batch, i)),
                "prediction": text,
                "ids": ids[:n],
                "n_calls": int(preds["n_calls"][i]),
            }
        )
    if "trace" in preds:
        for row, events in zip(rows, by_row(preds["trace"], len(rows)), strict=True):
            row["trace"] = events
    return rows


def _prompt(tokenizer: Tokenizer, batch: ILMPredictionBatch, row: int) -> list[int]:
    """The given tokens without BOS; in a template a mask token stands for each missing one, or for a free gap."""
    mask = batch["attention_mask"]
    n = batch["input_ids"].shape[1] if mask is None else int(mask[row].sum())
    ids, room = batch["input_ids"][row, :n].tolist(), batch["room"][row, :n].tolist()
    if not batch["whole"][row] or tokenizer.mask_token_id is None:
        return ids[1:]
    shown = [min(left, 1) if batch["free"][row] else left for left in room]
    return [i for token, n in zip(ids, shown, strict=True) for i in [token, *[tokenizer.mask_token_id] * n]][1:]
