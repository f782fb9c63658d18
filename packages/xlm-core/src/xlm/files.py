"""Files that are complete or absent, and a folder with one writer at a time."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from xlm.errors import UserError


class DiskError(RuntimeError):
    """The disk refused a file; what was there before is intact."""


class _Hashed:
    """A file that hashes what passes, and keeps the cause of a failure (``torch.save`` hides it)."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.digest = file, hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        self.digest.update(data)
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_atomically(path: Path, write: Callable[[Any], object], *, needed: int = 0) -> str:
    """Give ``path`` its name only when ``write(file)`` has put every byte on the disk.

    Args:
        path: The final name.
        write: Writes the content into the binary file it is given.
        needed: Bytes to come, so that a file that will not fit is not begun.

    Returns:
        The sha256 of the content, in hexadecimal.

    Raises:
        DiskError: the disk refused; ``path`` is as it was before.
    """
    require_space(path, needed)
    temporary = path.with_name(f".{path.name}.tmp")
    hashed = None
    try:
        with open(temporary, "wb") as file:
            hashed = _Hashed(file)
            write(hashed)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        cause = hashed.error if hashed and hashed.error else error
        with contextlib.suppress(OSError):  # else the next start removes it
            temporary.unlink(missing_ok=True)
        raise DiskError(f"cannot write {path}: {cause}; {needed:,} bytes needed, {_free(path):,} free") from cause
    return hashed.digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(path: Path) -> int:
    return shutil.disk_usage(path.parent).free


def require_space(path: Path, needed: int) -> None:
    """Refuse to begin a file that will not fit beside the others.

    Raises:
        DiskError: fewer than ``needed`` bytes are free.
    """
    if (free := _free(path)) < needed:
        raise DiskError(f"cannot write {path}: {needed:,} bytes needed, {free:,} free")


def lock(folder: Path) -> FileLock:
    """The right to write into ``folder``, held until ``release()`` or the end of the process.

    Raises:
        UserError: another process holds it, or nobody may write there.
    """
    held = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        raise UserError(
            "another run is writing there", where="run_dir", value=folder, fix="wait for it, or choose another run_dir"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", where="run_dir", value=folder, fix="choose another run_dir"
        ) from None
    return held


def remove_leftovers(folder: Path) -> None:
    """Delete the unfinished files of a killed writer. Call it with the lock held."""
    for path in folder.glob(".*.tmp"):
        path.unlink()
