"""What the network reads: nothing that it is asked for, and all that it is given."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from xlm.protocols import Collator, Example
from xlm.testing import factories, oracles
from xlm.testing.masked.parts import (
    LETTERS,
    MaskedParts,
    hidden,
    pair_examples,
    text_examples,
)
from xlm.testing.oracles import Measured

NO_LEAK = "no input says what is hidden"
GIVEN_STAYS = "prompts, given tokens and padding stay as they are"
ANSWERS_UNSEEN = "inputs to complete do not depend on the answer"


def measures() -> dict[str, Callable[[MaskedParts], Measured]]:
    """By the statement that each measures."""
    return {
        NO_LEAK: _nothing_leaks,
        GIVEN_STAYS: _given_stays,
        ANSWERS_UNSEEN: _answers_unseen,
        "padding changes no logit": _padding,
        "packed documents are as if separate": _packing,
    }


def _nothing_leaks(parts: MaskedParts) -> Measured:
    collate, examples = parts.texts(8, "window"), factories.lm_examples([8] * 50, n_letters=4)
    batch = collate(examples)
    others = batch["target_ids"].clone()
    others[hidden(batch)] = LETTERS[0] + (others[hidden(batch)] - LETTERS[0] + 1) % len(LETTERS)
    changed = collate([{**row, "input_ids": ids} for row, ids in zip(examples, others.tolist(), strict=True)])
    n = int((changed["input_ids"] != batch["input_ids"]).sum())
    return oracles.none_of(n, f"inputs that change with {int(hidden(batch).sum())} hidden tokens")


def _given_stays(parts: MaskedParts) -> Measured:
    infill = factories.infill_examples([3, 8, 5] * 10, n_letters=4)
    n = 0
    for batch in (parts.pairs()(pair_examples()), parts.templates(8)(infill), parts.texts(8, "open")(text_examples())):
        given = ~batch["predicted"]
        n += int((batch["input_ids"] != batch["target_ids"])[given].sum())
        n += int((batch["input_ids"] != batch["target_ids"])[~hidden(batch)].sum())
    return oracles.none_of(n, "tokens that are another in the input")


def _answers_unseen(parts: MaskedParts) -> Measured:
    def differences(collate: Collator, examples: list[Example], others: list[Example]) -> int:
        left, right = collate(examples), collate(others)
        return sum(
            int((value != right[name]).sum()) if value.shape == right[name].shape else value.numel()
            for name, value in left.items()
            if isinstance(value, Tensor)
        )

    pairs, infill = pair_examples(), factories.infill_examples([3, 8, 5], n_letters=4)
    flipped = [
        {**row, "input_ids": [i if fixed else 11 - i for i, fixed in zip(row["input_ids"], row["fixed"], strict=True)]}
        for row in infill
    ]
    n = differences(parts.prompts(), pairs, [{**row, "target_ids": [LETTERS[1]]} for row in pairs])
    return oracles.none_of(n + differences(parts.gaps(8), infill, flipped), "entries that change with the answer")


def _ids(n_rows: int = 3, length: int = 6) -> Int[Tensor, "rows seq"]:
    return torch.tensor([row["input_ids"] for row in factories.lm_examples([length] * n_rows, n_letters=4)])


def _reader(parts: MaskedParts) -> Callable[..., Float[Tensor, "rows seq vocab"]]:
    """Logits of one network."""
    network = parts.network()

    def logits(ids: Tensor, attention_mask: Tensor | None = None, **where: Tensor) -> Tensor:
        told = {"mask_rate": torch.full((len(ids),), 0.5)} if parts.told_mask_rate else {}
        read: Tensor = network(ids, attention_mask, **where, **told).detach()
        return read

    return logits


def _padding(parts: MaskedParts) -> Measured:
    logits, ids = _reader(parts), _ids()
    real = torch.tensor([[False] * 2 + [True] * 6] * len(ids))
    padded = torch.cat([ids[:, :2], ids], 1)
    positions = (real.cumsum(1) - 1).clamp_min(0)
    return oracles.equal(logits(padded, real, positions=positions)[:, 2:], logits(ids))


def _packing(parts: MaskedParts) -> Measured:
    logits, ids = _reader(parts), _ids()
    segments = torch.tensor([[0, 0, 1, 1, 1, 1]]).expand_as(ids)
    positions = torch.tensor([[0, 1, 0, 1, 2, 3]]).expand_as(ids)
    packed = logits(ids, positions=positions, segments=segments)
    return oracles.equal(packed, torch.cat([logits(ids[:, :2]), logits(ids[:, 2:])], 1))
