"""What a user asks for: a prompt, a template with gaps, or a text out of nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xlm.data.sources import read_text
from xlm.errors import UserError

Prompt = str | Sequence[Any] | None
"""A text, a template's parts (texts, ``{"gap": tokens}``, and ``{"gap": None}`` for any number of them), or None."""


@dataclass(frozen=True)
class Asked:
    """One thing to generate."""

    role: str
    text: str
    """What is shown as the prompt; a gap is shown as underscores, one of free length as an ellipsis."""
    parts: tuple[str | int | None, ...]
    """Texts, and sizes of gaps in tokens; None: of free length."""
    key: str = "prompt"
    """Under which it was asked for, for error messages."""

    @property
    def has_free_gaps(self) -> bool:
        """Whether the sampler chooses how long a gap's answer is."""
        return None in self.parts


def as_prompt(asked: Prompt, where: str = "prompt") -> Asked:
    """Check what was asked for.

    Example:
        >>> as_prompt(["The ", {"gap": 2}, " sat."]).text
        'The __ sat.'
    """
    if asked is None:
        return Asked("unconditional", "", ())
    if isinstance(asked, str):
        return Asked("seq2seq_prediction", asked, (asked,))
    parts = tuple(_part(part, where) for part in asked)
    if all(isinstance(part, str) for part in parts):
        raise UserError(
            "has no gap", where=where, value=asked, fix='put {"gap": 5} where five tokens are to be filled in'
        )
    return Asked("infill_prediction", "".join(map(_shown, parts)), parts)


def _shown(part: str | int | None) -> str:
    return "…" if part is None else "_" * part if isinstance(part, int) else part


def _part(part: Any, where: str) -> str | int | None:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or set(part) != {"gap"}:
        raise UserError("neither a text nor a gap", where=where, value=part, fix='write "text" or {"gap": 5}')
    gap = part["gap"]
    if gap is None:
        return None
    if not isinstance(gap, int) or isinstance(gap, bool) or gap < 1:
        raise UserError(
            "no size of a gap", where=where, value=part, fix="give 1 token or more, or null: of free length"
        )
    return gap


def example(asked: Asked, tokenizer: Any, *, index: int, noise_key: int) -> dict[str, Any]:
    """A row as collators take it. Control tokens in the text are plain text.

    A gap of free length is one placeholder, marked in a column ``free``.

    Example:
        >>> from xlm.testing.factories import tiny_tokenizer
        >>> asked = as_prompt(["ab", {"gap": None}, "c"])
        >>> row = example(asked, tiny_tokenizer(), index=0, noise_key=0)
        >>> [[int(value) for value in row[name]] for name in ("input_ids", "fixed", "free")]
        [[4, 5, 0, 6], [1, 1, 0, 1], [0, 0, 1, 0]]
    """
    from xlm.data.tokenizers import encode

    row: dict[str, Any] = {"index": index, "position": index, "noise_key": noise_key}
    ids: list[int] = []
    fixed: list[bool] = []
    free: list[bool] = []
    for part in asked.parts:
        if isinstance(part, str):
            tokens = encode(tokenizer, [part])[0].ids
            _refuse_unknown(part, tokenizer, asked.key)
        else:
            tokens = [tokenizer.pad_token_id] * (1 if part is None else part)
        ids += tokens
        fixed += [isinstance(part, str)] * len(tokens)
        free += [part is None] * len(tokens)
    if asked.role == "seq2seq_prediction":
        return {**row, "prompt_ids": ids}
    if asked.role == "infill_prediction":
        return {**row, "input_ids": ids, "fixed": fixed} | ({"free": free} if asked.has_free_gaps else {})
    return row


def _refuse_unknown(text: str, tokenizer: Any, where: str) -> None:
    """Refuse letters that a lossless tokenizer, which met none of them in training, cannot write.

    One that loses text anyway, as a word tokenizer does, was trained with its unknown token.
    """
    from xlm.data.tokenizers import encode, is_lossless

    (encoding,) = encode(tokenizer, [text])
    pieces = zip(encoding.ids, encoding.offsets, strict=True)
    unknown = dict.fromkeys(text[start:end] for id_, (start, end) in pieces if id_ == tokenizer.unk_token_id)
    if unknown and is_lossless(tokenizer):
        shown = " ".join(ascii(piece) if not piece.isprintable() else repr(piece) for piece in unknown)
        fix = "use characters of the text that the run was trained on"
        raise UserError("the run's tokenizer cannot write these characters", where=where, value=shown, fix=fix)


def read_prompts(path: str) -> list[Asked]:
    """Rows of a JSON Lines file: ``{"prompt": "..."}`` or ``{"template": [...]}``."""
    lines = enumerate(read_text(_file(path, "prompts")).split("\n"), start=1)
    rows = [_row(line, f"{path}:{number}") for number, line in lines if line.strip()]
    if not rows:
        raise UserError("has no rows", where=path, fix='write one {"prompt": "..."} a line')
    return rows


def read_template(path: str) -> Asked:
    """A JSON file: ``["The ", {"gap": 5}, " sat."]``, or that under ``template``."""
    content = _json(read_text(_file(path, "template")), path)
    parts = content.get("template") if isinstance(content, dict) else content
    if not isinstance(parts, list):
        raise UserError("no template", where=path, fix='write ["The ", {"gap": 5}, " sat."]')
    return replace(as_prompt(parts, where=path), key="template")


def _row(line: str, where: str) -> Asked:
    content = _json(line, where)
    keys = set(content) & {"prompt", "template"} if isinstance(content, dict) else set()
    if len(keys) != 1:
        raise UserError("no prompt", where=where, fix='write {"prompt": "..."} or {"template": ["...", {"gap": 5}]}')
    (key,) = keys
    if not isinstance(content[key], str if key == "prompt" else list):
        raise UserError(f"no {key}", where=where, value=content[key], fix="a prompt is a text, a template a list")
    return replace(as_prompt(content[key], where=where), key="prompts")


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"no JSON: {error}", where=where, fix="correct the file") from error


def _file(path: str, where: str) -> Path:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError("there is no such file", where=where, value=path, fix="check the path")
    return file
