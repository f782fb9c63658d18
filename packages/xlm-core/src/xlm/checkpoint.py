"""Checkpoints that are complete or absent, and the weights inside them.

A checkpoint ``<step>.ckpt`` gets its name only when all of its bytes are on the disk; ``<step>.json`` beside it,
written last, holds their number and sha256. Files hold plain values and tensors, so reading one never runs code.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from xlm.errors import UserError
from xlm.files import DiskError, write_atomically

logger = logging.getLogger(__name__)

AnyPath = str | os.PathLike[str]
Kind = Literal["ema", "raw"]

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


# Weights


@dataclass(frozen=True)
class Weights:
    """The parameters of a model, and where they come from."""

    tensors: dict[str, Tensor]
    kind: Kind
    source: Path
    step: int | None
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    """Those of the loss's own network; empty where it has none."""


def load_weights(path: AnyPath, weights: Kind | None = None) -> Weights:
    """The model's parameters from a run, a folder of checkpoints, a checkpoint or a ``.safetensors`` file.

    Args:
        path: What to read; of a folder, the newest valid checkpoint, else ``model.safetensors``.
        weights: ``ema`` or ``raw``; None takes the averaged weights where there are some: those the run was judged by.

    Raises:
        UserError: there is no such file, or it does not hold the weights asked for.
    """
    source = _weights_file(Path(path), weights)
    if source.suffix == ".safetensors":
        return _read_safetensors(source, weights)
    return _weights_of(read_checkpoint(source), source, weights)


def _weights_file(path: Path, weights: Kind | None) -> Path:
    if not path.is_dir():
        return path
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and (newest := newest_valid(folder)):
            return newest
    names = {"raw": ["model"], "ema": ["model_ema"], None: ["model_ema", "model"]}[weights]
    for file in (path / f"{name}.safetensors" for name in names):
        if file.exists():
            return file
    raise UserError("there is no checkpoint", where=str(path), value=f"weights={weights}", fix="check the path")


def _weights_of(content: Mapping[str, Any], path: Path, weights: Kind | None) -> Weights:
    averaged = "current_model_state" in content  # Lightning's layout: then state_dict holds the average
    if weights == "ema" and not averaged:
        raise _no_ema(path)
    kind: Kind = weights or ("ema" if averaged else "raw")
    state = content["current_model_state"] if averaged and kind == "raw" else content["state_dict"]
    return Weights(_part(state, "model."), kind, path, content["global_step"], _part(state, "auxiliary."))


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _no_ema(path: Path) -> UserError:
    return UserError("there are no averaged weights", where=str(path), value="weights=ema", fix="use weights=raw")


def _read_safetensors(path: Path, weights: Kind | None) -> Weights:
    if not path.is_file():
        raise UserError("there is no such file", where=str(path), fix="check the path")
    tensors, about = _tensors_of(path)
    kind: Kind = "ema" if about.get("weights") == "ema" else "raw"
    if weights == "ema" and kind == "raw":
        raise _no_ema(path)
    if weights == "raw" and kind == "ema":
        raise UserError("holds averaged weights", where=str(path), value="weights=raw", fix="use model.safetensors")
    beside = _auxiliary_file(path)
    auxiliary = _tensors_of(beside)[0] if beside.is_file() else {}
    return Weights(tensors, kind, path, int(about["step"]) if "step" in about else None, auxiliary)


def _tensors_of(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a ``.safetensors`` file."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    except SafetensorError as error:
        raise UserError(f"the file is damaged ({error})", where=str(path), fix="restore it from a backup") from None
    for alias, name in json.loads(about.get("shared", "{}")).items():
        tensors[alias] = tensors[name]
    return tensors, about


def _auxiliary_file(path: Path) -> Path:
    """Where the loss's own network lies, beside the file of the model's weights."""
    return path.with_name(f"{path.stem}_auxiliary.safetensors")


def load_into(model: nn.Module, weights: Weights, *, auxiliary: nn.Module | None = None) -> None:
    """Copy weights into a model of the same names and shapes, and into the loss's own network.

    Raises:
        UserError: as ``require_match``.
    """
    for network, tensors in ((model, weights.tensors), (auxiliary, weights.auxiliary)):
        if network is not None:
            require_match(tensors, network.state_dict(), str(weights.source))
            network.load_state_dict(tensors)


def require_match(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Compare the parameters of a file with those of a model.

    Raises:
        UserError: they differ; the first ten differences, their number, and the nearest name of each are given.
    """
    differences = [*_shapes(found, wanted), *_missing(found, wanted), *_extra(found, wanted)]
    if not differences:
        return
    listed = "; ".join(differences[:10]) + (f"; and {len(differences) - 10} more" if len(differences) > 10 else "")
    raise UserError(
        f"the weights are of another model ({len(differences)} of {len(wanted)} parameters differ): {listed}",
        where=source,
        fix="use the model, tokenizer and sizes that the file was trained with",
    )


def _shapes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    return [
        f"{name} is {list(found[name].shape)} in the file, {list(wanted[name].shape)} in the model"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]


def _missing(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    extra = [name for name in found if name not in wanted]
    return [f"{name} is missing{_nearest(name, extra)}" for name in wanted if name not in found]


def _extra(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    return [f"{name} is unknown" for name in found if name not in wanted]


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (the file has {close[0]})" if close else ""


def export_weights(checkpoint: AnyPath, folder: AnyPath) -> list[Path]:
    """Write ``model.safetensors``, and ``model_ema.safetensors`` where there are averaged weights, into ``folder``;
    ``model_auxiliary.safetensors`` (``model_ema_auxiliary.safetensors``) where the loss has a network of its own.
    """
    source = Path(checkpoint)
    content = read_checkpoint(source)
    kinds: tuple[Kind, ...] = ("raw", "ema") if "current_model_state" in content else ("raw",)
    return [_export(_weights_of(content, source, kind), Path(folder)) for kind in kinds]


def _export(weights: Weights, folder: Path) -> Path:
    path = folder / ("model_ema.safetensors" if weights.kind == "ema" else "model.safetensors")
    if weights.auxiliary:
        _write_tensors(weights.auxiliary, weights, _auxiliary_file(path))
    _write_tensors(weights.tensors, weights, path)
    return path


def _write_tensors(named: Mapping[str, Tensor], weights: Weights, path: Path) -> None:
    owners: dict[object, str] = {}
    shared = {}  # safetensors refuses two names for one storage: tied embeddings are written once
    for name, tensor in named.items():
        owner = owners.setdefault((tensor.data_ptr(), tensor.shape), name)
        if owner != name:
            shared[name] = owner
    tensors = {name: tensor.contiguous() for name, tensor in named.items() if name not in shared}
    about = {"format": "pt", "weights": weights.kind, "step": str(weights.step), "shared": json.dumps(shared)}
    content = safetensors_bytes(tensors, metadata=about)
    write_atomically(path, lambda file: file.write(content), needed=len(content))
