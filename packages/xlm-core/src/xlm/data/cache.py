"""Folders made once and kept, named by everything that their content depends on: data, tokenizer, options and code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import inspect
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from datasets.fingerprint import Hasher
from filelock import FileLock

from xlm.errors import UserError

T = TypeVar("T")
MANIFEST = "manifest.json"
LIBRARIES = ("xlm-core", "tokenizers", "datasets")

logger = logging.getLogger(__name__)


def cache_folder(cache_dir: str | Path | None) -> Path:
    """``cache_dir``, else $XLM_CACHE_DIR, else ~/.cache/xlm."""
    return Path(cache_dir or os.environ.get("XLM_CACHE_DIR") or "~/.cache/xlm").expanduser()


def kept(folder: Path, build: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    """What ``load(folder)`` gives, after ``build`` has filled the folder where it is absent, incomplete or unreadable.

    One process builds and the others wait; a folder under its final name is complete, whenever its builder was killed.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if _is_complete(folder):
                try:
                    return load(folder)
                except Exception as error:
                    logger.warning("cache %s cannot be read (%s): rebuilt", folder, error)
            elif folder.exists():
                logger.warning("cache %s is damaged: rebuilt", folder)
            _rebuild(folder, build)
            return load(folder)
    except OSError as error:
        raise UserError(
            f"cannot be used ({error.strerror or error})",
            where="datamodule.cache_dir",
            value=folder.parent,
            fix="set cache_dir, or the variable XLM_CACHE_DIR, to a folder that can be written and has space",
        ) from error


def key(*parts: object) -> str:
    """A name for content that ``parts`` (their ``str``) determine, together with the libraries that make it."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in LIBRARIES]
    return hashlib.blake2b("\0".join([*versions, *map(str, parts)]).encode(), digest_size=12).hexdigest()


def fingerprint(described: Any) -> str:
    """Class, code and content of a source or a tokenizer factory: its ``fingerprint()``, or what it was made with."""
    content = described.fingerprint() if hasattr(described, "fingerprint") else Hasher.hash(vars(described))
    kind = type(described)
    return f"{kind.__module__}.{kind.__qualname__} {code_hash(sys.modules[kind.__module__])} {content}"


def code_hash(module: ModuleType) -> str:
    """Hash of a module's source and of what it imports by name from its own package: their results may be reused."""
    package = module.__name__.partition(".")[0]
    origins = {getattr(value, "__module__", None) for value in vars(module).values()} | {module.__name__}
    names = sorted(name for name in origins if isinstance(name, str) and name.partition(".")[0] == package)
    return hashlib.blake2b("".join(map(_source, names)).encode(), digest_size=8).hexdigest()


def _source(name: str) -> str:
    try:
        return inspect.getsource(sys.modules[name])
    except (OSError, TypeError):  # typed into a prompt or a notebook: nothing to read
        return name


def _is_complete(folder: Path) -> bool:
    """Whether every file has the size that it was written with."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _rebuild(folder: Path, build: Callable[[Path], None]) -> None:
    unfinished = folder.with_suffix(".tmp")  # ours alone: we hold the lock
    for stale in (folder, unfinished):
        shutil.rmtree(stale, ignore_errors=True)
    unfinished.mkdir()
    build(unfinished)
    sizes = {path.name: path.stat().st_size for path in unfinished.iterdir()}
    (unfinished / MANIFEST).write_text(json.dumps(sizes))
    os.replace(unfinished, folder)
