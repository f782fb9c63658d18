"""Tiny inputs: a tokenizer of letters, and examples as the data module hands them to collators."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from xlm.noise import Stream, noise_key
from xlm.protocols import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[MASK]", "[BOS]", "[EOS]")
FIRST_LETTER = len(SPECIAL)


def tiny_tokenizer(n_letters: int = 8) -> PreTrainedTokenizerFast:
    """One token a character: 0 pad, 1 mask, 2 bos, 3 eos, then the first ``n_letters`` letters from 4 on."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate((*SPECIAL, *string.ascii_letters[:n_letters]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    pad, mask, bos, eos = SPECIAL
    special = {"pad_token": pad, "mask_token": mask, "bos_token": bos, "eos_token": eos}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)  # type: ignore[no-untyped-call]


def keyed(rows: Sequence[dict[str, Any]], *, seed: int = 0, stream: int = Stream.EVAL) -> list[Example]:
    """Add ``index``, ``position`` and ``noise_key`` to rows, as the data module does."""
    return [{**row, "index": i, "position": i, "noise_key": noise_key(seed, stream, i)} for i, row in enumerate(rows)]


def letters(lengths: Sequence[int], *, n_letters: int = 8, seed: int = 0) -> list[list[int]]:
    """Random texts of the tiny tokenizer's letters."""
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(FIRST_LETTER, FIRST_LETTER + n_letters, (n,), generator=generator) for n in lengths]
    return [row.tolist() for row in ids]


def lm_examples(lengths: Sequence[int], *, n_letters: int = 8, seed: int = 0) -> list[Example]:
    """Role ``lm``: one text a length."""
    return keyed([{"input_ids": ids} for ids in letters(lengths, n_letters=n_letters, seed=seed)], seed=seed)


def seq2seq_examples(
    prompt_lengths: Sequence[int], target_lengths: Sequence[int], *, n_letters: int = 8, seed: int = 0
) -> list[Example]:
    """Roles ``seq2seq`` and ``seq2seq_prediction``: one prompt and target a pair of lengths."""
    prompts = letters(prompt_lengths, n_letters=n_letters, seed=seed)
    targets = letters(target_lengths, n_letters=n_letters, seed=seed + 1)
    rows = zip(prompts, targets, strict=True)
    return keyed([{"prompt_ids": prompt, "target_ids": target} for prompt, target in rows], seed=seed)


def infill_examples(
    lengths: Sequence[int], *, n_letters: int = 8, fixed_rate: float = 0.5, seed: int = 0
) -> list[Example]:
    """Roles ``infill`` and ``infill_prediction``: each token is given with probability ``fixed_rate``."""
    generator = torch.Generator().manual_seed(seed + 1)
    texts = letters(lengths, n_letters=n_letters, seed=seed)
    fixed = [(torch.rand(n, generator=generator) < fixed_rate).tolist() for n in lengths]
    return keyed([{"input_ids": ids, "fixed": given} for ids, given in zip(texts, fixed, strict=True)], seed=seed)


def unconditional_examples(n: int, *, seed: int = 0) -> list[Example]:
    """Role ``unconditional``: only keys."""
    return keyed([{}] * n, seed=seed)
