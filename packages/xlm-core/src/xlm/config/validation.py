"""Every mistake that a configuration can show before any data is read and any network built, cheapest first."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from xlm import registry
from xlm.config import search
from xlm.config.keys import RESERVED, leaves, unknown_key
from xlm.config.top_level import TopLevel, read
from xlm.config.types import convert
from xlm.errors import UserError
from xlm.instantiate import check_trusted, locate, parameters, takes_any_key

if TYPE_CHECKING:
    from omegaconf import DictConfig

REQUIRED = {"family": "model_type", "datamodule": "datamodule"}
"""Keys that some option must set, and the group to choose it from."""

PARTS = ("model", "loss", "predictor", "collators")
"""What a family brings."""

CHEAP, SLOW = ("xlm.commands",), ("lightning", "xlm.callbacks", "xlm.data", "transformers", "datasets")
"""Modules that need not even torch, and those that take seconds to import: checked first and last."""


def validate(config: DictConfig, extra: Collection[str] = ()) -> DictConfig:
    """Refuse what is missing, unresolvable, unknown, untrusted or of a wrong type; a text that is a number becomes one.

    Ranges are for the constructors to check: see ``xlm.commands.assemble.rehearse``.

    Args:
        config: Composed configuration.
        extra: Further top-level keys, those of a command.
    """
    plain = check_missing(config)
    check_top_level(config, extra)
    read(TopLevel, plain)
    check_numbers(plain, "")
    nodes = sorted(targets(plain, ""), key=lambda found: _cost(str(found[1]["_target_"])))
    for where, node in nodes:
        check_trusted(node["_target_"], where)
    check_parts(config)
    check_one_family(plain)
    for where, node in nodes:
        _check_node(config, where, node)
    return config


def _cost(target: str) -> int:
    return 0 if target.startswith(CHEAP) else 2 if target.startswith(SLOW) else 1


def check_missing(config: DictConfig) -> dict[str, Any]:
    """All values that must be given, in one error; when none is missing, plain containers, interpolations resolved."""
    from omegaconf import OmegaConf

    unresolved = OmegaConf.to_container(config, resolve=False)
    keys = sorted(where for where, value in leaves(unresolved, "") if value == "???")
    keys += [key for key in REQUIRED if key not in keys and not _chosen(config, key)]
    for key in keys:
        if name := (config.get("choices") or {}).get(REQUIRED.get(key, "")):
            fix = f"add it to the option {REQUIRED[key]}/{name}"
            raise UserError(f"{_provider(key, name)} sets no {key}", where=REQUIRED[key], value=name, fix=fix)
    if keys:
        names = [_how_to_give(key) for key in keys]
        families = f"; {_families()}" if "family" in keys else ""
        what = f"missing: {', '.join(REQUIRED.get(key, key) for key in keys)}"
        raise UserError(what, fix=f"add {' '.join(names)}{families}")
    return resolved(config)


def _chosen(config: DictConfig, key: str) -> bool:
    node = config.get(key)
    return bool(node) and (isinstance(node, str) or "_target_" in node)


def _families() -> str:
    names = sorted(search.options().get("model_type", {}))
    return f"installed families: {', '.join(names)}, see `xlm info`" if names else search.INSTALL_ONE


def _how_to_give(key: str) -> str:
    if group := REQUIRED.get(key):
        return f"{group}=<{'|'.join(sorted(search.options().get(group, {}))) or 'FAMILY'}>"
    return f"{key}=..."


def resolved(config: DictConfig) -> dict[str, Any]:
    """Plain containers with interpolations resolved; what cannot be resolved is an error naming its key."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        plain = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        what = str(error.msg or error).splitlines()[0]
        raise UserError(what, where=error.full_key, fix="correct the interpolation, or give a value") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def check_top_level(config: DictConfig, extra: Collection[str] = ()) -> None:
    """Refuse a top-level key that ``config.yaml`` does not have; a file's misspelt key is as wrong as a typed one."""
    known = {*search.primary(), *search.groups(), "choices", *extra} - {"defaults", "hydra"}
    for key in config:
        if key not in known:
            raise unknown_key(config, str(key), None)


def check_parts(config: DictConfig) -> None:
    """Refuse a family without one of its four parts."""
    if missing := [part for part in PARTS if not config.get(part)]:
        name = (config.get("choices") or {}).get("model_type", config.family)
        what = f"{_provider('family', name)} brings no {' and no '.join(missing)}"
        fix = f"add what is missing to the option model_type/{name}, or choose another family"
        raise UserError(what, where="model_type", value=name, fix=fix)


def _provider(key: str, name: str) -> str:
    """Who offers an option of ``model_type`` or ``datamodule``."""
    file = search.options().get(REQUIRED[key], {}).get(name)
    source = search.source_of(file) if file else None
    return source.provider if source else name


def check_one_family(plain: Mapping[str, Any]) -> None:
    """Refuse a model, predictor or collator of another family than the loss: each knows its own batches alone."""
    loss = _family_of(plain.get("loss"))
    collators = plain.get("collators") or {}
    parts = [(key, key, plain.get(key)) for key in ("model", "predictor")]
    parts += [(f"collators.{role}", "collator", node) for role, node in collators.items()]
    for where, group, node in parts:
        other = _family_of(node)
        if loss and other and other != loss:
            fitting = [name for name in sorted(search.options().get(group, {})) if name.split("_")[0] == loss]
            fix = (
                f"choose one of {', '.join(fitting)}" if fitting else f"choose a part of {loss}, or another model_type"
            )
            raise UserError(f"belongs to family {other}, the loss to {loss}", where=where, fix=fix)


def _family_of(node: Any) -> str | None:
    target = node.get("_target_") if isinstance(node, Mapping) else None
    package = registry.package_of(target) if isinstance(target, str) else None
    return package.name if package and package.is_family else None


def check_numbers(value: Any, where: str) -> None:
    """Refuse infinite and undefined numbers anywhere."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError("not a finite number", where=where, value=value, fix="give a finite number")
    if isinstance(value, Mapping):
        for key, child in value.items():
            check_numbers(child, f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            check_numbers(child, f"{where}[{i}]")


def targets(node: Any, where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node that names a constructor, with its key."""
    children: Any = enumerate(node) if isinstance(node, list) else node.items() if isinstance(node, dict) else ()
    if isinstance(node, dict) and "_target_" in node:
        yield where, node
    for key, child in children:
        yield from targets(child, f"{where}[{key}]" if isinstance(node, list) else f"{where}.{key}".lstrip("."))


def _check_node(config: DictConfig, where: str, node: dict[str, Any]) -> None:
    """Keys and types of one node against the signature of its constructor."""
    from omegaconf import OmegaConf

    target = locate(node["_target_"], where)
    known = parameters(target)
    for key, value in node.items():
        place = f"{where}.{key}"
        if key in RESERVED:
            continue
        if key == "trust_remote_code":
            raise UserError("code from a hub is never run", where=place, value=value, fix="remove the key")
        if key not in known:
            if takes_any_key(target):
                continue
            raise unknown_key(config, place, None if isinstance(value, (dict, list)) else value)
        if value is not None and not any(True for _ in targets(value, "")):  # null: the context's, or the default
            raw = OmegaConf.select(config, where)._get_node(key)
            shown = raw._value() if OmegaConf.is_interpolation(raw) else value
            converted = convert(value, target, key, where=place, shown=shown)
            if converted is not value:
                OmegaConf.update(config, place, converted)
