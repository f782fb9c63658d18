"""One data set under evaluation: its numbers, or its predictions and what metrics say of them.

Ranks see disjoint rows; what is computed is the same for every number of ranks, because rows are put back in the order
of their data-set index before they are summed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from xlm.files import write_atomically
from xlm.likelihood import summarise
from xlm.ranks import gather
from xlm.window import extras

if TYPE_CHECKING:
    from xlm.harness import Harness


class Evaluation(Protocol):
    """What the harness asks of a data set under evaluation."""

    name: str
    """``<split>.<data set>``."""

    def update(self, batch: Any) -> None:
        """Take one batch of this rank."""
        ...

    def compute(self) -> dict[str, Any]:
        """The numbers over all ranks, equal on all of them."""
        ...


def make_evaluation(harness: Harness, split: str, manager: Any, draws: int | None) -> Evaluation:
    """The evaluation that a data set's manager asks for by its ``kind``."""
    name = f"{split}.{manager.name}"
    if manager.kind == "loss":
        return LossEvaluation(harness, name, manager, draws)
    return PredictionEvaluation(harness, name, manager)


class LossEvaluation:
    """Loss over its denominators, and nats per token.

    Args:
        harness: Gives the loss and the predictor.
        name: ``<split>.<data set>``.
        manager: Knows the bytes of each example and the event space.
        draws: Monte-Carlo draws of the predictor's likelihood; None takes the one draw that the loss gives anyway.
    """

    def __init__(self, harness: Harness, name: str, manager: Any, draws: int | None) -> None:
        self.harness, self.name, self.manager, self.draws = harness, name, manager, draws
        self.weights = harness.weights
        self.means: dict[str, list[Tensor]] = {}
        self.rows: dict[str, list[Tensor]] = {}
        self.labels: dict[str, Any] = {}
        self.n_calls: list[tuple[int, int]] = []

    def update(self, batch: Any) -> None:
        """Add one batch."""
        losses = self.harness.loss.loss_fn(batch)
        denominator = torch.as_tensor(losses.get("loss_denominator", 1.0)).to(losses["loss"].device, torch.float64)
        for name, value in {"loss": losses["loss"], **extras(losses)}.items():
            pair = torch.stack([value.detach().to(denominator) * denominator, denominator])
            self.means.setdefault(name, []).append(pair)
        if self.draws is not None:
            likelihood = self.harness.predictor.log_likelihood(batch, draws=self.draws)
            self._add_rows(batch["index"], likelihood, n_calls=likelihood["n_calls"])
            self.labels = {"kind": likelihood["kind"], "estimator": likelihood["estimator"]}
        elif "nll" in losses and "n_tokens" in losses:
            self._add_rows(batch["index"], losses, n_calls=1)
            self.labels = {"kind": "estimate", "estimator": "one draw of the training loss"}

    def _add_rows(self, index: Tensor, values: Mapping[str, Any], *, n_calls: int) -> None:
        columns = {"index": index} | {
            name: values[name] for name in ("nll", "n_tokens", "mc_variance") if name in values
        }
        for name, column in columns.items():
            self.rows.setdefault(name, []).append(column.detach())
        self.n_calls.append((n_calls, len(index)))

    def compute(self) -> dict[str, Any]:
        """The loss and its further values; the ``LikelihoodSummary`` of sequences that have one; ``weights``."""
        ranks = gather(self._share())
        values: dict[str, Any] = {}
        for name in next((rank["means"] for rank in ranks if rank["means"]), {}):
            total, denominator = torch.stack([rank["means"][name] for rank in ranks if rank["means"]]).sum(0).tolist()
            values[name] = total / denominator
        rows = [rank for rank in ranks if rank["rows"]]
        return {**values, **(self._summary(rows) if rows else {}), "weights": self.weights}

    def _share(self) -> dict[str, Any]:
        return {
            "means": {name: torch.stack(pairs).sum(0).cpu() for name, pairs in self.means.items()},
            "rows": {name: torch.cat(columns).cpu() for name, columns in self.rows.items()},
            "labels": self.labels,
            "n_calls": self.n_calls,
        }

    def _summary(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        rows = {name: torch.cat([rank["rows"][name] for rank in ranks]) for name in ranks[0]["rows"]}
        order = rows["index"].argsort()
        index = rows["index"][order].tolist()
        calls = [pair for rank in ranks for pair in rank["n_calls"]]
        variance = rows["mc_variance"][order].double() if "mc_variance" in rows else None
        summary = summarise(
            rows["nll"][order].double(),
            rows["n_tokens"][order],
            n_bytes=self.manager.n_bytes(index),
            event_space=self.manager.event_space,
            n_calls=sum(n * rows for n, rows in calls) / sum(rows for _, rows in calls),
            mc_variance=variance,
            **ranks[0]["labels"],
        )
        return summary.as_dict()


class PredictionEvaluation:
    """Predictions of one data set, written to ``predictions/<split>.<data set>.jsonl`` in the order of their index.

    Args:
        harness: Gives the predictor and the folder.
        name: ``<split>.<data set>``.
        manager: Gives the raw examples and the metrics.
    """

    def __init__(self, harness: Harness, name: str, manager: Any) -> None:
        self.harness, self.name, self.manager = harness, name, manager
        self.weights = harness.weights
        self.samples: list[dict[str, Any]] = []
        self.n_rows = self.n_calls = 0
        self.metrics = [metric.to(harness.device) for metric in _each(manager.metrics)]
        for metric in self.metrics:
            metric.reset()
        folder = Path(harness.trainer.default_root_dir) / "predictions"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}.jsonl"
        self.shard = folder / f".{name}.{harness.global_rank}.tmp"  # one writer a rank
        self.file = open(self.shard, "w", encoding="utf-8")  # noqa: SIM115, closed in compute

    def update(self, batch: Any) -> None:
        """Predict one batch."""
        rows = self.harness.predictor.to_dict(batch, self.harness.predictor.predict(batch))
        self.file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.n_rows += len(rows)
        self.n_calls += sum(row["n_calls"] for row in rows)
        if self.metrics:
            examples = self.manager.examples([row["index"] for row in rows])
            for metric in self.metrics:
                metric.update(examples, rows)

    def compute(self) -> dict[str, Any]:
        """What the metrics say, ``n_examples``, mean ``n_calls`` a row, and ``weights``."""
        self.file.close()
        ranks = gather((self.shard, self.n_rows, self.n_calls))
        if self.harness.global_rank == 0:
            self._merge([shard for shard, _, _ in ranks])
        values: dict[str, Any] = {}
        for metric in self.metrics:  # sums over ranks by itself
            values |= {key: float(value) for key, value in metric.compute().items()}
        n_rows, n_calls = sum(n for _, n, _ in ranks), sum(n for _, _, n in ranks)
        return {**values, "n_examples": n_rows, "n_calls": n_calls / max(n_rows, 1), "weights": self.weights}

    def _merge(self, shards: list[Path]) -> None:
        lines = [line for shard in shards for line in shard.read_text(encoding="utf-8").split("\n") if line]
        rows = sorted(lines, key=lambda line: int(json.loads(line)["index"]))
        write_atomically(self.path, lambda file: file.write("".join(f"{row}\n" for row in rows).encode()))
        for shard in shards:
            shard.unlink()
        samples = [json.loads(row) for row in rows[: self.harness.log_samples]]
        targets = self.manager.examples([sample["index"] for sample in samples])
        self.samples = [{**example, **sample} for example, sample in zip(targets, samples, strict=True)]


def _each(metrics: Any) -> Iterable[Any]:
    return metrics.values() if isinstance(metrics, Mapping) else metrics
