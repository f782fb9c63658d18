"""One data set under evaluation: its numbers, or its predictions and what metrics say of them.

Ranks see disjoint rows; what is computed is the same for every number of ranks, because rows are put back in the order
of their data-set index before they are summed.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from xlm.files import write_atomically
from xlm.likelihood import LikelihoodSummary, summarise
from xlm.ranks import gather
from xlm.window import extras

RATES = 10
"""Bins of the mask rate: [0, 0.1), ... [0.9, 1]."""

MASKED, BY_RATE = "masked_cross_entropy", "masked_cross_entropy_by_rate"


class LossEvaluation:
    """Loss over its denominators, and nats per token; where the loss says it, what hidden tokens cost by mask rate.

    Args:
        name: ``<split>.<data set>``.
        manager: Knows the bytes of each example and the event space.
        loss: The training objective.
        predictor: The owner of the likelihood.
        draws: Monte-Carlo draws of the predictor's likelihood; None takes the one draw that the loss gives anyway, and
            one of the predictor's where the loss gives none.
    """

    def __init__(self, name: str, manager: Any, *, loss: Any, predictor: Any, draws: int | None) -> None:
        self.name, self.manager, self.loss, self.predictor, self.draws = name, manager, loss, predictor, draws
        self.means: dict[str, list[Tensor]] = {}
        self.rows: dict[str, list[Tensor]] = {}
        self.by_rate: list[Tensor] = []
        self.labels: dict[str, Any] = {}
        self.n_calls: list[tuple[int, int]] = []

    def update(self, batch: Any) -> None:
        """Add one batch."""
        losses = self.loss.loss_fn(batch)
        denominator = torch.as_tensor(losses.get("loss_denominator", 1.0)).to(losses["loss"].device, torch.float64)
        for name, value in {"loss": losses["loss"], **extras(losses)}.items():
            pair = torch.stack([value.detach().to(denominator) * denominator, denominator])
            self.means.setdefault(name, []).append(pair)
        if losses.keys() >= {"masked_nll", "n_masked"} and "mask_rate" in batch:
            self.by_rate.append(_sums_by_rate(batch["mask_rate"], losses["masked_nll"], losses["n_masked"]))
        if self.draws is None and losses.keys() >= {"nll", "n_tokens"}:
            self._add_rows(batch["index"], losses, n_calls=1)
            self.labels = _labels_of(self.loss)
        else:
            likelihood = self.predictor.log_likelihood(batch, draws=self.draws or 1)
            self._add_rows(batch["index"], likelihood, n_calls=likelihood["n_calls"])
            self.labels = {"kind": likelihood["kind"], "estimator": likelihood["estimator"]}

    def _add_rows(self, index: Tensor, values: Mapping[str, Any], *, n_calls: int) -> None:
        columns = {"index": index} | {
            name: values[name] for name in ("nll", "n_tokens", "mc_variance") if name in values
        }
        for name, column in columns.items():
            self.rows.setdefault(name, []).append(column.detach())
        self.n_calls.append((n_calls, len(index)))

    def compute(self) -> dict[str, Any]:
        """The loss and its further values, the mean cross-entropy of hidden tokens, in all and by mask rate (nats a
        hidden token; rates at which none was hidden left out), and the ``LikelihoodSummary`` of sequences with one.
        """
        ranks = gather(self._share())
        values: dict[str, Any] = {}
        for name in next((rank["means"] for rank in ranks if rank["means"]), {}):
            total, denominator = torch.stack([rank["means"][name] for rank in ranks if rank["means"]]).sum(0).tolist()
            values[name] = total / (denominator or 1.0)
        if by_rate := [sums for rank in ranks for sums in rank["by_rate"]]:
            sums = torch.stack(by_rate).sum(0)
            nats, tokens = sums.sum(1).tolist()
            values |= {MASKED: nats / (tokens or 1.0), BY_RATE: _means_by_rate(sums)}
        rows = [rank for rank in ranks if rank["rows"]]
        return {**values, **(self._summary(rows) if rows else {})}

    def _share(self) -> dict[str, Any]:
        return {
            "means": {name: torch.stack(pairs).sum(0).cpu() for name, pairs in self.means.items()},
            "rows": {name: torch.cat(columns).cpu() for name, columns in self.rows.items()},
            "by_rate": [torch.stack(self.by_rate).sum(0).cpu()] if self.by_rate else [],
            "labels": self.labels,
            "n_calls": self.n_calls,
        }

    def _summary(self, ranks: list[dict[str, Any]]) -> dict[str, Any]:
        rows = {name: torch.cat([rank["rows"][name] for rank in ranks]) for name in ranks[0]["rows"]}
        order = rows["index"].argsort()
        index = rows["index"][order].tolist()
        calls = [pair for rank in ranks for pair in rank["n_calls"]]
        variance = rows["mc_variance"][order].double() if "mc_variance" in rows else None
        n_bytes = self.manager.n_bytes(index)
        summary = summarise(
            rows["nll"][order].double(),
            rows["n_tokens"][order],
            n_bytes=n_bytes,
            event_space=self.manager.event_space,
            n_calls=sum(n * rows for n, rows in calls) / sum(rows for _, rows in calls),
            mc_variance=variance,
            **ranks[0]["labels"],
        )
        return summary.as_dict() | self._optimum(summary, index, n_bytes)

    def _optimum(self, summary: LikelihoodSummary, index: list[int], n_bytes: Tensor | None) -> dict[str, Any]:
        """Nats per token of a perfect model: of one that knows by heart the examples it was trained on, or that of a
        source of known entropy whose every token is one character.
        """
        if getattr(self.manager, "of_training", False):
            nats = entropy_of_answers(questions_and_answers(self.manager, index))
            return {"optimum_nats_per_token": nats / summary.n_tokens}
        optimum = getattr(getattr(self.manager, "source", None), "optimum", None)
        ends = summary.n_sequences if summary.event_space == "open" else 0
        if optimum is None or n_bytes is None or int(n_bytes.sum()) + ends != summary.n_tokens:
            return {}
        return {"optimum_nats_per_token": optimum()}


def _labels_of(loss: Any) -> dict[str, str]:
    """What the ``nll`` of a training loss is."""
    kind = getattr(loss, "nll_kind", "estimate")
    return {"kind": kind, "estimator": "the training loss" if kind == "exact" else "one draw of the training loss"}


def _sums_by_rate(
    mask_rate: Float[Tensor, " batch"], nats: Float[Tensor, " batch"], tokens: Int[Tensor, " batch"]
) -> Float64[Tensor, "2 bins"]:
    """Nats and tokens of the rows in each bin."""
    place = (mask_rate * RATES).long().clamp(max=RATES - 1)
    pair = torch.stack([nats.detach().double(), tokens.double()])
    return pair.new_zeros(2, RATES).index_add(1, place, pair)


def _means_by_rate(sums: Float64[Tensor, "2 bins"]) -> dict[str, float]:
    return {f"{i / RATES}-{(i + 1) / RATES}": nats / n for i, (nats, n) in enumerate(sums.T.tolist()) if n}


def questions_and_answers(manager: Any, index: list[int]) -> Iterator[tuple[str, str]]:
    """What is given and what is to be predicted in some rows of a data set."""
    for example in manager.examples(index):
        if manager.role == "seq2seq":
            yield example["prompt"], example["target"]
        elif manager.role == "infill":
            marks = zip(example["text"], example["fixed"], strict=True)
            yield "".join(character if given == "1" else "\0" for character, given in marks), example["text"]
        else:
            yield "", example["text"]


def entropy_of_answers(pairs: Iterable[tuple[str, str]]) -> float:
    """Least nats that all these answers together can cost, given their questions: those of their own frequencies.

    >>> math.exp(entropy_of_answers([("", "a"), ("", "b"), ("2+2=", "4")]))  # one of two, twice
    4.0
    """
    answers: dict[str, Counter[str]] = {}
    for question, answer in pairs:
        answers.setdefault(question, Counter())[answer] += 1
    return sum(n * math.log(known.total() / n) for known in answers.values() for n in known.values())


class PredictionEvaluation:
    """Predictions of one data set, written to ``predictions/<split>.<data set>.jsonl`` in the order of their index.

    Args:
        name: ``<split>.<data set>``.
        manager: Gives the raw examples and the metrics.
        predictor: Predicts.
        folder: Where ``predictions`` is.
        rank: Of this process: each writes a file of its own, and rank 0 merges them.
        device: Where metrics keep their sums.
        n_samples: Rows to keep in ``samples``.
    """

    def __init__(
        self,
        name: str,
        manager: Any,
        *,
        predictor: Any,
        folder: str | os.PathLike[str],
        rank: int,
        device: torch.device,
        n_samples: int,
    ) -> None:
        self.name, self.manager, self.predictor, self.rank, self.n_samples = name, manager, predictor, rank, n_samples
        self.samples: list[dict[str, Any]] = []
        self.n_rows = self.n_calls = 0
        self.metrics = [metric.to(device) for metric in _each(manager.metrics)]
        for metric in self.metrics:
            metric.reset()
        self.path = Path(folder) / "predictions" / f"{name}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.shard = self.path.with_name(f".{name}.{rank}.tmp")
        self.file = open(self.shard, "w", encoding="utf-8")  # noqa: SIM115, closed in compute

    def update(self, batch: Any) -> None:
        """Predict one batch."""
        rows = self.predictor.to_dict(batch, self.predictor.predict(batch))
        self.file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.n_rows += len(rows)
        self.n_calls += sum(row["n_calls"] for row in rows)
        if self.metrics:
            examples = self.manager.examples([row["index"] for row in rows])
            for metric in self.metrics:
                metric.update(examples, rows)

    def compute(self) -> dict[str, Any]:
        """What the metrics say, ``n_examples`` and the mean ``n_calls`` of a row."""
        self.file.close()
        ranks = gather((self.shard, self.n_rows, self.n_calls))
        if self.rank == 0:
            self._merge([shard for shard, _, _ in ranks])
        values: dict[str, Any] = {}
        for metric in self.metrics:  # sums over ranks by itself
            values |= {key: float(value) for key, value in metric.compute().items()}
        n_rows, n_calls = sum(n for _, n, _ in ranks), sum(n for _, _, n in ranks)
        return {**values, "n_examples": n_rows, "n_calls": n_calls / max(n_rows, 1)}

    def _merge(self, shards: list[Path]) -> None:
        lines = [line for shard in shards for line in shard.read_text(encoding="utf-8").split("\n") if line]
        rows = sorted(lines, key=lambda line: int(json.loads(line)["index"]))
        write_atomically(self.path, lambda file: file.write("".join(f"{row}\n" for row in rows).encode()))
        for shard in shards:
            shard.unlink()
        samples = [json.loads(row) for row in rows[: self.n_samples]]
        targets = self.manager.examples([sample["index"] for sample in samples])
        self.samples = [{**example, **sample} for example, sample in zip(targets, samples, strict=True)]


Evaluation = LossEvaluation | PredictionEvaluation


def _each(metrics: Any) -> Iterable[Any]:
    return metrics.values() if isinstance(metrics, Mapping) else metrics
