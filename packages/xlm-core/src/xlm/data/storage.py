"""Preprocessed rows on disk: one Arrow file, read through a memory map. Text and tokens of a row lie side by side."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from jaxtyping import Int, Int64
from torch import Tensor

from xlm.data.packing import Packed
from xlm.protocols import Example

TOKENS = "tokens."  # tells a token column from a text column of the same name
TYPES = {"n_bytes": Value("int64"), "fixed": List(Value("bool"))}


def write(path: Path, batches: Iterable[Packed], text_features: Features) -> int:
    """Write all rows, a batch at a time; the number of rows, and no file where there are none."""
    n_rows, writer = 0, None
    for text, tokens in batches:
        if not len(tokens["n_bytes"]):
            continue
        if writer is None:
            types = {f"{TOKENS}{name}": TYPES.get(name, List(Value("int32"))) for name in tokens}
            features = Features({name: text_features[name] for name in text} | types)
            writer = ArrowWriter(path=str(path), features=features)
        writer.write_batch({**text, **{f"{TOKENS}{name}": values for name, values in tokens.items()}})
        n_rows += len(tokens["n_bytes"])
    if writer is not None:
        writer.finalize()
    return n_rows


class Rows:
    """The rows of a file that ``write`` has written."""

    def __init__(self, path: Path) -> None:
        self.data = Dataset.from_file(str(path))
        columns = [name.removeprefix(TOKENS) for name in self.data.column_names if name.startswith(TOKENS)]
        self.ragged = {name: Ragged(self._column(name)) for name in columns if name != "n_bytes"}

    def __len__(self) -> int:
        return len(self.data)

    def __reduce__(self) -> Any:  # to a worker that is not forked goes the path, not the content
        return Rows, (Path(self.data.cache_files[0]["filename"]),)

    def fetch(
        self, indices: Int64[np.ndarray, " n"], positions: Int64[np.ndarray, " n"], noise_keys: Int64[Tensor, " n"]
    ) -> list[Example]:
        """Rows as collators receive them: token columns are views of the memory map."""
        rows: list[Example] = [
            {"index": index, "position": position, "noise_key": noise_key}
            for index, position, noise_key in zip(
                indices.tolist(), positions.tolist(), noise_keys.tolist(), strict=True
            )
        ]
        for name, column in self.ragged.items():
            for row in rows:
                row[name] = column[row["index"]]
        return rows

    def text(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Text columns of some rows; empty where a row comes from several texts."""
        columns = self.data[list(indices)]
        names = [name for name in columns if not name.startswith(TOKENS)]
        return [{name: columns[name][i] for name in names} for i in range(len(indices))]

    def n_bytes(self, indices: Sequence[int]) -> Int[Tensor, " n"]:
        """UTF-8 bytes that the predicted tokens of some rows stand for."""
        return torch.from_numpy(self._column("n_bytes").to_numpy()[np.asarray(indices, dtype=np.int64)])

    def _column(self, name: str) -> Any:
        return self.data.data.column(f"{TOKENS}{name}")


class Joined:
    """The first ``sizes[i]`` rows of each of several files, one after the other."""

    def __init__(self, files: Sequence[Rows], sizes: Sequence[int]) -> None:
        self.files, self.starts = files, np.cumsum([0, *sizes[:-1]])

    def fetch(
        self, indices: Int64[np.ndarray, " n"], positions: Int64[np.ndarray, " n"], noise_keys: Int64[Tensor, " n"]
    ) -> list[Example]:
        """As ``Rows.fetch``; ``index`` counts through all files."""
        of = np.searchsorted(self.starts, indices, side="right") - 1
        rows: list[Example] = [{}] * len(indices)
        for file in np.unique(of):
            here, start = np.flatnonzero(of == file), int(self.starts[file])
            found = self.files[file].fetch(indices[here] - start, positions[here], noise_keys[here])
            for place, row in zip(here, found, strict=True):
                rows[place] = {**row, "index": row["index"] + start}
        return rows


class Ragged:
    """Rows of an Arrow list column as numpy arrays, without copying what Arrow stores as numpy does.

    Args:
        column: A chunked list array without nulls.
    """

    def __init__(self, column: Any) -> None:
        self.starts = np.cumsum([0, *map(len, column.chunks)]).tolist()
        self.chunks = [
            (chunk.offsets.to_numpy(), chunk.values.to_numpy(zero_copy_only=False)) for chunk in column.chunks
        ]

    def __getitem__(self, row: int) -> np.ndarray:
        chunk = bisect_right(self.starts, row) - 1
        offsets, values = self.chunks[chunk]
        place = row - self.starts[chunk]
        found: np.ndarray = values[offsets[place] : offsets[place + 1]]
        return found
