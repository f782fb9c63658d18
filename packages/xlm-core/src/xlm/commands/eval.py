"""``xlm eval``: likelihoods and prediction metrics of a finished run, on its own data sets and on added ones."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from xlm.commands import rundir
from xlm.config.runs import OF_THE_TRAINING
from xlm.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from xlm.commands.loading import LoadedRun

TOP_LEVEL = ("checkpoint", "weights", "seed", "run_dir", "trusted_packages")
KEYS = {
    "+dataset_manager@datamodule.dataset_managers.test.NAME": "a further data set to evaluate on",
    "~datamodule.dataset_managers.test.NAME": "leave one out",
    "predictor": "another sampler of the family",
    "predictor.temperature": "and the sampler's other values: top_p, top_k ...",
    "harness.likelihood_draws": "network calls a sequence, where the likelihood is a bound",
    "datamodule.device_batch_size": "examples at a time",
    "trainer.limit_test_batches": "batches of each data set",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Top-level keys of ``xlm eval``."""

    split: Annotated[Literal["test", "val"], "which data sets"] = "test"


def prepare(words: Sequence[str]) -> DictConfig:
    """The checked configuration of an evaluation."""
    from xlm.commands.loading import run_config
    from xlm.config.top_level import read

    config = run_config(words, Options, unused=OF_THE_TRAINING)
    read(Options, config)
    if config.run_dir:
        _check_free(Path(config.run_dir).expanduser())
    return config


def _check_free(folder: Path) -> None:
    """An evaluation may be repeated in its directory, but takes neither a training run's nor other files' place."""
    if (folder / "checkpoints").is_dir():
        fix = "choose another directory, or leave run_dir out"
        raise UserError("holds a training run", where="run_dir", value=folder, fix=fix)
    if (folder / "predictions").is_dir():
        return  # one that was cut short
    rundir.check_free(folder)


def run(words: Sequence[str]) -> int:
    """Evaluate; results go to ``RUN/eval/<time>``, or ``run_dir``."""
    from xlm.commands.loading import open_run
    from xlm.config.top_level import read

    config = prepare(words)
    split = read(Options, config).split
    loaded = open_run(config, splits=(split,))
    own = loaded.folder / "eval" / f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{secrets.token_hex(2)}"
    with rundir.shared(Path(config.run_dir).expanduser() if config.run_dir else own) as folder:
        _evaluate(loaded, folder, split, words)
    return 0


def _evaluate(loaded: LoadedRun, folder: Path, split: Literal["test", "val"], words: Sequence[str]) -> None:
    from xlm.commands.assemble import build_evaluator, build_harness

    harness = build_harness(loaded.config, loaded.parts)
    harness.weights = loaded.weights.kind
    trainer = build_evaluator(loaded.config, folder)
    started = time.time()
    evaluate = {"test": trainer.test, "val": trainer.validate}[split]
    evaluate(harness, datamodule=loaded.parts.datamodule, verbose=False)
    if trainer.is_global_zero:
        results = {name: {**values, "step": loaded.weights.step} for name, values in harness.results.items()}
        measured = {"parameters": harness.n_parameters, "wall_seconds": time.time() - started}
        _finish(folder, loaded, results, words, measured)


def _finish(folder: Path, loaded: LoadedRun, results: Any, words: Sequence[str], measured: dict[str, Any]) -> None:
    from xlm.commands.tables import show_paths, show_results
    from xlm.config.runs import write_config

    about = {
        "weights": loaded.weights.kind,
        "checkpoint": str(loaded.config.checkpoint),
        **measured,
        "peak_memory": rundir.peak_memory(),
        **rundir.environment(loaded.config),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, loaded.config, words)
    path = rundir.write_results(folder, results, about)
    show_results(results)
    predictions = sorted((folder / "predictions").glob("*.jsonl"))
    show_paths([path, *predictions])
