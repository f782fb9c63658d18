"""Deliberate faults of the loss and the collators: from the right function to a wrong one."""

from __future__ import annotations

from typing import Any

import torch
from xlm.data.padding import flat_indices

# The loss


def mean_over_rows(loss_fn: Any) -> Any:
    """Short texts count as much as long ones."""

    def wrong(self: Any, batch: Any) -> Any:
        out = loss_fn(self, batch)
        return {**out, "loss": (out["nll"] / batch["n_tokens"]).mean()}

    return wrong


def divided_by_columns(loss_fn: Any) -> Any:
    """The denominator counts padding."""

    def wrong(self: Any, batch: Any) -> Any:
        out = loss_fn(self, batch)
        return {**out, "loss": out["loss"] * out["loss_denominator"] / batch["target_ids"].numel()}

    return wrong


# The collators


def unshifted(batch: Any) -> Any:
    """Every token is predicted from itself."""

    def wrong(*args: Any) -> Any:
        right = batch(*args)
        return {**right, "input_ids": right["target_ids"]}

    return wrong


def shifted_by_two(batch: Any) -> Any:
    """The token after the next one is predicted."""

    def wrong(*args: Any) -> Any:
        right = batch(*args)
        return {**right, "target_ids": right["target_ids"].roll(-1, 1)}

    return wrong


def without_last(batch: Any) -> Any:
    """The last token of each row is not counted."""

    def wrong(*args: Any) -> Any:
        right = batch(*args)
        last = torch.arange(right["predicted"].shape[1]) == right["n_tokens"][:, None] - 1
        predicted = right["predicted"] & ~last
        return {**right, "predicted": predicted, "rows": flat_indices(predicted), "n_tokens": predicted.sum(1)}

    return wrong


def one_document(call: Any) -> Any:
    """Nothing separates the documents of a window; they are packed all the same."""
    return lambda self, examples: {**call(self, examples), "segments": None}


def with_prompt(call: Any) -> Any:
    """The loss is taken at the prompt, asked for or not."""

    def wrong(self: Any, examples: Any) -> Any:
        asked, self.loss_on_prompt = self.loss_on_prompt, True
        batch = call(self, examples)
        self.loss_on_prompt = asked
        return batch

    return wrong


def no_mask(placement: Any) -> Any:
    """Attention sees padding."""
    return lambda prompt, real: {**placement(prompt, real), "attention_mask": None}


def with_answer(left_padded_prompts: Any) -> Any:
    """The answer's first token stands where the prompt ends."""

    def wrong(examples: Any, *args: Any) -> Any:
        ids, real = left_padded_prompts(examples, *args)
        ids[:, -1] = torch.tensor([(example["target_ids"] or [0])[0] for example in examples])
        return ids, real

    return wrong
