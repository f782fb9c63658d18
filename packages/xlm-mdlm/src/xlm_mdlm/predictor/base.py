"""What every MDLM sampler shares: network calls for some rows, the reading of answers, the any-order bound."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from xlm.likelihood import any_order_bound
from xlm.nn.linear_cross_entropy import linear_cross_entropy
from xlm.noise import Stream, uniforms
from xlm.protocols import Model, NoiseSchedule, Predictions, Predictor, SequenceLikelihood, Tokenizer
from xlm.sampling import TokenFilter, draw, suppress, suppressed_ids
from xlm.trace import Trace, by_row
from xlm.unmasking.batch import MaskedPredictionBatch

from xlm_mdlm.predictor.unmasking import RevealPlan, answers
from xlm_mdlm.types import MDLMBatch

REVEAL_STREAM, TOKEN_STREAM = Stream.SAMPLE << 32, (Stream.SAMPLE << 32) + 1

Filled = tuple[Int[Tensor, "batch seq"], Int[Tensor, " batch"]]
"""Whole rows, and the network calls in which each took part."""


class MDLMPredictor(Predictor[MaskedPredictionBatch, Predictions], ABC):
    """Fills in hidden positions. What is visible stays, and tokens that are never generated have probability 0 (SUBS).

    Each position takes its random numbers from the row's ``noise_key`` and its own place in the row, so an answer does
    not depend on the rest of the batch. Rows leave the batch when nothing in them is hidden.

    Args:
        model: The network.
        tokenizer: Has a mask token.
        noise_schedule: Of the reverse process, for samplers that follow one.
        temperature: Divides the logits; 0 takes the most probable token.
        top_k: Tokens to keep; null keeps all.
        top_p: Probability mass to keep, in (0, 1].
        min_p: Least probability to keep relative to the most probable token.
        trace: Record what is revealed when.
    """

    law: ClassVar[str]
    """Which distribution ``predict`` draws from, in words."""

    def __init__(
        self,
        *,
        model: Model,
        tokenizer: Tokenizer,
        noise_schedule: NoiseSchedule | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        min_p: float = 0.0,
        trace: bool = False,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._noise_schedule = noise_schedule
        self.filter = TokenFilter(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        self.trace = trace
        self.suppressed = suppressed_ids(tokenizer)

    @property
    def noise_schedule(self) -> NoiseSchedule | None:
        """The schedule of the reverse process."""
        return self._noise_schedule

    @abstractmethod
    def fill(self, batch: MaskedPredictionBatch, trace: Trace | None) -> Filled:
        """Whole rows with every predicted position filled in, and the network calls of each row."""

    @torch.no_grad()
    def predict(self, batch: MaskedPredictionBatch) -> Predictions:
        """Fill in the rows and read off their answers."""
        trace = Trace() if self.trace else None
        ids, n_calls = self.fill(batch, trace)
        real, place = real_tokens(batch), places(batch)
        eos_id = -1 if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id
        answer, lengths = answers(
            ids,
            real & (place >= batch["prompt_lengths"][:, None]),
            ends_at=torch.where(batch["ends_at_eos"], eos_id, -1),
            pad_id=self.tokenizer.pad_token_id or 0,
        )
        predictions: Predictions = {"ids": answer, "lengths": lengths, "n_calls": n_calls}
        if trace is not None:
            predictions["trace"] = trace.events()
        return predictions

    def to_dict(self, batch: MaskedPredictionBatch, preds: Predictions) -> list[dict[str, Any]]:
        """One JSON-ready row each; ``prompt`` is the prompt's text, or the template with its mask tokens."""
        given = real_tokens(batch) & (
            (places(batch) < batch["prompt_lengths"][:, None]) | ~batch["ends_at_eos"][:, None]
        )
        rows = []
        for i, (ids, n) in enumerate(zip(preds["ids"].tolist(), preds["lengths"].tolist(), strict=True)):
            rows.append(
                {
                    "index": int(batch["index"][i]),
                    "prompt": self.tokenizer.decode(batch["input_ids"][i][given[i]].tolist()),
                    "prediction": self.tokenizer.decode(ids[:n], skip_special_tokens=True),
                    "ids": ids[:n],
                    "n_calls": int(preds["n_calls"][i]),
                }
            )
        if "trace" in preds:
            for row, events in zip(rows, by_row(preds["trace"], len(rows)), strict=True):
                row["trace"] = events
        return rows

    @torch.no_grad()
    def log_likelihood(self, batch: MDLMBatch, *, draws: int = 1) -> SequenceLikelihood:
        """Any-order bound on -log p of the predicted tokens under the model, whatever the token filters.

        ``draws`` network calls a sequence; a network conditioned on the mask rate is told the one that fits.
        """
        place, predicted, targets = places(batch), batch["predicted"], batch["target_ids"]
        suppressed = self.suppressed.to(targets.device)

        def cross_entropy(masked: Tensor, u: Tensor) -> Tensor:
            hidden = masked.gather(1, place) & predicted
            at = hidden.nonzero(as_tuple=True)
            states = self.states(batch, self.hide(targets, hidden), u)[at]
            _, costs = linear_cross_entropy(states, self.model.head.weight, targets[at], suppressed=suppressed)
            return torch.zeros_like(hidden, dtype=torch.float64).index_put(at, costs.double()).sum(1)

        # In its own place, not its column, a position's randomness does not depend on the padding before it
        at_place = torch.zeros_like(place).scatter_add(1, place, predicted.long()) > 0
        bound = any_order_bound(cross_entropy, at_place, batch["noise_key"], draws=draws)
        bound["n_tokens"] = batch["n_tokens"]
        return bound

    def hide(self, ids: Int[Tensor, "batch seq"], hidden: Bool[Tensor, "batch seq"]) -> Int[Tensor, "batch seq"]:
        """The mask token at hidden positions."""
        assert self.tokenizer.mask_token_id is not None
        return ids.masked_fill(hidden, self.tokenizer.mask_token_id)

    def states(
        self,
        batch: Mapping[str, Any],
        ids: Int[Tensor, "batch seq"],
        mask_rate: Float[Tensor, " rows"],
        rows: Int[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows seq d_model"]:
        """States of some rows (None: of all), whose tokens are now ``ids``."""
        chosen = [ids, batch["attention_mask"], batch["positions"], batch.get("segments")]
        if rows is not None and len(rows) < len(ids):
            chosen = [None if values is None else values[rows] for values in chosen]
        ids, attention_mask, positions, segments = chosen
        return self.model.hidden(ids, attention_mask, positions=positions, segments=segments, mask_rate=mask_rate)

    def logits(self, states: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows vocab"]:
        """Logits without the tokens that are never generated."""
        return suppress(self.model.head(states), self.suppressed.to(states.device))

    def draw(
        self, states: Float[Tensor, "rows d_model"], u: Float[Tensor, " rows"]
    ) -> tuple[Int[Tensor, " rows"], Float[Tensor, " rows"]]:
        """One token a row from the filtered distribution, and its probability there."""
        logits = self.filter(self.logits(states))
        tokens = draw(logits, u)
        return tokens, logits.softmax(-1).gather(1, tokens[:, None]).squeeze(1)


class PlannedPredictor(MDLMPredictor):
    """A sampler whose positions are revealed by a plan that no token changes."""

    @abstractmethod
    def plan(self, u: Float[Tensor, "batch seq"], predicted: Bool[Tensor, "batch seq"]) -> RevealPlan:
        """When each predicted position is revealed, from one uniform number a position."""

    def fill(self, batch: MaskedPredictionBatch, trace: Trace | None) -> Filled:
        """Call the network for the rows that reveal something in a step, and its head where they do."""
        ids, place = self.hide(batch["input_ids"], batch["predicted"]), places(batch)
        plan = self.plan(placed_uniforms(batch, REVEAL_STREAM), batch["predicted"])
        token_u = placed_uniforms(batch, TOKEN_STREAM)
        n_calls = torch.zeros_like(batch["index"])
        for step in torch.unique(plan.step[batch["predicted"]]).tolist():
            reveal = plan.step == step
            rows = reveal.any(1).nonzero().squeeze(1)
            i, column = reveal[rows].nonzero(as_tuple=True)
            states = self.states(batch, ids, plan.mask_rate[rows, step], rows)
            row = rows[i]
            tokens, probabilities = self.draw(states[i, column], token_u[row, column])
            ids[row, column] = tokens
            n_calls[rows] += 1
            if trace is not None:
                trace.record(step, "reveal", row, place[row, column], tokens, probabilities)
        return ids, n_calls


def real_tokens(batch: Mapping[str, Any]) -> Bool[Tensor, "batch seq"]:
    """True where no padding stands."""
    mask: Tensor | None = batch["attention_mask"]
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask


def places(batch: Mapping[str, Any]) -> Int[Tensor, "batch seq"]:
    """Place of each token in its row, left padding not counted."""
    ids: Tensor = batch["input_ids"]
    positions: Tensor | None = batch["positions"]
    return torch.arange(ids.shape[1], device=ids.device).expand_as(ids) if positions is None else positions


def placed_uniforms(batch: MaskedPredictionBatch, stream: int) -> Float64[Tensor, "batch seq"]:
    """One uniform number a position, a function of the row's key and the position's place."""
    u = uniforms(batch["noise_key"], batch["input_ids"].shape[1], stream=stream, dtype=torch.float64)
    return u.gather(1, places(batch))
