"""``xlm compare``: finished runs and evaluations side by side, and which of their numbers must not be compared."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from xlm.commands import rundir
from xlm.errors import UserError

ABOUT = """
Reads results.json of run directories (of `xlm train`) and of evaluations (RUN/eval/...); no network is called. There is
one table an event space. Numbers share a block of it only where name, sequences, tokens and bytes of the data agree.

  xlm compare runs=[runs/a,runs/b]
  xlm compare runs=[runs/a,runs/a/eval/2026-01-31_12-00-00_c0de] output=compare.json
"""
NOT_LIKELIHOODS = {"estimate": "is no likelihood of the sampler", "pseudo": "is no likelihood of a text"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Keys of ``xlm compare``."""

    runs: Annotated[str, "run directories and evaluations: [RUN1,RUN2,...], taken literally"]
    split: Annotated[Literal["test", "val"], "which data sets"] = "test"
    output: Annotated[str | None, "a JSON file to write"] = None


@dataclass(frozen=True)
class Finished:
    """A run or an evaluation."""

    name: str
    folder: Path
    facts: dict[str, Any]
    """Family, parameters, tokens trained; None where the files do not say."""
    results: dict[str, dict[str, Any]]
    """By data set, those of the split."""


@dataclass
class Block:
    """Numbers of the same data in the same event space, by run: those that may stand side by side."""

    event_space: str | None
    """None: predictions."""
    data_set: str
    size: dict[str, int | None]
    """Sequences, tokens and bytes, or examples; None where unknown."""
    values: dict[str, dict[str, Any]] = field(default_factory=dict)

    def fits(self, event_space: str | None, data_set: str, size: dict[str, int | None]) -> bool:
        """Whether other numbers are of this data, as far as is known."""
        known = all(None in (self.size[key], n) or self.size[key] == n for key, n in size.items() if key in self.size)
        return (self.event_space, self.data_set) == (event_space, data_set) and known


def run(words: Sequence[str]) -> int:
    """Read, print, and write where asked."""
    options = _options(words)
    output = rundir.output_file(options.output)
    runs = load(options.runs, options.split)
    found = blocks(runs)
    warnings = caveats(found)
    _show(runs, found, warnings)
    if output:
        _write(output, runs, found, warnings)
    return 0


def _options(words: Sequence[str]) -> Options:
    from xlm.config.top_level import read, typed

    given = typed(Options, words)
    if not given.get("runs", "").strip("[] "):
        raise UserError("missing: runs", fix="add runs=[RUN1,RUN2], run directories or evaluations in them")
    return read(Options, given)


# Reading


def load(runs: str, split: str) -> list[Finished]:
    """The runs of a list as it is typed; a path with a comma stands in double quotes."""
    text = runs.strip().removeprefix("[").removesuffix("]")
    paths = [path.strip() for path in next(csv.reader([text], skipinitialspace=True)) if path.strip()]
    folders = [_folder(path) for path in paths]
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise UserError("is given twice", where="runs", value=path, fix="name each run once")
    short = [folder.name for folder in folders]
    names = [name if short.count(name) == 1 else path for name, path in zip(short, paths, strict=True)]
    loaded = [_finished(name, folder, split) for name, folder in zip(names, folders, strict=True)]
    if not any(finished.results for finished in loaded):
        other = "val" if split == "test" else "test"
        raise UserError("no run has results of it", where="split", value=split, fix=f"use split={other}")
    return loaded


def _folder(path: str) -> Path:
    given = Path(path).expanduser()
    if not given.exists():
        raise UserError("there is no such run", where="runs", value=path, fix="check the path; runs lie in runs/")
    folder = given.parent if given.name == rundir.RESULTS else given
    if not (folder / rundir.RESULTS).is_file():
        fix = "finish it with `xlm train resume=RUN`, or evaluate it with `xlm eval checkpoint=RUN`"
        raise UserError(f"has no {rundir.RESULTS}", where="runs", value=path, fix=fix)
    return folder.resolve()


