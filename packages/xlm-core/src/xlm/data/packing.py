"""Rows of text to rows of token ids, one layout for each role that a collator can have.

``lm`` packs documents, each followed by EOS, into windows of equal length (event space "window"), or keeps one text a
row (event space "open"); ``seq2seq`` has a prompt and a target; ``infill`` a text of which some tokens are given. Each
row knows the UTF-8 bytes of the text that its predicted tokens stand for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from xlm.data.tokenizers import CONTROL, encode
from xlm.errors import UserError

Batch = Mapping[str, Any]
"""Some rows, by column."""

TEXT_COLUMNS: dict[str, tuple[str, ...]] = {
    "lm": ("text",),
    "seq2seq": ("prompt", "target"),
    "seq2seq_prediction": ("prompt",),
    "infill": ("text", "fixed"),
    "infill_prediction": ("text", "fixed"),
    "unconditional": (),
}
"""The text that a role needs."""

POLICIES = {"error": "", "truncate": "truncated", "split": "split"}
"""What to do with rows that are too long, and the name under which they are counted."""


@dataclass(frozen=True)
class Layout:
    """What rows should look like; lengths in tokens."""

    role: str
    event_space: str
    on_too_long: str
    document_mask: bool
    max_length: int
    max_prompt_length: int | None
    max_target_length: int | None
    vocab_size: int


class Tokens(NamedTuple):
    """A text's tokens: ids, the characters [start, end) that each stands for, and the UTF-8 bytes of those."""

    ids: Int[np.ndarray, " n"]
    start: Int[np.ndarray, " n"]
    end: Int[np.ndarray, " n"]
    n_bytes: Int[np.ndarray, " n"]

    def part(self, where: slice) -> Tokens:
        """Some consecutive tokens."""
        return Tokens(*(values[where] for values in self))


class Packed(NamedTuple):
    """Some rows: their text columns, none where a row comes from several texts, and their token columns.

    Token columns are ``input_ids`` ... as collators receive them, and ``n_bytes``.
    """

    text: Batch
    tokens: Batch


