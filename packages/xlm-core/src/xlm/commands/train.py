"""``xlm train``: train, validate, test, and leave a run directory that says everything."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlm.commands import rundir
from xlm.config.composition import compose
from xlm.config.runs import CONFIG, find_run, from_run, load_overrides, refuse_difference, write_config
from xlm.config.validation import validate
from xlm.errors import UserError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer
    from omegaconf import DictConfig

    from xlm.commands.assemble import Parts
    from xlm.harness import Harness

TOP_LEVEL = ("run_dir", "resume", "init_from", "seed", "weights", "compile", "trusted_packages")
KEYS = {
    "trainer.max_steps": "optimizer steps",
    "trainer.devices": "how many, or which",
    "trainer.precision": "auto, 32-true, bf16-mixed ...",
    "datamodule.path": "your own text, for tasks that read one",
    "datamodule.max_length": "tokens of the longest row",
    "datamodule.global_batch_size": "examples an optimizer step, over all devices",
    "datamodule.device_batch_size": "examples a device at a time; the rest is accumulated",
    "datamodule.num_workers": "processes that load data",
    "model.d_model": "width; also n_layers, n_heads, d_ff, dropout",
    "optimizer.lr": "learning rate at its height",
    "lr_scheduler.warmup_steps": "steps of growth before it",
    "harness.ema_decay": "average the weights, e.g. 0.9999",
    "harness.clip_norm": "greatest norm of the gradient",
    "callbacks.saver.every": "steps between checkpoints",
}


MEASURED = ("seconds", "steps", "tokens", "tokens_per_s", "peak_memory", "wall_seconds")
"""What ``results.json`` says of the training, and not of the evaluation after it."""


def run(words: Sequence[str]) -> int:
    """Compose, check, train."""
    train(prepare(words), words)
    return 0


def prepare(words: Sequence[str]) -> DictConfig:
    """The checked configuration of a run: composed anew, or that of the run to go on with."""
    run_dir = _resumed(words)
    config = from_run(run_dir, words) if run_dir else compose(words)
    if run_dir:
        if config.run_dir and Path(config.run_dir).resolve() != run_dir.resolve():
            raise UserError("excludes run_dir", where="resume", value=run_dir, fix="leave run_dir out")
        config.run_dir = str(run_dir)
    validate(config)
    if config.init_from and not Path(config.init_from).expanduser().exists():
        raise UserError("does not exist", where="init_from", value=config.init_from, fix="check the path")
    from xlm.commands.assemble import rehearse

    rehearse(config)
    return config


def _resumed(words: Sequence[str]) -> Path | None:
    given = [word.partition("=")[2] for word in words if word.startswith("resume=")]
    return find_run(given[-1], where="resume") if given and given[-1] else None


def train(config: DictConfig, words: Sequence[str]) -> dict[str, Any]:
    """Train a checked configuration; returns what ``results.json`` holds."""
    run_dir = rundir.choose_run_dir(config)
    rundir.check_free(run_dir)
    known = (run_dir / CONFIG).is_file()
    if known and not config.resume and rundir.is_first_rank():
        refuse_difference(run_dir, config)
    parts = _assemble(config, run_dir)
    from xlm.commands.assemble import build_harness, build_trainer

    harness, trainer = build_harness(config, parts), build_trainer(config, parts, run_dir)
    if rundir.is_first_rank():
        _begin(run_dir, config, words, parts, trainer, known=known)
    started = time.time()
    with rundir.shared(run_dir):
        trained = _fit(trainer, harness, parts, run_dir)
        weights = _export(trainer, run_dir)  # before anything else can go wrong
        _use_weights(config, harness, run_dir)
        if not any(name.startswith("val.") for name in harness.results) and parts.datamodule.managers("val"):
            trainer.validate(harness, datamodule=parts.datamodule, verbose=False)  # there was nothing left to train
        if parts.datamodule.managers("test"):
            trainer.test(harness, datamodule=parts.datamodule, verbose=False)
    about = {**_measured(trainer), "wall_seconds": time.time() - started, **rundir.environment(config)}
    if not trained:
        about |= _of_the_training(run_dir)
    return _finish(run_dir, harness, about, weights) if trainer.is_global_zero else {}


def _assemble(config: DictConfig, run_dir: Path) -> Parts:
    from xlm.commands.assemble import assemble
    from xlm.data import tokenizers
    from xlm.weights import load_into, load_weights

    saved = run_dir / "tokenizer"
    parts = assemble(config, tokenizer=tokenizers.load(saved) if saved.is_dir() else None)
    if not parts.datamodule.managers("train"):
        fix = "choose a datamodule that has a data set to train on"
        raise UserError("there is no training data", where="datamodule.dataset_managers.train", fix=fix)
    if config.init_from:
        weights = load_weights(Path(config.init_from).expanduser(), config.weights)
        load_into(parts.model, weights, auxiliary=parts.auxiliary if weights.auxiliary else None)
    return parts


def _begin(run_dir: Path, config: DictConfig, words: Sequence[str], parts: Parts, trainer: Any, *, known: bool) -> None:
    """The first files of a run. Nothing was written before: a mistake leaves no directory behind.

    A run that goes on gets its new configuration once its checkpoint has been accepted.
    """
    from lightning.pytorch.callbacks import LambdaCallback

    rundir.make(run_dir)
    resumed, config = bool(config.resume), config.copy()
    config.resume = config.run_dir = None
    if not known:
        write_config(run_dir, config, words)  # first: it marks a run
    elif resumed:
        words = [*load_overrides(run_dir), *(word for word in words if not word.startswith("resume="))]
        rewrite = LambdaCallback(on_train_start=lambda *_: write_config(run_dir, config, words))
        trainer.callbacks.append(rewrite)
    if not (run_dir / "tokenizer").is_dir():
        unfinished = run_dir / ".tokenizer.tmp"
        parts.tokenizer.save_pretrained(unfinished)
        unfinished.replace(run_dir / "tokenizer")  # another rank sees all of it, or nothing


def _fit(trainer: Trainer, harness: Harness, parts: Parts, run_dir: Path) -> bool:
    """Train; False where a finished run left nothing to do."""
    from xlm.checkpoint import newest_valid

    newest = newest_valid(run_dir / "checkpoints")
    if newest:
        logging.getLogger(__name__).info("going on from %s", newest)
    trainer.fit(harness, datamodule=parts.datamodule, ckpt_path=newest, weights_only=True)
    return newest is None or int(newest.stem) < trainer.global_step


def _export(trainer: Trainer, run_dir: Path) -> list[Path]:
    """The last weights as files of their own."""
    from xlm.checkpoint import newest_valid
    from xlm.weights import export_weights

    newest = newest_valid(run_dir / "checkpoints") if trainer.is_global_zero else None
    return export_weights(newest, run_dir) if newest else []


def _use_weights(config: DictConfig, harness: Harness, run_dir: Path) -> None:
    """Test the weights that were asked for, where they are not those in the module."""
    from xlm.weights import load_into, load_weights

    if config.weights and config.weights != harness.weights:
        weights = load_weights(run_dir, config.weights)
        load_into(harness.model, weights, auxiliary=harness.auxiliary)
        harness.weights = weights.kind


def _of_the_training(run_dir: Path) -> dict[str, Any]:
    """What a finished run measured when it was trained."""
    if not (run_dir / rundir.RESULTS).is_file():
        return {}
    found = rundir.load_results(run_dir)
    return {name: found[name] for name in MEASURED if name in found}


def _measured(trainer: Any) -> dict[str, Any]:
    from xlm.callbacks import Throughput

    clocks = [callback for callback in trainer.callbacks if isinstance(callback, Throughput)]
    measured = clocks[0].summary() if clocks else {}
    return {**measured, "step": trainer.global_step, "peak_memory": rundir.peak_memory()}


def _finish(run_dir: Path, harness: Harness, about: dict[str, Any], weights: list[Path]) -> dict[str, Any]:
    from xlm.commands.tables import show_paths, show_results

    about = {"weights": harness.weights, "parameters": harness.n_parameters, **about}
    path = rundir.write_results(run_dir, harness.results, about)
    show_results(harness.results)
    show_paths([*weights, run_dir, path])
    return {**harness.results, **about}