def _finished(name: str, folder: Path, split: str) -> Finished:
    about = rundir.load_results(folder)
    results = {key: value for key, value in about.items() if isinstance(value, dict) and key.startswith(f"{split}.")}
    if "checkpoint" in about:  # an evaluation: what was trained stands in its run
        about = {**_trained(folder, about, {values.get("step") for values in results.values()}), **about}
    family = about.get("family") or _config(folder).get("family")
    facts = {"family": family, "parameters": about.get("parameters"), "tokens": about.get("tokens")}
    return Finished(name, folder, facts, results)


def _config(folder: Path) -> Mapping[str, Any]:
    from xlm.config.runs import CONFIG
    from xlm.config.search import read_yaml

    return read_yaml(folder / CONFIG) if (folder / CONFIG).is_file() else {}


def _trained(folder: Path, about: dict[str, Any], steps: set[Any]) -> dict[str, Any]:
    """Results of the run that was evaluated, where they can be found; tokens are those of its last step alone."""
    checkpoint = Path(about["checkpoint"]).expanduser()
    candidates = [folder.parent.parent, checkpoint, checkpoint.parent.parent]
    run = next((place for place in candidates if (place / rundir.RESULTS).is_file()), None)
    found = rundir.load_results(run) if run else {}
    return {key: value for key, value in found.items() if key != "tokens" or steps == {found.get("step")}}


# Comparing


def blocks(runs: Sequence[Finished]) -> list[Block]:
    """Numbers of all runs, by event space and data."""
    found: list[Block] = []
    for finished in runs:
        for data_set, values in finished.results.items():
            place = values.get("event_space"), data_set, _size(values)
            block = next((block for block in found if block.fits(*place)), None)
            if block is None:
                found.append(block := Block(*place))
            block.size |= {key: n for key, n in place[2].items() if n is not None}
            block.values[finished.name] = values
    return sorted(found, key=lambda block: (block.event_space is None, block.event_space or "", block.data_set))


def _size(values: dict[str, Any]) -> dict[str, int | None]:
    if "nats_per_token" not in values:
        return {"examples": values.get("n_examples")}
    return {"sequences": values.get("n_sequences"), "tokens": values.get("n_tokens"), "bytes": _n_bytes(values)}


def _n_bytes(values: dict[str, Any]) -> int | None:
    """Bytes of the texts, out of nats per token and bits per byte."""
    nats, bits, tokens = (values.get(key) for key in ("nats_per_token", "bits_per_byte", "n_tokens"))
    numbers = all(isinstance(value, int | float) and 0 < value < math.inf for value in (nats, bits, tokens))
    return round(nats * tokens / (bits * math.log(2))) if numbers else None  # type: ignore[operator]  # numbers


def caveats(found: Sequence[Block]) -> list[str]:
    """A line for every comparison that the tables invite to, and that means less than it seems."""
    return [*_kinds(found), *_others(found)]


def _kinds(found: Sequence[Block]) -> Iterator[str]:
    for block in found:
        kinds: dict[str, list[str]] = {}
        for name, values in block.values.items():
            kinds.setdefault(str(values.get("kind")), []).append(name)
        if len(kinds) < 2:
            continue
        said = [f"{kind} ({', '.join(names)})" for kind, names in kinds.items()]
        reasons = ["a bound is at least the exact value"] if "bound" in kinds else []
        reasons += [f"{kind} {why}, and not comparable" for kind, why in NOT_LIKELIHOODS.items() if kind in kinds]
        yield f"{block.data_set}, {block.event_space}: kinds differ: {' and '.join(said)}; {'; '.join(reasons)}"


