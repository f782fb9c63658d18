"""From examples to batches: first the layout of the text, then the noise. One class a role.

Every predicted token of a row is hidden independently with the row's rate u(t). t is low-discrepancy in the row's place
in the global order, the uniforms come from the row's own ``noise_key``: a row's noise does not depend on its batch.
"""

from __future__ import annotations

import torch
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
from xlm.errors import UserError
from xlm.noise import low_discrepancy_times, uniforms
from xlm.protocols import EventSpace, Example, NoiseSchedule, Tokenizer
from xlm.unmasking.batch import MaskedPredictionBatch

from xlm_mdlm.types import MDLMBatch


class MDLMCollator:
    """Role ``lm``: text without a prompt, every token of which can be hidden.

    In the event space ``window`` a row is a packed window of N tokens; its likelihood is p(x | N). In ``open`` a row is
    a canvas of ``max_length`` positions: the text, EOS, and EOS as fill. All of them can be hidden and no attention
    mask tells the length, so the model learns p(text, end); the denominator is the text and one EOS.

    Args:
        tokenizer: Has a mask token, and EOS for open canvases.
        noise_schedule: u(t) and the weight of the bound.
        max_length: Longest window; size of the canvas.
        seed: Where the sequence of times starts.
        event_space: ``window`` or ``open``; ``given_length`` treats texts as windows of their own length.
        t_min: Least time drawn, in [0, 1). Above 0 it bounds the weight 1/t, and drops as much of the bound.

    Example:
        >>> from xlm.noise import LinearSchedule
        >>> from xlm.testing.factories import keyed, tiny_tokenizer  # 0 pad, 1 mask, 2 bos, 3 eos, then letters
        >>> parts = {"tokenizer": tiny_tokenizer(), "noise_schedule": LinearSchedule(), "seed": 0}
        >>> collate = MDLMCollator(**parts, max_length=5, event_space="open", t_min=0.9)
        >>> batch = collate(keyed([{"input_ids": [4, 5]}]))
        >>> batch["target_ids"].tolist(), batch["n_tokens"].tolist()
        ([[4, 5, 3, 3, 3]], [3])
        >>> batch["input_ids"].tolist()
        [[1, 1, 1, 1, 1]]
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        noise_schedule: NoiseSchedule,
        max_length: int,
        seed: int,
        event_space: EventSpace = "window",
        t_min: float = 1e-3,
    ) -> None:
        self.event_space: EventSpace = event_space
        self.max_length = max_length
        self.noise = Noise(tokenizer, noise_schedule, seed=seed, t_min=t_min, role="lm")
        self.pad_id = special_id(tokenizer, "pad")
        self.eos_id = special_id(tokenizer, "eos") if event_space == "open" else None

    def __call__(self, examples: list[Example]) -> MDLMBatch:
        """Hide tokens of ``input_ids``; ``segments``, where the examples have them, keep packed documents apart."""
        layout = texts(examples, pad_id=self.pad_id, eos_id=self.eos_id, max_length=self.max_length)
        return self.noise(examples, layout)


class MDLMSeq2SeqCollator:
    """Role ``seq2seq``: a clean prompt, left-padded, then a canvas with the target, EOS, and EOS as fill.

    Args:
        tokenizer: Has a mask token and EOS.
        noise_schedule: u(t) and the weight of the bound.
        max_prompt_length: Longest prompt.
        max_target_length: Size of the canvas; the longest target is one token shorter, because EOS ends it.
        seed: Where the sequence of times starts.
        t_min: Least time drawn, in [0, 1).
    """

    event_space: EventSpace = "open"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        noise_schedule: NoiseSchedule,
        max_prompt_length: int,
        max_target_length: int,
        seed: int,
        t_min: float = 1e-3,
    ) -> None:
        self.noise = Noise(tokenizer, noise_schedule, seed=seed, t_min=t_min, role="seq2seq")
        self.ids = {"pad_id": special_id(tokenizer, "pad"), "eos_id": special_id(tokenizer, "eos")}
        self.sizes = {"max_prompt_length": max_prompt_length, "max_target_length": max_target_length}

    def __call__(self, examples: list[Example]) -> MDLMBatch:
        """Hide tokens of the canvas that holds ``target_ids``; ``prompt_ids`` stay."""
        return self.noise(examples, pairs(examples, **self.ids, **self.sizes))


class MDLMSeq2SeqPredictionCollator:
    """Role ``seq2seq_prediction``: a clean prompt and then an empty canvas. Targets are not looked at.

    Args:
        tokenizer: Has a mask token.
        max_length: Longest prompt and canvas together.
        max_prompt_length: Longest prompt; null is what the canvas leaves of ``max_length``.
        max_target_length: Size of the canvas, with prompts left-padded in front of it; null is all that a prompt leaves
            of ``max_length``, for a network that was trained on text without prompts.
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


