"""Sources whose rows have columns: JSON Lines, CSV, Parquet, and data sets of the Hugging Face Hub.

A template says what a text is made of: ``"{title}: {body}"`` takes two columns of a row. Rows are held in memory.
"""

from __future__ import annotations

import csv
import io
import json
import string
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from xlm.data.sources import Row, Split, check_fractions, find_files, hash_files, read_text, take_split
from xlm.errors import UserError

Found = Iterator[tuple[str, Mapping[str, Any]]]
"""Where a row stands, for error messages, and its columns."""


PATIENCE = 5.0
"""Seconds that the Hub may take to answer."""


class Template:
    """A text with columns in braces; ``{{`` and ``}}`` are braces themselves.

    Examples:
        >>> Template("Q: {question} A:", key="prompt").fill({"question": "2+2?"}, where="line 1")
        'Q: 2+2? A:'
    """

    def __init__(self, template: str, *, key: str) -> None:
        self.key, self.template = f"source.{key}", template
        try:
            fields = list(string.Formatter().parse(template))
        except ValueError as error:
            fix = 'write columns as {name}, and braces as "{{" and "}}"'
            raise UserError(f"is no template ({error})", where=self.key, value=template, fix=fix) from error
        self.parts = [(literal, column) for literal, column, _, _ in fields]
        for _, column, spec, conversion in fields:
            if column is not None and (not column or spec or conversion):
                fix = "write the column's name alone, as in {name}"
                raise UserError("a brace holds more or less than a name", where=self.key, value=template, fix=fix)
        if not self.columns:
            fix = f'name one, as in "{{{template}}}"' if template.isidentifier() else 'name one, as in "{text}"'
            raise UserError("names no column", where=self.key, value=template, fix=fix)

    @property
    def columns(self) -> list[str]:
        """The columns that it takes."""
        return [column for _, column in self.parts if column is not None]

    def fill(self, row: Mapping[str, Any], where: str) -> str:
        """The text of one row; text and whole numbers are taken as they are.

        Raises:
            UserError: a column is missing, null or of another type.
        """
        return "".join(
            literal + ("" if column is None else _text(row, column, where)) for literal, column in self.parts
        )


class Table(ABC):
    """Rows with columns, some of which become ``text``, or ``prompt`` and ``target``."""

    def __init__(
        self,
        *,
        text: str | None,
        prompt: str | None,
        target: str | None,
        split: Split | None,
        val_fraction: float,
        test_fraction: float,
    ) -> None:
        check_fractions(val_fraction, test_fraction)
        if text is None and prompt is None and target is None:
            text = "{text}"
        given = {"text": text, "prompt": prompt, "target": target}
        if text is not None and (prompt is not None or target is not None):
            fix = "leave text out for pairs, or prompt and target for texts"
            raise UserError("excludes source.prompt and source.target", where="source.text", value=text, fix=fix)
        self.templates = {name: Template(value, key=name) for name, value in given.items() if value is not None}
        self.split, self.val_fraction, self.test_fraction = split, val_fraction, test_fraction
        self.options = repr((given, split, val_fraction, test_fraction))

    @abstractmethod
    def found(self) -> Found:
        """The rows with their own columns."""

    def rows(self) -> list[Row]:
        """The rows of the split, with the columns ``text``, or ``prompt`` and ``target``."""
        rows = [
            {name: template.fill(row, where) for name, template in self.templates.items()}
            for where, row in self.found()
        ]
        if not rows:
            raise UserError("holds no rows", where="source", value=self.name, fix="give data with rows in it")
        return take_split(rows, self.split, self.val_fraction, self.test_fraction)

    @property
    @abstractmethod
    def name(self) -> str:
        """Where the rows come from, for people."""

    @property
    def needed(self) -> list[str]:
        """The columns that the templates take."""
        return list(dict.fromkeys(column for template in self.templates.values() for column in template.columns))


