"""How a run's parts are built, once for every command: tokenizer, data, network, loss, predictor, harness, trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from xlm.data.datamodule import SPLITS, DataModule
from xlm.errors import UserError
from xlm.instantiate import construct
from xlm.protocols import Checking
from xlm.weights import auxiliary_of

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger
    from omegaconf import DictConfig
    from transformers import PreTrainedTokenizerFast

    from xlm.harness import Harness

LENGTHS = ("max_length", "max_prompt_length", "max_target_length")


@dataclass(frozen=True)
class Parts:
    """Live parts of a run."""

    tokenizer: Any
    datamodule: DataModule
    model: nn.Module
    loss: Any
    predictor: Any
    noise_schedule: Any
    collators: dict[str, Callable[..., Any]]
    """By role, what builds a collator from its context."""

    @property
    def auxiliary(self) -> nn.Module | None:
        """The network that the loss trains beside the model, where it has one."""
        return auxiliary_of(self.loss)


def assemble(
    config: DictConfig,
    *,
    tokenizer: PreTrainedTokenizerFast | None = None,
    splits: Sequence[str] = SPLITS,
) -> Parts:
    """Build the parts of a validated configuration; data sets of ``splits`` are ready to be loaded.

    Args:
        config: Composed configuration.
        tokenizer: That of an existing run; None makes the one that the configuration describes.
        splits: Which data sets are needed.
    """
    datamodule = build_data(config, SPLITS if tokenizer is None else splits)
    tokenizer = datamodule.prepare(construct(config.tokenizer) if tokenizer is None else tokenizer)
    seed_weights(config.seed)
    parts = _build(config, datamodule, tokenizer)
    datamodule.bind(parts.collators, splits=splits, noise_schedule=parts.noise_schedule)
    return parts


def build_data(config: DictConfig, splits: Sequence[str] = SPLITS) -> DataModule:
    """The data module with the data sets of some splits, without a tokenizer and without having read anything."""
    from omegaconf import OmegaConf

    node: Any = OmegaConf.to_container(config.datamodule, resolve=True)
    managers = node.get("dataset_managers") or {}
    needed = {*splits, "train"} if node.get("evaluate_on") == "training" else splits  # whose source others take
    node["dataset_managers"] = {split: managers[split] for split in managers if split in needed or split not in SPLITS}
    datamodule = construct(node, where="datamodule", seed=config.seed)
    assert isinstance(datamodule, DataModule)
    return datamodule


def seed_weights(seed: int) -> None:
    """Initial weights are the only thing drawn from the global generator before training."""
    torch.manual_seed(seed)


def _build(config: DictConfig, datamodule: DataModule, tokenizer: Any) -> Parts:
    lengths = {name: getattr(datamodule, name) for name in LENGTHS}
    context = {"seed": config.seed, "tokenizer": tokenizer, "vocab_size": len(tokenizer), **lengths}
    context["event_space"] = datamodule.event_space
    context["noise_schedule"] = construct(config.noise_schedule) if config.noise_schedule else None
    _check_model_length(config.model.get("max_length"), datamodule.max_length)
    model = construct(config.model, **{**context, "max_length": datamodule.max_length})
    return Parts(
        tokenizer=tokenizer,
        datamodule=datamodule,
        model=model,
        loss=construct(config.loss, model=model, **context),
        predictor=construct(config.predictor, model=model, **context),
        noise_schedule=context["noise_schedule"],
        collators={str(role): partial(construct, node) for role, node in config.collators.items()},
    )


def _check_model_length(longest: int | None, max_length: int) -> None:
    if longest is not None and longest < max_length:
        what = f"is less than datamodule.max_length = {max_length}"
        fix = "leave model.max_length out, or lower datamodule.max_length"
        raise UserError(what, where="model.max_length", value=longest, fix=fix)


def build_harness(config: DictConfig, parts: Parts) -> Harness:
    """The LightningModule around the parts."""
    harness: Harness = construct(config.harness).build(
        model=parts.model,
        loss=parts.loss,
        predictor=parts.predictor,
        tokenizer=parts.tokenizer,
        optimizer=construct(config.optimizer),
        lr_scheduler=construct(config.lr_scheduler) if config.get("lr_scheduler") else None,
        seed=config.seed,
        compile=config.compile,
    )
    return harness


def build_callbacks(config: DictConfig, run_dir: Path) -> list[Callback]:
    """The callbacks of a training run."""
    callbacks = construct(config.callbacks, folder=str(run_dir / "checkpoints")) or {}
    if not config.trainer.enable_progress_bar:
        callbacks.pop("progress", None)
    averaging: list[Callback] = construct(config.harness).averaging()
    return [*averaging, *callbacks.values()]


def build_loggers(config: DictConfig, run_dir: Path) -> list[Logger]:
    """The loggers of a training run; several at once are fine."""
    loggers: dict[str, Logger] = (
        construct(config.logger, path=str(run_dir / "metrics.csv"), save_dir=str(run_dir)) or {}
    )
    return list(loggers.values())


def build_trainer(config: DictConfig, parts: Parts, run_dir: Path) -> Trainer:
    """The trainer of a training run; accumulation and validation follow from the batch sizes and devices."""
    settings = construct(config.trainer)
    steps = settings.steps(parts.datamodule.steps_per_epoch)
    trainer: Trainer = settings.build(
        steps=steps,
        d_model=config.model.get("d_model"),
        strategy=construct(config.strategy) if config.get("strategy") else None,
        callbacks=build_callbacks(config, run_dir),
        logger=build_loggers(config, run_dir),
        default_root_dir=run_dir,
    )
    micro_batches = parts.datamodule.accumulate(trainer.world_size)
    trainer.accumulate_grad_batches = micro_batches
    trainer.val_check_interval = min(settings.val_check_interval or steps, steps) * micro_batches
    return trainer


def build_evaluator(config: DictConfig, folder: Path) -> Trainer:
    """A trainer that only evaluates."""
    trainer: Trainer = construct(config.trainer).build(
        steps=1,
        d_model=config.model.get("d_model"),
        strategy=construct(config.strategy) if config.get("strategy") else None,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    return trainer


class StandIn:
    """A tokenizer of no text: what parts are shown before the real one exists."""

    pad_token_id, mask_token_id, bos_token_id, eos_token_id, cls_token_id, sep_token_id, unk_token_id = range(7)

    def __len__(self) -> int:
        return 64

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        """No text."""
        return ""


def rehearse(config: DictConfig) -> None:
    """Build every part as a run would, the network without memory and no data read: constructors check their ranges."""
    settings = construct(config.trainer)
    construct(config.tokenizer)
    datamodule = build_data(config)
    with torch.device("meta"):
        parts = _build(config, datamodule, StandIn())
    _rehearse_collators(datamodule, parts)
    devices = settings.devices if isinstance(settings.devices, int) else 0
    if devices > 0:
        datamodule.accumulate(devices * settings.num_nodes)
    harness = build_harness(config, parts)
    optimizer = harness.build_optimizer()
    if harness.make_schedule is not None:
        harness.make_schedule(optimizer, settings.steps(1))
    _rehearse_callbacks(build_callbacks(config, Path(".")), datamodule)
    if config.weights == "ema" and config.harness.ema_decay is None and not config.checkpoint:
        raise UserError("no weights are averaged", where="weights", value="ema", fix="set harness.ema_decay=0.9999")


def _rehearse_callbacks(callbacks: Sequence[Callback], datamodule: DataModule) -> None:
    """What they watch is there."""
    from xlm.callbacks import BestCheckpoint

    for callback in callbacks:
        if isinstance(callback, BestCheckpoint):
            callback.check(datamodule.names("val"))


ASKED = {"index": 0, "position": 0, "noise_key": 0, "prompt_ids": [7], "input_ids": [7, 8], "fixed": [1, 0]}
"""An example to be completed, in every role."""


def _rehearse_collators(datamodule: DataModule, parts: Parts) -> None:
    """Those that the data sets will use; the predictor sees a batch of each that asks for a prediction."""
    context = {name: getattr(datamodule, name) for name in LENGTHS}
    context |= {"tokenizer": parts.tokenizer, "noise_schedule": parts.noise_schedule, "seed": datamodule.seed}
    for manager in [manager for split in SPLITS for manager in datamodule.managers(split)]:
        manager.resolve(parts.collators, datamodule.event_space)
        make = parts.collators[manager.role]
        collate = make(**context, vocab_size=len(parts.tokenizer), event_space=manager.event_space)
        if manager.kind == "prediction" and isinstance(parts.predictor, Checking):
            parts.predictor.check(collate([dict(ASKED)]))
