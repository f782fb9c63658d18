"""From examples to batches: whole rows, then what is taken out of them. One class a role.

The number n of dropped tokens is uniform on {0..L}: floor(t (L + 1)) with t low-discrepancy in the row's place in the
global order, so that a batch covers all n evenly. The dropped set is uniform, and comes from the row's own
``noise_key``: what a row misses does not depend on its batch.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F
from xlm.data.layout import Layout, check_room, lengths_within, special_id, templates, windows
from xlm.data.padding import keys, pad, padding_mask, positions
from xlm.errors import UserError
from xlm.noise import low_discrepancy_times, uniforms
from xlm.protocols import EventSpace, Example, Tokenizer

from xlm_ilm.dropping import Kept, choose, drop, gap_spans, span_numbers
from xlm_ilm.types import ILMBatch, ILMPredictionBatch


class ILMCollator:
    """Role ``lm``: text without a prompt, every token of which can be missing.

    In the event space ``window`` a row is a packed window of L tokens; its likelihood is p(x | L). In ``open`` a row is
    one text; its likelihood is p(text, end): the decisions to go on and to stop count, and the denominator is L + 1.

    Args:
        tokenizer: Has BOS and a padding token.
        max_length: Longest text or window; BOS comes on top.
        seed: Where the sequence of times starts.
        event_space: ``window`` or ``open``; ``given_length`` treats texts as windows of their own length.

    Example:
        >>> from xlm.testing.factories import keyed, tiny_tokenizer  # 0 pad, 1 mask, 2 bos, 3 eos, then letters
        >>> collate = ILMCollator(tokenizer=tiny_tokenizer(), max_length=4, seed=2, event_space="open")
        >>> batch = collate(keyed([{"input_ids": [4, 5, 6, 7]}]))
        >>> batch["input_ids"].tolist(), batch["tokens"].tolist(), batch["rows"].tolist()
        ([[2, 5, 7]], [4, 6], [0, 1])
        >>> batch["n_tokens"].tolist()
        [5]
    """

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, seed: int, event_space: EventSpace = "window") -> None:
        self.event_space: EventSpace = event_space
        self.max_length = max_length
        self.dropping = Dropping(tokenizer, seed=seed, counts_stop=event_space == "open", trains_stop=True)
        self.pad_id = special_id(tokenizer, "pad")

    def __call__(self, examples: list[Example]) -> ILMBatch:
        """Take tokens out of ``input_ids``."""
        if "segments" in examples[0]:
            fix = "set document_mask=false: what is inserted shifts the borders between documents"
            raise UserError("ILM keeps no documents of a window apart", where="document_mask", value=True, fix=fix)
        rows = [example["input_ids"] for example in examples]
        return self.dropping(examples, windows(rows, self.pad_id, self.max_length))


class ILMSeq2SeqCollator:
    """Role ``seq2seq``: a whole prompt, and right after it a target that misses tokens. Rows are right-padded.

    The prompt's gaps are closed, except the last, where the target begins.

    Args:
        tokenizer: Has BOS and a padding token.
        max_prompt_length: Longest prompt; BOS comes on top.
        max_target_length: Longest target.
        seed: Where the sequence of times starts.
    """

    event_space: EventSpace = "open"

    def __init__(self, *, tokenizer: Tokenizer, max_prompt_length: int, max_target_length: int, seed: int) -> None:
        self.max_prompt_length, self.max_target_length = max_prompt_length, max_target_length
        self.dropping = Dropping(tokenizer, seed=seed, counts_stop=True, trains_stop=True)
        self.pad_id = special_id(tokenizer, "pad")

    def __call__(self, examples: list[Example]) -> ILMBatch:
        """Take tokens out of ``target_ids``; ``prompt_ids`` stay."""
        prompts, targets = ([example[name] for example in examples] for name in ("prompt_ids", "target_ids"))
        prompt_lengths = lengths_within(prompts, self.max_prompt_length, "datamodule.max_prompt_length")
        lengths = lengths_within(targets, self.max_target_length, "datamodule.max_target_length")
        rows = [np.concatenate([*pair]).astype(np.int64) for pair in zip(prompts, targets, strict=True)]
        layout = windows(rows, self.pad_id, self.max_prompt_length + self.max_target_length)
        layout.predicted = layout.predicted & ~padding_mask(prompt_lengths, layout.ids.shape[1])
        layout.n_tokens = torch.from_numpy(lengths)
        return self.dropping(examples, layout)


class ILMInfillCollator:
    """Role ``infill``: given tokens (``fixed``) stay; how many are missing between them is given.

    Each run of tokens that are not fixed is a span. A gap is open as long as its span misses a token.

    Args:
        tokenizer: Has BOS and a padding token.
        max_length: Longest row; BOS comes on top.
        seed: Where the sequence of times starts.
    """

    event_space: EventSpace = "window"

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, seed: int) -> None:
        self.max_length = max_length
        self.dropping = Dropping(tokenizer, seed=seed, counts_stop=False, trains_stop=False)
        self.pad_id = special_id(tokenizer, "pad")

    def __call__(self, examples: list[Example]) -> ILMBatch:
        """Take tokens of ``input_ids`` that are not ``fixed`` out."""
        return self.dropping(examples, templates(examples, self.pad_id, self.max_length))


class ILMSeq2SeqPredictionCollator:
    """Role ``seq2seq_prediction``: a prompt, and one open gap after it. Targets are not looked at.

    There is room for all that the prompt leaves of ``max_length``; the predictor may insert fewer tokens.

    Args:
        tokenizer: Has BOS and a padding token.
        max_length: Longest prompt and answer together; BOS comes on top.
        max_prompt_length: Longest prompt; null is what ``max_target_length``, or one token, leaves of ``max_length``.
        max_target_length: Longest answer that has to fit after every prompt.
    """

    event_space: EventSpace = "open"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        max_length: int,
        max_prompt_length: int | None = None,
        max_target_length: int | None = None,
    ) -> None:
        self.max_length, self.max_prompt_length, self.max_target_length = (
            max_length,
            max_prompt_length,
            max_target_length,
        )
        self.pad_id, self.bos_id = special_id(tokenizer, "pad"), special_id(tokenizer, "bos")

    def __call__(self, examples: list[Example]) -> ILMPredictionBatch:
        """Open the gap after every ``prompt_ids``."""
        key = keys(examples)
        prompts = [example["prompt_ids"] for example in examples]
        if self.max_prompt_length is None and self.max_target_length is not None:
            check_room(examples, self.max_target_length, self.max_length)
        most = self.max_length - 1 if self.max_prompt_length is None else self.max_prompt_length
        lengths = torch.from_numpy(lengths_within(prompts, most, "datamodule.max_prompt_length"))
        room = self.max_length - lengths
        input_ids = F.pad(pad(prompts, self.pad_id), (1, 0), value=self.bos_id)
        column = torch.arange(input_ids.shape[1])
        last = column == lengths[:, None]
        mask = column <= lengths[:, None]
        return {
            "input_ids": input_ids,
            "attention_mask": None if bool(mask.all()) else mask,
            "room": torch.where(last, room[:, None], 0),
            "span": torch.where(last, 0, -1),
            "free": torch.ones(len(examples), dtype=torch.bool),
            "prompt_lengths": lengths,
            "whole": torch.zeros(len(examples), dtype=torch.bool),
            "index": key["index"],
            "noise_key": key["noise_key"],
        }


class ILMUnconditionalCollator(ILMSeq2SeqPredictionCollator):
    """Role ``unconditional``: BOS, and room for ``max_length`` tokens after it."""

    def __init__(self, *, tokenizer: Tokenizer, max_length: int) -> None:
        super().__init__(tokenizer=tokenizer, max_length=max_length)

    def __call__(self, examples: list[Example]) -> ILMPredictionBatch:
        """Build the rows; only the examples' keys are read."""
        return super().__call__([{**example, "prompt_ids": []} for example in examples])


