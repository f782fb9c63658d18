"""A family of a few numbers whose whole run takes milliseconds, for the tests of the harness; also a program.

``python toy_run.py '{"folder": ..., "steps": ...}'`` trains, resuming what is there, for tests that need a process.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from xlm.callbacks import EMA, BestCheckpoint, MetricsFile, Saver
from xlm.checkpoint import AtomicCheckpointIO, newest_valid
from xlm.data.order import Place, Plan, Sequential, TrainLoader, make_loader
from xlm.harness import Harness
from xlm.metrics import SampleStatistics, Validity

VOCAB, PAD = 8, 0


class ToyModel(nn.Module):
    """Predicts a token from the one before it."""

    def __init__(self, dropout=0.0, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.embed = nn.Embedding(VOCAB, 6, dtype=dtype)
        self.head = nn.Linear(6, VOCAB, bias=False, dtype=dtype)
        for parameter in self.parameters():
            parameter.data.normal_(generator=generator)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids):
        return self.head(self.dropout(self.embed(ids)))


class ToyLoss:
    """Nats per real token; rows have unequal lengths."""

    def __init__(self, model, tokenizer=None, seen=None):
        self.model, self.tokenizer, self.seen = model, tokenizer, seen
        self.configured = 0

    def configure(self, harness):
        self.configured += 1
        self.scale = torch.ones((), device=harness.device)

    def rows(self, batch):
        logits = self.model(batch["ids"][:, :-1])
        targets = batch["ids"][:, 1:]
        ce = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return (ce * (targets != PAD)).sum(-1), (targets != PAD).sum(-1)

    def loss_fn(self, batch):
        nll, n_tokens = self.rows(batch)
        if self.seen is not None and self.model.training:
            self.seen.append(batch["index"].tolist())
        total = n_tokens.sum()
        loss = self.scale * nll.sum() / total
        return {
            "loss": loss,
            "loss_denominator": total,
            "nll": nll.detach(),
            "n_tokens": n_tokens,
            "half": loss.detach() / 2,
            "masked_nll": nll.detach(),
            "n_masked": n_tokens,
        }


class CriticLoss(ToyLoss):
    """Tokens weigh what a second network says of the token before; that one learns to foretell their costs, too."""

    def __init__(self, model, tokenizer=None, seen=None, auxiliary_optimizer=None):
        super().__init__(model, tokenizer, seen)
        self.auxiliary_optimizer = auxiliary_optimizer
        self.auxiliary = nn.Embedding(VOCAB, 1, dtype=model.embed.weight.dtype)
        self.auxiliary.weight.data.copy_(torch.linspace(-1, 1, VOCAB)[:, None])

    def loss_fn(self, batch):
        inputs, targets = batch["ids"][:, :-1], batch["ids"][:, 1:]
        ce = F.cross_entropy(self.model(inputs).transpose(1, 2), targets, reduction="none") * (targets != PAD)
        said = self.auxiliary(inputs).squeeze(-1) * (targets != PAD)
        loss = (2 * said.sigmoid() * ce + (said - ce.detach()).square()).sum() / (targets != PAD).sum()
        return {**super().loss_fn(batch), "loss": self.scale * loss}


class ToyPredictor:
    """Repeats the most likely token once."""

    noise_schedule = None

    def __init__(self, model, tokenizer=None):
        self.model, self.tokenizer = model, tokenizer

    def predict(self, batch):
        ids = self.model(batch["ids"][:, :1]).argmax(-1)
        return {"ids": ids, "lengths": torch.ones(len(ids)), "n_calls": torch.full((len(ids),), 3)}

    def to_dict(self, batch, preds):
        return [
            {"index": index, "prompt": "\u2028é", "prediction": str(ids[0]), "ids": ids, "n_calls": 3}
            for index, ids in zip(batch["index"].tolist(), preds["ids"].tolist(), strict=True)
        ]

    def log_likelihood(self, batch, *, draws=1):
        nll, n_tokens = ToyLoss(self.model).rows(batch)
        return {
            "nll": nll.double(),
            "n_tokens": n_tokens,
            "kind": "exact",
            "estimator": "toy",
            "n_calls": 2 * draws,
            "mc_variance": torch.ones_like(nll),
        }


def toy_rows(size):
    """Texts of one to five tokens."""
    generator = np.random.default_rng(0)
    return [generator.integers(1, VOCAB, size=1 + n % 5) for n in range(size)]


def collate(examples):
    rows = [[1, *example["input_ids"].tolist()] for example in examples]
    longest = max(map(len, rows))
    return {
        "ids": torch.tensor([row + [PAD] * (longest - len(row)) for row in rows]),
        "index": torch.tensor([example["index"] for example in examples]),
        "mask_rate": torch.tensor([example["index"] % 3 / 10 for example in examples]),
        "attention_mask": None,
    }


def fetch(rows, indices, positions, keys):
    columns = zip(indices.tolist(), positions.tolist(), keys.tolist(), strict=True)
    return [{"input_ids": rows[i], "index": i, "position": p, "noise_key": k} for i, p, k in columns]


def is_long(example, prediction):
    """A property of the example alone: true of 3 of 7, unevenly over two ranks."""
    return len(example["target"]) >= 3


def manager(name, kind, rows):
    return SimpleNamespace(
        name=name,
        kind=kind,
        rows=rows,
        metrics={"long": Validity(is_long), "samples": SampleStatistics(repetition=[1])}
        if kind == "prediction"
        else {},
        event_space="open",
        n_bytes=lambda indices: torch.tensor([2 * len(rows[i]) for i in indices]),
        examples=lambda indices: [{"target": "x" * len(rows[i])} for i in indices],
    )


class ToyData(pl.LightningDataModule):
    """The order of training from the real loader; two data sets a split in evaluation."""

    def __init__(self, *, steps, size=20, batch=8, workers=0, eval_size=7, seed=0):
        super().__init__()
        self.rows, self.steps, self.workers = toy_rows(size), steps, workers
        self.plan = Plan(size, batch, seed)
        self.evaluations = [
            manager("texts", "loss", toy_rows(eval_size)),
            manager("answers", "prediction", toy_rows(eval_size)),
        ]
        self.loader, self.start = None, None

    def managers(self, split):
        return self.evaluations

    def train_dataloader(self):
        place = Place(self.trainer.global_rank, self.trainer.world_size, self.trainer.accumulate_grad_batches)
        self.loader = TrainLoader(
            partial(fetch, self.rows), self.plan, place, self.steps, collate, num_workers=self.workers
        )
        if self.start is not None:
            self.loader.load_state_dict(self.start)
        return self.loader

    def _evaluation(self):
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return [
            make_loader(
                Sequential(partial(fetch, m.rows), len(m.rows), 0, rank=rank, world=world), collate, batch_size=2
            )
            for m in self.evaluations
        ]

    val_dataloader = test_dataloader = predict_dataloader = _evaluation

    def state_dict(self):
        return self.loader.state_dict() if self.loader is not None else self.start or {}

    def load_state_dict(self, state):
        self.start = state


class Hook(pl.Callback):
    """Calls ``action(trainer)`` at a hook."""

    def __init__(self, hook, action):
        setattr(self, hook, lambda trainer, *args: action(trainer))


def schedule(optimizer, steps):
    return LambdaLR(optimizer, lambda step: 1 / (1 + step))


def make_run(
    folder,
    *,
    steps=6,
    accumulate=1,
    every=2,
    validate=3,
    workers=0,
    dropout=0.3,
    ema=0.9,
    devices=1,
    batch=8,
    size=20,
    clip_norm=0.5,
    callbacks=(),
    compile=False,
    lr=0.1,
    best=False,
    dtype=torch.float64,
    eval_size=7,
    loss=ToyLoss,
    **options,
):
    """(trainer, harness, data) of one part of a run in ``folder``."""
    folder = Path(folder)
    model = ToyModel(dropout, dtype)
    seen = []
    harness = Harness(
        model=model,
        loss=loss(model, seen=seen),
        predictor=ToyPredictor(model),
        tokenizer=range(VOCAB),
        optimizer=lambda model: torch.optim.AdamW(model.parameters(), lr=lr, fused=True),
        lr_scheduler=schedule,
        clip_norm=clip_norm,
        compile=compile,
    )
    all_callbacks = [Saver(folder / "checkpoints", every=every), *callbacks]
    if ema:
        all_callbacks.append(EMA(ema))
    if best:
        all_callbacks.append(BestCheckpoint(folder / "checkpoints", "val/texts/loss"))
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "devices": devices,
            "max_steps": steps,
            "accumulate_grad_batches": accumulate,
            "val_check_interval": min(validate, steps) * accumulate,
            "limit_val_batches": 1.0 if validate else 0,
            "plugins": [AtomicCheckpointIO()],
            "callbacks": all_callbacks,
            "logger": MetricsFile(folder / "metrics.csv"),
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": True,
            "default_root_dir": folder,
            **options,
        }
    )
    return trainer, harness, ToyData(steps=steps, workers=workers, batch=batch, size=size, eval_size=eval_size)


def train(folder, **options):
    """Train a run, resuming what is in ``folder``."""
    trainer, harness, data = make_run(folder, **options)
    checkpoint = newest_valid(Path(folder) / "checkpoints")
    trainer.fit(harness, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return trainer, harness, data


EXACT = {"dropout": 0.0, "ema": None, "steps": 3, "clip_norm": None}
"""What a bare loop of three steps does too."""


def weights(harness):
    """Those of the model, now."""
    return [parameter.detach().clone() for parameter in harness.model.parameters()]


def batch_of_step(step, *, size=20, batch=8):
    """The global batch that a run of these sizes trains on."""
    positions = torch.arange(step * batch, (step + 1) * batch).numpy()
    return collate(fetch(toy_rows(size), Plan(size, batch, 0).indices(positions), positions, positions))


def digest(value):
    """sha256 of a nest of tensors and numbers."""
    hashed = hashlib.sha256()

    def walk(item):
        if isinstance(item, dict):
            for key in sorted(item, key=str):
                hashed.update(str(key).encode())
                walk(item[key])
        elif isinstance(item, (list, tuple)):
            for part in item:
                walk(part)
        elif isinstance(item, torch.Tensor):
            hashed.update(item.detach().cpu().contiguous().numpy().tobytes())
        else:
            hashed.update(repr(item).encode())

    walk(value)
    return hashed.hexdigest()


def final_state(folder, data="ToyData"):
    """Digests of all that must be equal between a straight run and an interrupted one."""
    content = torch.load(newest_valid(Path(folder) / "checkpoints"), weights_only=True)
    parts = {
        "step": content["global_step"],
        "ema": content["state_dict"],
        "raw": content.get("current_model_state"),
        "optimizer": content["optimizer_states"],
        "lr": content["lr_schedulers"],
        "data": content[data],
        "tokens": content["xlm"]["tokens"],
    }
    return {name: digest(part) for name, part in parts.items()}


def poison(harness, step, row):
    """Make the loss of one row NaN at one step; gives the index of that row."""
    fn, bad = harness.loss.loss_fn, []

    def poisoned(batch):
        losses = fn(batch)
        if harness.trainer.global_step == step and harness.model.training:
            bad.append(int(batch["index"][row]))
            losses["nll"][row] = math.nan
            losses["loss"] = losses["loss"] * math.nan
        return losses

    harness.loss.loss_fn = poisoned
    return bad


def attempt(action):
    """What a part of a run ends with: its exit code, or its error."""
    try:
        action()
    except SystemExit as exit:
        return exit.code
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return 0


def main_of_two(folder):
    """One of two processes: train; meet a NaN, a signal and a lock on one rank; report how each ended."""
    rank = int(os.environ["LOCAL_RANK"])
    options = {"devices": 2, "strategy": "ddp", "dropout": 0.0, "accumulate": 2, "steps": 4, "log_every_n_steps": 2}
    report = {}
    trainer, harness, data = train(folder / "two", **options)
    trainer.test(harness, datamodule=data, verbose=False)
    report["seen"], report["results"] = harness.loss.seen, harness.results
    train(folder / "two_networks", loss=CriticLoss, **options)

    trainer, harness, data = make_run(folder / "nan", **options)
    if rank == 1:
        report["bad"] = poison(harness, step=2, row=1)
    report["nan"] = attempt(lambda: trainer.fit(harness, datamodule=data))

    def send(trainer):
        if rank == 1 and trainer.global_step == 1:
            signal.raise_signal(signal.SIGTERM)

    trainer, harness, data = make_run(folder / "term", callbacks=[Hook("on_train_batch_start", send)], **options)
    report["term"] = attempt(lambda: trainer.fit(harness, datamodule=data))
    report["again"] = attempt(lambda: train(folder / "term", **options))
    report["locked"] = attempt(lambda: train(folder / "locked", **options))
    (folder / f"report{rank}.json").write_text(json.dumps(report))


def main(options):
    """Run one part; append step and indices of every batch to ``batches.jsonl``; signal this process when told to."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    folder = Path(options.pop("folder"))
    if options.pop("two", False):
        return main_of_two(folder)
    hook, at, name = options.pop("signal", (None, None, None))

    def report(trainer):
        with open(folder / "batches.jsonl", "a") as log:
            log.write(json.dumps([trainer.global_step, trainer.lightning_module.loss.seen[-1]]) + "\n")

    def send(trainer):
        if trainer.global_step == at:
            os.kill(os.getpid(), getattr(signal, name))

    signals = [Hook(hook, send)] if hook else []
    return train(folder, callbacks=[Hook("on_train_batch_end", report), *signals], **options)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
