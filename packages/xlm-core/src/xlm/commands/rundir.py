"""Where a run lives, and what is written there besides checkpoints."""

from __future__ import annotations

import json
import math
import os
import platform
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm.config.runs import CONFIG
from xlm.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

RUN_DIR = "XLM_RUN_DIR"
"""Tells the other ranks of a run, which rank 0 starts, where it lives."""

RESULTS = "results.json"
LIBRARIES = ("xlm-core", "torch", "lightning", "transformers", "tokenizers", "datasets", "hydra-core", "numpy")


def is_first_rank() -> bool:
    """Whether this process writes; known before any process group exists."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((os.environ[name] == "0" for name in names if name in os.environ), True)


def choose_run_dir(config: DictConfig) -> Path:
    """``run_dir``; else the one that rank 0 chose; else ``runs/<date>_<model_type>_<task>_<id>``.

    A job that its cluster starts again, or on many nodes, finds the same directory: its number is the id.
    """
    if given := os.environ.get(RUN_DIR) or config.run_dir:
        return Path(given).expanduser()
    choices = config.get("choices") or {}
    name = f"{config.family}_{choices.get('datamodule', 'data')}"
    if job := _job_id():
        earlier = sorted(Path("runs").glob(f"*_{name}_{job}"))
        return earlier[-1] if earlier else Path("runs") / f"{date.today()}_{name}_{job}"
    return Path("runs") / f"{date.today()}_{name}_{secrets.token_hex(3)}"


def _job_id() -> str | None:
    """What all processes of a cluster's job, or of one ``torchrun``, have in common; None for a single process."""
    if job := os.environ.get("SLURM_JOB_ID"):
        return job
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    return f"torchrun{os.getppid()}" if run == "none" else run


@contextmanager
def shared(folder: str | Path) -> Iterator[Path]:
    """A folder of this process and of those that Lightning starts from it, which would choose others."""
    chosen = Path(os.environ.get(RUN_DIR) or folder)
    os.environ[RUN_DIR] = str(chosen.resolve())
    try:
        yield chosen
    finally:
        os.environ.pop(RUN_DIR, None)


def check_free(folder: Path) -> None:
    """Refuse a directory that holds something else than a run."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise UserError(
            "holds other files, and no run", where="run_dir", value=folder, fix="choose an empty or new one"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError("is a file", where="run_dir", value=folder, fix="choose a directory")


def make(folder: Path) -> None:
    """Create a run directory; one that cannot be written is refused before the first step."""
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror})", where="run_dir", value=folder, fix="choose another run_dir"
        ) from error


def write_results(folder: Path, results: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> Path:
    """``results.json``: numbers by ``<split>.<data set>``, then facts about the run."""
    path = folder / RESULTS
    content = _plain({**results, **about})
    temporary = path.with_name(f".{RESULTS}.tmp")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
    return path


def output_file(given: str | None) -> Path | None:
    """The file that ``output`` names; one whose folder is missing is refused before any work."""
    path = Path(given).expanduser() if given else None
    if path and not path.parent.is_dir():
        raise UserError("there is no such folder", where="output", value=path.parent, fix="make it, or write elsewhere")
    return path


def load_results(folder: Path) -> dict[str, Any]:
    """What ``results.json`` of a run or an evaluation holds."""
    path = folder / RESULTS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path), fix="restore the file") from error
    if not isinstance(content, dict):
        raise UserError("holds no results", where=str(path), fix="restore the file")
    return content


def _plain(value: Any) -> Any:
    """JSON has no infinite numbers: they become their names."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def environment(config: DictConfig) -> dict[str, Any]:
    """What a run was made with: versions, the commit of the working directory, replaced options."""
    from xlm import registry
    from xlm.config import search

    distributions = [p.distribution for p in registry.packages() if p.name == config.family and p.version]
    versions = {name: metadata.version(name) for name in (*LIBRARIES, *distributions)}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": git_commit(),
        "replaced_options": search.replaced(),
        "seed": config.seed,
        "family": config.family,
    }


def git_commit() -> str | None:
    """Commit of the working directory's repository, with ``-dirty`` where tracked files were changed."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory() -> int:
    """Most bytes that were in use: on the GPU where there is one, else of this process."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