class TableFiles(Table):
    """Rows of a file, or of all such files in a folder and below it, sorted by name. The ending says how to read it.

    ``.jsonl``: one JSON object a line. ``.csv``, ``.tsv``: the names of the columns in the first line. ``.parquet``.

    Args:
        path: File or folder.
        text: Template of the text; ``{text}`` where neither it nor a prompt or target is given.
        prompt: Template of the prompt, for pairs.
        target: Template of the target, for pairs.
        pattern: Names of the files to take from a folder; files with other endings never are.
        split: train, val or test; None takes all rows.
        val_fraction: Share of the different rows that is validation.
        test_fraction: Share of the different rows that is test.
    """

    def __init__(
        self,
        *,
        path: str,
        text: str | None = None,
        prompt: str | None = None,
        target: str | None = None,
        pattern: str = "*",
        split: Split | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        fractions: dict[str, Any] = {"split": split, "val_fraction": val_fraction, "test_fraction": test_fraction}
        super().__init__(text=text, prompt=prompt, target=target, **fractions)
        self.path, self.pattern = path, pattern

    @property
    def name(self) -> str:
        """The path."""
        return self.path

    def found(self) -> Found:
        """The rows of all files."""
        for file in self._files():
            yield from READERS[file.suffix.lower()](file, self.needed)

    def fingerprint(self) -> str:
        """Names the files' contents and how they are read; not where they lie."""
        files = self._files()
        return f"{self.options} {[file.suffix.lower() for file in files]} {hash_files(files)}"

    def _files(self) -> list[Path]:
        files = [file for file in find_files(self.path, self.pattern) if file.suffix.lower() in READERS]
        if not files:
            what = f"is no table: its ending must be one of {', '.join(READERS)}"
            fix = "rename the file, or use datamodule=text for plain text"
            raise UserError(what, where="source.path", value=self.path, fix=fix)
        return files


def _json_lines(file: Path, needed: Sequence[str]) -> Found:
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            yield f"{file}, line {number}", _object(line, f"{file}, line {number}")


def _object(line: str, where: str) -> Mapping[str, Any]:
    try:
        found = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:  # the latter: brackets a thousand deep
        fix = "put one complete JSON object on each line"
        raise UserError(f"is no JSON ({error})", where=where, fix=fix) from error
    if not isinstance(found, dict):
        raise UserError("is no JSON object", where=where, value=line[:50], fix='write {"text": "..."}')
    return found


def _separated(file: Path, needed: Sequence[str], *, delimiter: str) -> Found:
    csv.field_size_limit(2**31 - 1)  # a long text has more than Python's 131,072 characters
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""), delimiter=delimiter, strict=True)
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row:
                what = f"has more values than the {len(reader.fieldnames or ())} columns of the first line"
                raise UserError(what, where=where, fix="quote values that hold the delimiter")
            yield where, row
    except csv.Error as error:
        what, where = f"is no CSV ({error})", f"{file}, line {reader.reader.line_num}"
        raise UserError(what, where=where, fix="correct the quotes") from error


