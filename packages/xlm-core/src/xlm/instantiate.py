"""Parts from configuration nodes: find the constructor that ``_target_`` names, give it its values and its context."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

from xlm import registry
from xlm.errors import UserError

TRUSTED = (*(name for name in registry.LIBRARIES if name != "torch"), "torch.optim", "torch.nn")
"""Libraries whose classes and functions a configuration may name, beside those of installed families and tasks."""

TRUST_VARIABLE = "XLM_TRUSTED_PACKAGES"
_named_by_user: set[str] = set()


def trust(packages: Iterable[str]) -> None:
    """Let configurations name classes of further packages; for what the user types, never for what a file says."""
    _named_by_user.update(packages)


def is_trusted(path: str) -> bool:
    """Whether a dotted path lies in a package that configurations may name."""
    installed = [package.top for package in registry.packages()]
    from_environment = [name for name in os.environ.get(TRUST_VARIABLE, "").split(",") if name]
    allowed = (*TRUSTED, *installed, *_named_by_user, *from_environment)
    return any(path == name or path.startswith(f"{name}.") for name in allowed)


def check_trusted(target: Any, where: str) -> None:
    """Refuse a ``_target_`` outside the trusted packages, or one that reaches into private names."""
    if not isinstance(target, str) or any(not part.isidentifier() for part in target.split(".")):
        raise UserError(
            "not the path of a class or a function", where=f"{where}._target_", value=target, fix="correct it"
        )
    registry.package_of(target)  # says why, if its package is left out
    if not is_trusted(target) or any(part.startswith("_") for part in target.split(".")):
        raise UserError(
            "a configuration may not run this",
            where=f"{where}._target_",
            value=target,
            fix=f"name a public class of a trusted package, or add trusted_packages=[{target.partition('.')[0]}]",
        )


def locate(target: Any, where: str) -> Any:
    """The class or function of a dotted path, imported only if its package is trusted and fits this core."""
    check_trusted(target, where)
    package = registry.package_of(target)
    with registry.importing(package) if package else nullcontext():
        found = _find(target, where, package.distribution if package else "it")
    origin = f"{getattr(found, '__module__', '')}.{getattr(found, '__qualname__', '')}"
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not is_trusted(origin):
        raise UserError(
            "not a class or function of a trusted package",
            where=f"{where}._target_",
            value=target,
            fix="name the class or function where it is defined",
        )
    return found


def _find(target: str, where: str, provider: str) -> Any:
    top, *rest = target.split(".")
    try:
        found, path = import_module(top), top
        for part in rest:
            path = f"{path}.{part}"
            found = getattr(found, part) if hasattr(found, part) else import_module(path)
    except ModuleNotFoundError as error:
        if error.name and not target.startswith(error.name):
            raise  # one of its own imports is missing: that is no mistake in the configuration
        what, fix = "no such class or function", f"check the path after '{top}': {provider} has none of this name"
        raise UserError(what, where=f"{where}._target_", value=target, fix=fix) from error
    return found


def parameters(target: Any) -> dict[str, inspect.Parameter]:
    """Arguments of a constructor that can be given by name."""
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: p for name, p in inspect.signature(target).parameters.items() if p.kind in by_name}


def takes_any_key(target: Any) -> bool:
    """Whether a constructor ends with ``**kwargs``."""
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in inspect.signature(target).parameters.values())


def annotation_of(target: Any, name: str) -> Any:
    """The evaluated annotation of an argument; None where there is none, or it cannot be evaluated."""
    annotation = inspect.signature(target).parameters[name].annotation
    if annotation is inspect.Parameter.empty:
        return None
    function = inspect.unwrap(target.__init__ if inspect.isclass(target) else target)
    holder = SimpleNamespace(__annotations__={name: annotation})
    names = {"Callable": Callable, "Mapping": Mapping, "Sequence": Sequence, "Path": Path}  # often for checkers alone
    try:
        return get_type_hints(holder, globalns=getattr(function, "__globals__", {}), localns=names)[name]
    except (NameError, AttributeError, TypeError, SyntaxError):
        return None


def _as_annotated(value: Any, target: Any, name: str) -> Any:
    """YAML has no tuples, and people write 1 for 1.0: a list or a whole number becomes what the argument is."""
    if type(value) not in (list, int) or name not in parameters(target):
        return value
    annotation = annotation_of(target, name)
    kinds = [get_origin(kind) or kind for kind in (annotation, *get_args(annotation))]
    if isinstance(value, list):
        return tuple(value) if tuple in kinds else value
    return float(value) if float in kinds and int not in kinds else value


def construct(node: Any, *, where: str | None = None, **context: Any) -> Any:
    """Build what a configuration node describes, nested parts first.

    A mapping with ``_target_`` becomes what that constructor returns; other mappings and lists keep their shape. An
    argument that is absent or null is taken from the context where the context has it by name. Under
    ``_partial_: true`` it becomes a ``functools.partial``, and what is absent is left to the caller.

    Args:
        node: Configuration node, or plain containers.
        where: Key of the node, for error messages; known without saying for a node of a composed configuration.
        context: Live objects and derived sizes: ``tokenizer``, ``max_length``, ``model`` ...

    Examples:
        >>> construct({"_target_": "torch.nn.Linear", "out_features": 2}, in_features=3)
        Linear(in_features=3, out_features=2, bias=True)
    """
    from omegaconf import OmegaConf

    if OmegaConf.is_config(node):
        where = node._get_full_key(None) if where is None else where
        node = OmegaConf.to_container(node, resolve=True)
    return _construct(node, where or "", context)


def _construct(node: Any, where: str, context: Mapping[str, Any]) -> Any:
    if isinstance(node, Mapping):
        children = {key: _construct(value, f"{where}.{key}".lstrip("."), context) for key, value in node.items()}
        return _call(children, where, context) if "_target_" in node else children
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_construct(value, f"{where}[{i}]", context) for i, value in enumerate(node)]
    return node


def _call(node: dict[str, Any], where: str, context: Mapping[str, Any]) -> Any:
    target = locate(node.pop("_target_"), where)
    as_partial = node.pop("_partial_", False)
    names = parameters(target)
    missing = [name for name in names if node.get(name) is None and name in context]
    arguments = {name: _as_annotated(value, target, name) for name, value in node.items()}
    if as_partial:
        return partial(target, **arguments)
    try:
        return target(**arguments | {name: context[name] for name in missing})
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(str(error), where=where, fix=f"correct the values of {where}") from error
