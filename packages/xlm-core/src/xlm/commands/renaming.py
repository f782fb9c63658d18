"""A family's files under another name, in texts, file names and identifiers; what cannot be told apart is refused."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from xlm.errors import UserError

CACHES = frozenset({"__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache"})
CLASS = re.compile(r"^class (\w+)", re.MULTILINE)


@dataclass(frozen=True)
class Renaming:
    """From one family's words to another's.

    Args:
        old: Name of the family: ``mdlm``.
        prefix: What its classes begin with: ``MDLM``.
        new: The other name: ``my_model``, whose classes begin with ``MyModel``.

    Example:
        >>> rename = Renaming("mdlm", "MDLM", "my_model")
        >>> rename("xlm-mdlm: model_type=mdlm is xlm_mdlm.loss.MDLMLoss, not MDLMs or amdlm")
        'xlm-my-model: model_type=my_model is xlm_my_model.loss.MyModelLoss, not MDLMs or amdlm'
    """

    old: str
    prefix: str
    new: str

    def __call__(self, text: str) -> str:
        """The text in the words of the other family."""
        text = re.sub(rf"(?<![A-Za-z0-9])xlm-{dashed(self.old)}(?![A-Za-z0-9])", f"xlm-{dashed(self.new)}", text)
        text = re.sub(rf"(?<![A-Za-z0-9]){self.old}(?![A-Za-z0-9])", self.new, text)
        return re.sub(rf"(?<![A-Z0-9]){self.prefix}(?![a-z0-9])", camel(self.new), text)

    def files(self, texts: Mapping[PurePosixPath, str]) -> dict[PurePosixPath, str]:
        """Renamed texts by renamed path.

        Raises:
            UserError: a new name is one that the code has already.
        """
        names = {name for path, text in texts.items() if path.suffix == ".py" for name in identifiers(text)}
        renamed = {self(name) for name in names if self(name) != name}
        if twice := sorted(renamed & names):
            what = f"its code would have two things called {twice[0]}"
            raise UserError(what, where="name", value=self.new, fix="choose another name")
        return {PurePosixPath(self(str(path))): self(text) for path, text in texts.items()}


def dashed(name: str) -> str:
    """``my-model``."""
    return name.replace("_", "-")


def camel(name: str) -> str:
    """``MyModel``."""
    return "".join(word.capitalize() for word in name.split("_"))


def identifiers(text: str) -> Iterator[str]:
    """Names in Python code; comments and strings have none."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.string


def read_files(folder: Path) -> dict[PurePosixPath, str]:
    """Texts of all files below a folder by path, caches left out.

    Raises:
        UserError: a file is no text.
    """
    found = {}
    for file in sorted(folder.rglob("*")):
        path = PurePosixPath(file.relative_to(folder).as_posix())
        if file.is_dir() or CACHES & set(path.parts):
            continue
        try:
            found[path] = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError("is no text, so it cannot be renamed", where=str(file), fix="use another from=") from error
    return found


def class_prefix(name: str, texts: Mapping[PurePosixPath, str]) -> str:
    """What the classes of a family begin with: its name, in the family's own spelling.

    Raises:
        UserError: there is none, or more than one.
    """
    plain = name.replace("_", "")
    classes: list[str] = [
        found for path, text in texts.items() if path.suffix == ".py" for found in CLASS.findall(text)
    ]
    spelt: list[str] = sorted({found[: len(plain)] for found in classes if found.lower().startswith(plain)})
    if len(spelt) != 1:
        what = f"cannot be renamed safely: its classes begin with {' and with '.join(spelt) or 'other words'}"
        raise UserError(what, where="from", value=name, fix="use a family whose classes begin with its name")
    return spelt[0]