class MDLMInfillCollator:
    """Role ``infill``: given tokens (``fixed``) stay visible and are not predicted; the number of gaps is given.

    Rows of unequal length are right-padded, with an attention mask.

    Args:
        tokenizer: Has a mask token.
        noise_schedule: u(t) and the weight of the bound.
        max_length: Longest row.
        seed: Where the sequence of times starts.
        t_min: Least time drawn, in [0, 1).
    """

    event_space: EventSpace = "window"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        noise_schedule: NoiseSchedule,
        max_length: int,
        seed: int,
        t_min: float = 1e-3,
    ) -> None:
        self.max_length = max_length
        self.noise = Noise(tokenizer, noise_schedule, seed=seed, t_min=t_min, role="infill")
        self.pad_id = special_id(tokenizer, "pad")

    def __call__(self, examples: list[Example]) -> MDLMBatch:
        """Hide tokens of ``input_ids`` that are not ``fixed``."""
        return self.noise(examples, templates(examples, self.pad_id, self.max_length))


class MDLMInfillPredictionCollator:
    """Role ``infill_prediction``: the mask token wherever a token of ``input_ids`` is not ``fixed``."""

    event_space: EventSpace = "window"

    def __init__(self, *, tokenizer: Tokenizer, max_length: int) -> None:
        self.max_length = max_length
        self.ids = {"pad_id": special_id(tokenizer, "pad"), "mask_id": special_id(tokenizer, "mask")}

    def __call__(self, examples: list[Example]) -> MaskedPredictionBatch:
        """Empty the gaps; what stands there is not looked at."""
        return templates_to_fill(examples, **self.ids, max_length=self.max_length)


class MDLMUnconditionalCollator:
    """Role ``unconditional``: an empty canvas of ``max_length`` positions for every example."""

    event_space: EventSpace = "open"

    def __init__(self, *, tokenizer: Tokenizer, max_length: int) -> None:
        self.max_length = max_length
        self.mask_id = special_id(tokenizer, "mask")

    def __call__(self, examples: list[Example]) -> MaskedPredictionBatch:
        """Build the canvases; only the examples' keys are read."""
        return canvases_to_fill(examples, mask_id=self.mask_id, size=self.max_length)


class Noise:
    """Hides predicted tokens at the rate u(t), t = t_min + (1 - t_min) v, v low-discrepancy in [0, 1).

    The density of t is 1 / (1 - t_min), so (1 - t_min) belongs to the weight of the bound.
    """

    def __init__(
        self, tokenizer: Tokenizer, noise_schedule: NoiseSchedule, *, seed: int, t_min: float, role: str
    ) -> None:
        if not 0 <= t_min < 1:
            fix = "use 0.001, or 0 for the whole bound at a higher variance"
            raise UserError("must lie in [0, 1)", where=f"collators.{role}.t_min", value=t_min, fix=fix)
        self.noise_schedule, self.seed, self.t_min = noise_schedule, seed, t_min
        self.mask_id = special_id(tokenizer, "mask")

    def __call__(self, examples: list[Example], layout: Layout) -> MDLMBatch:
        """The batch of these examples; ``layout`` is only read."""
        key = keys(examples)
        t = self.t_min + (1 - self.t_min) * low_discrepancy_times(positions(examples), self.seed)
        mask_rate = self.noise_schedule.mask_rate(t).float()
        elbo_weight = (1 - self.t_min) * self.noise_schedule.elbo_weight(t)
        width = layout.prompt_width
        hidden = uniforms(key["noise_key"], layout.ids.shape[1] - width) < mask_rate[:, None]
        if width:
            hidden = torch.nn.functional.pad(hidden, (width, 0))
        hidden &= layout.predicted
        return {
            "input_ids": layout.ids.masked_fill(hidden, self.mask_id),
            "target_ids": layout.ids,
            "attention_mask": layout.attention_mask,
            "positions": layout.positions,
            "segments": layout.segments,
            "predicted": layout.predicted,
            "rows": flat_indices(hidden),
            "mask_rate": mask_rate,
            "elbo_weight": elbo_weight.float(),
            "ends_at_eos": torch.full((len(examples),), layout.ends_at_eos),
            "n_tokens": layout.n_tokens,
            "index": key["index"],
            "noise_key": key["noise_key"],
        }
