"""One data set of one split: its source, what it is for, its rows of tokens and its text."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from xlm.data import cache, storage
from xlm.data.packing import TEXT_COLUMNS, Batch, Layout, Packer
from xlm.data.sources import Source
from xlm.data.tokenizers import CONTROL, is_lossless
from xlm.errors import UserError
from xlm.protocols import EventSpace

ROLES = {
    "loss": ("lm", "seq2seq", "infill"),
    "prediction": ("seq2seq_prediction", "infill_prediction", "unconditional"),
}
BATCH = 1000  # rows tokenised at a time
CODE = (__name__, Packer.__module__, storage.__name__)  # modules that decide what is in the cache

logger = logging.getLogger(__name__)


class DatasetManager:
    """One data set of a split: an evaluation, or training data.

    Args:
        source: Gives rows of text.
        kind: ``loss`` for training and likelihood, ``prediction`` for generating.
        roles: Collator roles that the rows can serve, best first; the first that the family has is taken.
        event_space: Of role ``lm``: ``window`` packs documents, ``open`` keeps one text a row. None: the data module's.
        on_too_long: ``error``, ``truncate``, or ``split`` (role ``lm`` alone); what was cut is counted.
        document_mask: Give packed windows a ``segments`` column, so that attention can stay within documents.
        limit: Use the first ``limit`` rows only.
        metrics: By name, what is computed on predictions.
    """

    def __init__(
        self,
        *,
        source: Source,
        kind: Literal["loss", "prediction"],
        roles: Sequence[str],
        event_space: Literal["window", "open"] | None = None,
        on_too_long: Literal["error", "truncate", "split"] = "error",
        document_mask: bool = False,
        limit: int | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        self.source, self.kind, self.roles, self.metrics = source, kind, tuple(roles), dict(metrics or {})
        self.on_too_long, self.document_mask, self.limit = on_too_long, document_mask, limit
        self.lm_event_space = event_space
        self._check()
        self.split = self.name = ""
        """Given by the data module."""
        self.of_training = False
        """Whether its rows are examples that are trained on."""
        self.role = ""
        self.event_space: EventSpace
        self.collator: Any = None
        """Given by ``DataModule.bind``."""
        self.report: dict[str, int] = {}
        """What preprocessing counted: rows, documents, tokens, bytes, unknown, truncated, split, dropped_tokens ..."""
        self._table: Dataset | None = None

    def _check(self) -> None:
        def refuse(what: str, key: str, value: object, fix: str) -> None:
            raise UserError(what, where=f"dataset_manager.{key}", value=value, fix=fix)

        if not self.roles or set(self.roles) - set(ROLES[self.kind]):
            refuse(f"do not fit kind={self.kind}", "roles", self.roles, f"choose from {', '.join(ROLES[self.kind])}")
        if self.on_too_long == "split" and self.roles != ("lm",):
            refuse("is for the one role lm", "on_too_long", self.on_too_long, "use error or truncate")
        if self.limit is not None and self.limit < 1:
            refuse("must be at least 1", "limit", self.limit, "use null for all rows")

    @property
    def full_name(self) -> str:
        """``<split>.<name>``."""
        return f"{self.split}.{self.name}"

    def resolve(self, available: Collection[str], default_event_space: EventSpace) -> None:
        """Take the first of ``roles`` that the family has a collator for, and the event space that goes with it."""
        fitting = [role for role in self.roles if role in available]
        if not fitting:
            has = ", ".join(available) or "none"
            raise UserError(
                f"{self.full_name} can serve the roles {', '.join(self.roles)}; the family has {has}",
                where=f"datamodule.dataset_managers.{self.full_name}.roles",
                fix="choose another data set or view, or another family",
            )
        self.role = fitting[0]
        self.event_space = "window" if self.role.startswith("infill") else "open"
        if self.role == "lm":
            self.event_space = self.lm_event_space or default_event_space

    def texts(self) -> Iterator[str]:
        """All text of the source, for training a tokenizer."""
        for batch in _batches(self._source_table()):
            for column in ("text", "prompt", "target"):
                yield from batch.get(column, ())

    def build(
        self,
        tokenizer: PreTrainedTokenizerFast,
        *,
        vocab_size: int,
        max_length: int,
        max_prompt_length: int | None,
        max_target_length: int | None,
        cache_dir: str | Path | None,
    ) -> None:
        """Tokenise the rows and lay them out for the resolved role, or find that done in the cache."""
        layout = Layout(
            role=self.role,
            event_space=self.event_space,
            on_too_long=self.on_too_long,
            document_mask=self.document_mask,
            max_length=max_length,
            max_prompt_length=max_prompt_length,
            max_target_length=max_target_length,
            vocab_size=vocab_size,
        )
        self._check_lengths(layout)
        folder = cache.cache_folder(cache_dir) / "datasets" / self._key(tokenizer, layout)
        packer = Packer(tokenizer, layout, self.full_name)
        self.rows, self.report = cache.kept(folder, lambda folder: self._write(folder, packer), _read)
        self._table, self._tokenizer = None, tokenizer
        self._counts_bytes = is_lossless(tokenizer) and not self.report.get("unknown")
        counted = ", ".join(f"{n:,} {name}" for name, n in self.report.items() if n)
        logger.info("%s: role %s, event space %s; %s", self.full_name, self.role, self.event_space, counted)

    def __len__(self) -> int:
        return len(self.rows) if self.limit is None else min(self.limit, len(self.rows))

    def examples(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Text columns of some rows, with ``index`` and, where there is one, ``target``: what a right answer equals."""
        rows = [{**text, "index": index} for text, index in zip(self.rows.text(indices), indices, strict=True)]
        if self.role == "lm" and self.event_space == "window":
            ids = self.rows.ragged["input_ids"]
            return [{**row, "text": self._tokenizer.decode(ids[row["index"]])} for row in rows]
        if self.role.startswith("infill"):
            return [{**row, "target": row["text"]} for row in rows]
        return rows

    def n_bytes(self, indices: Sequence[int]) -> Int[Tensor, " n"] | None:
        """UTF-8 bytes of the text that each row's predicted tokens stand for; None where tokens lose some of it."""
        return self.rows.n_bytes(indices) if self._counts_bytes else None

    def _check_lengths(self, layout: Layout) -> None:
        for key in ("max_prompt_length", "max_target_length"):
            if self.role.startswith("seq2seq") and getattr(layout, key) is None:
                what = f"{self.full_name} (role {self.role}) needs it"
                raise UserError(what, where=f"datamodule.{key}", value="null", fix="give a number of tokens")

    def _key(self, tokenizer: PreTrainedTokenizerFast, layout: Layout) -> str:
        control = [getattr(tokenizer, f"{name}_id") for name in (*CONTROL, "unk_token")]
        code = [cache.code_hash(sys.modules[name]) for name in CODE]
        return cache.key(
            cache.fingerprint(self.source), tokenizer.backend_tokenizer.to_str(), control, asdict(layout), code
        )

    def _write(self, folder: Path, packer: Packer) -> None:
        table = self._source_table(TEXT_COLUMNS[self.role])
        n_rows = storage.write(folder / "rows.arrow", packer(_batches(table)), table.features)
        if not n_rows:
            counts = ", ".join(f"{n} {name}" for name, n in packer.counts.items()) or "0 documents"
            raise UserError(
                f"the data set {self.full_name} is empty: {counts}",
                where=f"datamodule.dataset_managers.{self.full_name}",
                fix="give it more text, other fractions, or windows shorter than datamodule.max_length",
            )
        (folder / "report.json").write_text(json.dumps({"rows": n_rows, **packer.counts}))

    def _source_table(self, needed: Sequence[str] = ()) -> Dataset:
        """The source's rows, whose ``needed`` columns are text; kept until the rows are built."""
        if self._table is None:
            self._table = _table(self.source.rows(), self.full_name)
        for column in needed if len(self._table) else ():
            _check_text(self._table, column, self.full_name)
        return self._table


