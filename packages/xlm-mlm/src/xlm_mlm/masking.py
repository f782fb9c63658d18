"""Which tokens are to be predicted, and what stands in their place (BERT, Devlin et al., 2019, section 3.1).

Every predicted token, or every word, is chosen independently with the row's mask rate; the rate is one number, or
uniform in (0, 1] and then low-discrepancy in the row's place in the global order. Uniform numbers come from the row's
own ``noise_key``: a row's noise does not depend on its batch.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F
from xlm.data.layout import Layout, special_id
from xlm.data.padding import flat_indices, keys, positions
from xlm.errors import UserError
from xlm.noise import low_discrepancy_times, uniforms
from xlm.protocols import Example, Tokenizer
from xlm.sampling import suppressed_ids

from xlm_mlm.types import MLMBatch
from xlm_mlm.words import Words

CHOICE, FATE, TOKEN = range(3)
"""Streams of a row's key: whether a token is chosen, what becomes of it, and which random token."""


class Masking:
    """Chooses tokens of a layout and hides them.

    Args:
        tokenizer: Has a mask token.
        seed: Where the sequence of mask rates starts.
        role: Of the collator, for error messages.
        mask_rate: Probability with which a token is chosen, in (0, 1], or ``uniform``.
        random_token_rate: Share of the chosen tokens that become a token drawn uniformly from all that can be
            generated.
        keep_rate: Share of the chosen tokens that stay; the rest becomes the mask token.
        whole_words: Choose all tokens of a word or none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        seed: int,
        role: str,
        mask_rate: float | Literal["uniform"],
        random_token_rate: float,
        keep_rate: float,
        whole_words: bool,
    ) -> None:
        self.seed, self.mask_id = seed, special_id(tokenizer, "mask")
        self.mask_rate, self.random_token_rate, self.keep_rate = mask_rate, random_token_rate, keep_rate
        self.generated = _generated(tokenizer)
        self.tokenizer, self.whole_words = tokenizer, whole_words
        share = "use 0.1 as BERT does, or 0"
        self._check(mask_rate == "uniform" or 0 < mask_rate <= 1, role, "mask_rate", "(0, 1]", "use uniform, or 0.15")
        self._check(0 <= random_token_rate <= 1, role, "random_token_rate", "[0, 1]", share)
        within = f"[0, 1 - random_token_rate = {1 - random_token_rate:g}]"
        self._check(0 <= keep_rate <= 1 - random_token_rate, role, "keep_rate", within, share)

    def _check(self, holds: bool, role: str, name: str, interval: str, fix: str) -> None:
        if not holds:
            where = f"collators.{role}.{name}"
            raise UserError(f"must lie in {interval}", where=where, value=getattr(self, name), fix=fix)

    def __call__(self, examples: list[Example], layout: Layout) -> MLMBatch:
        """The batch of these examples; ``layout`` is only read."""
        key, width = keys(examples), layout.prompt_width
        u = uniforms(key["noise_key"], layout.ids.shape[1] - width, stream=CHOICE)
        u = F.pad(u, (width, 0)) if width else u
        if self.whole_words:
            u = u.gather(1, self.words.first(layout.ids, layout.predicted))
        mask_rate = self._rates(examples)
        chosen = (u < mask_rate[:, None]) & layout.predicted
        return {
            "input_ids": self._hide(layout.ids, chosen, key["noise_key"], width),
            "target_ids": layout.ids,
            "attention_mask": layout.attention_mask,
            "positions": layout.positions,
            "segments": layout.segments,
            "predicted": layout.predicted,
            "rows": flat_indices(chosen),
            "mask_rate": mask_rate,
            "ends_at_eos": torch.full((len(examples),), layout.ends_at_eos),
            "n_tokens": layout.n_tokens,
            "index": key["index"],
            "noise_key": key["noise_key"],
        }

    @cached_property
    def words(self) -> Words:
        """Read off the vocabulary when it is first needed."""
        return Words(self.tokenizer)

    def _rates(self, examples: list[Example]) -> Float[Tensor, " batch"]:
        if self.mask_rate == "uniform":
            return 1 - low_discrepancy_times(positions(examples), self.seed).float()
        return torch.full((len(examples),), self.mask_rate)

    def _hide(
        self, ids: Int[Tensor, "batch seq"], chosen: Bool[Tensor, "batch seq"], noise_key: Tensor, width: int
    ) -> Int[Tensor, "batch seq"]:
        """What the network sees: by BERT's rates 80 % masks, 10 % random tokens, 10 % the tokens themselves."""
        hidden = ids.masked_fill(chosen, self.mask_id)
        if self.keep_rate == self.random_token_rate == 0:
            return hidden
        fate, which = (uniforms(noise_key, ids.shape[1] - width, stream=stream) for stream in (FATE, TOKEN))
        fate, which = F.pad(fate, (width, 0)), F.pad(which, (width, 0))
        random = self.generated[(which * len(self.generated)).long()]
        kept = fate < self.keep_rate
        replaced = ~kept & (fate < self.keep_rate + self.random_token_rate)
        hidden = torch.where(chosen & replaced, random, hidden)
        return torch.where(chosen & kept, ids, hidden)


def _generated(tokenizer: Tokenizer) -> Int[Tensor, " tokens"]:
    """Every id that a text can have."""
    generated = torch.ones(len(tokenizer), dtype=torch.bool)
    generated[suppressed_ids(tokenizer)] = False
    return generated.nonzero().squeeze(1)
