"""Values set on the command line: into which key, and which key was meant when there is none of that name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from xlm.config import search
from xlm.errors import UserError
from xlm.instantiate import locate, parameters

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

RESERVED = ("_target_", "_partial_")


def apply(config: DictConfig, override: Override) -> None:
    """Set or delete one value."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    key = override.key_or_group
    try:
        with open_dict(config):
            if override.is_delete():
                parent, _, last = key.rpartition(".")
                del (OmegaConf.select(config, parent) if parent else config)[last]
            else:
                OmegaConf.update(config, key, override.value(), merge=True, force_add=True)
    except (OmegaConfBaseException, TypeError) as error:
        raise UserError("cannot set this key", where=key, value=override.input_line, fix=str(error)) from error


def apply_where_taken(config: DictConfig) -> None:
    """Set what an option asks for under ``where_taken``: values of keys that not every family's parts have."""
    from omegaconf import OmegaConf, open_dict

    with open_dict(config):
        wanted = OmegaConf.to_container(config.pop("where_taken", None) or OmegaConf.create())
        for key, value in leaves(wanted, ""):
            if _known(config, key, explicit=False):
                OmegaConf.update(config, key, value, force_add=True)


def check_keys(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Refuse an override of a key that exists neither in the options nor in the constructor behind them."""
    for override in overrides:
        if override.key_or_group.partition(".")[0] == "choices":
            fix = "choose an option with group=option"
            raise UserError("cannot be set", where=override.key_or_group, value=override.input_line, fix=fix)
        explicit = override.is_add() or override.is_force_add()
        if not _known(config, override.key_or_group, explicit=explicit):
            value = None if override.is_delete() else override.get_value_element_as_str()
            raise unknown_key(config, override.key_or_group, value)


def _known(config: DictConfig, key: str, *, explicit: bool) -> bool:
    """Whether ``key`` exists, or may be added: a constructor's argument, or a part's name given with a plus."""
    from omegaconf import DictConfig, OmegaConf

    node: Any = config
    for depth, part in enumerate(key.split(".")):
        if OmegaConf.is_list(node) or not isinstance(node, DictConfig):
            return False
        if part not in node:
            if depth and explicit and "_target_" not in node:
                return True
            return part in _arguments(node, ".".join(key.split(".")[:depth]))
        if OmegaConf.is_missing(node, part):  # a group that was not chosen: said later, with all that is missing
            return True
        node = node._get_node(part)
        if OmegaConf.is_interpolation(node):
            return True
    return True


def _arguments(node: DictConfig, where: str) -> Sequence[str]:
    return list(parameters(locate(str(node["_target_"]), where))) if "_target_" in node else []


def unknown_key(config: DictConfig, key: str, value: object) -> UserError:
    """The error for a key that nothing takes: the most similar one that something does, else those beside it."""
    siblings = {name: path for name, path in _siblings(config, key.rpartition(".")[0]).items() if path != key}
    if meant := _meant(config, key, siblings):
        return UserError("unknown key", where=key, value=value, fix=f"did you mean {meant}?")
    return UserError("unknown key", where=key, value=value, fix=f"choose one of {', '.join(sorted(siblings.values()))}")


def _siblings(config: DictConfig, parent: str) -> dict[str, str]:
    """Names below a key, with their whole paths: what is set there, and what its constructor takes."""
    from omegaconf import DictConfig, OmegaConf

    node = OmegaConf.select(config, parent) if parent else config
    if not isinstance(node, DictConfig):
        return {}
    names = [*map(str, node), *_arguments(node, parent), *([] if parent else filter(None, search.groups()))]
    hidden = RESERVED if parent else ("choices",)
    return {name: f"{parent}.{name}".lstrip(".") for name in names if name not in hidden}


def leaves(node: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of the leaves of plain containers; a list is a leaf."""
    if isinstance(node, dict) and node:
        for key, child in node.items():
            yield from leaves(child, f"{where}.{key}".lstrip("."))
    else:
        yield where, node


def _meant(config: DictConfig, key: str, siblings: dict[str, str]) -> str | None:
    last = key.rpartition(".")[2]
    if close := search.nearest(last, list(siblings)):
        return siblings[close]
    elsewhere = {name.rpartition(".")[2]: name for name in reversed(list(_all_keys(config, ""))) if name != key}
    if close := search.nearest(last, list(elsewhere), cutoff=0.75):
        return elsewhere[close]
    return search.nearest(key, list(elsewhere.values()), cutoff=0.85)


def _all_keys(node: DictConfig, prefix: str) -> Iterator[str]:
    from omegaconf import DictConfig

    if node._is_missing() or node._is_none() or node._is_interpolation():
        return
    for name in node:
        if name in RESERVED or (not prefix and name == "choices"):
            continue
        yield f"{prefix}{name!s}"
        child = node._get_node(name)
        if isinstance(child, DictConfig):
            yield from _all_keys(child, f"{prefix}{name!s}.")