def _read(folder: Path) -> tuple[storage.Rows, dict[str, int]]:
    return storage.Rows(folder / "rows.arrow"), json.loads((folder / "report.json").read_text())


def _table(rows: Any, name: str) -> Dataset:
    if isinstance(rows, Dataset):
        return rows
    try:
        return Dataset.from_list(list(rows))
    except (UnicodeError, TypeError, ValueError) as error:  # Arrow refuses lone surrogates and mixed types
        fix = "give every row the same columns, with valid Unicode text"
        raise UserError(f"rows of {name} are no text: {error}", where=f"{name}.source", fix=fix) from error


def _check_text(table: Dataset, column: str, name: str) -> None:
    if column not in table.column_names:
        fix = f"name one of its columns: {', '.join(table.column_names)}"
        raise UserError(f"{name} has no column {column!r}", where=f"{name}.source", fix=fix)
    dtype, nulls = table.features[column].dtype, table.data.column(column).null_count
    if nulls or dtype not in ("string", "large_string"):
        found = f"{nulls} nulls" if nulls else dtype
        fix = "give every row a text, or remove the row"
        raise UserError(f"{name} has {found} instead of text in column {column!r}", where=f"{name}.source", fix=fix)


def _batches(table: Dataset) -> Iterator[Batch]:
    for start in range(0, len(table), BATCH):
        yield table[start : start + BATCH]
