"""Where the tokens of a batch stand, before any noise: windows, canvases, prompts and templates.

Every predicted token of a layout may be hidden; what stands elsewhere is given. Families whose text has positions that
are filled in, in any order, build their batches from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from xlm.data.padding import keys, pad, padding_mask
from xlm.errors import UserError
from xlm.protocols import Example, Tokenizer
from xlm.unmasking.batch import MaskedPredictionBatch


@dataclass
class Layout:
    """Where the tokens of a batch stand, before any noise."""

    ids: Int[Tensor, "batch seq"]
    predicted: Bool[Tensor, "batch seq"]
    n_tokens: Int[Tensor, " batch"]
    attention_mask: Bool[Tensor, "batch seq"] | None = None
    positions: Int[Tensor, "batch seq"] | None = None
    segments: Int[Tensor, "batch seq"] | None = None
    prompt_width: int = 0
    """Columns that the prompts take; a row's noise is numbered from there, so that left padding does not move it."""
    ends_at_eos: bool = False
    """Whether a row is a canvas on which a text ends at EOS."""


def windows(rows: Sequence[Any], pad_id: int, max_length: int) -> Layout:
    """Each row as it is, right-padded; every token of it is predicted."""
    lengths = lengths_within(rows, max_length, "datamodule.max_length")
    ids = pad(rows, pad_id)
    attention_mask = None if (lengths == ids.shape[1]).all() else padding_mask(lengths, ids.shape[1])
    predicted = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask
    return Layout(ids, predicted, torch.from_numpy(lengths), attention_mask)


def texts(examples: list[Example], *, pad_id: int, eos_id: int | None, max_length: int) -> Layout:
    """Texts without a prompt: windows, with ``segments`` where packed, or canvases that end at ``eos_id``."""
    rows = [example["input_ids"] for example in examples]
    if eos_id is not None:
        return canvases(rows, eos_id, max_length, "datamodule.max_length")
    layout = windows(rows, pad_id, max_length)
    if "segments" in examples[0]:
        layout.segments = pad([example["segments"] for example in examples], -1, length=layout.ids.shape[1])
    return layout


def pairs(
    examples: list[Example], *, pad_id: int, eos_id: int, max_prompt_length: int, max_target_length: int
) -> Layout:
    """Clean prompts, each in front of the canvas with its target."""
    targets = [example["target_ids"] for example in examples]
    canvas = canvases(targets, eos_id, max_target_length, "datamodule.max_target_length")
    return prompted(examples, canvas, pad_id, max_prompt_length)


def canvases(rows: Sequence[Any], eos_id: int, size: int, key: str) -> Layout:
    """Each text, then EOS up to ``size`` positions; all are predicted, text and one EOS are counted."""
    lengths = lengths_within(rows, size - 1, key)
    ids = pad(rows, eos_id, length=size)
    return Layout(ids, torch.ones_like(ids, dtype=torch.bool), torch.from_numpy(lengths + 1), ends_at_eos=True)


def empty_canvases(batch: int, mask_id: int, size: int) -> Layout:
    """``size`` mask tokens a row."""
    ids = torch.full((batch, size), mask_id)
    return Layout(ids, torch.ones_like(ids, dtype=torch.bool), torch.full((batch,), size))


def templates(examples: list[Example], pad_id: int, max_length: int) -> Layout:
    """Each row right-padded; tokens that are not ``fixed`` are predicted."""
    layout = windows([example["input_ids"] for example in examples], pad_id, max_length)
    layout.predicted = pad([example["fixed"] for example in examples], 1) == 0
    layout.n_tokens = layout.predicted.sum(1)
    return layout


def prompted(examples: list[Example], canvas: Layout, pad_id: int, max_prompt_length: int) -> Layout:
    """Each prompt left-padded in front of its canvas."""
    prompts = [example["prompt_ids"] for example in examples]
    lengths = lengths_within(prompts, max_prompt_length, "datamodule.max_prompt_length")
    ids = torch.cat([pad(prompts, pad_id, side="left"), canvas.ids], 1)
    width = ids.shape[1] - canvas.ids.shape[1]
    predicted = torch.cat([torch.zeros(len(prompts), width, dtype=torch.bool), canvas.predicted], 1)
    layout = Layout(ids, predicted, canvas.n_tokens, prompt_width=width, ends_at_eos=canvas.ends_at_eos)
    if (lengths != width).any():
        layout.attention_mask = padding_mask(lengths + canvas.ids.shape[1], ids.shape[1], "left")
        layout.positions = (torch.arange(ids.shape[1]) - torch.from_numpy(width - lengths)[:, None]).clamp_(min=0)
    return layout


