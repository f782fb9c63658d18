"""A finished run as live objects: ``xlm.load(RUN)``, behind ``xlm eval`` and ``xlm generate`` too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from xlm.commands.assemble import LENGTHS, Parts, assemble
from xlm.commands.prompts import Asked, Prompt, as_prompt, example
from xlm.commands.trainer import device
from xlm.config.runs import find_run, from_run
from xlm.config.top_level import defaults
from xlm.config.validation import validate
from xlm.data import tokenizers
from xlm.errors import UserError
from xlm.instantiate import construct
from xlm.noise import Stream, noise_key
from xlm.weights import Weights, load_into, load_weights

T = TypeVar("T")

ONE_DEVICE = ("trainer.devices=1", "trainer.num_nodes=1", "trainer.accelerator=auto", "strategy=auto")
"""A run that many devices trained is evaluated by one, unless more are asked for."""


@dataclass(frozen=True)
class LoadedRun:
    """A run's network with its weights, and the parts around it."""

    folder: Path
    config: DictConfig
    parts: Parts
    weights: Weights
    """What was loaded: ``kind`` is ema or raw."""

    @property
    def model(self) -> nn.Module:
        """The network, ready to be evaluated."""
        return self.parts.model

    @property
    def tokenizer(self) -> Any:
        """The run's own tokenizer."""
        return self.parts.tokenizer

    @property
    def predictor(self) -> Any:
        """The sampler."""
        return self.parts.predictor

    def generate(
        self,
        prompts: str | Sequence[Prompt | Asked] | None = None,
        *,
        num_samples: int = 1,
        batch_size: int = 16,
        seed: int | None = None,
        max_new_tokens: int | None = None,
        trace: bool = False,
    ) -> list[dict[str, Any]]:
        """Rows as ``Predictor.to_dict`` gives them, in order: all samples of the first prompt first.

        Each also says which ``sample`` of its prompt it is, and ``n_new_tokens``: how many of ``ids`` were generated,
        rather than given by a template. EOS and what a canvas holds behind it are not among ``ids``.

        Args:
            prompts: Texts, or templates such as ``["The ", {"gap": 5}, " sat."]``; a gap of None is of free length, for
                families that can. None generates without a prompt.
            num_samples: Texts a prompt.
            batch_size: Rows at a time; it changes no row.
            seed: Of the draws; None is the run's.
            max_new_tokens: Longest answer; for families with a canvas, its size.
            trace: Add ``start_ids`` and ``trace`` to each row, for ``xlm.trace.replay``.
        """
        listed = [prompts] if prompts is None or isinstance(prompts, str) else prompts
        asked = [prompt if isinstance(prompt, Asked) else as_prompt(prompt) for prompt in listed]
        seed = self.config.seed if seed is None else seed
        rows: dict[int, dict[str, Any]] = {}
        predictor = self._predictor(max_new_tokens, trace)
        collators = {prompt.role: self._collator(prompt, max_new_tokens) for prompt in asked}
        for role, collate in collators.items():
            places = [(n, k) for n, prompt in enumerate(asked) if prompt.role == role for k in range(num_samples)]
            for some in _batches(places, batch_size):
                numbers = [n * num_samples + k for n, k in some]
                keys = [noise_key(seed, Stream.SAMPLE, number) for number in numbers]
                examples = [
                    example(asked[n], self.tokenizer, index=number, noise_key=key)
                    for (n, _), number, key in zip(some, numbers, keys, strict=True)
                ]
                predicted = self._predict(predictor, collate(examples))
                for (n, k), given, row in zip(some, examples, predicted, strict=True):
                    n_new = len(row["ids"]) - sum(given.get("fixed", []))
                    rows[row["index"]] = {**row, "prompt": asked[n].text, "sample": k, "n_new_tokens": n_new}
        return [rows[number] for number in sorted(rows)]

    def _predict(self, predictor: Any, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        device = next(self.model.parameters()).device
        batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        with torch.inference_mode():
            rows: list[dict[str, Any]] = predictor.to_dict(batch, predictor.predict(batch))
        return rows

    def _predictor(self, max_new_tokens: int | None, trace: bool) -> Any:
        """The sampler; one that knows of no longest answer is as it was."""
        if trace and not hasattr(self.predictor, "trace"):
            what = f"family {self.config.family} does not say how its texts come about"
            raise UserError(what, where="trace", fix="leave it out, or choose another predictor")
        if max_new_tokens is None and not trace:
            return self.predictor
        node = OmegaConf.to_container(self.config.predictor, resolve=True)
        assert isinstance(node, dict)
        context = self._context()
        if max_new_tokens is not None:
            node.pop("max_new_tokens", None)  # the run's own
            context |= dict.fromkeys(("max_target_length", "max_new_tokens"), max_new_tokens)
        if trace:
            node["trace"] = True
        return construct(node, where="predictor", model=self.model, **context)

    def _collator(self, asked: Asked, max_new_tokens: int | None) -> Any:
        role = asked.role
        if role not in self.parts.collators:
            raise _not_offered(self.config.family, asked)
        lengths: dict[str, int | None] = {}
        if max_new_tokens is not None:
            lengths = {"max_target_length": max_new_tokens, "max_prompt_length": None}
        if max_new_tokens is not None and role == "unconditional":
            lengths["max_length"] = max_new_tokens
        collator = self.parts.collators[role](**{**self._context(), **lengths})
        if asked.has_free_gaps and not getattr(collator, "free_gaps", False):
            what = f"family {self.config.family} fills gaps of a given size only"
            raise UserError(what, where=asked.key, value=asked.text, fix='give every gap a size: {"gap": 5}')
        return collator

    def _context(self) -> dict[str, Any]:
        """What parts are told when they are built."""
        data = self.parts.datamodule
        return {
            "tokenizer": self.tokenizer,
            "noise_schedule": self.parts.noise_schedule,
            "seed": self.config.seed,
            "vocab_size": len(self.tokenizer),
            "event_space": data.event_space,
            **{name: getattr(data, name) for name in LENGTHS},
        }


def _not_offered(family: str, asked: Asked) -> UserError:
    what = {
        "infill_prediction": "cannot fill in gaps",
        "seq2seq_prediction": "cannot go on from a prompt",
        "unconditional": "generates nothing without a prompt",
    }[asked.role]
    fix = "ask for something else, or use a run of a family that can: `xlm info` shows their roles"
    return UserError(f"family {family} {what}", where=asked.key, value=asked.text or None, fix=fix)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def load(run: str | Path, overrides: Sequence[str] = ()) -> LoadedRun:
    """A finished run, ready to generate.

    Args:
        run: Run directory, or a checkpoint in one.
        overrides: As on the command line: ``["predictor.top_p=0.9", "weights=raw"]``.
    """
    return open_run(run_config([f"checkpoint={run}", *overrides]))


def open_run(config: DictConfig, *, splits: Sequence[str] = ()) -> LoadedRun:
    """The run that ``checkpoint`` names, as ``config`` says.

    Args:
        config: From ``run_config``.
        splits: Data sets that are needed.
    """
    folder = find_run(config.checkpoint, where="checkpoint")
    parts = assemble(config, tokenizer=tokenizers.load(folder / "tokenizer"), splits=splits)
    weights = load_weights(_weights_path(config.checkpoint, folder), config.weights)
    load_into(parts.model, weights, auxiliary=parts.auxiliary if splits or weights.auxiliary else None)
    for network in (parts.model, parts.auxiliary):
        if network is not None:
            network.to(device(config.trainer.accelerator)).eval()
    return LoadedRun(folder, config, parts, weights)


def _weights_path(checkpoint: str, folder: Path) -> Path:
    given = Path(checkpoint).expanduser()
    if not given.exists():
        raise UserError("does not exist", where="checkpoint", value=checkpoint, fix=f"choose one in {folder}")
    return given if given.is_file() else folder


def run_config(words: Sequence[str], options: type | None = None, *, unused: Collection[str] = ()) -> DictConfig:
    """The configuration of the run that ``checkpoint=`` names, changed as the other words say, and checked.

    Args:
        words: As typed.
        options: Further top-level keys of a command.
        unused: Groups that the command does not look at, which are refused.
    """
    named = [word.partition("=")[2] for word in words if word.startswith("checkpoint=")]
    if not named or not named[-1]:
        raise UserError("missing: checkpoint", fix="add checkpoint=RUN, a run directory or a checkpoint in one")
    folder = find_run(named[-1], where="checkpoint")
    config = from_run(folder, [*ONE_DEVICE, *words], defaults(options) if options else None, unused=unused)
    validate(config, extra=tuple(defaults(options)) if options else ())
    return config