class ILMInfillPredictionCollator:
    """Role ``infill_prediction``: the fixed tokens, with gaps between them. What stands in the gaps is not looked at.

    A run of tokens that are not ``fixed`` is a gap of that size. Examples may have a column ``free``, True at one
    placeholder token for each gap of any length; all of a template's gaps are then free, and share the room that the
    fixed tokens leave of ``max_length``.

    Args:
        tokenizer: Has BOS and a padding token.
        max_length: Longest row; BOS comes on top.
    """

    event_space: EventSpace = "window"
    free_gaps = True

    def __init__(self, *, tokenizer: Tokenizer, max_length: int) -> None:
        self.max_length = max_length
        self.pad_id, self.bos_id = special_id(tokenizer, "pad"), special_id(tokenizer, "bos")

    def __call__(self, examples: list[Example]) -> ILMPredictionBatch:
        """Empty the gaps."""
        key = keys(examples)
        layout = templates(examples, self.pad_id, self.max_length)
        full_ids, full_mask, droppable = with_bos(layout, self.bos_id)
        placeholder = pad([example.get("free", [False] * len(example["fixed"])) for example in examples], 0) == 1
        free = placeholder.any(1)
        if bool((free[:, None] & layout.predicted & ~placeholder).any()):
            fix = 'give every gap a size, or none: {"gap": null}'
            raise UserError("mixes gaps of free and of given length", where="template", fix=fix)
        span = span_numbers(droppable)
        kept = drop(full_ids, full_mask, span, droppable, self.pad_id)
        here = ~droppable if full_mask is None else full_mask & ~droppable
        gap_span, room = (self._at_columns(of_gap, here, kept) for of_gap in gap_spans(span, droppable))
        n_fixed = here.sum(1) - 1
        open_and_free = kept.gaps & free[:, None]
        room = torch.where(open_and_free, (self.max_length - n_fixed)[:, None], room)
        gap_span = torch.where(kept.gaps, gap_span.masked_fill(open_and_free, 0), -1)
        return {
            "input_ids": kept.input_ids,
            "attention_mask": kept.attention_mask,
            "room": room,
            "span": gap_span,
            "free": free,
            "prompt_lengths": torch.zeros(len(examples), dtype=torch.int64),
            "whole": torch.ones(len(examples), dtype=torch.bool),
            "index": key["index"],
            "noise_key": key["noise_key"],
        }

    def _at_columns(self, of_gap: Tensor, here: Tensor, kept: Kept) -> Tensor:
        """Values of the gaps of whole rows at the columns of the tokens that are kept; 0 at padding."""
        values = torch.zeros_like(kept.input_ids)
        mask = kept.attention_mask
        values[torch.ones_like(kept.gaps) if mask is None else mask] = of_gap[here]
        return values


