"""Where text comes from. A source gives rows of text columns: ``text``, or ``prompt`` and ``target``.

A document's split depends on its content alone, so the order of files, a moved folder or further documents that repeat
old ones never carry a text from the training set into the test set.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from xlm.errors import UserError

Row = dict[str, Any]
Split = Literal["train", "val", "test"]
PARAGRAPH_END = re.compile(r"\r?\n(?:[ \t]*\r?\n)+")

logger = logging.getLogger(__name__)


@runtime_checkable
class Source(Protocol):
    """Gives the rows of one data set. It may also have ``fingerprint()``, naming its content, where that is cheaper."""

    def rows(self) -> Any:
        """A list of dicts of text columns, or a ``datasets.Dataset``."""
        ...


class TextFiles:
    """Documents of a text file, or of every text file in a folder and below it, sorted by name. UTF-8.

    Args:
        path: File or folder.
        split: train, val or test; None takes all documents.
        document: What a document is: a ``line``, a ``paragraph`` (up to an empty line) or a whole ``file``. Line ends
            and empty lines between documents belong to none; documents of white space only are left out.
        pattern: Names of the files to take from a folder; hidden ones never are.
        errors: ``replace`` puts U+FFFD where a file is not UTF-8, and says how often; ``strict`` makes it an error.
        val_fraction: Share of the different documents that is validation.
        test_fraction: Share of the different documents that is test.
    """

    def __init__(
        self,
        *,
        path: str,
        split: Split | None = None,
        document: Literal["line", "paragraph", "file"] = "paragraph",
        pattern: str = "*",
        errors: Literal["strict", "replace"] = "strict",
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        self.path, self.document, self.pattern, self.errors = path, document, pattern, errors
        self.split, self.val_fraction, self.test_fraction = split, val_fraction, test_fraction

    def rows(self) -> list[Row]:
        """One row a document, with its ``text``."""
        texts = [text for file in find_files(self.path, self.pattern) for text in self._documents(file)]
        if not texts:
            raise UserError("holds no text", where="source.path", value=self.path, fix="give a file with text in it")
        return take_split([{"text": text} for text in texts], self.split, self.val_fraction, self.test_fraction)

    def fingerprint(self) -> str:
        """Names the files' contents and how they are read; not where they lie."""
        options = (self.document, self.errors, self.split, self.val_fraction, self.test_fraction)
        return f"{options} {hash_files(find_files(self.path, self.pattern))}"

    def _documents(self, file: Path) -> Iterator[str]:
        text = read_text(file, errors=self.errors)
        if self.document == "file":
            parts = [text]
        elif self.document == "line":
            parts = re.split(r"\r?\n", text)
        else:
            parts = [part.strip("\r\n") for part in PARAGRAPH_END.split(text)]
        yield from (part for part in parts if part.strip())


