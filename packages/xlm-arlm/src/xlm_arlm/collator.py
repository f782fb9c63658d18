"""Examples to batches: every token is predicted from the tokens before it, the first one from BOS."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F
from xlm.data.padding import flat_indices, keys, pad, padding_mask
from xlm.errors import UserError
from xlm.protocols import EventSpace, Example, Tokenizer

from xlm_arlm.types import ARLMBatch, ARLMPromptBatch, Keys, Placement, special_id


class ARLMCollator:
    """Role ``lm``. Window: [BOS] x_1 .. x_{N-1} predicts x_1 .. x_N. Open: [BOS] x predicts x [EOS], right-padded.

    Where the rows of a window have ``segments`` (the document of each token) each document is on its own: its first
    token is predicted from BOS, its tokens see one another only, and positions restart.

    Args:
        tokenizer: Gives the ids of BOS, EOS and padding.
        max_length: Most tokens that the network reads, BOS included.
        event_space: ``window`` or ``open``; the data manager knows which.

    Example:
        >>> from xlm.testing.factories import tiny_tokenizer  # 0 pad, 1 mask, 2 bos, 3 eos, then letters
        >>> collate = ARLMCollator(tokenizer=tiny_tokenizer(), max_length=8, event_space="open")
        >>> batch = collate([{"input_ids": [4, 5], "index": 0, "noise_key": 7}])
        >>> batch["input_ids"].tolist(), batch["target_ids"].tolist()
        ([[2, 4, 5]], [[4, 5, 3]])
    """

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, event_space: EventSpace) -> None:
        if event_space not in ("window", "open"):
            fix = "use window (packed text) or open: ARLM cannot be told the length of a text"
            raise UserError("must be window or open", where="datamodule.event_space", value=event_space, fix=fix)
        self.bos, self.eos, self.pad = (special_id(tokenizer, name) for name in ("bos", "eos", "pad"))
        self.max_length, self.event_space = max_length, event_space

    def __call__(self, examples: list[Example]) -> ARLMBatch:
        """Build one batch from ``input_ids`` and, in windows, optional ``segments``."""
        rows = [example["input_ids"] for example in examples]
        texts, lengths = pad(rows, self.pad), _lengths(rows)
        if self.event_space == "open":
            return self._batch(examples, texts, _append(texts, lengths, self.eos, self.pad), lengths + 1)
        if "segments" not in examples[0]:
            return self._batch(examples, texts[:, :-1], texts, lengths)
        segments = pad([example["segments"] for example in examples], -1)
        first = segments != segments.roll(1, dims=1)  # column 0 needs no care: BOS and position 0 stand there anyway
        batch = self._batch(examples, texts[:, :-1].masked_fill(first[:, 1:], self.bos), texts, lengths)
        batch["segments"], batch["positions"] = segments, _restarting_positions(first)
        return batch

    def _batch(
        self,
        examples: list[Example],
        after_bos: Int[Tensor, "batch one_less"],
        target_ids: Int[Tensor, "batch seq"],
        lengths: np.ndarray,
    ) -> ARLMBatch:
        _check_length(lengths, self.max_length)
        predicted = padding_mask(lengths, target_ids.shape[1])
        return {
            "input_ids": F.pad(after_bos, (1, 0), value=self.bos),
            "target_ids": target_ids,
            "attention_mask": None,
            "positions": None,
            "segments": None,
            "predicted": predicted,
            "rows": _rows_in_loss(predicted),
            "n_tokens": torch.from_numpy(lengths),
            **_keys(examples),
        }


class ARLMSeq2SeqCollator:
    """Role ``seq2seq``: [BOS] prompt, left-padded, then target [EOS], right-padded; -log p(target, EOS | prompt).

    Args:
        tokenizer: Gives the ids of BOS, EOS and padding.
        max_length: Most tokens that the network reads: BOS, prompt and target.
        loss_on_prompt: Whether the loss is taken at the prompt's tokens too. Likelihoods are the target's either way.
    """

    event_space: EventSpace = "open"

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, loss_on_prompt: bool = False) -> None:
        self.bos, self.eos, self.pad = (special_id(tokenizer, name) for name in ("bos", "eos", "pad"))
        self.max_length, self.loss_on_prompt = max_length, loss_on_prompt

    def __call__(self, examples: list[Example]) -> ARLMBatch:
        """Build one batch from ``prompt_ids`` and ``target_ids``."""
        targets = [example["target_ids"] for example in examples]
        lengths = _lengths(targets)
        left, real_left = _left_padded_prompts(examples, self.bos, self.pad)
        suffix = pad(targets, self.pad)
        real = torch.cat([real_left, padding_mask(lengths, suffix.shape[1])], dim=1)
        _check_length(real.sum(1).numpy(), self.max_length)
        answer = padding_mask(lengths + 1, suffix.shape[1] + 1)
        predicted = torch.cat([torch.zeros_like(real_left[:, 1:]), answer], dim=1)
        trained = torch.cat([real_left[:, :-1], answer], dim=1) if self.loss_on_prompt else predicted
        return {
            "input_ids": torch.cat([left, suffix], dim=1),
            "target_ids": torch.cat([left[:, 1:], _append(suffix, lengths, self.eos, self.pad)], dim=1),
            **_placement(real_left, real),
            "segments": None,
            "predicted": predicted,
            "rows": _rows_in_loss(trained),
            "n_tokens": torch.from_numpy(lengths + 1),
            **_keys(examples),
        }


class ARLMSeq2SeqPredictionCollator:
    """Role ``seq2seq_prediction``: [BOS] prompt, left-padded; targets are not looked at.

    Args:
        tokenizer: Gives the ids of BOS and padding.
        max_length: Most tokens that the network reads: BOS and prompt here, and what is generated after them.
    """

    event_space: EventSpace = "open"

    def __init__(self, *, tokenizer: Tokenizer, max_length: int) -> None:
        self.bos, self.pad = (special_id(tokenizer, name) for name in ("bos", "pad"))
        self.max_length = max_length

    def __call__(self, examples: list[Example]) -> ARLMPromptBatch:
        """Build one batch from ``prompt_ids``."""
        input_ids, real = _left_padded_prompts(examples, self.bos, self.pad)
        _check_length(real.sum(1).numpy(), self.max_length)
        return {"input_ids": input_ids, **_placement(real, real), **_keys(examples)}


class ARLMUnconditionalCollator:
    """Role ``unconditional``: every row begins with BOS alone."""

    event_space: EventSpace = "open"

    def __init__(self, *, tokenizer: Tokenizer) -> None:
        self.bos = special_id(tokenizer, "bos")

    def __call__(self, examples: list[Example]) -> ARLMPromptBatch:
        """Build one batch; the examples give their keys only."""
        input_ids = torch.full((len(examples), 1), self.bos)
        return {"input_ids": input_ids, "attention_mask": None, "positions": None, **_keys(examples)}


def _lengths(rows: list[Any]) -> np.ndarray:
    return np.fromiter(map(len, rows), np.int64, len(rows))


def _keys(examples: list[Example]) -> Keys:
    columns = keys(examples)
    return {"index": columns["index"], "noise_key": columns["noise_key"]}


def _check_length(lengths: np.ndarray, max_length: int) -> None:
    if lengths.max(initial=0) > max_length:
        raise UserError(
            f"a row has {lengths.max()} tokens, BOS or EOS included, and {max_length} fit",
            where="datamodule.max_length",
            fix="raise max_length, or let the dataset manager shorten it: on_too_long=truncate or split",
        )


def _rows_in_loss(chosen: Bool[Tensor, "batch seq"]) -> Int[Tensor, " rows"] | None:
    return None if chosen.all() else flat_indices(chosen)


def _append(
    texts: Int[Tensor, "batch seq"], lengths: np.ndarray, eos: int, padding: int
) -> Int[Tensor, "batch one_more"]:
    """Right-padded texts with EOS after the last token of each."""
    longer = F.pad(texts, (0, 1), value=padding)
    return longer.scatter_(1, torch.from_numpy(lengths)[:, None], eos)


def _restarting_positions(first: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
    columns = torch.arange(first.shape[1])
    return columns - torch.where(first, columns, 0).cummax(dim=1).values


def _left_padded_prompts(
    examples: list[Example], bos: int, padding: int
) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    """[BOS] prompt of every example, and where its tokens are."""
    prompts = [example["prompt_ids"] for example in examples]
    lengths = _lengths(prompts)
    input_ids = F.pad(pad(prompts, padding, side="left"), (1, 0), value=padding)
    seq = input_ids.shape[1]
    input_ids.scatter_(1, torch.from_numpy(seq - 1 - lengths)[:, None], bos)
    return input_ids, padding_mask(lengths + 1, seq, "left")


def _placement(prompt: Bool[Tensor, "batch prompt"], real: Bool[Tensor, "batch seq"]) -> Placement:
    """Mask and positions of rows that may be padded on the left, of whose columns ``prompt`` covers the first."""
    if prompt.all():
        return {"attention_mask": None, "positions": None}
    return {"attention_mask": real, "positions": (real.cumsum(1) - 1).clamp(min=0)}
