"""``xlm verify``: whether what this installation prints is true, family by family."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from xlm.commands import rundir
from xlm.errors import UserError

if TYPE_CHECKING:
    from xlm.testing.generic import Parts
    from xlm.testing.oracles import Measured, OracleCase

ABOUT = """
Measures what must hold of each family: the laws of its samplers and its likelihoods against enumeration on toys, its
loss against formulas and finite differences. A line is an oracle, its error, and the largest error allowed. Families
that offer an oracle case (entry point xlm.oracles) are checked whole; of others what needs no case, with a list of what
was skipped. Exit code 1 where something fails.

  xlm verify                                  every installed family
  xlm verify model_type=mdlm --fast           one of them, without slow oracles
  xlm verify mutations=true                   also: deliberate faults, and by how much an oracle notices each
"""
FLAGS = {"--fast": "fast=true"}
SMALL = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": None, "dropout": 0.0}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Keys of ``xlm verify``."""

    model_type: Annotated[str | None, "a family, or several: [arlm,mdlm]; core is what they share"] = None
    fast: Annotated[bool, "leave slow oracles out; --fast means the same"] = False
    mutations: Annotated[bool, "put each deliberate fault into the code: an oracle must notice it"] = False
    output: Annotated[str | None, "folder for results.json; default runs/verify/<time>"] = None


@dataclass(frozen=True)
class Line:
    """An oracle's verdict, or whether a fault was noticed."""

    name: str
    error: float
    tolerance: float
    unit: str
    passed: bool
    seconds: float
    broke_off: bool = False
    """The oracle ended with an exception: of a fault it says nothing."""


@dataclass
class Verdict:
    """What was found out about one family."""

    oracles: list[Line] = field(default_factory=list)
    mutations: list[tuple[str, Line]] = field(default_factory=list)
    """The fault, and the line of the oracle that should notice it."""
    skipped: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether everything holds and every fault was noticed."""
        return all(line.passed for line in self.oracles) and not self.missed

    @property
    def missed(self) -> list[str]:
        """Faults that nobody noticed."""
        return [fault for fault, line in self.mutations if line.passed or line.broke_off]


def run(words: Sequence[str]) -> int:
    """Measure, print as it goes, write ``results.json``."""
    from xlm.config.top_level import read, typed

    options = read(Options, typed(Options, words))
    names = _names(options.model_type)
    folder = _folder(options.output)
    started, verdicts = time.time(), {}
    for name in names:
        try:
            verdicts[name] = _verify(name, options)
        except UserError as error:
            if options.model_type is not None:
                raise
            verdicts[name] = Verdict([Line("can be checked", math.nan, 0.0, str(error), False, 0.0)])
        _show(name, verdicts[name])
    return _finish(verdicts, folder, time.time() - started)


def _folder(given: str | None) -> Path:
    """Make the folder for ``results.json`` before any work."""
    stamp = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(2)}"
    folder = Path(given or Path("runs") / "verify" / stamp).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what, fix = f"cannot be made ({error.strerror})", "give output=FOLDER in a place that is yours"
        raise UserError(what, where="output", value=folder, fix=fix) from error
    return folder


def _names(given: str | None) -> list[str]:
    """The families to check; the core's own case comes first."""
    from xlm import registry

    offered = {package.name for package in registry.families()} | set(registry.oracle_cases())
    known = sorted(offered, key=lambda name: (name != "core", name))
    if given is None:
        return known
    names = [name.strip() for name in given.strip("[] ").split(",") if name.strip()]
    if not names:
        raise UserError("names no family", where="model_type", value=given or None, fix="leave it out to check all")
    for name in names:
        if name not in known:
            registry.refuse_broken(name, registry.FAMILIES, registry.ORACLES)
            raise UserError("no such family", where="model_type", value=name, fix=f"choose from {', '.join(known)}")
    return names


def _verify(name: str, options: Options) -> Verdict:
    """Generic oracles of a family, and those of its case."""
    from xlm import registry
    from xlm.testing.generic import SKIPPED, generic_oracles
    from xlm.testing.oracles import Oracle

    verdict, oracles = Verdict(), []
    package = next((package for package in registry.families() if package.name == name), None)
    if package:
        oracles += generic_oracles(lambda: _parts(name))
    target = registry.oracle_cases().get(name)
    case = _case(target) if target else None
    if case is None:
        verdict.skipped = [f"{what}: no oracle case" for what in SKIPPED]
    else:
        oracles += case.oracles
        verdict.skipped = [f"{oracle.name}: slow" for oracle in case.oracles if oracle.slow and options.fast]
    chosen: list[Oracle] = [oracle for oracle in oracles if not (oracle.slow and options.fast)]
    for oracle in _progress(chosen, name):
        verdict.oracles.append(_line(oracle))
    for mutation in _progress(case.mutations if case and options.mutations else [], f"{name}, faults"):
        oracle = case.oracle(mutation.caught_by)  # type: ignore[union-attr]
        if not (oracle.slow and options.fast):
            with mutation.applied():
                verdict.mutations.append((mutation.fault, _line(oracle)))
    return verdict