@dataclass
class Packer:
    """Turns batches of text columns into batches of token columns, and counts what a user should know.

    Args:
        tokenizer: With an EOS token.
        layout: What rows should look like.
        name: Of the data set, for error messages.
    """

    tokenizer: PreTrainedTokenizerFast
    layout: Layout
    name: str
    counts: Counter[str] = field(default_factory=Counter)
    """documents, tokens, bytes; and where there are any: unknown, truncated, split, dropped_tokens, dropped_bytes."""

    def __call__(self, batches: Iterable[Batch]) -> Iterator[Packed]:
        """Lay out batch after batch; ``counts`` is complete at the end."""
        if self.layout.role == "lm" and self.layout.event_space == "window":
            yield from self._windows(batches)
            return
        pack = self._row_by_row()
        for batch in batches:
            yield pack(batch)
            self.counts["documents"] += _height(batch)

    def _row_by_row(self) -> Callable[[Batch], Packed]:
        return {"lm": self._texts, "seq2seq": self._pairs, "infill": self._templates, "unconditional": self._blanks}[
            self.layout.role.removesuffix("_prediction")
        ]

    def _windows(self, batches: Iterable[Batch]) -> Iterator[Packed]:
        """Documents, each with its EOS, cut every ``max_length`` tokens; what is left at the end is dropped."""
        seq, eos, nothing = self.layout.max_length, [self.tokenizer.eos_token_id], np.empty(0, dtype=np.int32)
        rest = [nothing, nothing, nothing]
        for batch in batches:
            documents = self._tokens(batch["text"])
            numbers = np.arange(len(documents)) + self.counts["documents"]
            self.counts["documents"] += len(documents)
            ids = np.concatenate([rest[0], *chain.from_iterable((document.ids, eos) for document in documents)])
            n_bytes = np.concatenate([rest[1], *chain.from_iterable((document.n_bytes, [0]) for document in documents)])
            of = np.concatenate([rest[2], np.repeat(numbers, [len(document.ids) + 1 for document in documents])])
            whole = len(ids) // seq * seq
            yield self._cut(*(values[:whole].reshape(-1, seq) for values in (ids, n_bytes, of)))
            rest = [ids[whole:], n_bytes[whole:], of[whole:]]
        self.counts["dropped_tokens"] = len(rest[0])
        self.counts["dropped_bytes"] = int(rest[1].sum())

    def _cut(
        self,
        ids: Int[np.ndarray, "rows seq"],
        n_bytes: Int[np.ndarray, "rows seq"],
        document: Int[np.ndarray, "rows seq"],
    ) -> Packed:
        """Windows; ``segments`` numbers the documents of each from 0."""
        segments = {"segments": document - document[:, :1]} if self.layout.document_mask else {}
        return Packed({}, {"input_ids": ids, "n_bytes": n_bytes.sum(1), **segments})

    def _texts(self, batch: Batch) -> Packed:
        """One text a row, with room for EOS. Where a text is cut, its ``text`` is that of the part."""
        rows, parts = [], []
        for i, tokens in enumerate(self._tokens(batch["text"])):
            row = {name: values[i] for name, values in batch.items()}
            for part in self._fit(tokens, "max_length", i, room_for_eos=True):
                if len(part.ids) < len(tokens.ids):
                    row = {**row, "text": batch["text"][i][part.start[0] : part.end[-1]]}
                rows.append(row)
                parts.append(part)
        text = {name: [row[name] for row in rows] for name in batch}
        return Packed(text, {"input_ids": [part.ids for part in parts], "n_bytes": _sizes(parts)})

    def _pairs(self, batch: Batch) -> Packed:
        """A prompt, of which the end is kept, and a target with room for EOS, of which the beginning is kept."""
        prompts = [
            self._fit(tokens, "max_prompt_length", i, keep_end=True)[0]
            for i, tokens in enumerate(self._tokens(batch["prompt"]))
        ]
        columns = {"prompt_ids": [prompt.ids for prompt in prompts], "n_bytes": [0] * len(prompts)}
        if "target" in batch:
            targets = [
                self._fit(tokens, "max_target_length", i, room_for_eos=True)[0]
                for i, tokens in enumerate(self._tokens(batch["target"]))
            ]
            columns |= {"target_ids": [target.ids for target in targets], "n_bytes": _sizes(targets)}
        return Packed(batch, columns)

    def _templates(self, batch: Batch) -> Packed:
        """A text and which of its tokens are given: those of which every character is marked 1 in ``fixed``."""
        parts, fixed = [], []
        for i, tokens in enumerate(self._tokens(batch["text"])):
            part = self._fit(tokens, "max_length", i)[0]
            given_before = np.concatenate([[0], np.cumsum(self._marks(batch["text"][i], batch["fixed"][i], i))])
            fixed.append(given_before[part.end] - given_before[part.start] == part.end - part.start)
            parts.append(part)
        n_bytes = [part.n_bytes[~given].sum() for part, given in zip(parts, fixed, strict=True)]
        return Packed(batch, {"input_ids": [part.ids for part in parts], "fixed": fixed, "n_bytes": n_bytes})

    def _blanks(self, batch: Batch) -> Packed:
        """Rows without tokens."""
        return Packed(batch, {"n_bytes": [0] * _height(batch)})

    def _marks(self, text: str, fixed: str, row: int) -> Bool[np.ndarray, " characters"]:
        if len(fixed) != len(text) or set(fixed) - {"0", "1"}:
            what = f"{self._example(row)} has {len(text)} characters and {len(fixed)} marks {sorted(set(fixed))[:5]}"
            raise UserError(what, where="column fixed", fix="give one 0 or 1 for each character of text")
        marks: Bool[np.ndarray, " characters"] = np.frombuffer(fixed.encode(), dtype=np.uint8) == ord("1")
        return marks

    def _fit(
        self, tokens: Tokens, key: str, row: int, *, room_for_eos: bool = False, keep_end: bool = False
    ) -> list[Tokens]:
        """The tokens, or the parts of them, that fit into ``key`` tokens; where they must not be cut, an error."""
        limit, n, policy = getattr(self.layout, key) - room_for_eos, len(tokens.ids), self.layout.on_too_long
        if n <= limit:
            return [tokens]
        if policy == "error":
            raise UserError(
                f"{self._example(row)} has {n} tokens{' and EOS' * room_for_eos}, too many",
                where=f"datamodule.{key}",
                value=getattr(self.layout, key),
                fix=f"raise {key}, or let the dataset manager cut: on_too_long=truncate",
            )
        self.counts[POLICIES[policy]] += 1
        if policy == "split":
            return [tokens.part(slice(start, start + limit)) for start in range(0, n, limit)]
        return [tokens.part(slice(n - limit, n) if keep_end else slice(limit))]

    def _tokens(self, texts: Sequence[str]) -> list[Tokens]:
        """Encode the texts of a batch, check their ids and count."""
        found = [tokens_of(text, encoding) for text, encoding in zip(texts, encode(self.tokenizer, texts), strict=True)]
        ids = np.concatenate([tokens.ids for tokens in found])
        self._check_ids(ids, [len(tokens.ids) for tokens in found])
        self.counts["tokens"] += len(ids)
        self.counts["bytes"] += sum(int(tokens.n_bytes.sum()) for tokens in found)
        if self.tokenizer.unk_token_id is not None:
            self.counts["unknown"] += int((ids == self.tokenizer.unk_token_id).sum())
        return found

    def _check_ids(self, ids: Int[np.ndarray, " n"], lengths: Sequence[int]) -> None:
        control = [getattr(self.tokenizer, f"{name}_id") for name in CONTROL]
        wrong = (ids >= self.layout.vocab_size) | np.isin(ids, control)
        if not wrong.any():
            return
        place = int(wrong.argmax())
        row = int(np.searchsorted(np.cumsum(lengths), place, side="right"))
        raise UserError(
            f"{self._example(row)} has token id {ids[place]}: a control token, or beyond the "
            f"{self.layout.vocab_size} ids of the vocabulary",
            where="tokenizer",
            fix="use the tokenizer that belongs to the model, one that keeps control tokens out of texts",
        )

    def _example(self, row: int) -> str:
        return f"{self.name}: example {self.counts['documents'] + row}"


def tokens_of(text: str, encoding: Encoding) -> Tokens:
    """A text's tokens. Their bytes add up to those of the text.

    A token has the bytes between the previous token's end and its own, the last one also what follows; of several
    tokens for one character the first has them all.
    """
    start, end = np.fromiter(chain.from_iterable(encoding.offsets), np.int64).reshape(-1, 2).T
    until = _bytes_before(text)[np.maximum.accumulate(end)]
    if len(until):
        until[-1] = len(text.encode())
    ids = np.array(encoding.ids, dtype=np.int32)
    return Tokens(ids, start, end, np.diff(until, prepend=0).astype(np.int32))


def _bytes_before(text: str) -> Int[np.ndarray, " characters_and_one"]:
    """UTF-8 bytes before each character of a text, and of all of it."""
    if text.isascii():
        return np.arange(len(text) + 1)
    points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000).astype(np.int64)
    return np.concatenate([[0], np.cumsum(widths)])


def _sizes(parts: Sequence[Tokens]) -> list[int]:
    return [int(part.n_bytes.sum()) for part in parts]


def _height(batch: Batch) -> int:
    return len(next(iter(batch.values())))
