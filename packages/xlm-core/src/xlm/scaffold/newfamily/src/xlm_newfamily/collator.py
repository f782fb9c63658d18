"""From examples to batches: first where the text stands, then which tokens are hidden. One class a role."""

from __future__ import annotations

from torch.nn import functional as F
from xlm.data.layout import (
    Layout,
    canvases_to_fill,
    pairs,
    prompts_to_complete,
    special_id,
    templates,
    templates_to_fill,
    texts,
)
from xlm.data.padding import flat_indices, keys, positions
from xlm.noise import low_discrepancy_times, uniforms
from xlm.protocols import EventSpace, Example, Tokenizer
from xlm.unmasking.batch import MaskedPredictionBatch

from xlm_newfamily.types import NewFamilyBatch


class Noise:
    """Hides each predicted token of a row with the row's mask rate.

    Rates are low-discrepancy in the row's place in the global order, the rest comes from the row's own ``noise_key``:
    so a row's noise does not depend on its batch, on workers, on ranks or on an interruption.
    """

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.mask_id, self.seed = special_id(tokenizer, "mask"), seed

    def __call__(self, examples: list[Example], layout: Layout) -> NewFamilyBatch:
        """The batch of these examples; ``layout`` is only read."""
        key, width = keys(examples), layout.prompt_width
        # YOUR IDEA: which tokens the network does not see. Here: each with the row's rate, which is uniform in (0, 1].
        mask_rate = 1 - low_discrepancy_times(positions(examples), self.seed).float()
        u = uniforms(key["noise_key"], layout.ids.shape[1] - width)
        hidden = (F.pad(u, (width, 0)) < mask_rate[:, None]) & layout.predicted
        return {
            "input_ids": layout.ids.masked_fill(hidden, self.mask_id),
            "target_ids": layout.ids,
            "attention_mask": layout.attention_mask,
            "positions": layout.positions,
            "segments": layout.segments,
            "predicted": layout.predicted,
            "rows": flat_indices(hidden),
            "mask_rate": mask_rate,
            "n_tokens": layout.n_tokens,
            "index": key["index"],
            "noise_key": key["noise_key"],
        }


class NewFamilyCollator:
    """Role ``lm``: text without a prompt: packed windows, or canvases with the text, EOS, and EOS as fill.

    Args:
        tokenizer: Has a mask token, and EOS for open canvases.
        max_length: Longest window; size of the canvas.
        seed: Where the sequence of mask rates starts.
        event_space: ``window`` or ``open``; ``given_length`` treats texts as windows of their own length.
    """

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, seed: int, event_space: EventSpace = "window") -> None:
        self.event_space: EventSpace = event_space
        self.max_length, self.pad_id = max_length, special_id(tokenizer, "pad")
        self.eos_id = special_id(tokenizer, "eos") if event_space == "open" else None
        self.noise = Noise(tokenizer, seed)

    def __call__(self, examples: list[Example]) -> NewFamilyBatch:
        """Hide tokens of ``input_ids``."""
        layout = texts(examples, pad_id=self.pad_id, eos_id=self.eos_id, max_length=self.max_length)
        return self.noise(examples, layout)


class NewFamilySeq2SeqCollator:
    """Role ``seq2seq``: a clean prompt, then a canvas with the target, EOS, and EOS as fill.

    Args:
        tokenizer: Has a mask token and EOS.
        max_prompt_length: Longest prompt.
        max_target_length: Size of the canvas; the longest target is one token shorter, because EOS ends it.
        seed: Where the sequence of mask rates starts.
    """

    event_space: EventSpace = "open"

    def __init__(self, *, tokenizer: Tokenizer, max_prompt_length: int, max_target_length: int, seed: int) -> None:
        self.ids = {"pad_id": special_id(tokenizer, "pad"), "eos_id": special_id(tokenizer, "eos")}
        self.sizes = {"max_prompt_length": max_prompt_length, "max_target_length": max_target_length}
        self.noise = Noise(tokenizer, seed)

    def __call__(self, examples: list[Example]) -> NewFamilyBatch:
        """Hide tokens of the canvas that holds ``target_ids``; ``prompt_ids`` stay."""
        return self.noise(examples, pairs(examples, **self.ids, **self.sizes))


class NewFamilyInfillCollator:
    """Role ``infill``: given tokens (``fixed``) stay visible; the others are predicted.

    Args:
        tokenizer: Has a mask token.
        max_length: Longest row.
        seed: Where the sequence of mask rates starts.
    """

    event_space: EventSpace = "window"

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, seed: int) -> None:
        self.max_length, self.pad_id = max_length, special_id(tokenizer, "pad")
        self.noise = Noise(tokenizer, seed)

    def __call__(self, examples: list[Example]) -> NewFamilyBatch:
        """Hide tokens of ``input_ids`` that are not ``fixed``."""
        return self.noise(examples, templates(examples, self.pad_id, self.max_length))


class NewFamilySeq2SeqPredictionCollator:
    """Role ``seq2seq_prediction``: a clean prompt and an empty canvas. Targets are not looked at.

    Args:
        tokenizer: Has a mask token.
        max_length: Longest prompt and canvas together.
        max_prompt_length: Longest prompt; null is what the canvas leaves of ``max_length``.
        max_target_length: Size of the canvas; null is all that a prompt leaves of ``max_length``.
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
        self.ids = {"pad_id": special_id(tokenizer, "pad"), "mask_id": special_id(tokenizer, "mask")}
        self.max_length, self.max_prompt_length = max_length, max_prompt_length
        self.max_target_length = max_target_length

    def __call__(self, examples: list[Example]) -> MaskedPredictionBatch:
        """Put an empty canvas after every ``prompt_ids``."""
        return prompts_to_complete(
            examples,
            **self.ids,
            max_length=self.max_length,
            max_prompt_length=self.max_prompt_length,
            max_target_length=self.max_target_length,
        )


class NewFamilyInfillPredictionCollator:
    """Role ``infill_prediction``: the mask token wherever a token of ``input_ids`` is not ``fixed``."""

    event_space: EventSpace = "window"

    def __init__(self, *, tokenizer: Tokenizer, max_length: int) -> None:
        self.max_length = max_length
        self.ids = {"pad_id": special_id(tokenizer, "pad"), "mask_id": special_id(tokenizer, "mask")}

    def __call__(self, examples: list[Example]) -> MaskedPredictionBatch:
        """Empty the gaps; what stands there is not looked at."""
        return templates_to_fill(examples, **self.ids, max_length=self.max_length)


class NewFamilyUnconditionalCollator:
    """Role ``unconditional``: an empty canvas of ``max_length`` positions for every example."""

    event_space: EventSpace = "open"

    def __init__(self, *, tokenizer: Tokenizer, max_length: int) -> None:
        self.max_length, self.mask_id = max_length, special_id(tokenizer, "mask")

    def __call__(self, examples: list[Example]) -> MaskedPredictionBatch:
        """Build the canvases; only the examples' keys are read."""
        return canvases_to_fill(examples, mask_id=self.mask_id, size=self.max_length)
