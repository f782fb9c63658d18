"""From examples to batches: first the layout of the text, then which tokens are hidden. One class a role."""

from __future__ import annotations

from typing import Any, Literal

from xlm.data.layout import (
    canvases_to_fill,
    pairs,
    prompts_to_complete,
    special_id,
    templates,
    templates_to_fill,
    texts,
)
from xlm.protocols import EventSpace, Example, Tokenizer
from xlm.unmasking.batch import MaskedPredictionBatch

from xlm_mlm.masking import Masking
from xlm_mlm.types import MLMBatch


class MLMCollator:
    """Role ``lm``: text without a prompt, every token of which can be chosen.

    In the event space ``window`` a row is a packed window of N tokens. In ``open`` a row is a canvas of ``max_length``
    positions: the text, EOS, and EOS as fill; no attention mask tells the length, so the model learns p(text, end).

    Args:
        tokenizer: Has a mask token, and EOS for open canvases.
        max_length: Longest window; size of the canvas.
        seed: Where the sequence of mask rates starts.
        event_space: ``window`` or ``open``; ``given_length`` treats texts as windows of their own length.
        mask_rate: Probability with which a token is chosen, in (0, 1]; ``uniform`` draws one for every row.
        random_token_rate: Share of the chosen tokens that become a random token instead of the mask token.
        keep_rate: Share of the chosen tokens that stay as they are.
        whole_words: Choose all tokens of a word or none.

    Example:
        >>> from xlm.testing.factories import keyed, tiny_tokenizer  # 0 pad, 1 mask, 2 bos, 3 eos, then letters
        >>> collate = MLMCollator(tokenizer=tiny_tokenizer(), max_length=5, seed=0, event_space="open", mask_rate=1.0)
        >>> batch = collate(keyed([{"input_ids": [4, 5]}]))
        >>> batch["target_ids"].tolist(), batch["n_tokens"].tolist(), batch["rows"].tolist()
        ([[4, 5, 3, 3, 3]], [3], [0, 1, 2, 3, 4])
        >>> batch["input_ids"].tolist()
        [[1, 1, 1, 1, 1]]
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        max_length: int,
        seed: int,
        event_space: EventSpace = "window",
        mask_rate: float | Literal["uniform"] = "uniform",
        random_token_rate: float = 0.0,
        keep_rate: float = 0.0,
        whole_words: bool = False,
    ) -> None:
        self.event_space: EventSpace = event_space
        self.max_length, self.pad_id = max_length, special_id(tokenizer, "pad")
        self.eos_id = special_id(tokenizer, "eos") if event_space == "open" else None
        rates: dict[str, Any] = {"mask_rate": mask_rate, "random_token_rate": random_token_rate, "keep_rate": keep_rate}
        self.masking = Masking(tokenizer, seed=seed, role="lm", whole_words=whole_words, **rates)

    def __call__(self, examples: list[Example]) -> MLMBatch:
        """Choose tokens of ``input_ids``; ``segments``, where the examples have them, keep packed documents apart."""
        layout = texts(examples, pad_id=self.pad_id, eos_id=self.eos_id, max_length=self.max_length)
        return self.masking(examples, layout)


class MLMSeq2SeqCollator:
    """Role ``seq2seq``: a clean prompt, left-padded, then a canvas with the target, EOS, and EOS as fill.

    Args:
        tokenizer: Has a mask token and EOS.
        max_prompt_length: Longest prompt.
        max_target_length: Size of the canvas; the longest target is one token shorter, because EOS ends it.
        seed: Where the sequence of mask rates starts.
        mask_rate: Probability with which a token of the canvas is chosen, in (0, 1]; ``uniform`` draws one a row.
        random_token_rate: Share of the chosen tokens that become a random token.
        keep_rate: Share of the chosen tokens that stay as they are.
        whole_words: Choose all tokens of a word or none.
    """

    event_space: EventSpace = "open"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        max_prompt_length: int,
        max_target_length: int,
        seed: int,
        mask_rate: float | Literal["uniform"] = "uniform",
        random_token_rate: float = 0.0,
        keep_rate: float = 0.0,
        whole_words: bool = False,
    ) -> None:
        self.ids = {"pad_id": special_id(tokenizer, "pad"), "eos_id": special_id(tokenizer, "eos")}
        self.sizes = {"max_prompt_length": max_prompt_length, "max_target_length": max_target_length}
        rates: dict[str, Any] = {"mask_rate": mask_rate, "random_token_rate": random_token_rate, "keep_rate": keep_rate}
        self.masking = Masking(tokenizer, seed=seed, role="seq2seq", whole_words=whole_words, **rates)

    def __call__(self, examples: list[Example]) -> MLMBatch:
        """Choose tokens of the canvas that holds ``target_ids``; ``prompt_ids`` stay."""
        return self.masking(examples, pairs(examples, **self.ids, **self.sizes))


class MLMInfillCollator:
    """Role ``infill``: given tokens (``fixed``) stay visible and are not predicted; the number of gaps is given.

    Rows of unequal length are right-padded, with an attention mask.

    Args:
        tokenizer: Has a mask token.
        max_length: Longest row.
        seed: Where the sequence of mask rates starts.
        mask_rate: Probability with which a token is chosen, in (0, 1]; ``uniform`` draws one for every row.
        random_token_rate: Share of the chosen tokens that become a random token.
        keep_rate: Share of the chosen tokens that stay as they are.
        whole_words: Choose all tokens of a word or none.
    """

    event_space: EventSpace = "window"

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        max_length: int,
        seed: int,
        mask_rate: float | Literal["uniform"] = "uniform",
        random_token_rate: float = 0.0,
        keep_rate: float = 0.0,
        whole_words: bool = False,
    ) -> None:
        self.max_length, self.pad_id = max_length, special_id(tokenizer, "pad")
        rates: dict[str, Any] = {"mask_rate": mask_rate, "random_token_rate": random_token_rate, "keep_rate": keep_rate}
        self.masking = Masking(tokenizer, seed=seed, role="infill", whole_words=whole_words, **rates)

    def __call__(self, examples: list[Example]) -> MLMBatch:
        """Choose tokens of ``input_ids`` that are not ``fixed``."""
        return self.masking(examples, templates(examples, self.pad_id, self.max_length))


class MLMSeq2SeqPredictionCollator:
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


class MLMInfillPredictionCollator:
    """Role ``infill_prediction``: the mask token wherever a token of ``input_ids`` is not ``fixed``."""

    event_space: EventSpace = "window"

    def __init__(self, *, tokenizer: Tokenizer, max_length: int) -> None:
        self.max_length = max_length
        self.ids = {"pad_id": special_id(tokenizer, "pad"), "mask_id": special_id(tokenizer, "mask")}

    def __call__(self, examples: list[Example]) -> MaskedPredictionBatch:
        """Empty the gaps; what stands there is not looked at."""
        return templates_to_fill(examples, **self.ids, max_length=self.max_length)


class MLMUnconditionalCollator:
    """Role ``unconditional``: an empty canvas of ``max_length`` positions for every example."""

    event_space: EventSpace = "open"

    def __init__(self, *, tokenizer: Tokenizer, max_length: int) -> None:
        self.max_length = max_length
        self.mask_id = special_id(tokenizer, "mask")

    def __call__(self, examples: list[Example]) -> MaskedPredictionBatch:
        """Build the canvases; only the examples' keys are read."""
        return canvases_to_fill(examples, mask_id=self.mask_id, size=self.max_length)
