"""What defaults lists name, as the files say it; nothing is composed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlm.config import search

KEYWORDS = re.compile(r"^(override +|optional +)+")
HEADER = re.compile(r"^# *@package +(\S+)", re.MULTILINE)
GLOBAL = "_global_"


@dataclass(frozen=True)
class Entry:
    """One option that a defaults list names."""

    group: str
    option: str
    place: str
    """Where the option is put: ``collators.lm``; empty beside the option that names it, and where it is not known."""
    file: Path | None
    """None where there is none, or several packages have one."""


Options = Mapping[str, Mapping[str, Path]]
"""Files of options by group and name, as ``search.options`` gives them."""


def followed(entry: Entry, options: Options, seen: frozenset[Path] = frozenset()) -> Iterator[Entry]:
    """An option after those that its defaults list names; what is put beside it is followed in turn.

    Raises:
        UserError: a file cannot be read, its defaults are none, or they lead back to it.
    """
    if entry.file and not entry.place:
        if entry.file in seen:
            raise search.unreadable(entry.file, "its defaults lead back to itself")
        for named in _entries(entry.file, entry.group, options):
            yield from followed(named, options, seen | {entry.file})
    yield entry


def content(file: Path) -> Mapping[str, Any]:
    """What a file says.

    Raises:
        UserError: it cannot be read.
    """
    import yaml

    try:
        return search.read_yaml(file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise search.unreadable(file, str(error.problem), mark.line + 1 if mark else None) from error
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise search.unreadable(file, str(error)) from error


def _entries(file: Path, group: str, options: Options) -> Iterator[Entry]:
    for key, option in _words(file):
        path, _, place = key.partition("@")
        *folders, name = f"{path}/{option}".strip("/").split("/")
        named_in = "/".join(folders if path.startswith("/") else [group, *folders]).strip("/")
        found = options.get(named_in, {}).get(name)
        yield Entry(named_in, name, _place(place, named_in, group, found), found)


def _words(file: Path) -> Iterator[tuple[str, str]]:
    """(group, option) as a file has them; ``base/common@_here_`` has its group in its option."""
    listed = content(file).get("defaults")
    for entry in [] if listed is None else listed if isinstance(listed, list) else [None]:
        if isinstance(entry, str):
            option, at, place = entry.partition("@")
            group, slash, name = option.rpartition("/")
            if entry != "_self_":
                yield f"{group or slash}{at}{place}", name
        elif isinstance(entry, dict) and all(isinstance(key, str) for key in entry):
            for key, chosen in entry.items():
                options = chosen if isinstance(chosen, list) else [] if chosen is None else [chosen]
                yield from ((KEYWORDS.sub("", key), str(option)) for option in options)
        else:
            raise search.unreadable(file, "its defaults are no list of options and of group: option")


def _place(said: str, named_in: str, group: str, file: Path | None) -> str:
    """Where an option is put: where the list says it, or its own first line; else its group."""
    if said:
        return re.sub(rf"^(_here_|{GLOBAL})(\.|$)", "", said)
    if named_in == group or file is None:
        return ""
    header = HEADER.search(file.read_text(encoding="utf-8", errors="replace"))
    return "" if header and header[1] == GLOBAL else named_in.replace("/", ".")
