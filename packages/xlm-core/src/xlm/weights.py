"""The weights of a run: read from its checkpoints or from files of their own, copied into networks, exported."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn

from xlm.checkpoint import AnyPath, newest_valid, read_checkpoint
from xlm.errors import UserError
from xlm.files import write_atomically
from xlm.protocols import WithAuxiliary

Kind = Literal["ema", "raw"]

MODEL, AUXILIARY = "model.", "auxiliary."
"""How names begin in a checkpoint, by network."""


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
    return Weights(_part(state, MODEL), kind, path, content["global_step"], _part(state, AUXILIARY))


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


def auxiliary_of(loss: Any) -> nn.Module | None:
    """The network that a loss trains beside the model; None for most.

    Raises:
        UserError: the loss has an optimizer for one, but no network.
    """
    if not isinstance(loss, WithAuxiliary):
        return None
    network = getattr(loss, "auxiliary", None)
    if not isinstance(network, nn.Module):
        what = f"{type(loss).__name__} has auxiliary_optimizer, but its auxiliary is no torch.nn.Module"
        fix = "make one in its constructor; a lone parameter goes into a module, too"
        raise UserError(what, where="loss", value=type(network).__name__, fix=fix)
    return network


def load_into(model: nn.Module, weights: Weights, *, auxiliary: nn.Module | None = None) -> None:
    """Copy weights into a model of the same names and shapes, and into the loss's own network.

    Raises:
        UserError: as ``require_match``.
    """
    source = str(weights.source)
    require_match(weights.tensors, model.state_dict(), source)
    if auxiliary is not None:
        if not weights.auxiliary:
            beside = _auxiliary_file(Path("model.safetensors"))
            fix = f"use a run of this loss; of files, keep {beside} beside the model's"
            raise UserError("holds no weights of the loss's own network", where=source, fix=fix)
        require_match(_under(AUXILIARY, weights.auxiliary), _under(AUXILIARY, auxiliary.state_dict()), source)
        auxiliary.load_state_dict(weights.auxiliary)
    model.load_state_dict(weights.tensors)


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


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
