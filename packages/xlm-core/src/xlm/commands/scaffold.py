"""``xlm scaffold NAME``: a complete package for a new family, from a tested template or from an installed family."""

from __future__ import annotations

import json
import keyword
import os
import re
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Annotated

import xlm
from xlm import registry
from xlm.commands.renaming import Renaming, class_prefix, dashed, read_files
from xlm.config import search
from xlm.errors import UserError

ABOUT = """
Makes a package with model, loss, predictor, collators, options, an oracle case and tests. It trains, passes its tests
and xlm verify as it is; comments "YOUR IDEA" mark where another idea begins. It lies in packages/ of the uv workspace
that holds the working directory, otherwise in the working directory.

  xlm scaffold my_model                       a small masked language model
  xlm scaffold my_model from=mdlm             the code of an installed family, renamed
"""
BARE = "name"
"""The key that a word without one fills."""

TEMPLATE, TEMPLATE_PREFIX = "newfamily", "NewFamily"
MARK = "YOUR IDEA: "
OF_ITS_PARTS = PurePosixPath("tests/test_parts.py")
"""Tests that know how the template's parts are built."""
MEMBERS = "packages/*"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Keys of ``xlm scaffold``."""

    name: Annotated[str | None, "of the family: my_model makes xlm-my-model, xlm_my_model and MyModelLoss"] = None
    from_: Annotated[str | None, "an installed family to start from; default: a small masked language model"] = None
    output: Annotated[str | None, "the folder to make; default packages/xlm-NAME or ./xlm-NAME"] = None


def run(words: Sequence[str]) -> int:
    """Check the name, make the package, say what to do next."""
    from xlm.config.top_level import read, typed

    options = read(Options, typed(Options, words))
    name = _checked(options.name)
    root = _workspace(Path.cwd())
    folder = (
        Path(options.output).expanduser()
        if options.output
        else (root / "packages" if root else Path()) / _project(name)
    )
    if os.path.lexists(folder):
        raise UserError("this folder exists", value=folder, fix="choose another name, or give output=FOLDER")
    texts = _from_template(name) if options.from_ is None else _from_family(name, options.from_)
    _refuse_taken(name, texts)
    _write(folder, texts)
    _show(name, _shown(folder), texts, in_workspace=root is not None and folder.resolve().parent == root / "packages")
    if options.from_ is not None:
        print("lines may be longer or shorter now: ruff check --fix && ruff format")
    return 0


def _project(name: str) -> str:
    return f"xlm-{dashed(name)}"


def _checked(name: str | None) -> str:
    """A name that can be part of a module's, an option's and a class's."""
    import yaml

    if not name:
        raise UserError("no name", where="name", fix="write xlm scaffold my_model")
    fits = re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) and not name.startswith("xlm_")
    if not fits or keyword.iskeyword(name) or yaml.safe_load(name) != name:
        words = re.findall(r"[a-z0-9]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name).lower().removeprefix("xlm"))
        known = "_".join(words).lstrip("0123456789_")
        better = known if known and not keyword.iskeyword(known) and known not in (name, "null") else "my_model"
        what = "is no name for a family: small letters, digits and single underscores make one"
        raise UserError(what, where="name", value=name, fix=f"use {better}")
    return name


def _workspace(start: Path) -> Path | None:
    """Root of the uv workspace that holds a folder, if its members are ``packages/*``."""
    for folder in (start, *start.parents):
        try:
            project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if MEMBERS in project.get("tool", {}).get("uv", {}).get("workspace", {}).get("members", []):
            return folder
    return None


def _template() -> dict[PurePosixPath, str]:
    return read_files(Path(xlm.__file__).parent / "scaffold" / TEMPLATE)


def _from_template(name: str) -> dict[PurePosixPath, str]:
    return Renaming(TEMPLATE, TEMPLATE_PREFIX, name).files(_template())


def _from_family(name: str, family: str) -> dict[PurePosixPath, str]:
    """The family's module, with the template's project round it.

    Raises:
        UserError: there is no such family, or it cannot be renamed.
    """
    known = {package.name: package for package in registry.families()}
    if family not in known:
        registry.refuse_broken(family, registry.FAMILIES)
        fix = f"choose from {', '.join(known)}" if known else search.INSTALL_ONE
        raise UserError("no such family", where="from", value=family, fix=fix)
    package = known[family]
    own = read_files(package.folder)
    if package.module != f"xlm_{family}" or registry.ORACLE_CASE not in {
        path.parts[0].removesuffix(".py") for path in own
    }:
        what = f"cannot be renamed: its module is not xlm_{family} with an oracle_case"
        raise UserError(what, where="from", value=f"{package.distribution}: {package.module}", fix="use another family")
    template = {path: text for path, text in _template().items() if path.parts[0] != "src" and path != OF_ITS_PARTS}
    project = Renaming(TEMPLATE, TEMPLATE_PREFIX, name).files(template)
    module = {PurePosixPath("src", package.module, path): text for path, text in own.items()}
    texts = project | Renaming(family, class_prefix(family, own), name).files(module)
    began = PurePosixPath("CHANGELOG.md")
    origin = f" from={family}`: a copy of {package.distribution} {package.version or ''}".rstrip()
    texts[began] = texts[began].replace(f"scaffold {name}`", f"scaffold {name}{origin}")
    if package.version:
        needed = [line for line in metadata.requires(package.distribution) or [] if "extra ==" not in line]
        file = PurePosixPath("pyproject.toml")
        texts[file] = re.sub(r"(?m)^dependencies = .*$", lambda _: f"dependencies = {json.dumps(needed)}", texts[file])
    return texts


def _refuse_taken(name: str, texts: Mapping[PurePosixPath, str]) -> None:
    """Refuse a name under which something can be found already."""
    offered = search.options()
    mine = ((path.parent.name, path.stem) for path in texts if path.suffix == ".yaml")
    options = [f"the option {group}/{option}" for group, option in mine if option in offered.get(group, {})]
    packages = [*registry.packages(), *(broken.offer for broken in registry.broken())]
    taken = [f"{package.distribution} offers {package.name}" for package in packages if package.name == name]
    taken += ["it is what families share"] if name in registry.oracle_cases() and not taken else []
    taken += [f"there is {option}" for option in options]
    taken += [f"there is a module xlm_{name}"] if find_spec(f"xlm_{name}") else []
    if taken:
        raise UserError(f"is taken: {taken[0]}", where="name", value=name, fix="choose another name")


def _write(folder: Path, texts: Mapping[PurePosixPath, str]) -> None:
    """Write beside the folder, and move it there when it is whole."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".xlm-scaffold-") as beside:
            whole = Path(beside) / folder.name
            for path, text in texts.items():
                (whole / path).parent.mkdir(parents=True, exist_ok=True)
                (whole / path).write_text(text, encoding="utf-8")
            whole.rename(folder)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise UserError(
            what, where="output", value=folder, fix="give output=FOLDER in a place that is yours"
        ) from error


def _shown(folder: Path) -> Path:
    """As short as it can be typed here."""
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder


def _show(name: str, folder: Path, texts: Mapping[PurePosixPath, str], *, in_workspace: bool) -> None:
    """Where the idea goes, and what to type."""
    print(f"{folder}: {len(texts)} files")
    if marks := list(_marks(texts)):
        print("\nwhere your idea goes:")
        print("\n".join(f"  {folder / path}:{line}: {what}" for path, line, what in marks))
    print("\ntry it:")
    steps = [
        f"export XLM_MODELS_PATH={folder.resolve()}",
        f"xlm train model_type={name} datamodule=star_easy debug=overfit",
        f"xlm verify model_type={name}",
        f"pytest {folder}",
    ]
    print("\n".join(f"  {step}" for step in steps))
    known = "uv sync --all-packages" if in_workspace else f"pip install -e {folder}"
    print(f"\ninstead of XLM_MODELS_PATH, for good: {known}")


def _marks(texts: Mapping[PurePosixPath, str]) -> Iterator[tuple[PurePosixPath, int, str]]:
    for path, text in texts.items():
        for number, line in enumerate(text.splitlines(), start=1):
            if path.suffix == ".py" and MARK in line:
                yield path, number, line.partition(MARK)[2].partition(". ")[0].rstrip(".")