def _parquet(file: Path, needed: Sequence[str]) -> Found:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            present = opened.schema_arrow.names
            columns = list(needed) if set(needed) <= set(present) else None
            rows = (row for batch in opened.iter_batches(columns=columns) for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield f"{file}, row {number}", row
    except pyarrow.ArrowException as error:
        fix = "check that the file is whole"
        raise UserError(f"is no Parquet file ({error})", where=str(file), fix=fix) from error


READERS: dict[str, Callable[[Path, Sequence[str]], Found]] = {
    ".jsonl": _json_lines,
    ".csv": partial(_separated, delimiter=","),
    ".tsv": partial(_separated, delimiter="\t"),
    ".parquet": _parquet,
}
"""By ending. They are told which columns are needed and may leave out the others."""


class Hub(Table):
    """A data set of the Hugging Face Hub by name, or a folder of data files; code in a repository is never run.

    Args:
        name: Repository, such as ``roneneldan/TinyStories``.
        config: One of its configurations, where it has several.
        hub_split: Its split, or part of one: ``train``, ``validation``, ``train[:1%]``.
        revision: Commit, tag or branch; a commit fixes the content.
        streaming: Read over the network while going along, instead of downloading everything first; needs ``limit``.
        limit: Take the first so many rows; null for all.
        text: Template of the text; ``{text}`` where neither it nor a prompt or target is given.
        prompt: Template of the prompt, for pairs.
        target: Template of the target, for pairs.
        split: train, val or test of our own, for data sets with one split; None takes all rows.
        val_fraction: Share of the different rows that is validation.
        test_fraction: Share of the different rows that is test.
    """

    def __init__(
        self,
        *,
        name: str,
        config: str | None = None,
        hub_split: str = "train",
        revision: str | None = None,
        streaming: bool = False,
        limit: int | None = None,
        text: str | None = None,
        prompt: str | None = None,
        target: str | None = None,
        split: Split | None = None,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
    ) -> None:
        fractions: dict[str, Any] = {"split": split, "val_fraction": val_fraction, "test_fraction": test_fraction}
        super().__init__(text=text, prompt=prompt, target=target, **fractions)
        if limit is not None and limit < 1:
            raise UserError("must be at least 1", where="source.limit", value=limit, fix="use null for all rows")
        if streaming and limit is None:
            raise UserError("needs source.limit", where="source.streaming", value=True, fix="give a number of rows")
        self._name, self.limit, self.streaming = name, limit, streaming
        self.arguments = {"path": name, "name": config, "split": hub_split, "revision": revision}

    @property
    def name(self) -> str:
        """The repository's name."""
        return self._name

    def found(self) -> Found:
        """The rows, at most ``limit`` of them."""
        rows = self._load()
        present = getattr(rows, "column_names", None)  # not known of every stream
        if present is not None and set(self.needed) <= set(present):
            rows = rows.select_columns(self.needed)  # what nobody asked for is not decoded: images, audio
        for number, row in enumerate(islice(rows, self.limit)):
            yield f"{self.name}, row {number}", row

    def _load(self) -> Any:
        from datasets import config, load_dataset
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
        from pyarrow import ArrowException

        def refuse(what: str, error: Exception, fix: str) -> UserError:
            return UserError(f"{what} ({str(error).splitlines()[0]})", where="source.name", value=self.name, fix=fix)

        try:
            with _offline_unless_reachable(self.name):
                return load_dataset(**self.arguments, streaming=self.streaming)
        except (ConnectionError, OfflineModeIsEnabled, HfHubHTTPError) as error:
            fix = "connect to the network once, or give files of your own"
            raise refuse("the Hub cannot be reached and nothing is cached", error, fix) from error
        except (FileNotFoundError, ValueError, RuntimeError) as error:
            cache = str(config.HF_DATASETS_CACHE)
            if isinstance(error, (ArrowException, json.JSONDecodeError)) or cache in str(error):
                fix = f"delete the data set's folder in {cache}"
                raise refuse("the cache of the datasets library is damaged", error, fix) from error
            raise refuse(
                "no such data set, configuration or split", error, "correct name, config or hub_split"
            ) from error


@contextmanager
def _offline_unless_reachable(name: str) -> Iterator[None]:
    """Where the Hub does not answer, look into the cache at once: the libraries would try again for half a minute."""
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    offline = constants.HF_HUB_OFFLINE
    if not offline and not Path(name).exists():
        try:
            huggingface_hub.HfApi().dataset_info(name, timeout=PATIENCE)
        except huggingface_hub.errors.HfHubHTTPError:
            pass  # it answered: whatever is wrong is said by the one who loads
        except Exception:
            offline = True
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _text(row: Mapping[str, Any], column: str, where: str) -> str:
    if column not in row:
        fix = f"name one of its columns: {', '.join(map(str, row))}"
        raise UserError(f"has no column {column!r}", where=where, fix=fix)
    value = row[column]
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        what = f"has {'null' if value is None else type(value).__name__} instead of text in column {column!r}"
        raise UserError(what, where=where, fix="give every row a text, or remove the row")
    return value
