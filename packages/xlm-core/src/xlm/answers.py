"""What a predictor says of each row of a batch, JSON-ready and alike in every family."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from xlm.protocols import Predictions, Tokenizer
from xlm.stopping import text_before
from xlm.trace import by_row


def json_rows(
    tokenizer: Tokenizer,
    index: Int[Tensor, " batch"],
    predictions: Predictions,
    *,
    prompts: Iterable[str],
    starts: Iterable[list[int]],
    stop: Sequence[Sequence[str]],
) -> list[dict[str, Any]]:
    """``index``, ``prompt``, ``prediction``, ``ids`` and ``n_calls`` of each row, and how it came about, where traced.

    ``prediction`` is the text before the first stop string; ``ids`` end after it. ``xlm.trace.replay`` leads from
    ``start_ids`` through the events of ``trace`` to the whole row, prompt included.

    Args:
        tokenizer: Decodes.
        index: Of the rows in their data set.
        predictions: Of the rows.
        prompts: What was asked, as it is shown.
        starts: What stood in each row before anything was generated, padding left out.
        stop: Strings that end the answer of each row.
    """
    rows = []
    columns = (index.tolist(), prompts, predictions["ids"].tolist(), predictions["lengths"].tolist(), stop)
    for i, prompt, ids, length, ends, n_calls in zip(*columns, predictions["n_calls"].tolist(), strict=True):
        text = text_before(tokenizer.decode(ids[:length], skip_special_tokens=True), ends)
        rows.append({"index": i, "prompt": prompt, "prediction": text, "ids": ids[:length], "n_calls": n_calls})
    if "trace" in predictions:
        for row, start, events in zip(rows, starts, by_row(predictions["trace"], len(rows)), strict=True):
            row |= {"start_ids": start, "trace": events}
    return rows