def _others(found: Sequence[Block]) -> Iterator[str]:
    """The same name, and another event space or other data."""
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            if one.data_set != other.data_set or (one.event_space is None) != (other.event_space is None):
                continue
            between = f"{one.data_set}: {', '.join(one.values)} and {', '.join(other.values)}"
            if one.event_space != other.event_space:
                spaces = f"{one.event_space} and {other.event_space}"
                yield f"{between} are in the event spaces {spaces}: their numbers are not comparable"
            else:
                differ = [key for key, n in one.size.items() if other.size[key] != n]
                yield f"{between} are of different data ({_differences(one, other, differ)}): {_what_holds(differ)}"


def _differences(one: Block, other: Block, keys: Sequence[str]) -> str:
    return "; ".join(f"{_number(one.size[key])} and {_number(other.size[key])} {key}" for key in keys)


def _what_holds(differ: Sequence[str]) -> str:
    if list(differ) == ["tokens"]:  # another tokenizer of the same text
        return "bits per byte may be compared, nats per token and perplexity not"
    return "their numbers are not comparable"


# Printing


def _show(runs: Sequence[Finished], found: Sequence[Block], warnings: Sequence[str]) -> None:
    from xlm.commands.tables import show_table, visible

    for space in dict.fromkeys(block.event_space for block in found):
        here = [block for block in found if block.event_space == space]
        columns = [finished for finished in runs if any(finished.name in block.values for block in here)]
        rows: list[list[str] | None] = [
            ["family", *(str(finished.facts["family"] or "n/a") for finished in columns)],
            ["parameters", *(_number(finished.facts["parameters"]) for finished in columns)],
            ["tokens trained", *(_number(finished.facts["tokens"]) for finished in columns)],
        ]
        for block in here:
            cells = {finished.name: _cells(block, block.values.get(finished.name)) for finished in columns}
            labels = dict.fromkeys(label for column in cells.values() for label in column)
            rows += [None, *([label, *(column.get(label, "") for column in cells.values())] for label in labels)]
        title = "predictions" if space is None else f"event space: {space}"
        show_table(title, ["", *(finished.name for finished in columns)], rows)
    for line in warnings:
        print(f"caution: {visible(line)}")


def _cells(block: Block, values: dict[str, Any] | None) -> dict[str, str]:
    """Labels and texts of one run's numbers; none where the run has none."""
    if values is None:
        return {}
    size = {key: _number(n) for key, n in block.size.items()}
    cells = {"data set": block.data_set, **size}
    if block.event_space is None:
        metrics = [key for key in values if f"{key}_se" in values or isinstance(values[key], float)]
        numbers = {key: _with_error(values, key) for key in metrics if not key.endswith("_se") and key != "n_calls"}
        cells |= {**numbers, "network calls an example": _number(values.get("n_calls"))}
    else:
        error = values.get("mc_se")
        drawn = f" (Monte Carlo {_number(error)})" if error is not None else ""
        cells |= {
            "nats/token": _with_error(values, "nats_per_token") + drawn,
            "perplexity": _with_error(values, "perplexity"),
            "bits/byte": _with_error(values, "bits_per_byte"),
            "kind": str(values.get("kind")),
            "estimator": str(values.get("estimator")),
            "network calls a sequence": _number(values.get("n_calls")),
        }
    return {**cells, "weights": f"{values.get('weights', 'n/a')}, step {_number(values.get('step'))}"}


def _with_error(values: dict[str, Any], key: str) -> str:
    value, error = values.get(key), values.get(f"{key}_se")
    return _number(value) + (f" ± {error:.2g}" if isinstance(error, float) and value is not None else "")


def _number(value: Any) -> str:
    """Whole numbers in full, others with five digits; an infinite one is a text already."""
    if value is None:
        return "n/a"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.5g}"
    return f"{int(value):,}" if isinstance(value, int | float) else str(value)


def _write(path: Path, runs: Sequence[Finished], found: Sequence[Block], warnings: Sequence[str]) -> None:
    from xlm.files import write_atomically

    content = {
        "runs": {finished.name: {"path": str(finished.folder), **finished.facts} for finished in runs},
        "blocks": [vars(block) for block in found],
        "caveats": list(warnings),
    }
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))
    print(path)
