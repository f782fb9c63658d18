"""The ``xlm`` command: finds a command's module, gives it the words, turns its errors into lines and exit codes."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from xlm.errors import UserError

COMMANDS, EXTERNAL = "xlm.commands", "xlm.commands.external"
JOB = "job_type="
FAILED, USER, INTERRUPTED, TERMINATED = 1, 2, 130, 143
MULTIRUN = ("-m", "--multirun")
HELP = ("-h", "--help", "help")
FROM_WORKER = re.compile(r"Caught (\w+) in DataLoader worker.*\n(?:[\w.]+\.)?\1: (.*)", re.DOTALL)
"""What torch makes of an error in a process that loads data: the whole traceback, and the message at its end."""
IN_WORKER = "datamodule.num_workers=0 XLM_DEBUG=1 shows how it came about"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 done, 1 failed, 2 the user's input, 130 interrupted, 143 terminated."""
    # Before torch loads OpenMP: threads that wait actively for milliseconds, as they do by default, cost a run beside
    # any other busy process nine tenths of its speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _terminated)  # until the training callbacks save first
    with logging_to_stderr():
        try:
            code = dispatch(list(sys.argv[1:] if arguments is None else arguments))
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # `xlm info | head` has read enough; Python would complain again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except SystemExit as stop:
            interrupted = isinstance(stop.__context__, KeyboardInterrupt)  # Lightning leaves with 1 then
            return INTERRUPTED if interrupted else _code(stop)
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:
            return report(error)


def scaffold() -> int:
    """``xlm-scaffold NAME`` is ``xlm scaffold NAME``."""
    return main(["scaffold", *sys.argv[1:]])


@contextmanager
def logging_to_stderr() -> Iterator[None]:
    """Show what xlm says about itself, as plain lines."""
    log, handler = logging.getLogger("xlm"), logging.StreamHandler()
    log.setLevel(logging.INFO if os.environ.get("LOCAL_RANK", "0") == "0" else logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(TERMINATED)


def _code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)
    return FAILED


def dispatch(words: list[str]) -> int:
    """Find the command among the words and run it with the others."""
    name, rest = find_command(words)
    if name is None:
        if rest and rest[0] == "--version":
            print(importlib.import_module("xlm").__version__)
            return 0
        print(usage())
        return 0 if rest and rest[0] in HELP else USER
    module = importlib.import_module(EXTERNAL).load(name)
    if any(word in HELP[:2] for word in rest):
        print(importlib.import_module(f"{COMMANDS}.help").describe(name, module))
        return 0
    return _run(name, module, rest)


def find_command(words: list[str]) -> tuple[str | None, list[str]]:
    """(command, other words); ``job_type=NAME`` anywhere means the same as NAME in front."""
    jobs = [word.removeprefix(JOB) for word in words if word.startswith(JOB)]
    rest = [word for word in words if not word.startswith(JOB)]
    if rest and not rest[0].startswith("-") and "=" not in rest[0] and rest[0] != "help":
        jobs.insert(0, rest.pop(0))
    if not jobs:
        if rest and "=" in rest[0]:
            raise UserError("no command", value=rest[0], fix=f"begin with one of {', '.join(_commands())}")
        return None, rest
    if len(set(jobs)) > 1:
        raise UserError("two commands", value=" and ".join(jobs), fix="give one")
    name = jobs[0].replace("-", "_")
    if name not in importlib.import_module(COMMANDS).COMMANDS and name not in (commands := _commands()):
        importlib.import_module(EXTERNAL).refuse_broken(name)
        close = difflib.get_close_matches(name, commands, n=1)
        meant = f"did you mean {close[0]}? " if close else ""
        raise UserError("no such command", value=jobs[0], fix=f"{meant}the commands are {', '.join(commands)}")
    return name, rest


def _commands() -> list[str]:
    """Names of all commands, the core's first."""
    return [*importlib.import_module(COMMANDS).COMMANDS, *importlib.import_module(EXTERNAL).offered()]


def _run(name: str, module: Any, words: list[str]) -> int:
    short = getattr(module, "FLAGS", {})
    words = _keyed([short.get(word, word) for word in words], getattr(module, "BARE", None))
    flags = [word for word in words if word.startswith("-")]
    unknown = [flag for flag in flags if flag not in MULTIRUN]
    if unknown:
        raise UserError("no such flag", value=unknown[0], fix=f"write key=value; `xlm {name} --help` lists the keys")
    overrides = [word for word in words if word not in flags]
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError("neither key=value nor a flag", value=word, fix="write key=value")
    if flags:
        return int(importlib.import_module(f"{COMMANDS}.multirun").run(name, module, overrides))
    return int(module.run(overrides) or 0)


def _keyed(words: list[str], bare: str | None) -> list[str]:
    """The first word that is neither key=value nor a flag as the value of a command's ``bare`` key."""
    first = next((i for i, word in enumerate(words) if word and "=" not in word and word[0] not in "-~"), None)
    if first is None or bare is None or any(word.startswith(f"{bare}=") for word in words):
        return words
    return [*words[:first], f"{bare}={words[first]}", *words[first + 1 :]]


def usage() -> str:
    """What ``xlm --help`` prints."""
    commands, external = importlib.import_module(COMMANDS).COMMANDS, importlib.import_module(EXTERNAL)
    lines = [f"  {name:14}{summary}" for name, summary in (commands | external.summaries()).items()]
    return "\n".join(
        [
            "usage: xlm COMMAND [key=value ...]",
            "",
            *lines,
            *(f"  left out: {broken.reason}" for broken in external.left_out()),
            "",
            "xlm COMMAND --help lists a command's keys. First steps:",
            "  xlm info",
            "  xlm train model_type=FAMILY datamodule=TASK debug=overfit",
            "  xlm generate checkpoint=runs/...",
        ]
    )


def report(error: Exception) -> int:
    """One line on stderr for an error, the whole traceback under ``XLM_DEBUG=1``; returns the exit code."""
    from xlm.config.redaction import scrub

    if os.environ.get("XLM_DEBUG") == "1":
        import traceback

        print(scrub("".join(traceback.format_exception(error))), file=sys.stderr)
    print(scrub(f"error: {' '.join(_line(error).split())}"), file=sys.stderr)
    from_worker = FROM_WORKER.match(str(error))
    return USER if isinstance(error, UserError) or (from_worker and from_worker[1] == "UserError") else FAILED


def _line(error: Exception) -> str:
    if from_worker := FROM_WORKER.match(str(error)):
        message = from_worker[2].rstrip()
        return message if "; fix: " in message else f"{message}; fix: {IN_WORKER}"
    if isinstance(error, UserError) or "; fix: " in str(error):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return f"out of memory: {error}; fix: lower datamodule.device_batch_size, or model.d_model and n_layers"
    place = error.__traceback__
    while place and place.tb_next:
        place = place.tb_next
    where = f" in {os.path.basename(place.tb_frame.f_code.co_filename)}:{place.tb_lineno}" if place else ""
    return f"{type(error).__name__}: {error}{where}; fix: XLM_DEBUG=1 shows how it came about"


if __name__ == "__main__":
    sys.exit(main())