def completions(examples: list[Example], mask_id: int, max_prompt_length: int, max_length: int) -> Layout:
    """Each prompt, then as many mask tokens as make a row of ``max_length``."""
    prompts = [example["prompt_ids"] for example in examples]
    lengths = lengths_within(prompts, max_prompt_length, "datamodule.max_length")
    predicted = ~padding_mask(lengths, max_length)
    return Layout(pad(prompts, mask_id, length=max_length), predicted, predicted.sum(1))


def prompts_to_complete(
    examples: list[Example],
    *,
    pad_id: int,
    mask_id: int,
    max_length: int,
    max_prompt_length: int | None,
    max_target_length: int | None,
) -> MaskedPredictionBatch:
    """Every ``prompt_ids`` and an empty canvas; targets are not looked at.

    Args:
        examples: With ``prompt_ids``.
        pad_id: Stands before shorter prompts.
        mask_id: Stands where something is to be generated.
        max_length: Longest prompt and canvas together.
        max_prompt_length: Longest prompt; None is what the canvas leaves of ``max_length``.
        max_target_length: Size of the canvas, with prompts left-padded in front of it; None is all that a prompt leaves
            of ``max_length``.
    """
    longest = max_length - (max_target_length or 1) if max_prompt_length is None else max_prompt_length
    if max_target_length is None:
        layout = completions(examples, mask_id, longest, max_length)
    else:
        if max_prompt_length is None:
            check_room(examples, max_target_length, max_length)
        layout = prompted(examples, empty_canvases(len(examples), mask_id, max_target_length), pad_id, longest)
    prompt_lengths = [len(example["prompt_ids"]) for example in examples]
    return prediction_batch(examples, layout, prompt_lengths=prompt_lengths, ends_at_eos=True)


def check_room(examples: list[Example], max_new_tokens: int, max_length: int) -> None:
    """Refuse answers as long as ``max_new_tokens`` asks for where a prompt leaves less."""
    longest = max(len(example["prompt_ids"]) for example in examples)
    left = max_length - longest
    if max_new_tokens > left:
        fits = f"{max(max_length - max_new_tokens, 0)} fit before an answer within datamodule.max_length = {max_length}"
        fix = f"use {left} or fewer" if left > 0 else "shorten the prompt"
        raise UserError(f"a row has {longest} tokens, {fits}", where="max_new_tokens", value=max_new_tokens, fix=fix)


def templates_to_fill(examples: list[Example], *, pad_id: int, mask_id: int, max_length: int) -> MaskedPredictionBatch:
    """Rows with the mask token wherever a token is not ``fixed``; what stands there is not looked at."""
    layout = templates(examples, pad_id, max_length)
    layout.ids = layout.ids.masked_fill(layout.predicted, mask_id)
    return prediction_batch(examples, layout, prompt_lengths=[0] * len(examples), ends_at_eos=False)


def canvases_to_fill(examples: list[Example], *, mask_id: int, size: int) -> MaskedPredictionBatch:
    """An empty canvas for every example; only the keys are read."""
    layout = empty_canvases(len(examples), mask_id, size)
    return prediction_batch(examples, layout, prompt_lengths=[0] * len(examples), ends_at_eos=True)


def prediction_batch(
    examples: list[Example], layout: Layout, *, prompt_lengths: list[int], ends_at_eos: bool
) -> MaskedPredictionBatch:
    """The batch that samplers read, for a layout that has mask tokens where something is to be generated."""
    key = keys(examples)
    return {
        "input_ids": layout.ids,
        "predicted": layout.predicted,
        "attention_mask": layout.attention_mask,
        "positions": layout.positions,
        "prompt_lengths": torch.tensor(prompt_lengths),
        "ends_at_eos": torch.full((len(examples),), ends_at_eos),
        "index": key["index"],
        "noise_key": key["noise_key"],
    }


def lengths_within(rows: Sequence[Any], limit: int, key: str) -> np.ndarray:
    """Tokens of each row.

    Raises:
        UserError: a row has more than ``limit``.
    """
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    if len(rows) and lengths.max() > limit:
        fix = f"raise {key}, or let the dataset manager shorten its rows"
        raise UserError(f"a row has {lengths.max()} tokens, {limit} fit", where=key, fix=fix)
    return lengths


def special_id(tokenizer: Tokenizer, name: str) -> int:
    """Id of the tokenizer's pad, mask, bos or eos token.

    Raises:
        UserError: there is none.
    """
    token_id: int | None = getattr(tokenizer, f"{name}_token_id")
    if token_id is None:
        raise UserError(f"the tokenizer has no {name} token", where="tokenizer", fix=f"add a {name} token")
    return token_id
