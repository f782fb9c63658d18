"""Checkpoints that are complete or absent.

A checkpoint ``<step>.ckpt`` gets its name only when all of its bytes are on the disk; ``<step>.json`` beside it,
written last, holds their number and sha256. Files hold plain values and tensors, so reading one never runs code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from xlm.errors import UserError
from xlm.files import DiskError, write_atomically

logger = logging.getLogger(__name__)

AnyPath = str | os.PathLike[str]

FORMAT = 1
"""Raised when a file written today could not be read by an older xlm."""
READABLE_SINCE = "1.0.0"
"""The first version of xlm that reads ``FORMAT``."""


class CheckpointError(RuntimeError):
    """Something that is not plain was about to enter a checkpoint; earlier checkpoints are intact."""


# Writing


def _plain(value: Any, name: str = "checkpoint") -> Any:
    """``value`` with dicts, lists and tuples of its own, or an error that names what is not plain in it."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (str, int, float, bool, type(None)):
        return value
    if isinstance(value, Mapping):
        return {_plain(key, name): _plain(item, f"{name}/{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = (_plain(item, f"{name}/{i}") for i, item in enumerate(value))
        return list(items) if isinstance(value, list) else tuple(items)
    raise CheckpointError(
        f"{name} is a {type(value).__name__}; a checkpoint holds numbers, text, lists, dictionaries and tensors only"
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def size_of(value: Any) -> int:
    """Bytes of the tensors in a nest of plain values, each storage once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in _tensors(value)}
    return sum(storages.values())


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's door to this page: every checkpoint of a run is written and read here.

    Args:
        on_error: What to do when the disk refuses: ``stop`` the run, or ``warn`` and go on until the next save.
    """

    def __init__(self, on_error: str = "stop") -> None:
        if on_error not in ("stop", "warn"):
            raise UserError("must be stop or warn", where="on_error", value=on_error, fix="choose one of them")
        self.on_error = on_error

    def save_checkpoint(self, checkpoint: Mapping[str, Any], path: AnyPath, storage_options: Any = None) -> None:
        """Write ``path`` and then its manifest, or neither."""
        try:
            self._save(checkpoint, Path(path))
        except DiskError as error:
            if self.on_error == "stop":
                raise
            logger.warning("%s; training goes on without this checkpoint", error)

    def _save(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        head = {"format": FORMAT, "readable_since": READABLE_SINCE, "version": version("xlm-core")}
        content = _plain({**checkpoint, "xlm": {**checkpoint.get("xlm", {}), **head}})
        path.parent.mkdir(parents=True, exist_ok=True)
        manifest = path.with_suffix(".json")
        manifest.unlink(missing_ok=True)  # never a new file under an old manifest
        digest = write_atomically(path, lambda file: torch.save(content, file), needed=size_of(content))
        entry = {"sha256": digest, "size": path.stat().st_size}
        write_atomically(manifest, lambda file: file.write(json.dumps(entry).encode()))

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """As ``read_checkpoint``; ``weights_only`` is always True, whatever is asked."""
        return read_checkpoint(Path(path), map_location)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the manifest first: a file without one is no longer relied upon."""
        Path(path).with_suffix(".json").unlink(missing_ok=True)
        Path(path).unlink(missing_ok=True)


# Reading


def find_problem(path: Path) -> str | None:
    """Why a checkpoint cannot be trusted; None when it can."""
    try:
        if not stat.S_ISREG(path.lstat().st_mode):  # a link or a pipe that someone else put there
            return "is not a regular file"
        return _compare(path, path.with_suffix(".json"))
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def _compare(path: Path, manifest: Path) -> str | None:
    size = path.stat().st_size
    if not manifest.exists():  # killed between the two names, or the manifest was lost
        return None if _checksums_hold(path) else f"has no manifest and is damaged ({size:,} bytes)"
    try:
        entry = json.loads(manifest.read_bytes())
        expected, digest = int(entry["size"]), str(entry["sha256"])
    except (ValueError, KeyError, TypeError):
        return f"has an unreadable manifest {manifest.name}"
    if size != expected:
        return f"has {size:,} bytes, its manifest says {expected:,}"
    with open(path, "rb") as file:
        return None if hashlib.file_digest(file, "sha256").hexdigest() == digest else "differs from its sha256"


def _checksums_hold(path: Path) -> bool:
    """Whether the CRC of every record in the file holds (``torch.save`` writes a zip archive)."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def checkpoints(folder: AnyPath) -> list[Path]:
    """The checkpoints of a run, newest step first; ``best.ckpt`` is not one of them."""
    return sorted(Path(folder).glob("[0-9]*.ckpt"), key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(digits.group()) if (digits := re.match(r"\d+", path.name)) else 0


def newest_valid(folder: AnyPath) -> Path | None:
    """The newest checkpoint that can be trusted; None when the folder has none at all.

    Damaged ones are skipped with a line that says how many steps are lost.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    found = checkpoints(folder)
    skipped: list[str] = []
    for path in found:
        problem = find_problem(path)
        if problem is not None:
            skipped.append(f"{path.name} {problem}")
            continue
        if skipped:
            lost = f"{path.name} is used, {_step(found[0]) - _step(path)} steps are lost"
            logger.warning("skipped in %s: %s; %s", folder, "; ".join(skipped), lost)
        if not path.with_suffix(".json").exists():
            logger.warning("%s has no manifest; its checksums hold, so it is used", path)
        return path
    if found:
        raise UserError(
            f"all {len(found)} checkpoints are damaged: {'; '.join(skipped)}",
            where=str(folder),
            fix="restore one, or begin another run_dir",
        )
    return None


def read_checkpoint(path: AnyPath, map_location: Any = "cpu") -> dict[str, Any]:
    """The content of a checkpoint, after its manifest and its format version were checked.

    Raises:
        UserError: the file is missing, damaged, holds code, or was written by a newer xlm.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        raise UserError("holds weights only", where=str(path), fix="give it to init_from= instead of resume=")
    if not path.exists():
        raise UserError("there is no such checkpoint", where=str(path), fix="check the path")
    if problem := find_problem(path):
        raise UserError(f"the checkpoint {problem}", where=str(path), fix=_fallback(path))
    try:
        content = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"the file wants to run {refused.group(1)}" if refused else "the file is no checkpoint"
        raise UserError(what, where=str(path), fix="use a checkpoint that xlm wrote") from None
    return _supported(content, path)


def _fallback(path: Path) -> str:
    for other in checkpoints(path.parent):
        if other != path and find_problem(other) is None:
            return f"use {other}, the newest that is whole"
    return "restore it from a backup"


def _supported(content: Any, path: Path) -> dict[str, Any]:
    if not isinstance(content, dict) or not isinstance(content.get("xlm"), dict):
        raise UserError("the file is no checkpoint of xlm", where=str(path), fix="use a checkpoint that xlm wrote")
    head = content["xlm"]
    if head["format"] > FORMAT:
        raise UserError(
            f"the checkpoint has format {head['format']}, this is xlm {version('xlm-core')}",
            where=str(path),
            fix=f"it needs xlm >= {head['readable_since']}",
        )
    return content
