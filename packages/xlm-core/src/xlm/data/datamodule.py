"""The data of a run: a tokenizer, data sets by split and name, and one loader for each.

In this order: ``prepare`` makes the tokenizer, ``bind`` gives every data set a collator of the family and its rows of
tokens; then loaders can be asked for.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from xlm.data import cache, tokenizers
from xlm.data.managers import DatasetManager
from xlm.data.order import Place, Plan, Sequential, TrainLoader, make_loader
from xlm.data.storage import Joined
from xlm.data.tokenizers import TokenizerFactory
from xlm.errors import UserError
from xlm.protocols import Example

SPLITS = ("train", "val", "test", "predict")
LEAST = {
    "global_batch_size": 1,
    "device_batch_size": 1,
    "max_length": 2,
    "max_prompt_length": 1,
    "max_target_length": 1,
    "num_workers": 0,
    "overfit_batches": 1,
}

logger = logging.getLogger(__name__)


class DataModule(LightningDataModule):
    """Data sets by split and name, tokenised alike, each with its own collator and loader.

    Args:
        dataset_managers: By split (train, val, test, predict) and name. All of train are read as one data set.
        global_batch_size: Examples an optimizer step, over all devices and micro-batches.
        max_length: Longest row, in tokens: a window; a text with its EOS; a prompt with its target and EOS.
        max_prompt_length: Longest prompt; None: what ``max_target_length`` leaves of ``max_length``.
        max_target_length: Longest target, its EOS included.
        event_space: Of rows without a prompt: packed windows, or one text a row ("open").
        device_batch_size: Examples a device at a time; more a step are accumulated. None: all at a time.
        num_workers: Processes of each loader; they change no number.
        pin_memory: None: where there is a GPU.
        cache_dir: For preprocessed data; None: $XLM_CACHE_DIR, or ~/.cache/xlm.
        overfit_batches: Train on the examples of so many batches only.
        evaluate_on: ``training`` takes the rows of val and test from the examples trained on, for data sets whose
            source is of the same class as one of train: whether they were learnt, not what was learnt from them.
        path: A file or folder that sources name as ``${datamodule.path}``.
        seed: Of the order and the noise.
    """

    def __init__(
        self,
        *,
        dataset_managers: Mapping[str, Mapping[str, DatasetManager]],
        global_batch_size: int,
        max_length: int,
        max_prompt_length: int | None = None,
        max_target_length: int | None = None,
        event_space: Literal["window", "open"] = "window",
        device_batch_size: int | None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        cache_dir: str | None = None,
        overfit_batches: int | None = None,
        evaluate_on: Literal["held_out", "training"] = "held_out",
        path: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if max_prompt_length is None and max_target_length is not None:
            max_prompt_length = _left_for_prompts(max_length, max_target_length)
        self.max_length, self.max_prompt_length = max_length, max_prompt_length
        self.max_target_length, self.event_space = max_target_length, event_space
        self.global_batch_size, self.device_batch_size = global_batch_size, device_batch_size
        self.num_workers, self.overfit_batches = num_workers, overfit_batches
        self.cache_dir, self.path, self.seed = cache_dir, path, seed
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self._check(dataset_managers)
        self._managers = {split: _named(split, dataset_managers.get(split) or {}) for split in SPLITS}
        if evaluate_on == "training":
            self._evaluate_on_training()
        self.tokenizer: PreTrainedTokenizerFast | None = None
        """Given by ``prepare``."""
        self._loader: TrainLoader | None = None
        self._resumed: dict[str, int] = {}

    def _check(self, dataset_managers: Mapping[str, Any]) -> None:
        for key, least in LEAST.items():
            value = getattr(self, key)
            if value is not None and value < least:
                what = f"must be at least {least}"
                raise UserError(what, where=f"datamodule.{key}", value=value, fix=f"use {least} or more")
        if self.max_target_length and (self.max_prompt_length or 0) + self.max_target_length > self.max_length:
            what = f"{self.max_prompt_length} prompt + {self.max_target_length} target tokens exceed it"
            fix = "raise max_length, or lower max_prompt_length or max_target_length"
            raise UserError(what, where="datamodule.max_length", value=self.max_length, fix=fix)
        if unknown := set(dataset_managers) - set(SPLITS):
            fix = f"use {', '.join(SPLITS)}"
            raise UserError("no such split", where="datamodule.dataset_managers", value=sorted(unknown), fix=fix)

    def _evaluate_on_training(self) -> None:
        """Give data sets of val and test the source of their training data, up to the examples that are trained on."""
        size = self.global_batch_size * self.overfit_batches if self.overfit_batches else None
        for manager in self._managers["val"] + self._managers["test"]:
            alike = [known for known in self._managers["train"] if type(known.source) is type(manager.source)]
            if alike:
                limits = [limit for limit in (manager.limit, alike[0].limit, size) if limit is not None]
                manager.source, manager.limit = _to_be_judged(alike[0].source, manager.kind), min(limits, default=None)
                manager.of_training = True
                logger.info("%s: examples of %s", manager.full_name, alike[0].full_name)

    def names(self, split: str) -> list[str]:
        """Names of the data sets of a split, in the order of the configuration."""
        return [manager.name for manager in self._managers[split]]

    def managers(self, split: str) -> list[DatasetManager]:
        """Data sets of a split, in the order of the configuration and of their loaders."""
        return self._managers[split]

    def prepare(self, tokenizer: TokenizerFactory | PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
        """First step: take a tokenizer, or make one, where needed from the text of the training data."""
        if isinstance(tokenizer, TokenizerFactory):
            tokenizer = self._trained(tokenizer) if tokenizer.trained else tokenizer.build(())
        self.tokenizer = tokenizers.complete(tokenizers.plain(tokenizer), add_missing=False)
        return self.tokenizer

    def _trained(self, factory: TokenizerFactory) -> PreTrainedTokenizerFast:
        managers = self._managers["train"]
        if not managers:
            fix = "use the run's own tokenizer, or a tokenizer that needs no training"
            raise UserError("needs training data to be made from", where="tokenizer", fix=fix)

        def build(folder: Any) -> None:
            logger.info("training the tokenizer on %s", ", ".join(manager.full_name for manager in managers))
            factory.build(text for manager in managers for text in manager.texts()).save_pretrained(folder)

        sources = [cache.fingerprint(manager.source) for manager in managers]
        folder = cache.cache_folder(self.cache_dir) / "tokenizers" / cache.key(cache.fingerprint(factory), *sources)
        return cache.kept(folder, build, tokenizers.load)

    def bind(
        self,
        collators: Mapping[str, Callable[..., Any] | None],
        *,
        splits: Sequence[str] = SPLITS,
        **context: Any,
    ) -> None:
        """Second step: rows of tokens and a collator for every data set of some splits.

        Args:
            collators: The family's, by role. Each is called with those of its arguments that are known by name:
                the tokenizer, lengths, seed, event space and vocabulary size, and ``context``.
            splits: Which are needed.
            context: Further arguments, such as ``noise_schedule``.
        """
        if self.tokenizer is None:
            raise RuntimeError("DataModule.bind needs a tokenizer: call prepare first")
        available = {role: make for role, make in collators.items() if make is not None}
        lengths = {name: getattr(self, name) for name in ("max_length", "max_prompt_length", "max_target_length")}
        vocab_size = context.pop("vocab_size", None) or len(self.tokenizer)
        known = {**context, **lengths, "tokenizer": self.tokenizer, "vocab_size": vocab_size, "seed": self.seed}
        for manager in [manager for split in splits for manager in self._managers[split]]:
            manager.resolve(available, self.event_space)
            manager.build(self.tokenizer, vocab_size=vocab_size, cache_dir=self.cache_dir, **lengths)
            manager.collator = _call(available[manager.role], {**known, "event_space": manager.event_space})
        if "train" in splits:
            self._check_one_role()

    def _check_one_role(self) -> None:
        found = {manager.full_name: (manager.role, manager.event_space) for manager in self._managers["train"]}
        if len(set(found.values())) > 1:
            what = f"training data sets share batches, but not a role and event space: {found}"
            raise UserError(what, where="datamodule.dataset_managers.train", fix="train on data of one role")

    @property
    def size(self) -> int:
        """Training examples: those of an epoch."""
        total = sum(map(len, self._bound("train")))
        return min(total, (self.overfit_batches or total) * self.global_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps that read every training example once, rounded up."""
        return math.ceil(self.size / self.global_batch_size)

    def accumulate(self, world: int = 1) -> int:
        """Micro-batches an optimizer step on each of ``world`` devices."""
        device_batch_size = self.device_batch_size or max(self.global_batch_size // world, 1)
        micro_batches, rest = divmod(self.global_batch_size, world * device_batch_size)
        if rest or not micro_batches:
            what = f"is no multiple of {world} devices x {device_batch_size} examples = {world * device_batch_size}"
            fix = "change global_batch_size, device_batch_size or trainer.devices"
            raise UserError(what, where="datamodule.global_batch_size", value=self.global_batch_size, fix=fix)
        return micro_batches

    def train_loader(self, place: Place, steps: int) -> TrainLoader:
        """Training batches of one place, for a run of ``steps``; they go on where a loaded checkpoint was."""
        managers = self._bound("train")
        if not managers:
            fix = "choose a datamodule that has a data set to train on"
            raise UserError("there is no training data", where="datamodule.dataset_managers.train", fix=fix)
        if steps < 1:
            fix = "give the optimizer steps of the whole run"
            raise UserError("must be at least 1", where="trainer.max_steps", value=steps, fix=fix)
        self._check_parts(place)
        plan = Plan(self.size, self.global_batch_size, self.seed)
        rows = Joined([manager.rows for manager in managers], [len(manager) for manager in managers])
        collate = _Named(managers[0].collator, ", ".join(manager.full_name for manager in managers))
        self._loader = TrainLoader(rows.fetch, plan, place, steps, collate, **self._options())
        if self._resumed:
            self._loader.load_state_dict(self._resumed)
        return self._loader

    def _check_parts(self, place: Place) -> None:
        parts = place.world * place.accumulate
        rows, rest = divmod(self.global_batch_size, parts)
        if rest or rows != (self.device_batch_size or rows):
            what = (
                f"is not {place.world} devices x {place.accumulate} micro-batches"
                f" x {self.device_batch_size or 'some'} examples"
            )
            fix = "change it, device_batch_size or trainer.devices, and leave trainer.accumulate_grad_batches alone"
            raise UserError(what, where="datamodule.global_batch_size", value=self.global_batch_size, fix=fix)

    def train_dataloader(self) -> TrainLoader:
        """Lightning's hook."""
        trainer = self.trainer
        assert trainer is not None
        place = Place(trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches)
        loader = self.train_loader(place, trainer.max_steps)
        if (
            trainer.fit_loop.restarting
        ):  # Lightning counts micro-batches, and the checkpoint's may have been of another size
            done = loader.seen // self.global_batch_size * place.accumulate
            vars(trainer.fit_loop.epoch_loop.batch_progress.current).update(
                ready=done, started=done, processed=done, completed=done
            )
        return loader

    def val_dataloader(self) -> list[DataLoader[Example]]:
        """One loader for each of ``managers("val")``."""
        return self._sequential("val")

    def test_dataloader(self) -> list[DataLoader[Example]]:
        """One loader for each of ``managers("test")``."""
        return self._sequential("test")

    def predict_dataloader(self) -> list[DataLoader[Example]]:
        """One loader for each of ``managers("predict")``."""
        return self._sequential("predict")

    def _sequential(self, split: str) -> list[DataLoader[Example]]:
        """Loaders that give this rank its share of each data set, in order, each example once."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        batch_size = self.device_batch_size or math.ceil(self.global_batch_size / world)
        return [
            make_loader(
                Sequential(manager.rows.fetch, len(manager), self.seed, rank=rank, world=world),
                _Named(manager.collator, manager.full_name),
                batch_size=batch_size,
                **self._options(),
            )
            for manager in self._bound(split)
        ]

    def _bound(self, split: str) -> list[DatasetManager]:
        unbound = [manager.full_name for manager in self._managers[split] if manager.collator is None]
        if unbound:
            raise RuntimeError(f"{', '.join(unbound)}: call DataModule.bind first, with splits that include {split}")
        return self._managers[split]

    def _options(self) -> dict[str, Any]:
        return {"num_workers": self.num_workers, "pin_memory": self.pin_memory}

    def state_dict(self) -> dict[str, int]:
        """The place in the global order, equal on all ranks."""
        return self._loader.state_dict() if self._loader else self._resumed

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The next training loader goes on from here."""
        self._resumed = state_dict


def _to_be_judged(source: Any, kind: str) -> Any:
    """The rows of training; for predictions as they are asked, where the source trains on more than that."""
    return source.for_prediction() if kind == "prediction" and hasattr(source, "for_prediction") else source


def _left_for_prompts(max_length: int, max_target_length: int) -> int:
    if 0 < max_length <= max_target_length:
        what = f"datamodule.max_target_length = {max_target_length} leaves nothing of it for a prompt"
        fix = f"use {max_target_length + 1} or more, or lower datamodule.max_target_length"
        raise UserError(what, where="datamodule.max_length", value=max_length, fix=fix)
    return max_length - max_target_length


class _Named:
    """A collator whose unforeseen errors name the data set and the examples, also when they come out of a worker."""

    def __init__(self, collate: Callable[[list[Example]], Any], name: str) -> None:
        self.collate, self.name = collate, name

    def __call__(self, examples: list[Example]) -> Any:
        try:
            return self.collate(examples)
        except UserError:
            raise
        except Exception as error:
            indices = [example["index"] for example in examples]
            raise RuntimeError(f"{self.name}: no batch of examples {indices}: {error!r}") from error


def _named(split: str, managers: Mapping[str, DatasetManager]) -> list[DatasetManager]:
    for name, manager in managers.items():
        manager.split, manager.name = split, name
    return list(managers.values())


def _call(make: Callable[..., Any], known: Mapping[str, Any]) -> Any:
    """Call ``make`` with the known arguments that it takes by name and has not been given."""
    names = inspect.signature(make).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in names.values())
    given = {name for name, value in getattr(make, "keywords", {}).items() if value is not None}
    return make(**{name: value for name, value in known.items() if (name in names or takes_any) and name not in given})
