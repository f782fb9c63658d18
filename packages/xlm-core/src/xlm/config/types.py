"""Values against the annotations of a constructor, as strictly as YAML allows."""

from __future__ import annotations

import inspect
import json
import re
from functools import cache
from typing import Any

from xlm.errors import UserError
from xlm.instantiate import annotation_of

NUMBER = re.compile(r"[+-]?(\d+(_\d+)*\.?\d*|\.\d+)([eE][+-]?\d+)?")


def convert(value: Any, target: Any, name: str, *, where: str, shown: object) -> Any:
    """``value`` as the argument ``name`` of ``target``: itself, or the number that a text spells.

    ``true`` is no integer, ``3`` is a float, ``1e4`` is an integer, a list is a tuple. An annotation that cannot be
    evaluated, or that pydantic does not know, accepts everything.

    Args:
        value: Resolved value.
        target: Constructor.
        name: Argument of it.
        where: Key of the value, for the error.
        shown: The value as it was written: an interpolation of a secret is not spelt out in an error.
    """
    annotation = annotation_of(target, name)
    if annotation is None or _fits(value, annotation):
        return value
    for number in _numbers_like(value):
        if _fits(number, annotation):
            return number
    expected = inspect.formatannotation(annotation).replace("typing.", "")
    raise UserError(f"expected {expected}, got {shown!r}", where=where, fix=f"give a value of type {expected}")


def _numbers_like(value: Any) -> list[float | int]:
    """The numbers that a text spells, or that a whole float is: ``"1e-3"``, ``1e4``."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, float):
        return []
    return [int(value), value] if value.is_integer() else [value]


def _fits(value: Any, annotation: Any) -> bool:
    from pydantic import ValidationError

    adapter = _adapter(annotation)
    if adapter is None:
        return True
    try:
        adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError:
        return False
    return True


def _adapter(annotation: Any) -> Any:
    try:
        return _cached_adapter(annotation)
    except TypeError:  # an annotation without a hash
        return _build_adapter(annotation)


@cache
def _cached_adapter(annotation: Any) -> Any:
    return _build_adapter(annotation)


def _build_adapter(annotation: Any) -> Any:
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter
    from pydantic.errors import PydanticSchemaGenerationError

    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticSchemaGenerationError:
        return None
    except (PydanticUserError, TypeError):  # a BaseModel or dataclass brings its own configuration
        return TypeAdapter(annotation)