class Dropping:
    """Takes n tokens out of each whole row, n uniform on {0..L}, the set uniform."""

    def __init__(self, tokenizer: Tokenizer, *, seed: int, counts_stop: bool, trains_stop: bool) -> None:
        self.seed, self.counts_stop, self.trains_stop = seed, counts_stop, trains_stop
        self.pad_id, self.bos_id = special_id(tokenizer, "pad"), special_id(tokenizer, "bos")

    def __call__(self, examples: list[Example], layout: Layout) -> ILMBatch:
        """The batch of these examples; every predicted token of ``layout`` can be dropped."""
        key = keys(examples)
        length = layout.n_tokens
        n = (low_discrepancy_times(positions(examples), self.seed) * (length + 1)).long()
        full_ids, full_mask, droppable = with_bos(layout, self.bos_id)
        span = span_numbers(droppable)
        u = uniforms(key["noise_key"], full_ids.shape[1], dtype=torch.float64)
        kept = drop(full_ids, full_mask, span, choose(droppable, n, u), self.pad_id)
        return {
            "input_ids": kept.input_ids,
            "attention_mask": kept.attention_mask,
            "gaps": kept.gaps,
            "gap_rows": kept.gap_rows,
            "rows": kept.rows,
            "tokens": kept.tokens,
            "n_dropped": kept.n_dropped,
            "full_ids": full_ids,
            "full_mask": full_mask,
            "span": span,
            "predicted": droppable,
            "counts_stop": self.counts_stop,
            "trains_stop": self.trains_stop,
            "n_tokens": length + int(self.counts_stop),
            "index": key["index"],
            "noise_key": key["noise_key"],
        }


def with_bos(
    layout: Layout, bos_id: int
) -> tuple[Int[Tensor, "batch full"], Bool[Tensor, "batch full"] | None, Bool[Tensor, "batch full"]]:
    """Ids, attention mask and predicted tokens of the rows with BOS in front."""
    mask = None if layout.attention_mask is None else F.pad(layout.attention_mask, (1, 0), value=True)
    return F.pad(layout.ids, (1, 0), value=bos_id), mask, F.pad(layout.predicted, (1, 0), value=False)
