"""Top-level keys of a run that are values, with their types, ranges and meaning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from xlm.config.search import nearest
from xlm.config.types import convert
from xlm.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TopLevel:
    """Keys of ``config.yaml`` that are not parts."""

    job_type: Annotated[str, "the command; `xlm job_type=train` is `xlm train`"] = "train"
    seed: Annotated[int, "of the order, the noise and the initial weights"] = 0
    run_dir: Annotated[str | None, "where the run lives; default runs/<date>_<model_type>_<task>_<id>"] = None
    resume: Annotated[str | None, "a run directory to go on with"] = None
    init_from: Annotated[str | None, "a run or checkpoint whose weights to begin with"] = None
    checkpoint: Annotated[str | None, "a run directory or a checkpoint in one"] = None
    weights: Annotated[Literal["ema", "raw"] | None, "which to evaluate; default: averaged where there are some"] = None
    compile: Annotated[bool, "run the loss through torch.compile"] = False
    trusted_packages: Annotated[list[str], "further packages that _target_ may name; command line only"]
    family: Annotated[str, "set by model_type"]

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError("must not be negative", where="seed", value=self.seed, fix="use 0 or more")
        if self.resume and self.init_from:
            raise UserError(
                "excludes init_from",
                where="resume",
                value=self.resume,
                fix="resume=RUN goes on with a run; init_from=RUN begins a new one with its weights: give one of them",
            )


def read(kind: type[T], config: Mapping[Any, Any]) -> T:
    """The keys of a dataclass out of a configuration, converted to their types."""
    names = [field.name for field in fields(kind) if key_of(field.name) in config]  # type: ignore[arg-type]  # a dataclass
    values = {name: config[key_of(name)] for name in names}
    plain = {
        name: value if isinstance(value, str | int | float | None) else list(value) for name, value in values.items()
    }
    return kind(**{name: convert(value, kind, name, where=key_of(name), shown=value) for name, value in plain.items()})


def key_of(field: str) -> str:
    """The key of a dataclass's field: Python keeps ``from`` for itself, so its field is ``from_``."""
    return field.rstrip("_")


def typed(kind: type, words: Sequence[str]) -> dict[str, Any]:
    """The keys of a dataclass as they were typed, for commands that compose nothing; texts are taken literally."""
    keys = list(meanings(kind))
    given = dict(word.partition("=")[::2] for word in words)
    for key, value in given.items():
        if key not in keys:
            close = nearest(key, keys)
            fix = f"did you mean {close}?" if close else f"choose one of {', '.join(keys)}"
            raise UserError("unknown key", where=key, value=value or None, fix=fix)
    hints = {key_of(name): hint for name, hint in get_type_hints(kind).items()}
    spelt = {"true": True, "false": False}
    return {key: spelt.get(value, value) if hints[key] is bool else value for key, value in given.items()}


def defaults(kind: type) -> dict[str, Any]:
    """Keys of a dataclass that have a default, with it."""
    return {key_of(field.name): field.default for field in fields(kind) if field.default is not MISSING}


def meanings(kind: type) -> dict[str, str]:
    """Keys of a dataclass and what they mean."""
    hints = get_type_hints(kind, include_extras=True)
    return {key_of(name): get_args(hint)[1] for name, hint in hints.items() if get_args(hint)}
