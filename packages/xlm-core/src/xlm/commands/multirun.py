"""``xlm train -m seed=1,2``: every combination composed and checked first, then handed to Hydra's launcher."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from xlm.config.composition import compose_options, loader
from xlm.config.overrides import expand, is_value, parse, unquote
from xlm.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMMANDS = ("train", "eval")


def run(name: str, module: ModuleType, words: Sequence[str]) -> int:
    """Check all runs, then launch them; the exit code is 1 when one of them failed."""
    if name not in COMMANDS:
        raise UserError(
            "runs once", value=f"xlm {name} --multirun", fix=f"only xlm {', '.join(COMMANDS)} takes --multirun"
        )
    launcher_words = [word for word in words if word.lstrip("+~").startswith("hydra")]
    runs = expand([word for word in words if word not in launcher_words])
    for n, overrides in enumerate(runs):
        module.prepare(_own_run_dir(overrides, n))
    returns = _launcher(name, launcher_words).launch([_for_hydra(_own_run_dir(o, n)) for n, o in enumerate(runs)], 0)
    failed = [n for n, result in enumerate(returns) if _failed(n, result)]
    return 1 if failed else 0


def _own_run_dir(overrides: list[str], number: int) -> list[str]:
    """A given ``run_dir`` holds the runs by number; without one each run names its own."""
    given = [word.partition("=")[2] for word in overrides if word.startswith("run_dir=")]
    others = [word for word in overrides if not word.startswith("run_dir=")]
    return [*others, f"run_dir={Path(given[-1]) / str(number)}"] if given else overrides


def _for_hydra(overrides: Sequence[str]) -> list[str]:
    """Hydra composes too, and must take every key that we took: values are forced, ``run_dir`` is ours alone."""
    lines = []
    for override in parse(overrides):
        line = str(override.input_line)
        lines.append(f"++{line.lstrip('+')}" if is_value(override) and not override.is_delete() else line)
    return lines


def _launcher(name: str, words: Sequence[str]) -> Any:
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    compose_options(parse(words))  # says what is wrong in our words
    hydra_loader = loader()
    config = hydra_loader.load_configuration("config", list(words), RunMode.MULTIRUN)
    context = HydraContext(config_loader=hydra_loader, callbacks=Callbacks(config))
    return Plugins.instance().instantiate_launcher(
        hydra_context=context, task_function=partial(launched, name), config=config
    )


def launched(name: str, config: DictConfig) -> None:
    """One run, as a launcher calls it, perhaps on another machine: composed again from its own words."""
    from hydra.core.hydra_config import HydraConfig

    words = [unquote(line.removeprefix("++")) for line in HydraConfig.get().overrides.task]
    importlib.import_module(f"xlm.commands.{name}").run(words)


def _failed(number: int, result: Any) -> bool:
    from hydra.core.utils import JobStatus

    if result.status is JobStatus.COMPLETED:
        return False
    print(f"run {number}: {result._return_value}", file=sys.stderr)
    return True