def _case(target: str) -> OracleCase:
    """Make an oracle case.

    Raises:
        UserError: there is no such function.
    """
    module, _, function = target.partition(":")
    try:
        case: OracleCase = getattr(import_module(module), function)()
    except Exception as error:
        what = f"no oracle case: {type(error).__name__}: {error}"
        raise UserError(what, where="xlm.oracles", value=target, fix="correct it (XLM_DEBUG=1 shows where)") from error
    return case


def _parts(name: str) -> Parts:
    """A family's parts from its configuration, as small as they can be."""
    import torch

    from xlm.config import compose
    from xlm.instantiate import construct
    from xlm.testing.generic import CONTEXT, Parts

    config = compose([f"model_type={name}"])
    context = {**CONTEXT, "noise_schedule": construct(config.noise_schedule) if config.noise_schedule else None}
    small = {key: value for key, value in SMALL.items() if key in config.model}
    torch.manual_seed(0)
    model = construct({**config.model, **small}, where="model", **context).double().eval()
    spaces = {"lm": "window"}
    return Parts(
        loss=construct(config.loss, model=model, **context),
        predictor=construct(config.predictor, model=model, **context),
        collators={
            str(role): construct(node, **context, event_space=spaces.get(str(role), "open"))
            for role, node in config.collators.items()
        },
    )


def _line(oracle: Any) -> Line:
    """Measure; an oracle that breaks off has failed, and says how."""
    from xlm.testing.oracles import Measured

    started, broke_off = time.perf_counter(), False
    try:
        measured: Measured = oracle.measure()
    except Exception as error:
        measured = Measured(math.nan, 0.0, f"{type(error).__name__}: {' '.join(str(error).split())}"[:200])
        broke_off = True
    seconds = time.perf_counter() - started
    return Line(oracle.name, measured.error, measured.tolerance, measured.unit, measured.passed, seconds, broke_off)


def _progress(items: Sequence[Any], name: str) -> Iterator[Any]:
    """A bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    if not console.is_terminal:
        return iter(items)
    return iter(track(items, description=name, console=console, transient=True))


def _show(name: str, verdict: Verdict) -> None:
    from xlm.commands.tables import show_table

    rows = [[line.name, line.error, line.tolerance, line.unit, _word(line.passed)] for line in verdict.oracles]
    show_table(f"{name}: oracles", ["oracle", "error", "tolerance", "unit", ""], rows)
    if verdict.mutations:
        rows = [
            [fault, line.name, line.error, line.tolerance, "MISSED" if fault in verdict.missed else "noticed"]
            for fault, line in verdict.mutations
        ]
        show_table(f"{name}: deliberate faults", ["fault", "oracle", "error", "tolerance", ""], rows)
    if verdict.skipped:
        show_table(f"{name}: skipped", ["what"], [[what] for what in verdict.skipped])


def _word(passed: bool) -> str:
    return "pass" if passed else "FAIL"


def _finish(verdicts: dict[str, Verdict], folder: Path, seconds: float) -> int:
    """Write, sum up; 1 where something failed."""
    from xlm.commands.tables import show_paths

    content = {
        name: {
            "passed": verdict.passed,
            "oracles": [asdict(line) for line in verdict.oracles],
            "mutations": [{"fault": fault, **asdict(line)} for fault, line in verdict.mutations],
            "skipped": verdict.skipped,
        }
        for name, verdict in verdicts.items()
    }
    about = {"wall_seconds": seconds, "versions": {name: metadata.version(name) for name in ("xlm-core", "torch")}}
    show_paths([rundir.write_results(folder, content, about)])
    lines = [line for verdict in verdicts.values() for line in verdict.oracles]
    n_faults = sum(len(verdict.mutations) for verdict in verdicts.values())
    failed, missed = sum(not line.passed for line in lines), sum(len(verdict.missed) for verdict in verdicts.values())
    noticed = f", {n_faults - missed} of {n_faults} faults noticed" if n_faults else ""
    print(f"{len(lines) - failed} of {len(lines)} oracles hold{noticed}; {seconds:.0f} s")
    return 1 if failed or missed else 0