class StandardLibrary:
    """Source files of the running Python's own standard library, tests left out: real text on every machine.

    Args:
        max_bytes: Take files in the order of their names, except those with which they would exceed so many bytes.
        split: train, val or test; None takes all files.
        val_fraction: Share of the files that is validation.
        test_fraction: Share of the files that is test.
    """

    def __init__(
        self,
        *,
        max_bytes: int = 1_000_000,
        split: Split | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        if max_bytes < 1:
            raise UserError("must be at least 1", where="source.max_bytes", value=max_bytes, fix="use 1000000")
        check_fractions(val_fraction, test_fraction)
        self.max_bytes, self.split = max_bytes, split
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def rows(self) -> list[Row]:
        """One row a file, with its ``text``."""
        rows = [{"text": read_text(file)} for file in self._files()]
        if not rows:
            raise UserError(
                "no source files found", where="source.max_bytes", value=self.max_bytes, fix="use a greater number"
            )
        return take_split(rows, self.split, self.val_fraction, self.test_fraction)

    def fingerprint(self) -> str:
        """Names the files' contents."""
        return f"{(self.split, self.val_fraction, self.test_fraction)} {hash_files(list(self._files()))}"

    def _files(self) -> Iterator[Path]:
        root, size = Path(sysconfig.get_path("stdlib")), 0
        for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
            if {"site-packages", "dist-packages", "test", "tests", "lib2to3"} & set(path.relative_to(root).parts):
                continue  # lib2to3 and the tests hold files that are broken on purpose
            if 0 < (bytes_here := path.stat().st_size) <= self.max_bytes - size:
                size += bytes_here
                yield path


class Rows:
    """Rows written down in the configuration, or made in Python.

    Args:
        rows: Mappings of text columns, for example ``[{prompt: "2+2=", target: "4"}]``.
    """

    def __init__(self, *, rows: Sequence[Mapping[str, Any]]) -> None:
        self.given = [dict(row) for row in rows]

    def rows(self) -> list[Row]:
        """The rows as given."""
        return self.given


class Blank:
    """Rows without content, for sampling without a prompt (role ``unconditional``).

    Args:
        n: How many samples.
    """

    def __init__(self, *, n: int) -> None:
        if n < 1:
            raise UserError("must be at least 1", where="source.n", value=n, fix="ask for some samples")
        self.n = n

    def rows(self) -> list[Row]:
        """``n`` rows of an empty text."""
        return [{"text": ""}] * self.n


def read_text(file: Path, *, errors: str = "strict") -> str:
    """A UTF-8 file as it is, line ends included, without a byte-order mark."""
    data = _read(file)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if errors == "strict":
            raise UserError(
                f"is not UTF-8: byte {data[error.start]:#04x} at offset {error.start}",
                where=str(file),
                fix="convert the file to UTF-8, or set errors=replace",
            ) from error
        text = data.decode("utf-8", errors="replace")
        logger.warning("%s is not UTF-8: %d characters replaced by U+FFFD", file, text.count("�"))
    return text.removeprefix("\ufeff")


def take_split(rows: list[Row], split: Split | None, val_fraction: float, test_fraction: float) -> list[Row]:
    """The rows of one split, in their order. Different rows are ranked by a hash of their content; test comes first.

    Every split that has a fraction gets at least one row where there are three different ones.
    """
    if split is None:
        return rows
    digests = [hashlib.blake2b(repr(sorted(row.items())).encode(), digest_size=16).digest() for row in rows]
    ranked = sorted(set(digests))
    test = _count(test_fraction, len(ranked))
    val = _count(val_fraction, len(ranked))
    bounds = {"test": (0, test), "val": (test, test + val), "train": (test + val, len(ranked))}
    chosen = set(ranked[slice(*bounds[split])])
    return [row for row, digest in zip(rows, digests, strict=True) if digest in chosen]


def _count(fraction: float, n: int) -> int:
    return max(round(fraction * n), 1) if fraction > 0 and n >= 3 else 0


def check_fractions(val_fraction: float, test_fraction: float) -> None:
    """Refuse shares that are no shares, or leave nothing to train on."""
    for key, fraction in {"val_fraction": val_fraction, "test_fraction": test_fraction}.items():
        if not 0 <= fraction < 1:
            raise UserError("must lie in [0, 1)", where=f"source.{key}", value=fraction, fix="use 0.05")
    if val_fraction + test_fraction >= 1:
        what = f"leaves nothing to train on: val_fraction {val_fraction} + test_fraction {test_fraction} >= 1"
        raise UserError(what, where="source.val_fraction", fix="use smaller fractions")


def find_files(path: str, pattern: str) -> list[Path]:
    """The file, or the folder's visible files whose names fit, sorted by their path within it."""
    root = Path(path).expanduser()
    if root.is_file():
        return [root]
    if not root.is_dir():
        fix = "give datamodule.path (or the source's own path) a file or a folder"
        raise UserError("no such file or folder", where="source.path", value=path, fix=fix)
    visible = [
        (file.relative_to(root).as_posix(), file)
        for file in root.rglob(pattern)
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(root).parts)
    ]
    if not visible:
        raise UserError(
            f"holds no file that fits {pattern}", where="source.path", value=path, fix="correct path or pattern"
        )
    return [file for _, file in sorted(visible)]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        fix = "make it readable, or leave it out"
        raise UserError(f"cannot be read ({error.strerror})", where=str(file), fix=fix) from error


def hash_files(files: Sequence[Path]) -> str:
    """Contents in order, each with its length so that moving a boundary changes the hash."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        data = _read(file)
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
