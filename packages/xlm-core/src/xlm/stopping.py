"""Strings that end an answer: the option ``predictor.stop``."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from xlm.errors import UserError
from xlm.protocols import Tokenizer


def stop_strings(stop: str | Sequence[str]) -> list[str]:
    """The option ``predictor.stop`` as a list: a string, or several."""
    strings = [stop] if isinstance(stop, str) else list(stop)
    if "" in strings:
        raise UserError("holds an empty string", where="predictor.stop", fix="remove it: every text holds it")
    return strings


def stopped_length(tokenizer: Tokenizer, ids: list[int], stop: Sequence[str]) -> int:
    """Length of the shortest beginning whose text holds a stop string; of all, if none does."""

    def holds(n: int) -> bool:
        text = tokenizer.decode(ids[:n], skip_special_tokens=True)
        return any(string in text for string in stop)

    return min(len(ids), bisect_left(range(len(ids) + 1), True, key=holds))


def text_before(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    return text[: min((text.index(string) for string in stop if string in text), default=len(text))]
